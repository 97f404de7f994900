"""What the documentation takes from the code is what the code says."""

import importlib.util
import re
import types
from pathlib import Path

import cv2
import numpy as np
from commands import command

ROOT = Path(__file__).resolve().parent.parent


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_of_flags_is_that_of_the_code():
    made = generator()
    # Forked, each takes a fraction of the time.
    made.subprocess = types.SimpleNamespace(run=lambda typed, **_: command(*typed[2:]))
    assert made.FLAGS.read_text() == made.flag_reference(), "run python docs/generate.py"


def test_the_first_page_is_readme_and_its_links_lead_somewhere():
    made = generator()
    assert made.FIRST_PAGE.read_text() == made.first_page(), "run python docs/generate.py"
    readme = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert links and all((ROOT / link).exists() for link in links)
    assert len(readme.splitlines()) <= 200


def test_the_drawn_cells_of_the_glossary_are_those_of_the_code():
    for path, picture in generator().pictures():
        shown = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        assert np.array_equal(shown, picture), "run python docs/generate.py"
