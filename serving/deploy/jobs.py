"""Writes jobs for many machines, for Slurm and for Kubernetes: a search, or a scan of slides.

    python -m serving.deploy.jobs --job=search --workers=4 -- --manual_dir=/data --tuner=hyperband
    python -m serving.deploy.jobs --job=scan --workers=8 -- --stage1=RUN --stage2=RUN
    sbatch deploy/search.slurm.sh

What follows `--` are the command's own flags. A search is a chief, which hands out trials, and
workers, which train them. A scan is a job array: each task scans its share of the lines of --list,
into a directory of its own. Both may be started again after a kill: the same commands go on where
they were.
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from serving.deploy.job_files import Job, render
from tfds_pap import commands, files, path_flags

_JOB = flags.DEFINE_enum("job", None, ["search", "scan"], "What is to be run.", required=True)
_WORKERS = flags.DEFINE_integer(
    "workers", 4, "Workers of a search beside its chief, or tasks of a scan (default: 4).", 1, 1000
)
_OUTPUT_DIR = path_flags.define(
    "output_dir", "deploy", "Where to write (default: deploy).", path_flags.NEW_FOLDER
)
_CPUS = flags.DEFINE_integer("cpus", 4, "Processors of a task (default: 4).", 1, 1024)
_MEMORY_MIB = flags.DEFINE_integer(
    "memory_mib", 8192, "Memory of a task in MiB (default: 8192).", 256, 2**24
)
_HOURS = flags.DEFINE_integer("hours", 24, "Hours that a task may take (default: 24).", 1, 8760)
_LIST = flags.DEFINE_string(
    "list",
    "slides.txt",
    "Of a scan: file with a path of a field or slide a line, as the tasks see it (default: "
    "slides.txt).",
)
_IMAGE = flags.DEFINE_string(
    "image", "pap-two-stage", "Of Kubernetes: image with this package (default: pap-two-stage)."
)
_VOLUME_CLAIM = flags.DEFINE_string(
    "volume_claim",
    "pap-work",
    "Of Kubernetes: claim on the volume that all tasks read and write (default: pap-work).",
)


def main(argv: list[str]) -> None:
    """Renders both files and writes them."""
    job = Job(
        kind=_JOB.value,
        arguments=tuple(argv[1:]),
        command=shlex.join(["python", "-m", "serving.deploy.jobs", *sys.argv[1:]]),
        workers=_WORKERS.value,
        cpus=_CPUS.value,
        memory_mib=_MEMORY_MIB.value,
        hours=_HOURS.value,
        list=_LIST.value,
        image=_IMAGE.value,
        volume_claim=_VOLUME_CLAIM.value,
    )
    output_dir = Path(_OUTPUT_DIR.value)
    for name, text in render(job).items():
        files.write_atomically(output_dir / name, text)
        print(f"{output_dir / name}: written")
    print(f"Start: sbatch {shlex.quote(str(output_dir / f'{job.kind}.slurm.sh'))}")
    print(f"   or: kubectl apply -f {shlex.quote(str(output_dir / f'{job.kind}.kubernetes.yaml'))}")


if __name__ == "__main__":
    commands.run(main, commands.STARTS_AGAIN)
