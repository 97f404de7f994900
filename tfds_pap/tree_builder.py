"""What the dataset builders share: two sources, one set of features."""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets.public_api as tfds

from tfds_pap import folders, images, stored_groups
from tfds_pap.splits import WHOLE

_REPOSITORY = "https://github.com/CarlosJMB/Deep-Reinforcement-Learning-for-Efficient-Digital-Pap-Smear-Analysis"

#: Phantom images per class and split: small enough for a laptop, large enough to learn from.
_PHANTOM_COUNTS = {1: {"train": 300, "validation": 100}, 2: {"train": 160, "validation": 60}}

# Every module that pixels or labels of a phantom depend on; the order is part of the fingerprint.
_DRAWING_CODE = (
    "taxonomy.py",
    "phantom_canvas.py",
    "phantom_latent.py",
    "phantom.py",
    "phantom_set.py",
)


@dataclasses.dataclass
class PapConfig(tfds.core.BuilderConfig):
    """One source of images.

    Attributes:
        phantom_counts: Drawn images per class for each split; None reads the user's tree.
        phantom_seed: Seed of the drawn images.
    """

    phantom_counts: Mapping[str, int] | None = None
    phantom_seed: int = 0


def configs(stage: int) -> list[PapConfig]:
    """Returns the two configurations of a stage's dataset.

    Args:
        stage: 1 (cell or background) or 2 (Bethesda class).
    """
    return [
        PapConfig(name="original", description="The user's own copy of the authors' tree."),
        PapConfig(
            name="phantom",
            description="Synthetic cells, drawn on the spot; not microscopy.",
            phantom_counts=_PHANTOM_COUNTS[stage],
        ),
    ]


# mypy does not see the classes of TFDS, and so not the keyword.
class TreeBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base of the data sets; a subclass names its tree, its classes and what is published of it.

    `PUBLISHED_NAME` is a pattern of ids, and `PUBLISHED_PIXELS` the side of every image in pixels,
    None where it is not published.
    """

    STAGE: ClassVar[int]
    TREE: ClassVar[str]
    CLASSES: ClassVar[tuple[str, ...]]
    CLASS_FOLDERS: ClassVar[Mapping[str, str]]
    PUBLISHED_COUNTS: ClassVar[Mapping[str, Mapping[str, int]]]
    PUBLISHED_NAME: ClassVar[str]
    PUBLISHED_NAME_EXAMPLE: ClassVar[str]
    PUBLISHED_PIXELS: ClassVar[int | None]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names that the labels index."""
        return self.CLASSES

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=list(self.class_names)),
                    "id": tfds.features.Text(),
                    "group": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=_REPOSITORY,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        config = self.builder_config
        if config.phantom_counts is not None:
            self.info.metadata.update(fingerprint=self.phantom_fingerprint(), notes=[])
            return {
                split: self._generate_examples(self._draw(split)) for split in config.phantom_counts
            }
        tree = folders.read_tree(
            dl_manager.manual_dir / self.TREE, self.CLASS_FOLDERS, published=self.PUBLISHED_COUNTS
        )
        return self._tree_generators(tree)

    def _tree_generators(self, tree: folders.Tree) -> dict[str, Iterator]:
        """Announces a tree and returns its examples, split by split."""
        for note in tree.notes:
            print(f"Note: {note}")
        counts = {split or WHOLE: classes for split, classes in tree.counts().items()}
        self.info.metadata.update(
            fingerprint=tree.fingerprint,
            groups=stored_groups.digest({file.id: file.group for file in tree.files}),
            notes=list(tree.notes),
            counts=counts,
        )
        return {
            split: self._generate_examples(
                self._read([file for file in tree.files if (file.split or WHOLE) == split])
            )
            for split in counts
        }

    def _generate_examples(
        self, examples: Iterable[tuple[str, str, str, bytes]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for id_, label, group, image in examples:
            yield id_, {"image": image, "label": label, "id": id_, "group": group}

    def phantom_fingerprint(self) -> str:
        """Returns what identifies the drawn images: the drawing code, seed and counts."""
        config = self.builder_config
        code = hashlib.sha256()
        for name in _DRAWING_CODE:
            code.update(Path(__file__).with_name(name).read_bytes())
        counts = ",".join(f"{split}={n}" for split, n in sorted(config.phantom_counts.items()))
        return f"phantom-{code.hexdigest()[:16]}-seed{config.phantom_seed}-{counts}"

    def _read(self, files: Iterable[folders.ListedFile]) -> Iterator[tuple[str, str, str, bytes]]:
        for file in files:
            data = images.decodable_bytes(file.path.read_bytes())
            yield file.id, file.label, file.group, images.window(data, file.crop)

    def _draw(self, split: str) -> Iterator[tuple[str, str, str, bytes]]:
        # Not on import of the package, or `python -m tfds_pap.phantom` warns that it runs twice.
        from tfds_pap import phantom_set

        config = self.builder_config
        drawn = phantom_set.examples(
            self.STAGE, split, per_class=config.phantom_counts[split], seed=config.phantom_seed
        )
        for id_, label, group, image in drawn:
            yield id_, label, group, phantom_set.encode(image)
