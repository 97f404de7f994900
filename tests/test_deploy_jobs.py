"""Jobs of `python -m serving.deploy.jobs`: what bash, sbatch, Kubernetes and the commands take."""

import json
import os
import shlex
import stat
import subprocess
import sys

import kubernetes_schemas
import kubernetes_validate
import pytest
import yaml
from commands import command

from serving.deploy.job_files import Job, render
from serving.deploy.render import DeployError

SEARCH = ("--manual_dir=/my data", "--tuner=hyperband", "--weights=none", "--max_epochs=9")
SCAN = ("--stage1=/runs/a b", "--stage2=$(HOME)", "--stride=50")

#: Of those that `man sbatch` and `man srun` (Slurm 23.11, SchedMD) list, the ones that may be used.
SBATCH = {"array", "cpus-per-task", "job-name", "mem", "mem-per-cpu", "ntasks", "output", "time"}
SRUN = {"exact", "nodelist", "nodes", "ntasks"}


def job(kind, **values):
    arguments = SEARCH if kind == "search" else SCAN
    return Job(**{"kind": kind, "arguments": arguments, "command": "python", **values})


def run_script(kind, tmp_path, **environment):
    """Runs a Slurm script with stand-ins for srun and python; returns the calls of the latter."""
    stand_in = tmp_path / "bin"
    stand_in.mkdir()
    log = tmp_path / "calls"
    python = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == "-m":
    names = ("KERASTUNER_TUNER_ID", "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT")
    line = json.dumps([sys.argv[1:], {{name: os.environ.get(name) for name in names}}])
    with open({str(log)!r}, "a") as file:
        file.write(line + "\\n")
"""
    # Its own options, then a command: twice where there are two tasks.
    srun = f"""#!{sys.executable}
import json, os, subprocess, sys
at = next(n for n, each in enumerate(sys.argv[1:], 1) if not each.startswith("--"))
with open({str(tmp_path / "sruns")!r}, "a") as file:
    file.write(json.dumps(sys.argv[1:at]) + "\\n")
tasks = next(int(each[9:]) for each in sys.argv if each.startswith("--ntasks="))
for rank in range(tasks):
    subprocess.run(sys.argv[at:], check=True, env={{**os.environ, "SLURM_PROCID": str(rank)}})
"""
    for name, text in (("python", python), ("srun", srun)):
        (stand_in / name).write_text(text)
        (stand_in / name).chmod(0o755)
    text = render(job(kind, workers=2))[f"{kind}.slurm.sh"]
    (tmp_path / "job.sh").write_text(text)
    places = {"PATH": f"{stand_in}:{os.environ['PATH']}", **environment}
    subprocess.run(
        ["bash", "job.sh"], cwd=tmp_path, env={**os.environ, **places}, check=True, timeout=60
    )
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def refused(module, arguments):
    """What a module says of flags that it does not have, or of values that it does not take."""
    code = (
        "import sys, json; from absl import flags; import importlib; importlib.import_module("
        "sys.argv[1]); flags.FLAGS.mark_as_parsed(); flags.FLAGS.unparse_flags(); "
        "print(json.dumps(flags.FLAGS(['x', *json.loads(sys.argv[2])], known_only=False)[1:]))"
    )
    typed = [sys.executable, "-c", code, module, json.dumps(arguments)]
    done = subprocess.run(typed, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["search", "scan"])
def test_slurm_scripts_are_bash_with_documented_options(kind):
    script = render(job(kind, workers=3, cpus=3, memory_mib=1000, hours=7))[f"{kind}.slurm.sh"]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    options = dict(line.removeprefix("#SBATCH --").split("=", 1) for line in lines)
    assert options.keys() <= SBATCH
    assert options["time"] == "7:00:00" and options["cpus-per-task"] == "3"
    if kind == "search":
        # The chief is a task, too.
        assert options["ntasks"] == "4" and options["mem-per-cpu"] == "334M"
    else:
        assert options["array"] == "0-2" and options["mem"] == "1000M"
    # sbatch stops reading options at the first command.
    assert script.index("#SBATCH") < script.index("set -euo")


def test_the_search_of_slurm_is_a_chief_and_its_workers(tmp_path):
    calls = run_script("search", tmp_path)
    assert sorted(environment["KERASTUNER_TUNER_ID"] for _, environment in calls) == [
        "chief",
        "worker_0",
        "worker_1",
    ]
    for arguments, environment in calls:
        assert arguments == ["-m", "finetune.search", "--search_dir=search", *SEARCH]
        assert environment["KERASTUNER_ORACLE_IP"] and environment["KERASTUNER_ORACLE_PORT"]
    for line in (tmp_path / "sruns").read_text().splitlines():
        assert {each.removeprefix("--").split("=")[0] for each in json.loads(line)} <= SRUN
    secret = tmp_path / ".search-secret"
    assert len(secret.read_text().strip()) >= 16
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["search", "scan"])
def test_every_flag_is_one_of_its_command(kind, tmp_path):
    module, own = {
        "search": ("finetune.search.__main__", ["--search_dir=search"]),
        "scan": ("replication.scan", ["--scan_dir=scan_0", "--workers=2"]),
    }[kind]
    # Places must be there.
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text("{}")
    names = [each.split("=")[0] for each in job(kind).arguments]
    kept = [
        f"{name}={run}" if name in PLACES else each
        for name, each in zip(names, job(kind).arguments, strict=True)
    ]
    assert refused(module, [*own, *kept, "--", "a slide"]) == ["a slide"]
    assert "no_such_flag" in refused(module, [*own, "--no_such_flag=1"])


PLACES = ("--manual_dir", "--stage1", "--stage2")


@pytest.mark.parametrize("task", [0, 1])
def test_tasks_of_a_scan_share_the_list(tmp_path, task):
    (tmp_path / "slides.txt").write_text("a 1.svs\nb.svs\n\nd.svs\ne.svs\n")
    ((arguments, _),) = run_script("scan", tmp_path, SLURM_ARRAY_TASK_ID=str(task))
    slides = [["a 1.svs", "e.svs"], ["b.svs", "d.svs"]][task]
    own = [f"--scan_dir=scan_{task}", "--workers=4"]
    assert arguments == ["-m", "replication.scan", *own, *SCAN, "--", *slides]


def test_a_task_without_slides_ends_well(tmp_path):
    (tmp_path / "slides.txt").write_text("a.svs\n")
    assert run_script("scan", tmp_path, SLURM_ARRAY_TASK_ID="1") == []


@pytest.mark.parametrize("kind", ["search", "scan"])
def test_kubernetes_jobs_keep_to_their_schema(kind):
    text = render(job(kind, workers=3, hours=2))[f"{kind}.kubernetes.yaml"]
    documents = list(yaml.safe_load_all(text))
    for each in documents:
        kubernetes_schemas.check(each)
    jobs = [each for each in documents if each["kind"] == "Job"]
    for each in jobs:
        (container,) = each["spec"]["template"]["spec"]["containers"]
        subprocess.run(["bash", "-n"], input=container["command"][2], text=True, check=True)
        # Of "$$(", Kubernetes makes "$(" again.
        arguments = [one.replace("$$(", "$(") for one in container["args"]]
        assert tuple(arguments[1:]) == (SEARCH if kind == "search" else SCAN)
        volumes = {one["name"] for one in each["spec"]["template"]["spec"]["volumes"]}
        assert volumes == {one["name"] for one in container["volumeMounts"]}
        assert each["spec"]["activeDeadlineSeconds"] == 7200
    assert jobs[-1]["spec"]["completionMode"] == "Indexed" and jobs[-1]["spec"]["completions"] == 3
    if kind == "search":
        (service,) = (each for each in documents if each["kind"] == "Service")
        chief = jobs[0]["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"] == chief
        worker = jobs[1]["spec"]["template"]["spec"]["containers"][0]["command"][2]
        assert f"KERASTUNER_ORACLE_IP={service['metadata']['name']} " in worker
    broken = json.loads(json.dumps(jobs[0]).replace("backoffLimit", "backofLimit"))
    with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
        kubernetes_schemas.check(broken)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image": "a b"}, "--image='a b'"),
        ({"arguments": ("--search_dir=x",)}, "--search_dir=x: the job names this directory itself"),
        ({"arguments": ("a\nb",)}, "expected printable"),
    ],
)
def test_what_would_break_a_job_is_refused(values, said):
    with pytest.raises(DeployError) as error:
        job("search", **values)
    assert said in str(error.value)


def test_the_command_writes_both_files(tmp_path):
    typed = ("--job=scan", "--workers=2", "--", *SCAN)
    done = command("serving.deploy.jobs", *typed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = shlex.join(["python", "-m", "serving.deploy.jobs", *typed])
    expected = render(job("scan", workers=2, command=line))
    assert {path.name: path.read_text() for path in (tmp_path / "deploy").iterdir()} == expected
