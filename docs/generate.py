"""Writes what the docs take from elsewhere: flags, drawn cells, README, the notebook as a page.

python docs/generate.py            # part of `make docs`
"""

import concurrent.futures
import html
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2

sys.path.insert(0, str(Path(__file__).resolve().parent))
import notebook

from replication import pap
from tfds_pap import phantom, taxonomy

DOCS = Path(__file__).resolve().parent
FLAGS = DOCS / "reference" / "flags.md"
FIRST_PAGE = DOCS / "index.md"
#: Not committed: it holds the pictures of the notebook once more.
TUTORIAL = DOCS / "tutorial.md"

_HEAD = """# Every flag of every command

Generated from the code (`python docs/generate.py`). A flag is given as `--name=value`; a boolean
one as `--name` or `--noname`. Flags of absl itself (`--flagfile`, logging) are left out.
"""


def main() -> None:
    """Writes all four."""
    FIRST_PAGE.write_text(first_page())
    FLAGS.parent.mkdir(exist_ok=True)
    FLAGS.write_text(flag_reference())
    TUTORIAL.write_text(notebook.page(json.loads(notebook.NOTEBOOK.read_text())))
    for path, picture in pictures():
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def first_page() -> str:
    """Returns README with links that hold inside docs; files outside it stand as names."""
    text = (DOCS.parent / "README.md").read_text()
    text = re.sub(r"\]\(docs/([^)]+)\)", r"](\1)", text)
    return re.sub(r"\[([^\]]+)\]\((LICENSE|CITATION\.cff|\w+\.md)\)", r"`\2`", text)


def flag_reference() -> str:
    """Returns the page: a section a command, a line a flag."""
    commands = {
        f"pap {name}": module
        for group in pap.COMMANDS.values()
        for name, (module, _) in group.items()
    }
    commands["pap predict --server=HOST:PORT"] = pap.ASKS_A_SERVER
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        sections = pool.map(_section, commands.items())
    return "\n".join([_HEAD, *sections])


def _section(command: tuple[str, str]) -> str:
    name, module = command
    answer = subprocess.run(
        [sys.executable, "-m", module, "--helpxml"], capture_output=True, text=True, check=False
    ).stdout
    lines = [f"## {name}", "", f"`python -m {module}`", "", "| flag | what it is |", "|---|---|"]
    for flag in ElementTree.fromstring(answer).iter("flag"):
        if flag.findtext("key") == "yes":
            meaning = html.escape(" ".join((flag.findtext("meaning") or "").split()), quote=False)
            lines.append(f"| `--{flag.findtext('name')}` | {meaning.replace('|', '&#124;')} |")
    return "\n".join([*lines, ""])


def pictures() -> list[tuple[Path, object]]:
    """Returns one drawn cell a class, `[250, 250, 3]` RGB, and where it is kept."""
    return [
        (DOCS / "pictures" / f"drawn_{label.lower()}.png", phantom.draw_cell(label, 3, slide=1))
        for label in taxonomy.STAGE2_CLASSES
    ]


if __name__ == "__main__":
    main()
