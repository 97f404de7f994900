"""REST's bodies of classify and regress: tf.Examples from JSON, and results to JSON."""

import json
import math

import grpc
import pytest
from tensorflow_serving.apis import classification_pb2, regression_pb2

from serving.server.errors import ServingError
from serving.server.rest import examples as rest_examples


def refused(call, *arguments, **options):
    with pytest.raises(ServingError) as caught:
        call(*arguments, **options)
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    return caught.value.message


def features(**values):
    found = rest_examples.parse_examples({"examples": [values]})
    (example,) = found.example_list.examples
    return {
        name: list(getattr(feature, kind).value) if (kind := feature.WhichOneof("kind")) else None
        for name, feature in example.features.feature.items()
    }


def test_features_of_examples():
    assert features(a=1, b=[1.5, 2.0], c=["x", {"b64": "aGk="}], d=[True, 3], e=[]) == {
        "a": [1],
        "b": [1.5, 2.0],
        "c": [b"x", b"hi"],
        "d": [1, 3],
        "e": None,
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "Feature: x has an element that is no feature: null"),
        ([[1]], "Feature: x has an element that is no feature: a list"),
        ({"b": 1}, "Feature: x has an element that is no feature: an object"),
        ([1, 2.5], "Unexpected element type in feature: x expecting type: int64"),
        ([1.5, "a"], "Unexpected element type in feature: x expecting type: float"),
        (["a", 1], "Unexpected element type in feature: x expecting type: bytes"),
        (2**63, "Feature: x has uint64 element. Only int64 is supported."),
        (1e39, "Cannot convert JSON value: 1e+39 to float without loss of precision."),
        ({"b64": "@"}, "Unable to base64 decode"),
    ],
)
def test_features_that_are_none(value, message):
    assert refused(features, x=value) == message


def test_examples_with_a_context():
    found = rest_examples.parse_examples({"context": {"a": 1}, "examples": [{"b": 2}, {"b": 3}]})
    listed = found.example_list_with_context
    assert listed.context.features.feature["a"].int64_list.value == [1]
    assert len(listed.examples) == 2 and not found.HasField("example_list")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "JSON Value: 'examples': expected a list of one object or more"),
        ({"examples": 1}, "JSON Value: 'examples': expected a list of one object or more"),
        ({"examples": []}, "JSON Value: 'examples': expected a list of one object or more"),
        ({"examples": [1]}, "Example must be JSON object but got 1"),
    ],
)
def test_bodies_without_examples(body, message):
    assert refused(rest_examples.parse_examples, body).endswith(message)


def test_answers_to_examples():
    classified = classification_pb2.ClassificationResponse()
    row = classified.result.classifications.add()
    row.classes.add(label="HSIL", score=0.1)
    row.classes.add(label="é", score=math.nan)
    ((first, second),) = json.loads(rest_examples.format_classify(classified))["results"]
    assert first == ["HSIL", 0.1] and second[0] == "é" and math.isnan(second[1])
    regressed = regression_pb2.RegressionResponse()
    regressed.result.regressions.add(value=1 / 3)
    assert json.loads(rest_examples.format_regress(regressed)) == {"results": [0.333333343]}
