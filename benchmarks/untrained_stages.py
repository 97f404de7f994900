"""Networks of both stages with random weights, for workers that load them by themselves.

They are drawn once and saved: seeds belong to a whole process, in which Dask's threads draw too.
"""

import dataclasses
import resource
from typing import TYPE_CHECKING

from replication.fields.whole_fields import Models

if TYPE_CHECKING:
    from replication.fields.find.stages import Stages
    from replication.fields.scan_directory import Settings


@dataclasses.dataclass(frozen=True)
class Untrained(Models):
    """The papers' networks, saved as `stage1` and `stage2`; time does not depend on weights."""

    def save(self) -> None:
        """Draws and saves both."""
        from replication.learning import models

        models.stage1_cnn().save(self.stage1)
        models.stage2_cnn("clean").save(self.stage2)

    def load(self, settings: "Settings") -> "Stages":
        """Loads both."""
        from replication.fields.find.dense import Stage1
        from replication.fields.find.stages import Stage2, Stages
        from replication.measures import decisions
        from replication.runs import results
        from tfds_pap.taxonomy import STAGE2_CLASSES

        stage1 = Stage1(results.load_keras(self.stage1), "bilinear", method=settings.method)
        decision = decisions.Decision(STAGE2_CLASSES, None, None)
        stage2 = Stage2(results.load_keras(self.stage2), "bilinear", decision)
        about = {"sha256": "untrained"}
        return Stages(stage1, stage2, {"stage1": about, "stage2": about})


def used() -> tuple[float, float]:
    """Returns processor seconds and peak MiB of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
