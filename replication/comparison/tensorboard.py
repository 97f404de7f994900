"""What TensorBoard shows of a comparison: HParams to sort by, and the winner's embedding."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector import projector_config_pb2

from replication.comparison.candidates import Candidate
from replication.drawing import tensorboard
from replication.measures import evaluation, names
from replication.measures.predictions import Predictions
from tfds_pap import files

#: Columns of the HParams table, after the metrics.
_COSTS = {
    "parameters": "parameters",
    "gflops": "GFLOPs an image",
    "images_per_second": "images a second",
    "mebibytes": "MiB on disk",
}

#: Pixels of a thumbnail in the projector's sprite; a sprite may be 8,192 px wide.
_SPRITE_PIXELS = 64


def write_hparams(
    directory: Path,
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
    common: Mapping[str, str | float],
) -> None:
    """Writes one HParams run for each backbone and seed.

    Args:
        directory: Where the event files are written.
        candidates: Scored backbones.
        seeds: Seeds of their runs, in the same order.
        common: Hyperparameters that all of them share.
    """
    for candidate in candidates:
        for seed, predictions in zip(seeds, candidate.runs, strict=True):
            values: dict[str, str | float | bool] = {
                "backbone": candidate.name,
                "weights": candidate.weights,
                "seed": seed,
                **common,
            }
            summary = evaluation.summarise_seeds([predictions], resamples=1)
            scores = {name: figure.mean for name, figure in summary.items()}
            scores |= {name: float(getattr(candidate.cost, name)) for name in _COSTS}
            tensorboard.write_session(
                directory / candidate.name / f"seed_{seed}",
                values,
                {name: scores.get(name, math.nan) for name in (*names.SHARES, *_COSTS)},
                name=f"{candidate.name} seed {seed}",
                shown=names.SHARES | _COSTS,
            )


def write_projector(
    directory: Path,
    name: str,
    features: np.ndarray,
    predictions: Predictions,
    images: Sequence[np.ndarray],
) -> None:
    """Writes the embedding of the tested images for TensorBoard's projector.

    Args:
        directory: TensorBoard's log directory; the projector's configuration lies at its top.
        name: What the embedding is called.
        features: float32 `[n, d]`.
        predictions: Of the same images, in the same order.
        images: uint8 RGB `[height, width, 3]`, in the same order.
    """
    folder = directory / "embedding"
    lines = ("\t".join(f"{value:.6g}" for value in row) for row in features)
    files.write_atomically(folder / "features.tsv", "\n".join(lines) + "\n")
    names = predictions.class_names
    rows = ["label\tnamed\tright\tid\tgroup"]
    for row, image in enumerate(predictions.ids):
        label, named = predictions.labels[row], predictions.predicted[row]
        cells = (names[label], names[named], str(label == named), image, predictions.groups[row])
        rows.append("\t".join(cell.replace("\t", " ") for cell in cells))
    files.write_atomically(folder / "metadata.tsv", "\n".join(rows) + "\n")
    files.write_atomically(folder / "sprite.png", _sprite(images))
    config = projector_config_pb2.ProjectorConfig()
    embedding = config.embeddings.add()
    embedding.tensor_name = name
    embedding.tensor_path = "embedding/features.tsv"
    embedding.metadata_path = "embedding/metadata.tsv"
    embedding.sprite.image_path = "embedding/sprite.png"
    embedding.sprite.single_image_dim.extend([_SPRITE_PIXELS, _SPRITE_PIXELS])
    files.write_atomically(
        directory / "projector_config.pbtxt", text_format.MessageToString(config)
    )


def _sprite(images: Sequence[np.ndarray]) -> bytes:
    """All images in a square grid, row by row, as PNG."""
    columns = math.ceil(math.sqrt(len(images)))
    sheet = Image.new("RGB", (columns * _SPRITE_PIXELS,) * 2, "white")
    for number, image in enumerate(images):
        small = Image.fromarray(image).resize((_SPRITE_PIXELS, _SPRITE_PIXELS))
        place = (number % columns * _SPRITE_PIXELS, number // columns * _SPRITE_PIXELS)
        sheet.paste(small, place)
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()
