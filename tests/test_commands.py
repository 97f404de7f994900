"""How commands start and end: quiet, and with one line after Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import start

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = sorted(
    path
    for package in ("tfds_pap", "replication", "finetune", "serving")
    for path in (ROOT / package).rglob("*.py")
    if 'if __name__ == "__main__":' in path.read_text()
    # It runs the others.
    and path.name != "pap.py"
)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_ends_on_ctrl_c_as_all_do(path):
    ending = path.read_text().partition('if __name__ == "__main__":')[2]
    assert "commands.run(main, commands." in ending


def test_ctrl_c_in_training_is_one_line_and_the_run_goes_on(manual_dir, data_dir, tmp_path):
    arguments = ("--stages=1", "--scan_fields=0", "--audit=off", "--protocol=paper")
    places = (f"--manual_dir={manual_dir}", f"--data_dir={data_dir}", f"--run_dir={tmp_path}/run")
    files = {name: tmp_path / name for name in ("stdout", "stderr")}
    started = start("replication.run", *arguments, *places, "--epochs=100000", **files)
    while not (tmp_path / "run/stage1/paper/seed_0/state.npz").exists():
        assert started.poll() is None, files["stderr"].read_text()
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    assert started.wait() == 130
    output, error = (file.read_text() for file in files.values())
    assert error.rstrip().endswith(
        "replication.run: interrupted; the same command goes on where it was"
    )
    # Nothing but the progress line stands before it.
    chatter = [line for line in error.replace("\r", "\n").splitlines()[:-1] if line.strip()]
    assert chatter and all(line.startswith(("fit 1 of 1", "audit: ")) for line in chatter), chatter
    assert "Plan: 1 fit, at most 100000 epochs" in output and "Unknown size" not in output


PRINTS = """
import sys
from tfds_pap import commands
def main(argv):
    for _ in range(int(argv[1])):
        print("a line")
    if argv[2:]:
        raise BrokenPipeError("a connection") if argv[2] == "raise" else SystemExit(argv[2])
commands.run(main, commands.STARTS_AGAIN)
"""


@pytest.mark.parametrize(
    ("arguments", "unbuffered", "status"),
    [(["100000"], "", 141), (["1"], "", 0), (["1", "why"], "", 1), (["1"], "1", 141)],
)
def test_a_command_whose_reader_has_gone_ends_quietly(arguments, unbuffered, status):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as output:
        ended = subprocess.run(
            [sys.executable, "-c", PRINTS, *arguments],
            **{"stdout": output, "stderr": subprocess.PIPE, "text": True},
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert (ended.returncode, ended.stderr) == (status, "why\n" if arguments[1:] else "")


def test_a_connection_that_breaks_is_an_error():
    ended = subprocess.run(
        [sys.executable, "-c", PRINTS, "1", "raise"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (1, "-c: a connection\n")


SPEAKS = """
from tfds_pap import commands, tree_files
def main(argv):
    print("1 − 0.5 … 2 × 3 ± 0.1 ≥ Größe 汉")
    raise tree_files.AmbiguousTreeError("Zähler …")
commands.run(main, commands.STARTS_AGAIN)
"""


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "utf-8"}])
def test_a_terminal_without_utf_8_gets_plain_substitutes(settings):
    ended = subprocess.run(
        [sys.executable, "-c", SPEAKS], capture_output=True, env=os.environ | settings
    )
    said = ended.stdout.decode(), ended.stderr.decode()
    if settings["PYTHONIOENCODING"] == "ascii":
        assert said == ("1 - 0.5 ... 2 x 3 +- 0.1 >= Gr??e ?\n", "-c: Z?hler ...\n")
    else:
        assert said == ("1 − 0.5 … 2 × 3 ± 0.1 ≥ Größe 汉\n", "-c: Zähler …\n")
    # What can be meant in several ways asks back.
    assert ended.returncode == 2


SCRIPT = """
import os, sys
from tfds_pap import commands
def main(argv):
    commands.prepare_tensorflow()
    import tensorflow as tf
    tf.constant(1)
    if len(argv) > 1:
        raise KeyboardInterrupt("answers until then: out.csv")
commands.run(main, commands.STARTS_AGAIN)
"""


def test_the_import_of_tensorflow_is_silent_and_errors_are_not(tmp_path):
    told = subprocess.run([sys.executable, "-c", SCRIPT, "x"], capture_output=True, text=True)
    assert (told.returncode, told.stdout) == (130, "")
    # Nothing else: the import said nothing.
    assert told.stderr == "\n-c: interrupted; answers until then: out.csv\n"
    (tmp_path / "tensorflow.py").write_text(
        "import os\nos.write(2, b'why')\nraise RuntimeError('no')\n"
    )
    broken = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert broken.returncode == 1 and "why" in broken.stderr and "RuntimeError: no" in broken.stderr


RUN_DIR_FAULT = "--run_dir=/proc/version/x: /proc/version is no folder"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["replication.run", "--manual_dir=NONE"], "--manual_dir=NONE: no such folder"),
        (["tfds_pap.audit", "--folders=NONE"], "--folders=NONE: no such folder"),
        (["replication.compare", "--folders=NONE"], "--folders=NONE: no such folder"),
        (["replication.compare", "--folders=no://x"], "--folders=no://x: no protocol of fsspec's"),
        (["replication.compare", "--weights=NONE"], "--weights=NONE: no such file or folder, and"),
        (["finetune.search", "--space=NONE.py"], "--space=NONE.py: expected paper, extended, or"),
        (["finetune.search", "--manual_dir=~/NONE"], "--manual_dir=~/NONE: no such folder"),
        (["replication.scan", "--stage1=NONE", "x"], "--stage1=NONE: not a run directory"),
        (["replication.predict", "--run_dir=NONE", "x"], "--run_dir=NONE: not a run directory"),
        (["serving.export", "--run_dir=NONE", "--serving_dir=s"], "--run_dir=NONE: not a run"),
        (["serving.export"], "--run_dir, --serving_dir: must be given"),
        (["replication.run", "--run_dir=/proc/version/x"], RUN_DIR_FAULT),
        (["replication.run", "--data_dir=/proc/version"], "--data_dir=/proc/version: is no folder"),
        (["replication.run", "--nonsense"], "unknown command line flag 'nonsense'; --help"),
        (["replication.run", "--protocol=x"], "--protocol=x: value should be one of <paper|"),
        (["replication.run", "x"], "unexpected argument 'x'; every option is a --flag"),
        (["replication.run", "--help"], None),
    ],
)
def test_flags_and_paths_are_checked_before_anything_slow_is_imported(tmp_path, line, said):
    for package in ("tensorflow", "keras"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('it was imported')")
    places = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", *line],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": places},
        timeout=60,
    )
    if said is None:
        assert done.returncode == 0 and "--manual_dir" in done.stdout
    else:
        assert done.returncode == 1
        assert done.stderr.startswith(f"{line[0]}: {said}"), done.stderr
        assert done.stderr.count("\n") == 1
