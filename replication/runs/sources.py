"""Where the images of each stage of a run come from: drawn, the authors' trees, or a lab's own."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import tensorflow_datasets.public_api as tfds

from replication.learning import recipes
from tfds_pap import copies, layouts, preparing, stage1_folders, urls


@dataclasses.dataclass(frozen=True)
class Sources:
    """The images of both stages.

    Attributes:
        kind: "phantom", "original" or "folders".
        manual_dir: Folder of the authors' trees; of "folders" of their DB_3 alone, or None. This
            and the two folders below may be URLs.
        data_dir: Where TFDS keeps prepared data; None takes its default.
        own: Of "folders": the lab's own images, of the second stage.
        backgrounds: Images without a cell, against which the first stage learns `own`.
        annotated_fields: Fields out of which ROIs of the first stage are cut.
        rois: Folder of these ROIs; None keeps them for this process alone.
    """

    kind: str
    manual_dir: str | None = None
    data_dir: str | None = None
    own: layouts.Listing | None = None
    backgrounds: str | None = None
    annotated_fields: str | None = None
    rois: Path | None = None

    @property
    def fields(self) -> str | None:
        """Folder or URL of fields that are read at the end; None for drawn ones, "" for none."""
        if self.kind == "phantom":
            return None
        if self.annotated_fields:
            return self.annotated_fields
        return urls.inside(self.manual_dir or "", "fields") if self.kind == "original" else ""

    def builder(self, stage: int) -> tfds.core.DatasetBuilder:
        """Returns the builder of a stage, prepared or not.

        Args:
            stage: 1 or 2.
        """
        if listing := self._listing(stage):
            return preparing.listing_builder(listing, self.data_dir, stage=stage)
        return tfds.builder(f"{recipes.DATASETS[stage]}/{self._source}", data_dir=self.data_dir)

    def prepare(self, stage: int) -> tfds.core.DatasetBuilder:
        """Returns the prepared builder of a stage.

        Args:
            stage: 1 or 2.

        Raises:
            folders.TreeError: If a tree cannot be used.
        """
        if listing := self._listing(stage):
            return preparing.prepare_listing(listing, self.data_dir, stage=stage)
        name = recipes.DATASETS[stage]
        return preparing.prepare(name, self._source, self.manual_dir, self.data_dir)

    def train_images(self, stage: int, builder: tfds.core.DatasetBuilder | None) -> int:
        """Returns about how many images train; drawn ones are counted before they are drawn.

        Args:
            stage: 1 or 2.
            builder: The prepared builder; None where there is none yet.
        """
        from tfds_pap import roles

        builder = builder or self.builder(stage)
        if counts := builder.builder_config.phantom_counts:
            return counts["train"] * len(builder.class_names)
        return roles.count_train(builder)

    @property
    def _source(self) -> str:
        return "phantom" if self.kind == "phantom" else "original"

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _listing(self, stage: int) -> layouts.Listing | None:
        if self.own is None or (stage == 1 and self.manual_dir):
            return None
        if stage == 2:
            return self.own
        if self.backgrounds:
            return stage1_folders.against_backgrounds(self.own, copies.folder(self.backgrounds))
        place: Any = self.rois or Path(_kept_for_this_process().name)
        return stage1_folders.cut_out(copies.folder(self.annotated_fields or ""), place)


@functools.cache
def _kept_for_this_process() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="pap_rois_")
