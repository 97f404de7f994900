"""Requests that a server replays while it loads a version, so that the first user does not wait.

Their images are drawn: no image of a data set travels with a model.
"""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    input_pb2,
    model_pb2,
    predict_pb2,
    prediction_log_pb2,
)

from serving.model.graph import Graph
from tfds_pap import phantom, phantom_set, pipeline

#: A single image, and a batch of a size that batching servers form.
_BATCHES = (1, 8)


def requests(
    graph: Graph, model_name: str, stage: int
) -> Iterator[prediction_log_pb2.PredictionLog]:
    """Yields one request for each endpoint and batch size.

    Args:
        graph: Whose endpoints are warmed up.
        model_name: Name that the model is served under.
        stage: Whose phantoms are drawn: 1 or 2.
    """
    drawn = phantom_set.examples(stage, "validation", per_class=1)
    images = [phantom_set.encode(picture) for *_, picture in drawn]
    field = phantom_set.encode(phantom.draw_field(0, width=400, height=300, cells=8)[0])
    for endpoint in graph.endpoints():
        spec = model_pb2.ModelSpec(name=model_name, signature_name=endpoint)
        # Pixels are large and what follows them is warm by then; fields are read one by one.
        for count in _BATCHES if endpoint not in ("pixels", "detect") else _BATCHES[:1]:
            batch = [images[number % len(images)] for number in range(count)]
            if endpoint == "detect":
                batch = [field] * count
            if endpoint == "classify":
                yield _classification(spec, batch)
                continue
            values = np.array(batch, object)
            if endpoint == "pixels":
                decoded = [
                    pipeline.decode_and_resize(data, graph.size, graph.resize) for data in batch
                ]
                values = np.stack(decoded).astype(np.float32)
            request = predict_pb2.PredictRequest(model_spec=spec)
            name = graph.input_signature(endpoint).name
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
            log = prediction_log_pb2.PredictLog(request=request)
            yield prediction_log_pb2.PredictionLog(predict_log=log)


def example(image: bytes) -> tf.train.Example:
    """Returns the `tf.Example` that `classify` takes.

    Args:
        image: A file's bytes.
    """
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))
    return tf.train.Example(features=tf.train.Features(feature={"image/encoded": feature}))


def _classification(
    spec: model_pb2.ModelSpec, images: list[bytes]
) -> prediction_log_pb2.PredictionLog:
    examples = input_pb2.ExampleList(examples=[example(data) for data in images])
    request = classification_pb2.ClassificationRequest(
        model_spec=spec, input=input_pb2.Input(example_list=examples)
    )
    log = prediction_log_pb2.ClassifyLog(request=request)
    return prediction_log_pb2.PredictionLog(classify_log=log)
