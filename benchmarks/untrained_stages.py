"""Networks of both stages with random weights, for workers that load them by themselves."""

import dataclasses
import resource
from typing import TYPE_CHECKING

from replication.fields.whole_fields import Models

if TYPE_CHECKING:
    from replication.fields.find.stages import Stages
    from replication.fields.scan_directory import Settings


@dataclasses.dataclass(frozen=True)
class Untrained(Models):
    """The papers' networks; the time of a forward pass does not depend on weights."""

    def load(self, settings: "Settings") -> "Stages":
        """Builds both, the same ones in every process."""
        import keras

        from replication.fields.find.dense import Stage1
        from replication.fields.find.stages import Stage2, Stages
        from replication.learning import models
        from replication.measures import decisions
        from tfds_pap.taxonomy import STAGE2_CLASSES

        keras.utils.set_random_seed(0)
        stage1 = Stage1(models.stage1_cnn(), "bilinear", method=settings.method)
        decision = decisions.Decision(STAGE2_CLASSES, None, None)
        stage2 = Stage2(models.stage2_cnn("clean"), "bilinear", decision, engine=settings.engine)
        about = {"sha256": "untrained"}
        return Stages(stage1, stage2, {"stage1": about, "stage2": about})


def used() -> tuple[float, float]:
    """Returns processor seconds and peak MiB of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
