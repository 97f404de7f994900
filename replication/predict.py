"""Names the cells of new images with the trained models of a run; no server needed.

    python -m replication.predict --run_dir=runs/phantom image.jpg folder/ --csv=cells.csv

Stage 1 says how likely a cell is in the middle of the image, stage 2 which class it belongs to.
"""

import csv
import io
from pathlib import Path

from absl import app, flags

from replication.runs.directory import RunDirectory
from tfds_pap import commands, files
from tfds_pap.errors import PapError

_RUN_DIR = flags.DEFINE_string("run_dir", None, "Run whose models are used.", required=True)
_PROTOCOL = flags.DEFINE_enum(
    "protocol", "clean", ["paper", "clean"], "Which of the run's models (default: clean)."
)
_SEED = flags.DEFINE_integer("seed", None, "Seed of the models (default: the run's first).")
_CSV = flags.DEFINE_string("csv", None, "Also write the table to this CSV file (default: none).")
_SAVE_ANNOTATED = flags.DEFINE_string(
    "save_annotated",
    None,
    "Folder for copies that carry prediction and, where a folder tells it, truth (default: none).",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images a batch (default: 64).", lower_bound=1)

_ANNOTATED_PIXELS = 300
_CAPTION_PIXELS = 60


def main(argv: list[str]) -> None:
    """Loads the models, reads the images in batches, prints the table."""
    if len(argv) < 2:
        raise app.UsageError("expected images or folders: image.jpg folder/ ...")
    commands.prepare_tensorflow()
    from replication.runs import results
    from tfds_pap import folders

    try:
        paths = [Path(path) for path in folders.expand_images(argv[1:])]
        run = RunDirectory(Path(_RUN_DIR.value))
        fits = results.choose_fits(run, _PROTOCOL.value, _SEED.value)
        rows, unreadable = _predict(paths, fits)
    except (PapError, folders.TreeError) as error:
        raise SystemExit(f"replication.predict: {error}") from None
    _print(rows)
    if _CSV.value is not None and rows:
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files.write_atomically(Path(_CSV.value), text.getvalue())
    if _SAVE_ANNOTATED.value is not None:
        _save_annotated(rows, Path(_SAVE_ANNOTATED.value))
    if unreadable:
        raise SystemExit(
            f"replication.predict: {len(unreadable)} of {len(paths)} images could not be read:\n"
            + "\n".join(f"  {path}: {why}" for path, why in unreadable[:20])
        )


def _predict(paths: list[Path], fits: dict) -> tuple[list[dict], list[tuple[Path, str]]]:
    """Returns a row an image, and the images that cannot be decoded with the reason."""
    import numpy as np
    import tensorflow as tf
    import tqdm

    from replication.runs import results
    from tfds_pap import images, pipeline

    models = {stage: results.load_model(fit) for stage, fit in fits.items()}
    rows, unreadable = [], []
    batches = range(0, len(paths), _BATCH_SIZE.value)
    for start in tqdm.tqdm(batches, unit="batch", disable=len(batches) < 2):
        readable, pixels = [], {stage: [] for stage in fits}
        for path in paths[start : start + _BATCH_SIZE.value]:
            try:
                with images.one_error():
                    data = images.decodable_bytes(path.read_bytes())
                    resized = {
                        stage: pipeline.decode_and_resize(
                            data, fit.info["size"], fit.info["resize"]
                        )
                        for stage, fit in fits.items()
                    }
            except images.ImageError as error:
                unreadable.append((path, f"not a readable image ({error})"))
                continue
            readable.append(path)
            for stage, image in resized.items():
                pixels[stage].append(image)
        if not readable:
            continue
        scores = {
            stage: np.asarray(model.predict_on_batch(tf.stack(pixels[stage])))
            for stage, model in models.items()
        }
        for number, path in enumerate(readable):
            rows.append(_row(path, {stage: score[number] for stage, score in scores.items()}, fits))
    return rows, unreadable


def _row(path: Path, scores: dict, fits: dict) -> dict[str, object]:
    row: dict[str, object] = {"image": str(path), "truth": _truth(path)}
    if 1 in fits:
        row["cell"] = round(float(scores[1][-1]), 4)
    if 2 in fits:
        names = fits[2].info["class_names"]
        row["class"] = names[int(scores[2].argmax())]
        row.update({name: round(float(p), 4) for name, p in zip(names, scores[2], strict=True)})
    return row


def _truth(path: Path) -> str:
    """The class that the authors' folders or a Bethesda folder name tell, else ""."""
    from tfds_pap import taxonomy

    tree = next((part for part in reversed(path.parts) if part in taxonomy.TREE_FOLDERS), None)
    folder = path.parent.name
    if tree is not None:
        return taxonomy.TREE_FOLDERS[tree].get(folder, "")
    return folder if folder in taxonomy.STAGE2_CLASSES + taxonomy.STAGE1_CLASSES else ""


def _print(rows: list[dict]) -> None:
    import rich.box
    import rich.console
    import rich.table
    import rich.text

    if not rows:
        return
    table = rich.table.Table(box=rich.box.SIMPLE)
    for name in rows[0]:
        table.add_column(name, overflow="fold" if name == "image" else "ellipsis")
    for row in rows:
        # As text: a file's name may hold what rich takes for markup.
        texts = (f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values())
        table.add_row(*map(rich.text.Text, texts))
    console = rich.console.Console()
    rich.console.Console(width=None if console.is_terminal else 132).print(table)


def _save_annotated(rows: list[dict], folder: Path) -> None:
    import cv2
    import numpy as np

    from tfds_pap import images, pipeline

    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
        path = Path(str(row["image"]))
        data = images.decodable_bytes(path.read_bytes())
        image = pipeline.decode_and_resize(data, _ANNOTATED_PIXELS).numpy()
        caption = np.full((_CAPTION_PIXELS, _ANNOTATED_PIXELS, 3), 255, np.uint8)
        named = str(row.get("class", ""))
        lines = [f"{named} {float(row[named]):.2f}" if named else f"cell {row['cell']:.2f}"]
        wrong = False
        if row["truth"]:
            lines.append(f"truth {row['truth']}")
            wrong = bool(named) and row["truth"] in row and row["truth"] != named
        for line, text in enumerate(lines):
            colour = (180, 30, 30) if wrong else (20, 20, 20)
            cv2.putText(
                caption, text, (8, 24 + 26 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.7, colour, 2
            )
        picture = cv2.cvtColor(np.vstack([image, caption]), cv2.COLOR_RGB2BGR)
        # Images of several folders may share a name.
        encoded = cv2.imencode(".png", picture)[1].tobytes()
        files.write_atomically(folder / f"{number:05d}_{path.stem}.png", encoded)
    print(f"Annotated copies: {folder}")


if __name__ == "__main__":
    commands.run(main, commands.STARTS_AGAIN)
