"""The bodies of REST's classify and regress: JSON to tf.Examples, and results to JSON."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import classification_pb2, input_pb2, regression_pb2

from serving.server.errors import invalid
from serving.server.rest import json_text, predict_json
from serving.server.rest.json_text import shown

#: Kinds of a feature's values, as messages name them.
_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


def parse_examples(document: Mapping[str, Any]) -> input_pb2.Input:
    """Reads the `examples` and the `context` of a classify or regress request.

    Args:
        document: What `json_text.parse` read.

    Raises:
        ServingError: INVALID_ARGUMENT.

    Example:
        >>> request_input = parse_examples({"examples": [{"age": 42, "image": {"b64": "aGk="}}]})
        >>> request_input.example_list.examples[0].features.feature["image"].bytes_list.value[0]
        b'hi'
    """
    request_input = input_pb2.Input()
    listed = request_input.example_list
    if "context" in document:
        listed = request_input.example_list_with_context
        listed.context.CopyFrom(_example(document["context"]))
    examples = document.get("examples")
    if not isinstance(examples, list) or not examples:
        raise invalid("JSON Value: 'examples': expected a list of one object or more")
    listed.examples.extend(map(_example, examples))
    return request_input


def format_classify(response: classification_pb2.ClassificationResponse) -> bytes:
    """Writes the answer to a classify request: pairs of class and score for each example."""
    rows = response.result.classifications
    scores = [_numbers([entry.score for entry in row.classes]) for row in rows]
    return json_text.dump(
        {
            "results": [
                [[entry.label, score] for entry, score in zip(row.classes, own, strict=True)]
                for row, own in zip(rows, scores, strict=True)
            ]
        }
    )


def format_regress(response: regression_pb2.RegressionResponse) -> bytes:
    """Writes the answer to a regress request: one number for each example."""
    return json_text.dump(
        {"results": _numbers([entry.value for entry in response.result.regressions])}
    )


def _numbers(values: list[float]) -> list[float]:
    return json_text.shortest(np.array(values, np.float32)).tolist()


def _example(value: Any) -> example_pb2.Example:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got {shown(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        feature = example.features.feature[name]
        for item in content if isinstance(content, list) else [content]:
            _add(feature, name, item)
    return example


def _add(feature: feature_pb2.Feature, name: str, value: Any) -> None:
    if isinstance(value, bool | int):
        if value > np.iinfo(np.int64).max:
            raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
        kind, value = "int64_list", int(value)
    elif isinstance(value, float):
        kind = "float_list"
    elif isinstance(value, str):
        kind, value = "bytes_list", value.encode()
    elif predict_json.is_base64(value):
        kind = "bytes_list"
    else:
        raise invalid(f"Feature: {name} has an element that is no feature: {shown(value)}")
    before = feature.WhichOneof("kind")
    if before not in (None, kind):
        raise invalid(
            f"Unexpected element type in feature: {name} expecting type: {_KINDS[before]}"
        )
    if kind == "float_list":
        predict_json.check_float(value, types_pb2.DT_FLOAT)
    elif isinstance(value, dict):
        value = predict_json.decode_base64(value)
    getattr(feature, kind).value.append(value)
