"""The command `pap`, and what `pap doctor` says of a machine."""

import importlib.util
import socket
import subprocess
import sys

import pytest

from replication import doctor, pap

ANSWERS = [sys.executable, "-m", "replication.pap"]


def modules():
    return {name: module for group in pap.COMMANDS.values() for name, (module, _) in group.items()}


def test_every_command_is_a_module_that_can_be_run():
    for module in [*modules().values(), pap.ASKS_A_SERVER]:
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        if spec.submodule_search_locations:
            assert importlib.util.find_spec(f"{module}.__main__") is not None, module


def test_help_names_every_command_and_imports_nothing_slow():
    script = (
        "import sys; sys.argv = ['pap', '--help']\n"
        "from replication import pap; pap.main()\n"
        "slow = {'absl', 'numpy', 'keras', 'tensorflow', 'matplotlib'} & {*sys.modules}\n"
        "assert not slow, slow"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    for name in modules():
        assert f"\n  {name} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_a_misspelt_command_is_answered_with_the_nearest(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pap", "serach"])
    with pytest.raises(SystemExit) as ended:
        pap.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "pap: no command 'serach'; did you mean 'search'?\n"


@pytest.mark.parametrize(
    ("line", "module", "left"),
    [
        (["predict", "--run_dir=RUN", "x.png"], "replication.predict", ["--run_dir=RUN", "x.png"]),
        (["predict", "--server=h:1", "x.png"], "serving.predict", ["--server=h:1", "x.png"]),
        (["serve"], "serving.server", []),
    ],
)
def test_a_command_gets_its_arguments(line, module, left, monkeypatch):
    ran = []
    monkeypatch.setattr(sys, "argv", ["pap", *line])
    monkeypatch.setattr(pap.runpy, "run_module", lambda name, **_: ran.append((name, sys.argv[1:])))
    pap.main()
    assert ran == [(module, left)]


def test_the_doctor_names_what_is_missing_and_what_mends_it():
    needs = ["numpy>=1", "numpy>=999", "no-such-package>=2", 'left-out>=1; extra == "dev"']
    bad = [fact for fact in doctor.packages(needs) if fact.state == "bad"]
    assert [fact.mend for fact in bad] == [
        "pip install 'numpy>=999'",
        "pip install 'no-such-package>=2'",
    ]
    assert "is installed" in bad[0].words and bad[1].words.endswith("not installed")


def test_the_doctor_tries_ports_and_places(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert doctor._port(port).state == "note" and str(port) in doctor._port(port).words
    assert doctor._port(port).state == "ok"
    assert doctor._writable(tmp_path / "deep" / "er").state == "ok"
    assert not (tmp_path / "deep").exists()
    file = tmp_path / "file"
    file.write_text("")
    barred = doctor._writable(file / "below")
    assert barred.state == "bad" and "not a directory" in barred.words


@pytest.mark.parametrize(
    ("environment", "state", "said"),
    [
        ({}, "ok", "on; the processor offers avx2"),
        ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "note", "off by TF_ENABLE_ONEDNN_OPTS; the processor"),
        ({"TF_ENABLE_ONEDNN_OPTS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"}, "note", "on, held to AVX2"),
        ({"DNNL_MAX_CPU_ISA": "ALL"}, "ok", "on; "),
    ],
)
def test_the_doctor_says_what_tensorflow_uses_of_the_processor(environment, state, said):
    fact = doctor.one_dnn(environment, "avx2")
    assert fact.state == state and fact.words.startswith(said)
    assert (fact.mend == "") == (state == "ok")


def test_a_command_whose_packages_are_not_there_says_so_in_a_line(monkeypatch):
    def missing(*_, **__):
        raise ModuleNotFoundError("No module named 'sklearn.metrics'", name="sklearn.metrics")

    monkeypatch.setattr(sys, "argv", ["pap", "run"])
    monkeypatch.setattr(pap.runpy, "run_module", missing)
    with pytest.raises(SystemExit, match="pap run: sklearn is not installed; pap doctor says"):
        pap.main()
