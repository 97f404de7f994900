"""The endpoint `detect`: from a whole field to the cells in it, both stages in one graph.

It is the path of `replication.scan`: the same dense stage 1, the same suppression, the same crops.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from replication.fields.find import suppression
from replication.fields.find.dense import Stage1
from tfds_pap import decoding
from tfds_pap.classes import Classes
from tfds_pap.errors import PapError

#: Cells of a field that are answered, unless `--max_detections` says otherwise.
MAX_DETECTIONS = 256

#: ROIs that stage 2 names at a time, which bounds what a field allocates.
_AT_ONCE = 32

Outputs = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Detection:
    """How cells are found.

    Attributes:
        stage1: Scores every ROI of a field; of the method "exact".
        threshold: Score of a detection at least.
        radius: Of suppression, pixels.
        maximum: Cells that are answered; of more, those with the highest scores.
        about: What metadata says of stage 1.

    Raises:
        PapError: If stage 1 has no dense form at this ROI and stride.
    """

    stage1: Stage1
    threshold: float = 0.5
    radius: float = 50.0
    maximum: int = MAX_DETECTIONS
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stage1.method != "exact":
            raise PapError(
                f"--stride={self.stage1.stride}: ROIs of {self.stage1.roi} px share no samples at "
                "this stride, expected one such as 25 for which stage 1 can run densely"
            )

    def facts(self) -> dict[str, Any]:
        """Returns what metadata says of it."""
        return {
            "roi": self.stage1.roi,
            "stride": self.stage1.stride,
            "threshold": self.threshold,
            "suppression_radius": self.radius,
            "max_detections": self.maximum,
            "stage1": dict(self.about),
        }

    def signature(self, classes: Classes) -> dict[str, tf.TensorSpec]:
        """Returns the outputs for one field.

        Args:
            classes: Of stage 2; without positive ones there is no "hsil_plus".
        """
        count = self.maximum
        outputs = {
            "boxes": tf.TensorSpec([count, 4], tf.float32),
            "scores": tf.TensorSpec([count], tf.float32),
            "class_ids": tf.TensorSpec([count], tf.int64),
            "classes": tf.TensorSpec([count], tf.string),
            "probabilities": tf.TensorSpec([count, len(classes.names)], tf.float32),
            "hsil_plus": tf.TensorSpec([count], tf.float32),
            "abstain": tf.TensorSpec([count], tf.int64),
            "count": tf.TensorSpec([], tf.int64),
            "found": tf.TensorSpec([], tf.int64),
        }
        if not classes.severe:
            del outputs["hsil_plus"]
        return outputs

    def detect(
        self,
        field: tf.Tensor,
        size: int,
        resize: str,
        answer: Callable[[tf.Tensor], Outputs],
        classes: Classes,
    ) -> Outputs:
        """Finds and names the cells of one field.

        Args:
            field: uint8 RGB `[height, width, 3]`.
            size: Input of stage 2, pixels.
            resize: How its images are resized.
            answer: From float32 RGB `[b, size, size, 3]` to "probabilities", "class_id", "label",
                and perhaps "hsil_plus" and "abstain".
            classes: Of stage 2.

        Returns:
            As `signature`, the most suspicious cell first (without positive classes the one that is
            most surely a cell): `boxes` as ymin, xmin, ymax, xmax in
            pixels of the field; `count` cells that are answered, and `found` before the cut at the
            maximum. What is beyond `count` is 0, "" or, for `class_ids` and `abstain`, -1.
        """
        roi, stride = self.stage1.roi, self.stage1.stride
        scores = self.stage1.graph(field)
        disk = tf.constant(suppression.footprint(self.radius, stride))
        places = tf.where(suppression.kept(scores, tf.constant(self.threshold, tf.float32), disk))
        detected = tf.shape(places, tf.int64)[0]
        values = tf.gather_nd(scores, places)
        best = tf.argsort(values, direction="DESCENDING", stable=True)[: self.maximum]
        places, values = tf.gather(places, best), tf.gather(values, best)
        corners = tf.cast(places, tf.int32) * stride
        named = self._named(field, corners, size, resize, answer, classes)
        suspicion = named.get("hsil_plus", values)
        order = tf.argsort(suspicion, direction="DESCENDING", stable=True)
        ends = tf.concat([corners, corners + roi], axis=1)
        cells = {
            "boxes": tf.cast(ends, tf.float32),
            "scores": values,
            "class_ids": named["class_id"],
            "classes": named["label"],
            "probabilities": named["probabilities"],
            "abstain": named["abstain"],
            **{name: named[name] for name in named if name == "hsil_plus"},
        }
        padded = {name: self._padded(tf.gather(each, order), name) for name, each in cells.items()}
        count = tf.shape(places, tf.int64)[0]
        return {**padded, "count": count, "found": detected}

    def _named(
        self,
        field: tf.Tensor,
        corners: tf.Tensor,
        size: int,
        resize: str,
        answer: Callable[[tf.Tensor], Outputs],
        classes: Classes,
    ) -> Outputs:
        roi, count = self.stage1.roi, tf.shape(corners)[0]

        def image(corner: tf.Tensor) -> tf.Tensor:
            crop = field[corner[0] : corner[0] + roi, corner[1] : corner[1] + roi]
            crop = tf.ensure_shape(crop, [roi, roi, 3])
            return tf.ensure_shape(decoding.resize(crop, size, size, resize), [size, size, 3])

        def part(first: tf.Tensor) -> Outputs:
            images = tf.map_fn(
                image,
                corners[first : first + _AT_ONCE],
                fn_output_signature=tf.TensorSpec([size, size, 3], tf.uint8),
            )
            named = answer(tf.cast(images, tf.float32))
            named.setdefault("abstain", tf.zeros_like(named["class_id"]))
            # The last part is shorter: all are filled up, and what is too much cut off below.
            missing = _AT_ONCE - tf.shape(images)[0]
            return {
                name: tf.pad(named[name], [[0, missing]] + [[0, 0]] * (rank - 1))
                if named[name].dtype != tf.string
                else tf.concat([named[name], tf.fill([missing], "")], 0)
                for name, rank in _RANKS.items()
                if name in named
            }

        specs = {
            "probabilities": tf.TensorSpec([_AT_ONCE, len(classes.names)], tf.float32),
            "class_id": tf.TensorSpec([_AT_ONCE], tf.int64),
            "label": tf.TensorSpec([_AT_ONCE], tf.string),
            "abstain": tf.TensorSpec([_AT_ONCE], tf.int64),
        }
        if classes.severe:
            specs["hsil_plus"] = tf.TensorSpec([_AT_ONCE], tf.float32)
        parts = tf.map_fn(
            part,
            tf.range(0, count, _AT_ONCE),
            fn_output_signature=specs,
            parallel_iterations=1,
        )
        return {
            name: tf.reshape(each, tf.concat([[-1], tf.shape(each)[2:]], 0))[:count]
            for name, each in parts.items()
        }

    def _padded(self, values: tf.Tensor, name: str) -> tf.Tensor:
        missing = self.maximum - tf.shape(values)[0]
        if values.dtype == tf.string:
            return tf.ensure_shape(tf.concat([values, tf.fill([missing], "")], 0), [self.maximum])
        rest = [[0, 0]] * (values.shape.rank - 1)
        filling = -1 if name in ("class_ids", "abstain") else 0
        padded = tf.pad(values, [[0, missing], *rest], constant_values=filling)
        return tf.ensure_shape(padded, [self.maximum, *values.shape[1:]])


_RANKS = {"probabilities": 2, "class_id": 1, "label": 1, "hsil_plus": 1, "abstain": 1}
