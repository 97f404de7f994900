"""Runs the tutorial's cells, keeps their outputs in the notebook, and writes it as a page.

    python docs/notebook.py            # runs it in an empty folder and stores text and pictures

A cell's outputs are what it prints and the value of its last line: text, a table or a picture.
"""

import ast
import contextlib
import io
import json
import tempfile
from base64 import b64encode
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).with_name("tutorial.ipynb")


def main() -> None:
    """Runs the notebook and stores what came out."""
    notebook = json.loads(NOTEBOOK.read_text())
    with tempfile.TemporaryDirectory() as folder:
        run(notebook, Path(folder))
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def run(notebook: dict[str, Any], folder: Path) -> None:
    """Runs every cell of code in one namespace, and puts outputs in place of those before.

    Args:
        notebook: As in the file.
        folder: Where it runs.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    with contextlib.chdir(folder):
        for cell in notebook["cells"]:
            if cell["cell_type"] != "code":
                continue
            number += 1
            text, value = _run_cell("".join(cell["source"]), namespace, number)
            cell["execution_count"] = number
            cell["outputs"] = [
                *([{"name": "stdout", "output_type": "stream", "text": _lines(text)}] * bool(text)),
                *([_result(value, number)] * (value is not None)),
            ]


def _run_cell(source: str, namespace: dict[str, Any], number: int) -> tuple[str, Any]:
    body = ast.parse(source, f"<cell {number}>").body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(body, []), f"<cell {number}>", "exec"), namespace)
        value = None
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"<cell {number}>", "eval"), namespace)
    return printed.getvalue(), value


def _result(value: Any, number: int) -> dict[str, Any]:
    data: dict[str, Any] = {"text/plain": _lines(repr(value))}
    if hasattr(value, "_repr_png_"):
        data = {
            "image/png": b64encode(value._repr_png_()).decode(),
            "text/plain": ["<picture>"],
        }
    elif hasattr(value, "_repr_html_"):
        data["text/html"] = _lines(value._repr_html_())
    return {
        "data": data,
        "execution_count": number,
        "metadata": {},
        "output_type": "execute_result",
    }


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def page(notebook: dict[str, Any]) -> str:
    """Returns the notebook as Markdown for the site.

    Args:
        notebook: With its outputs.
    """
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![What the cell shows](data:image/png;base64,{data['image/png']})")
            elif "text/html" in data:
                parts.append("".join(data["text/html"]))
            else:
                text = "".join(output.get("text") or data["text/plain"])
                parts.append("```text\n" + text.rstrip() + "\n```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
