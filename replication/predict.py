"""Names the cells of new images with the trained models of a run; no server needed.

    python -m replication.predict --run_dir=runs/phantom image.jpg folder/ --csv=cells.csv

Stage 1 says how likely a cell is in the middle of the image, stage 2 which class it belongs to, how
likely HSIL or SCC is, and whether it would rather leave the image to a person.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app

from replication.flags import shared
from tfds_pap import commands, files, path_flags

if TYPE_CHECKING:
    from replication.naming.prediction import Prediction
    from replication.naming.trained import TrainedModel

_RUN_DIR = shared.run_dir("Run whose models are used.", finished=True)
_PROTOCOL, _SEED = shared.trained("the run's")
_CSV = shared.csv("Also write the table to this CSV file (default: none).")
_SAVE_ANNOTATED = path_flags.define(
    "save_annotated",
    None,
    "Folder for copies that carry prediction and, where a folder tells it, truth (default: none).",
    path_flags.NEW_FOLDER,
)
_BATCH_SIZE = shared.batch_size(64, "Images a batch (default: 64).")

_ANNOTATED_PIXELS = 300
_CAPTION_PIXELS = 60


def main(argv: list[str]) -> None:
    """Loads the models, reads the images in batches, prints the table."""
    if len(argv) < 2:
        raise app.UsageError("expected images or folders: image.jpg folder/ ...")
    from tfds_pap import folders

    paths = folders.expand_images(argv[1:])
    commands.prepare_tensorflow()
    import replication
    from replication.naming.output import Output

    models = replication.load_models(_RUN_DIR.value, _PROTOCOL.value, _SEED.value)
    output = Output(
        Path(_CSV.value) if _CSV.value else None,
        None,
        # Of stage 1 alone the probability of a cell is that of a class.
        before=("truth", "cell") if len(models) == 2 else ("truth",),
        served=False,
        shown=None,
    )
    with output:
        for number, (path, data, answers) in enumerate(_answers(paths, models)):
            answer = answers[max(answers)]
            if isinstance(answer, str):
                output.write(path, answer)
                continue
            truth = _truth(Path(path), answer.names)
            output.write(path, answer, truth=truth, cell=_cell(answers))
            if _SAVE_ANNOTATED.value:
                # Images of several folders may share a name.
                name = f"{number:05d}_{Path(path).stem}.png"
                picture = _annotated(data, answer, truth)
                files.write_atomically(Path(_SAVE_ANNOTATED.value) / name, picture)
    output.print_table()
    if _SAVE_ANNOTATED.value:
        print(f"Annotated copies: {_SAVE_ANNOTATED.value}")
    if output.summary.failures:
        raise output.failed("could not be read")


def _answers(
    paths: Sequence[str], models: "dict[int, TrainedModel]"
) -> "Iterator[tuple[str, bytes, dict[int, Prediction | str]]]":
    """Yields path, bytes, and what each stage says or why it says nothing."""
    import tqdm

    import replication
    from replication.naming import reading

    size = _BATCH_SIZE.value
    starts = range(0, len(paths), size)
    for first in tqdm.tqdm(starts, unit="batch", disable=len(starts) < 2):
        batch = paths[first : first + size]
        contents = [reading.read_or_reason(Path(path)) for path in batch]
        images = [data for data in contents if isinstance(data, bytes)]
        named = {
            stage: iter(replication.predict_images(model, images, batch_size=size))
            for stage, model in models.items()
        }
        for path, data in zip(batch, contents, strict=True):
            if isinstance(data, bytes):
                yield path, data, {stage: next(answers) for stage, answers in named.items()}
            else:
                yield path, b"", dict.fromkeys(models, data)


def _cell(answers: "dict[int, Prediction | str]") -> float | None:
    """Stage 1's probability of a cell; None without stage 1."""
    answer = answers.get(1)
    return None if answer is None or isinstance(answer, str) else round(answer.probabilities[-1], 6)


def _truth(path: Path, names: Sequence[str]) -> str:
    """The class that the authors' folders, or a folder with the name of a class, tell; else ""."""
    from tfds_pap import taxonomy

    tree = next((part for part in reversed(path.parts) if part in taxonomy.TREE_FOLDERS), None)
    folder = path.parent.name
    if tree is not None:
        return taxonomy.TREE_FOLDERS[tree].get(folder, "")
    known = (*names, *taxonomy.STAGE2_CLASSES, *taxonomy.STAGE1_CLASSES)
    return folder if folder in known else ""


def _annotated(data: bytes, answer: "Prediction", truth: str) -> bytes:
    """Returns a PNG of the image with a caption below it: red where the truth is another class."""
    import cv2
    import numpy as np

    from tfds_pap import decoding, taxonomy

    image = decoding.decode_and_resize(data, _ANNOTATED_PIXELS).numpy()
    caption = np.full((_CAPTION_PIXELS, _ANNOTATED_PIXELS, 3), 255, np.uint8)
    lines = [f"{answer.label} {answer.probabilities[answer.class_id]:.2f}"]
    lines += [f"truth {truth}"] if truth else []
    cells = taxonomy.STAGE1_CLASSES
    comparable = truth and (truth in cells) == (answer.label in cells)
    colour = (180, 30, 30) if comparable and truth != answer.label else (20, 20, 20)
    for line, text in enumerate(lines):
        cv2.putText(caption, text, (8, 24 + 26 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.7, colour, 2)
    picture = cv2.cvtColor(np.vstack([image, caption]), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", picture)[1].tobytes()


if __name__ == "__main__":
    commands.run(main, commands.STARTS_AGAIN)
