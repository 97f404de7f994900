"""What a wheel holds is what the tree has, and it works from an empty folder."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tfds_pap", "replication", "finetune", "serving")
#: Read by setup.cfg when the wheel is built.
NOT_AT_WORK = {"serving/client/requirements.txt"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the tree, unpacked; built without network."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    hidden = shutil.ignore_patterns("__pycache__")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=hidden)
    for name in ("setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # The backend of pyproject.toml, called as pip calls it: with the setuptools that is here.
    built = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from setuptools import build_meta as b; b.build_wheel({str(folder)!r})",
        ],
        cwd=source,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    there = {
        str(path.relative_to(ROOT))
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    kept = {str(path.relative_to(wheel)) for path in wheel.rglob("*") if path.is_file()}
    assert there - kept == NOT_AT_WORK
    outside = {name for name in kept - there if ".dist-info" not in name}
    assert not outside, outside


def test_the_wheel_has_the_command_the_licence_and_what_it_needs(wheel):
    (info,) = wheel.glob("*.dist-info")
    metadata = (info / "METADATA").read_text()
    assert "pap = replication.pap:main" in (info / "entry_points.txt").read_text()
    assert [*info.rglob("LICENSE")] and "License" in metadata
    client = re.findall(r"Requires-Dist: ([\w-]+).*extra == ['\"]client['\"]", metadata)
    assert {"grpcio", "requests"} <= {*client} and "tensorflow" not in client


FROM_WHEEL = """
import sys
from replication import pap
assert pap.__file__.startswith(sys.argv.pop(1)), pap.__file__
pap.main()
"""


def test_a_run_from_the_wheel_in_an_empty_folder(wheel, manual_dir, tmp_path):
    line = "run --epochs=1 --stages=1 --protocol=paper --scan_fields=0 --audit=off --data_dir=data"
    line += f" --manual_dir={manual_dir} --images=stand-in"
    done = subprocess.run(
        [sys.executable, "-c", FROM_WHEEL, str(wheel), *line.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        # Before the packages of the environment, where the tree itself may be installed.
        env=os.environ | {"PYTHONPATH": str(wheel)},
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "runs/original/report.html").read_text()
    assert "</html>" in page and "Traceback" not in done.stderr
