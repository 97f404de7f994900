"""What a job for many machines is rendered from, and its files for Slurm and for Kubernetes."""

import dataclasses
import re
import shlex

from serving.deploy.render import DeployError, templates

#: Where the volume lies in a pod; commands run there.
WORK = "/mnt/pap"

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")


@dataclasses.dataclass(frozen=True)
class Job:
    """What the two files of a job are rendered from.

    Attributes:
        kind: "search" or "scan".
        arguments: Of finetune.search or replication.scan.
        command: The command that makes the files, for their first lines.
        workers: Workers beside the chief, or tasks of a scan.
        cpus: Processors of a task.
        memory_mib: Its memory, in MiB.
        hours: That it may take.
        list: Of a scan: file with a path a line.
        image: Container image.
        volume_claim: Kubernetes claim on the shared volume.

    Raises:
        DeployError: A value that cannot be used.
    """

    kind: str
    arguments: tuple[str, ...]
    command: str
    workers: int = 4
    cpus: int = 4
    memory_mib: int = 8192
    hours: int = 24
    list: str = "slides.txt"
    image: str = "pap-two-stage"
    volume_claim: str = "pap-work"

    def __post_init__(self) -> None:
        for name, text in (("image", self.image), ("volume_claim", self.volume_claim)):
            if not _WORD.fullmatch(text):
                raise DeployError(f"--{name}={text!r}: expected a name")
        for text in (*self.arguments, self.command, self.list):
            if not text.isprintable():
                raise DeployError(f"{text!r}: expected printable characters")
        taken = ("--search_dir", "--scan_dir")
        if wrong := [each for each in self.arguments if each.split("=")[0] in taken]:
            raise DeployError(f"{wrong[0]}: the job names this directory itself")

    @property
    def shell_arguments(self) -> str:
        """The arguments as a shell reads them."""
        return shlex.join(self.arguments)


def render(job: Job) -> dict[str, str]:
    """Returns the Slurm script and the Kubernetes manifest by their file names.

    Args:
        job: What they are rendered from.
    """
    environment = templates()
    # Kubernetes puts variables where it reads $(NAME) in a command.
    quoted = environment.filters["quoted"]
    environment.filters["kubernetes_quoted"] = lambda value: quoted(str(value).replace("$(", "$$("))
    environment.filters["shell"] = shlex.quote
    return {
        name: environment.get_template(f"{name}.j2").render(job=job, work=WORK)
        for name in (f"{job.kind}.slurm.sh", f"{job.kind}.kubernetes.yaml")
    }
