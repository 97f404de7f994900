"""One tool looks for twins among the images of a folder; `audit_peers.py` calls this.

    PYTHON benchmarks/peer_pairs.py TOOL FOLDER OUTPUT.json

PYTHON is that of the tool's own environment; of the others nothing is imported. Writes the pairs
that the tool reports as [first, second, score] with files' numbers, the higher the likelier, from
its loosest setting on; processor seconds; and peak memory of the tool alone in MiB.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

#: first, second, score.
Pair = tuple[int, int, float]


def _number(file: object) -> int:
    return int(Path(str(file)).stem)


def imagededup_hash(method: str) -> Callable[[Path], Iterator[Pair]]:
    """One of its four hashes; pairs whose hashes differ by up to 32 of 64 bits."""

    def find(folder: Path) -> Iterator[Pair]:
        from imagededup import methods

        hasher = getattr(methods, method)(verbose=False)
        codes = hasher.encode_images(folder, num_enc_workers=0)
        found = hasher.find_duplicates(
            encoding_map=codes, max_distance_threshold=32, scores=True, num_dist_workers=0
        )
        for file, others in found.items():
            for other, bits in others:
                yield _number(file), _number(other), -float(bits)

    return find


def imagededup_cnn(folder: Path) -> Iterator[Pair]:
    """Its search by cosine, on features that lie in the folder's features.npz where its own lack.

    Its own weights are downloaded at first use.
    """
    import numpy as np
    import torch
    from imagededup import methods, utils

    given = folder.parent / "features.npy"
    if given.exists():
        config = utils.CustomModel(
            name="given", model=torch.nn.Identity(), transform=lambda picture: picture
        )
        finder = methods.CNN(verbose=False, model_config=config)
        features = np.load(given)
        files = sorted((path.name for path in folder.iterdir()), key=_number)
        codes = dict(zip(files, features, strict=True))
    else:
        finder = methods.CNN(verbose=False)
        codes = finder.encode_images(folder, num_enc_workers=0)
    found = finder.find_duplicates(
        encoding_map=codes, min_similarity_threshold=0.5, scores=True, num_sim_workers=0
    )
    for file, others in found.items():
        for other, cosine in others:
            yield _number(file), _number(other), float(cosine)


def cleanvision(folder: Path) -> Iterator[Pair]:
    """Its sets of near and of exact duplicates, with hashes of 2 to 16 pixels a side."""
    from cleanvision import Imagelab

    for size in (2, 3, 4, 6, 8, 12, 16):
        lab = Imagelab(data_path=str(folder), verbose=False)
        lab.find_issues(
            {"exact_duplicates": {}, "near_duplicates": {"hash_size": size}},
            n_jobs=1,
            verbose=False,
        )
        for kind in ("exact_duplicates", "near_duplicates"):
            for files in lab.info[kind]["sets"]:
                numbers = sorted(map(_number, files))
                for place, second in enumerate(numbers):
                    for first in numbers[:place]:
                        yield first, second, float(size)


def fastdup(folder: Path) -> Iterator[Pair]:
    """The cosine of the features of the model that it brings."""
    import fastdup as tool

    work = folder.parent / "fastdup"
    run = tool.create(input_dir=str(folder), work_dir=str(work))
    run.run(
        overwrite=True, print_summary=False, threshold=0.5, nearest_neighbors_k=20, num_threads=1
    )
    found = run.similarity()
    for first, second, cosine in zip(
        found["filename_from"], found["filename_to"], found["distance"], strict=True
    ):
        yield _number(first), _number(second), float(cosine)


def audit(effort: str) -> Callable[[Path], Iterator[Pair]]:
    """This project's own, with its own thresholds."""

    def find(folder: Path) -> Iterator[Pair]:
        import cv2
        import numpy as np

        from tfds_pap import near_duplicates

        files = sorted(folder.iterdir(), key=_number)
        size = (near_duplicates.SIZE,) * 2
        pixels = np.stack(
            [
                cv2.resize(cv2.imread(str(file))[..., ::-1], size, interpolation=cv2.INTER_AREA)
                for file in files
            ]
        )
        for match in near_duplicates.find(pixels, effort=effort):
            yield match.first, match.second, 1.0

    return find


TOOLS: dict[str, Callable[[Path], Iterator[Pair]]] = {
    "audit, full": audit("full"),
    "audit, fast": audit("fast"),
    "imagededup, perceptual hash": imagededup_hash("PHash"),
    "imagededup, difference hash": imagededup_hash("DHash"),
    "imagededup, average hash": imagededup_hash("AHash"),
    "imagededup, wavelet hash": imagededup_hash("WHash"),
    "imagededup, CNN": imagededup_cnn,
    "cleanvision": cleanvision,
    "fastdup": fastdup,
}


def peak_mib() -> int:
    """Most memory that this process held; getrusage's figure may be that of who started it."""
    status = Path("/proc/self/status").read_text()
    (kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kib) // 1024


def main() -> None:
    """Runs the tool."""
    tool, folder, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

    def used() -> float:
        own, children = (
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    start = time.perf_counter()
    pairs = list(TOOLS[tool](folder))
    output.write_text(
        json.dumps(
            {
                "pairs": pairs,
                "seconds": time.perf_counter() - start,
                # Imports and the start of Python count: they are part of each run.
                "processor_seconds": used(),
                "peak_mib": peak_mib(),
            }
        )
    )


if __name__ == "__main__":
    main()
