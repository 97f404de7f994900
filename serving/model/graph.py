"""The graph that is served: from the bytes of images to probabilities, class, HSIL+, abstention.

Decoding and resizing are the function that training uses, traced. Every endpoint refuses what it
cannot answer as a whole: a batch is never partly wrong.
"""

from collections.abc import Callable, Collection
from pathlib import Path

import keras
import tensorflow as tf

from replication.learning.gradcam import GradCam
from replication.measures import calibration
from replication.measures.decisions import ROUNDING, Decision
from serving.model import guard
from serving.model.detection import Detection
from tfds_pap import decoding, pipeline

#: Images a request may hold: a kilobyte of flat PNG becomes a hundred as pixels.
MAX_BATCH = 256

#: Images decoded at the same time, which bounds what decoding a batch allocates.
_DECODED_AT_ONCE = 8

_EXAMPLE = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}

Outputs = dict[str, tf.Tensor]


class Graph:
    """Endpoints of one trained model.

    Args:
        model: From RGB, 0..255, `[b, size, size, 3]` to probabilities `[b, k]`.
        resize: How images are resized: one of `decoding.RESIZE_METHODS`.
        decision: Its labels, calibration and threshold.
        max_pixels: Pixels that an image may announce.
        max_batch: Images that a request may hold.
        formats: Those of `guard.MAGIC` that are accepted.
        detection: How cells are found in whole fields; None: the graph has no `detect`.

    Attributes:
        size: Height and width of the model's input in pixels.
        resize: One of `decoding.RESIZE_METHODS`.
        max_pixels: Of an image at most.
        max_batch: Images of a request at most.
        formats: Names of the formats that are accepted, such as "JPEG".
        decision: Labels, calibration and threshold.
        detection: How cells are found; None where there is no `detect`.
        feature_layer: Name of the layer that `features` answers.
    """

    def __init__(
        self,
        model: keras.Model,
        resize: str,
        decision: Decision,
        *,
        max_pixels: int = guard.MAX_PIXELS,
        max_batch: int = MAX_BATCH,
        formats: Collection[str] = tuple(guard.MAGIC),
        detection: Detection | None = None,
    ) -> None:
        self.size = model.inputs[0].shape[1]
        self._model = model
        self.resize = resize
        self.decision = decision
        self.max_pixels = max_pixels
        self.max_batch = max_batch
        self.formats = tuple(formats)
        self.detection = detection
        self._features, self.feature_layer = _feature_extractor(model)
        self._grad_cam = _grad_cam(model)
        # Traced once and called by every endpoint, which halves the file and the time to write it.
        images = tf.TensorSpec([None, self.size, self.size, 3], tf.float32)
        self._probabilities = tf.function(self._predict, input_signature=[images])
        encoded = tf.TensorSpec([None], tf.string)
        self._decoded = tf.function(self._decode, input_signature=[encoded])

    def endpoints(self) -> dict[str, Callable[[tf.Tensor], Outputs]]:
        """Returns the endpoints by their signature's name."""
        endpoints = {
            "serving_default": self.serving_default,
            "pixels": self.pixels,
            "classify": self.classify,
            "features": self.features,
        }
        endpoints |= {"explain": self.explain} if self._grad_cam else {}
        return endpoints | ({"detect": self.detect} if self.detection else {})

    def input_signature(self, endpoint: str) -> tf.TensorSpec:
        """Returns the one input of an endpoint; its name is part of the contract."""
        if endpoint == "pixels":
            return tf.TensorSpec([None, self.size, self.size, 3], tf.float32, name="image")
        name = "inputs" if endpoint == "classify" else "image_bytes"
        return tf.TensorSpec([None], tf.string, name=name)

    def save(self, path: Path) -> None:
        """Writes the SavedModel.

        Args:
            path: A directory that does not exist yet.
        """
        # `archive.track(model)` would store every variable twice: endpoints bring theirs along.
        archive = keras.export.ExportArchive()
        for name, endpoint in self.endpoints().items():
            archive.add_endpoint(name, endpoint, input_signature=[self.input_signature(name)])
        archive.write_out(str(path), verbose=False)

    def serving_default(self, image_bytes: tf.Tensor) -> Outputs:
        """From the bytes of images, string `[b]`, to the answer."""
        return self._answer(self._probabilities(self._decoded(image_bytes)))

    def pixels(self, image: tf.Tensor) -> Outputs:
        """From RGB, 0..255, float32 `[b, size, size, 3]`, to the answer."""
        # A wrong rank would reach oneDNN, which ends the process.
        image = tf.ensure_shape(image, [None, self.size, self.size, 3])
        finite = tf.debugging.Assert(
            tf.reduce_all(tf.math.is_finite(image)), ["image: expected finite numbers, 0 to 255"]
        )
        with tf.control_dependencies([finite]):
            return self._answer(self._probabilities(self._bounded(image)))

    def classify(self, inputs: tf.Tensor) -> Outputs:
        """From serialised `tf.Example`s, string `[b]`, to classes and scores, most benign first."""
        probabilities = self._probabilities(self._decoded(_encoded_images(inputs)))
        labels = tf.constant(self.decision.labels)
        return {
            "classes": tf.tile(labels[None], [tf.shape(probabilities)[0], 1]),
            "scores": probabilities,
        }

    def features(self, image_bytes: tf.Tensor) -> Outputs:
        """From the bytes of images, string `[b]`, to float32 features `[b, d]`."""
        features = self._features(self._decoded(image_bytes), training=False)
        return {"features": tf.cast(features, tf.float32)}

    def explain(self, image_bytes: tf.Tensor) -> Outputs:
        """Adds to the answer the resized pixels and the Grad-CAM map of the named class."""
        image = self._decoded(image_bytes)
        answer = self._answer(self._probabilities(image))
        assert self._grad_cam is not None, "`endpoints` lists `explain` only where there is one"
        heat = self._grad_cam.heat(image, answer["class_id"])
        return {**answer, "image": image, "heat": heat}

    def detect(self, image_bytes: tf.Tensor) -> Outputs:
        """From the bytes of whole fields, string `[b]`, to their cells; see `Detection.detect`."""
        classes, detection = self.decision.classes, self.detection
        assert detection is not None, "`endpoints` lists `detect` only where there is one"

        def answer(image: tf.Tensor) -> Outputs:
            return self._answer(self._probabilities(image))

        def cells(data: tf.Tensor) -> Outputs:
            field = decoding.decode(self._checked(data, image_bytes))
            return detection.detect(field, self.size, self.resize, answer, classes)

        return tf.map_fn(
            cells,
            self._bounded(image_bytes),
            fn_output_signature=detection.signature(classes),
            parallel_iterations=1,
        )

    def _decode(self, image_bytes: tf.Tensor) -> tf.Tensor:
        """float32 RGB `[b, size, size, 3]`, 0..255, exactly as training saw it."""

        def decode(data: tf.Tensor) -> tf.Tensor:
            return pipeline.decode_and_resize(
                self._checked(data, image_bytes), self.size, self.resize
            )

        image = tf.map_fn(
            decode,
            self._bounded(image_bytes),
            fn_output_signature=tf.TensorSpec([self.size, self.size, 3], tf.uint8),
            parallel_iterations=_DECODED_AT_ONCE,
        )
        return tf.cast(image, tf.float32)

    def _checked(self, data: tf.Tensor, batch: tf.Tensor) -> tf.Tensor:
        """One image's bytes, if they are safe to decode in a batch of so many."""
        return guard.checked(data, self.max_pixels, self.formats, tf.shape(batch)[0])

    def _bounded(self, batch: tf.Tensor) -> tf.Tensor:
        count = tf.shape(batch)[0]
        expected = f"expected 1 to {self.max_batch} images in a request, got "
        bounded = tf.debugging.Assert(
            tf.logical_and(count >= 1, count <= self.max_batch),
            [tf.strings.join([expected, tf.as_string(count)])],
        )
        with tf.control_dependencies([bounded]):
            return tf.identity(batch)

    def _predict(self, image: tf.Tensor) -> tf.Tensor:
        return tf.cast(self._model(image, training=False), tf.float32)

    def _answer(self, probabilities: tf.Tensor) -> Outputs:
        labels, severe = self.decision.labels, self.decision.classes.severe
        class_id = tf.argmax(probabilities, axis=-1)
        answer = {
            "probabilities": probabilities,
            "class_id": class_id,
            "label": tf.gather(tf.constant(labels), class_id),
        }
        calibrated = calibrate(probabilities, self.decision.temperature)
        if severe:
            score = tf.reduce_sum(tf.gather(calibrated, severe, axis=-1), axis=-1)
            answer["hsil_plus"] = tf.cast(score, tf.float32)
        if self.decision.threshold is not None:
            sure = tf.reduce_max(calibrated, axis=-1) >= self.decision.threshold - ROUNDING
            answer["abstain"] = tf.cast(tf.logical_not(sure), tf.int64)
        return answer


def calibrate(probabilities: tf.Tensor, temperature: float | None) -> tf.Tensor:
    """Puts a temperature on probabilities, in the graph; see `calibration.apply_temperature`.

    Args:
        probabilities: float32 `[b, k]`.
        temperature: None leaves them as they are.

    Returns:
        float64 `[b, k]`, each row with a sum of 1.
    """
    probabilities = tf.cast(probabilities, tf.float64)
    logits = tf.math.log(tf.maximum(probabilities, calibration.SMALLEST))
    return tf.nn.softmax(logits / (1.0 if temperature is None else temperature))


def _encoded_images(serialised: tf.Tensor) -> tf.Tensor:
    return tf.io.parse_example(serialised, _EXAMPLE)["image/encoded"]


def _feature_extractor(model: keras.Model) -> tuple[keras.Model, str]:
    """Up to the pooled features of a backbone; of the papers' own networks, to the last hidden."""
    names = [layer.name for layer in model.layers]
    name = "features" if "features" in names else names[-2]
    return keras.Model(model.inputs, model.get_layer(name).output), name


def _grad_cam(model: keras.Model) -> GradCam | None:
    try:
        return GradCam(model)
    except ValueError:
        # A network without a convolutional map is served, and cannot be explained.
        return None
