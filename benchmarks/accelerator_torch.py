"""The same networks by PyTorch with torch.compile, where torch and torchvision are installed.

A process of its own: in that of TensorFlow, importing torch ends both, and a GPU's memory is taken.
"""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

#: Backbones that torchvision has under the same name.
_NETWORKS = ("resnet50", "resnet152")


def has(backbone: str) -> bool:
    """Tells whether there is such a network."""
    return backbone in _NETWORKS


def missing() -> str:
    """Returns which package is not installed, "" where both are."""
    absent = [name for name in ("torch", "torchvision") if importlib.util.find_spec(name) is None]
    return " and ".join(absent)


def rates(
    backbone: str, size: int, batch: int, seconds: float
) -> Iterator[tuple[str, float, float]]:
    """Measures a backbone in a process that holds PyTorch alone.

    Args:
        backbone: One of ResNet50 and ResNet152.
        size: Height and width in pixels.
        batch: Images a step.
        seconds: Least time of each.

    Yields:
        "forward" or "fine-tuning", seconds of the first step, images a second after it.

    Raises:
        PapError: If that process fails, with the last line it wrote.
    """
    from tfds_pap.errors import PapError

    command = [sys.executable, __file__, backbone, str(size), str(batch), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise PapError(f"PyTorch ended with status {done.returncode}: {last}")
    for line in done.stdout.splitlines():
        way, start, rate = json.loads(line)
        yield way, start, rate


def _rates(
    backbone: str, size: int, batch: int, seconds: float
) -> Iterator[tuple[str, float, float]]:
    """See `rates`; bfloat16 on a GPU and float32 on a processor."""
    import torch
    import torchvision

    place = "cuda" if torch.cuda.is_available() else "cpu"
    network = getattr(torchvision.models, backbone)(num_classes=4).to(
        place, memory_format=torch.channels_last
    )
    images = torch.rand(batch, 3, size, size, device=place).to(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=place) % 4
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    compiled = torch.compile(network)

    def forward() -> None:
        with torch.no_grad(), torch.autocast(place, torch.bfloat16, enabled=place == "cuda"):
            compiled(images)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(place, torch.bfloat16, enabled=place == "cuda"):
            loss = torch.nn.functional.cross_entropy(compiled(images), labels)
        loss.backward()
        optimizer.step()

    def wait() -> None:
        if place == "cuda":
            torch.cuda.synchronize()

    network.eval()
    yield "forward", *_measured(forward, wait, batch, seconds)
    network.train()
    yield "fine-tuning", *_measured(train, wait, batch, seconds)


def _measured(
    step: Callable[[], None], wait: Callable[[], None], batch: int, seconds: float
) -> tuple[float, float]:
    start = time.perf_counter()
    step()
    wait()
    begin = time.perf_counter()
    steps = 0
    while not steps or time.perf_counter() - begin < seconds:
        step()
        wait()
        steps += 1
    return begin - start, steps * batch / (time.perf_counter() - begin)


if __name__ == "__main__":
    for measured in _rates(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])):
        print(json.dumps(measured), flush=True)
