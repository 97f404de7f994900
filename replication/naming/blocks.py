"""Names many images in blocks, here or by the workers of a cluster.

A block leaves a file in a folder beside the table, by rename, wherever it is computed: a command
that is killed goes on with the blocks that are missing. Its name holds all that its content depends
on, so that other models or a changed image are another block.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tqdm

from replication.measures import decisions
from replication.naming import annotated, reading
from replication.naming.prediction import Prediction
from replication.runs import results
from replication.runs.directory import RunDirectory
from tfds_pap import cluster, files, folders, redaction, urls
from tfds_pap.errors import PapError

if TYPE_CHECKING:
    import distributed

    from replication.naming.trained import TrainedModel

#: Batches of a block.
_BATCHES = 8

#: Images read at a time: storage far away answers late.
_READERS = 8


@dataclasses.dataclass(frozen=True)
class Work:
    """What all blocks share.

    Attributes:
        run_dir: Whose models; workers see it under the same path.
        protocol: "paper" or "clean".
        seed: Of the models; None takes the run's first.
        batch_size: Images a forward pass.
        folder: That the paths of images begin in.
        annotated: Gets a picture of each image with what is said of it; None draws none.
        models: What answers depend on, a line a model.
    """

    run_dir: Path
    protocol: str
    seed: int | None
    batch_size: int
    folder: Path
    annotated: Path | None
    models: tuple[str, ...]

    @classmethod
    def of_run(
        cls,
        run_dir: Path,
        protocol: str,
        seed: int | None,
        *,
        batch_size: int,
        annotated: Path | None = None,
    ) -> "Work":
        """Returns the work of a run's models, without loading them.

        Raises:
            PapError: If this is no run, or there is no such model in it.
        """
        place = run_dir.absolute()
        fits = results.choose_fits(RunDirectory(run_dir), protocol, seed)
        told = tuple(_told(fit, decisions.of_fit(fit)[0]) for _, fit in sorted(fits.items()))
        where = annotated and annotated.absolute()
        return cls(place, protocol, seed, batch_size, Path.cwd(), where, told)


@dataclasses.dataclass(frozen=True)
class Named:
    """What is known of an image.

    Attributes:
        path: Of the image; of a URL no secret.
        answer: What the last stage says, or why there is no answer.
        truth: The class that its folder tells; "" where it tells none.
        cell: Stage 1's probability of a cell; None without stage 1.
    """

    path: str
    answer: Prediction | str
    truth: str = ""
    cell: float | None = None


@dataclasses.dataclass(frozen=True)
class Block:
    """Images that are named one after the other.

    Attributes:
        work: All blocks' own.
        first: Number of its first image.
        images: Path and state of each, see `folders.images_and_states`.
        kept_in: Folder of its file; None keeps none.
    """

    work: Work
    first: int
    images: tuple[tuple[str, str], ...]
    kept_in: Path | None

    @property
    def file(self) -> Path:
        """Where its answers lie; named by all that they depend on."""
        assert self.kept_in is not None
        images = [(redaction.redacted(path), state) for path, state in self.images]
        told = json.dumps([*map(str, dataclasses.astuple(self.work)), images])
        key = hashlib.sha256(told.encode()).hexdigest()[:24]
        return self.kept_in / f"block_{self.first:09d}_{key}.json"


def opened(table: Path) -> Path:
    """Makes the folder beside a table that keeps its blocks, for this process alone.

    Args:
        table: That is written of them.

    Raises:
        PapError: Another process is at work on the same table; the place cannot be written; or what
            is there is no folder of blocks.
    """
    folder = table.absolute().with_name(f"{table.name}.blocks")
    if folder.is_symlink():
        raise PapError(f"{folder}: is a link, expected a folder of blocks; remove it")
    try:
        others = [each.name for each in folder.iterdir() if not _is_own(each)]
    except FileNotFoundError:
        others = []
    except OSError as error:
        raise PapError(f"--csv={table}: {folder}: {error.strerror}") from None
    if others:
        raise PapError(f"{folder}: holds {others[0]}, which is no block of --csv; move it away")
    try:
        files.hold(folder)
    except OSError as error:
        raise PapError(f"--csv={table}: cannot be written ({error.strerror})") from None
    return folder


def _is_own(path: Path) -> bool:
    """Whether a file is one of a block, half of one, or the lock, which NFS keeps under a name."""
    return path.name.startswith(("block_", ".block_", ".lock", ".nfs"))


def close(folder: Path) -> None:
    """Removes the folder of `opened` with its blocks; says so where it stays.

    Args:
        folder: From `opened`.
    """
    try:
        for path in filter(_is_own, folder.iterdir()):
            path.unlink(missing_ok=True)
        folder.rmdir()
    except OSError as error:
        # Some network file systems keep the lock in it for as long as this process has it open.
        print(f"Note: {folder} is left there ({error.strerror})")


def named(
    work: Work,
    images: Sequence[tuple[str, str]],
    *,
    kept_in: Path | None = None,
    client: "distributed.Client | None" = None,
) -> Iterator[Named]:
    """Yields what is known of each image, in their order.

    Args:
        work: Which models, and how.
        images: From `folders.images_and_states`.
        kept_in: Gets a file a block, which is read again where it is there; None keeps nothing.
        client: From `cluster.connected`, whose workers see `kept_in`, the run and the images under
            the same paths; None computes here.

    Raises:
        PapError: If a worker does not see the same files, or the cluster is lost.
    """
    size = _BATCHES * work.batch_size
    blocks = [
        Block(work, first, tuple(images[first : first + size]), kept_in)
        for first in range(0, len(images), size)
    ]
    few = len(images) <= work.batch_size
    with tqdm.tqdm(desc="Images", total=len(images), unit="image", disable=few) as bar:
        if kept_in is None:
            for block in blocks:
                yield from _named(block, bar.update)
            return
        missing = [block for block in blocks if _stored(block) is None]
        bar.update(len(images) - sum(len(block.images) for block in missing))
        if client is None:
            for block in missing:
                _compute(block, bar.update)
        else:
            calls = ((block,) for block in missing)
            with contextlib.closing(cluster.outcomes(client, _compute_there, calls)) as done:
                for number, _ in done:
                    bar.update(len(missing[number].images))
    for block in blocks:
        answers = _stored(block)
        if answers is None:
            raise PapError(f"{block.file}: is not there; do workers see this folder?")
        yield from answers


def _compute(block: Block, advance: Callable[[int], object]) -> None:
    """Names the images of a block, and keeps the answers."""
    rows = [dataclasses.asdict(one) for one in _named(block, advance)]
    files.write_atomically(block.file, json.dumps(rows) + "\n")


def _compute_there(block: Block) -> None:
    """Runs in a worker, which may be on another machine."""
    for path, state in block.images:
        if not urls.is_url(path) and folders.state(block.work.folder / path) != state:
            raise PapError(f"{path}: a worker sees another file there than this process")
    _compute(block, lambda count: None)


def _stored(block: Block) -> list[Named] | None:
    """Returns what a block's file says; None where there is none, or it is damaged."""
    try:
        rows = json.loads(block.file.read_text())
        return [
            Named(**{**row, "path": redaction.redacted(path), "answer": _prediction(row["answer"])})
            for (path, _), row in zip(block.images, rows, strict=True)
        ]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        print(f"Note: {block.file} is damaged; its images are named again")
        return None


def _prediction(answer: dict[str, Any] | str) -> Prediction | str:
    if isinstance(answer, str):
        return answer
    tuples = {name: tuple(answer[name]) for name in ("probabilities", "names")}
    return Prediction(**{**answer, **tuples})


def _named(block: Block, advance: Callable[[int], object]) -> Iterator[Named]:
    """Reads images, and asks the models."""
    # Imports TensorFlow.
    from replication.naming import trained

    work = block.work
    models, size = _models(work), work.batch_size
    with futures.ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(block.images), size):
            paths = [path for path, _ in block.images[start : start + size]]
            places = [path if urls.is_url(path) else work.folder / path for path in paths]
            contents = list(pool.map(reading.read_or_reason, places))
            images = [data for data in contents if isinstance(data, bytes)]
            answers = {
                stage: iter(trained.predict_images(model, images, batch_size=size))
                for stage, model in models.items()
            }
            for number, (path, data) in enumerate(zip(paths, contents, strict=True), start):
                shown = redaction.redacted(path)
                if isinstance(data, str):
                    yield Named(shown, data)
                    continue
                of_stages = {stage: next(each) for stage, each in answers.items()}
                one = _put_together(shown, of_stages)
                if work.annotated and isinstance(one.answer, Prediction):
                    # Images of several folders may share a name.
                    name = f"{block.first + number:05d}_{Path(urls.name(path)).stem}.png"
                    drawn = annotated.picture(data, one.answer, one.truth)
                    files.write_atomically(work.annotated / name, drawn)
                yield one
            advance(len(paths))


def _put_together(path: str, answers: dict[int, Prediction | str]) -> Named:
    answer, first = answers[max(answers)], answers.get(1)
    if isinstance(answer, str):
        return Named(path, answer)
    cell = round(first.probabilities[-1], 6) if isinstance(first, Prediction) else None
    return Named(path, answer, annotated.truth(path, answer.names), cell)


@functools.lru_cache(maxsize=1)
def _models(work: Work) -> "dict[int, TrainedModel]":
    """Loads the models once a process."""
    from replication.naming import trained

    models = trained.load_models(work.run_dir, work.protocol, work.seed)
    if tuple(_told(model.fit, model.decision) for model in models.values()) != work.models:
        raise PapError(f"{work.run_dir}: a worker sees other models there than this process")
    return models


def _told(fit: results.Fit, decision: decisions.Decision) -> str:
    """What the answers of a model depend on."""
    facts = [fit.info[name] for name in ("size", "resize", "class_names")]
    return f"{files.sha256(fit.model_path)} {facts} {decision}"
