"""The notebook runs, shows what it says, and its page holds what it shows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import command

DOCS = Path(__file__).resolve().parents[1] / "docs"
sys.path.insert(0, str(DOCS))
import notebook  # noqa: E402

#: What makes its commands small.
SMALL = {
    "compare": ["--size=32", "--epochs=1", "--backbones=tiny"],
    "run": ["--epochs=1"],
}

PAP = [sys.executable, "-m", "replication.pap"]


def shown(cells):
    """Text of all outputs, and how many of them are pictures."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    text = "".join("".join(output.get("text", [])) for output in outputs)
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.fixture(scope="module")
def kept():
    return json.loads(notebook.NOTEBOOK.read_text())


def test_the_notebook_runs_and_shows_what_it_says(kept, tmp_path, monkeypatch, tiny_backbone):
    as_it_is = subprocess.run

    def run(line, **options):
        # Forked from a process that has imported TensorFlow, as commands of other tests are.
        if line[:3] == PAP and "--server" not in " ".join(line):
            # Smaller than it is shown: what it says is the same.
            return command("replication.pap", *line[3:], *SMALL.get(line[3], ()), tiny=True)
        return as_it_is(line, **options)

    monkeypatch.setattr(subprocess, "run", run)
    anew = json.loads(json.dumps(kept).replace("mobilenetv2_035", tiny_backbone))
    notebook.run(anew, tmp_path)
    text, pictures = shown(anew["cells"])
    for said in (
        "1 of 33 validation images have a twin in train",
        "Frozen backbones compared",
        "Report: runs/own/report.html",
        "Published: models/pap_stage2/1",
        "8 of 8 images named",
    ):
        assert said in text and said in shown(kept["cells"])[0], said
    assert pictures == shown(kept["cells"])[1] >= 3
    assert (tmp_path / "runs/own/report.html").exists()


def test_the_page_holds_every_cell_and_picture(kept):
    page = notebook.page(kept)
    assert page.count("data:image/png;base64,") == shown(kept["cells"])[1]
    assert page.count("```python") == sum(cell["cell_type"] == "code" for cell in kept["cells"])
    assert page.startswith("# From your own folder of images to a served prediction")


def test_what_a_cell_prints_and_what_it_ends_with_are_outputs(tmp_path):
    cells = [
        {"cell_type": "code", "source": ["a = 2\n", "print(a)\n", "a + 1"], "outputs": ["old"]},
        {"cell_type": "markdown", "source": ["text"]},
        {"cell_type": "code", "source": ["b = a"], "outputs": ["old"]},
    ]
    notebook.run({"cells": cells}, tmp_path)
    stream, result = cells[0]["outputs"]
    assert stream["text"] == ["2\n"] and result["data"]["text/plain"] == ["3"]
    assert cells[2]["outputs"] == []
    with pytest.raises(ZeroDivisionError):
        notebook.run({"cells": [{"cell_type": "code", "source": ["1 / 0"]}]}, tmp_path)
