import base64
import json
from pathlib import Path

import grpc
import numpy as np
import pytest
import serving_models
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from serving_models import first_clause, predict_request, refused
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    regression_pb2,
)

from serving.server import handlers, tensor_protos
from serving.server.errors import ServingError
from serving.server.manager import Manager
from serving.server.servable import Servable

CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def version(tmp_path_factory):
    return serving_models.write_version(tmp_path_factory.mktemp("models") / "tiny", 1)


@pytest.fixture(scope="module")
def servable(version):
    servable = Servable.load("tiny", 1, version)
    yield servable
    servable.close()


@pytest.fixture(scope="module")
def manager(version):
    config = serving_models.model_config(tiny=version.parent)
    config.model_config_list.config[0].version_labels["stable"] = 1
    manager = Manager(config, load=Servable.load, poll_seconds=0)
    manager.start()
    yield manager
    manager.stop()


# -- Tensors ---------------------------------------------------------------------------------------

DTYPES = [
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
]


@settings(deadline=None, max_examples=60)
@given(data=st.data(), dtype=st.sampled_from([*DTYPES, "complex64", "complex128"]))
def test_tensors_come_back_as_they_were_sent(data, dtype):
    shape = data.draw(numpy_strategies.array_shapes(min_dims=0, min_side=0, max_side=4))
    array = data.draw(numpy_strategies.arrays(dtype, shape))
    proto = tensor_pb2.TensorProto()
    tensor_protos.fill(proto, array)
    assert not proto.tensor_content
    for sent in (proto, tf.make_tensor_proto(array, shape=shape)):
        received = tensor_protos.to_array(sent, "x")
        assert received.dtype == array.dtype
        np.testing.assert_array_equal(received, array)
        np.testing.assert_array_equal(tf.make_ndarray(sent), array)


def test_strings_and_bfloat16_come_back():
    for array in (
        np.array([[b"a", b"\0b\0"], [b"", b"\xff"]], object),
        tf.constant([1.5, -2], tf.bfloat16).numpy(),
    ):
        proto = tensor_pb2.TensorProto()
        tensor_protos.fill(proto, array)
        np.testing.assert_array_equal(tensor_protos.to_array(proto, "x"), array)
        np.testing.assert_array_equal(tf.make_ndarray(proto), array)


def tensor(dtype, shape, **values):
    proto = tensor_pb2.TensorProto(dtype=dtype, **values)
    proto.tensor_shape.SetInParent()
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def test_missing_values_are_filled_with_the_last_one():
    for proto in (
        tensor(types_pb2.DT_FLOAT, [2, 3], float_val=[1, 2]),
        tensor(types_pb2.DT_FLOAT, [2, 3]),
        tensor(types_pb2.DT_STRING, [3], string_val=[b"ab", b"c"]),
        tensor(types_pb2.DT_BOOL, [3], bool_val=[True]),
    ):
        np.testing.assert_array_equal(tensor_protos.to_array(proto, "x"), tf.make_ndarray(proto))
    empty = tensor_protos.to_array(tensor(types_pb2.DT_STRING, [2]), "x")
    assert empty.tolist() == [b"", b""]


def test_small_integers_wrap_as_on_the_real_server():
    proto = tensor(types_pb2.DT_UINT8, [2], int_val=[300, -1])
    assert tensor_protos.to_array(proto, "x").tolist() == [44, 255]


@pytest.mark.parametrize(
    "proto",
    [
        tensor(types_pb2.DT_FLOAT, [10**12], float_val=[1]),
        tensor(types_pb2.DT_FLOAT, [10**12]),
        tensor(types_pb2.DT_STRING, [2**20], string_val=[b"x" * 1000]),
        tensor(types_pb2.DT_STRING, [2**20 + 1], string_val=[b""]),
        tensor(types_pb2.DT_FLOAT, [1], float_val=[0.0], string_val=[b""] * (2**20 + 1)),
        tensor(types_pb2.DT_FLOAT, [2**62, 2**62], float_val=[1]),
        tensor(types_pb2.DT_FLOAT, [0, 2**62, 2**62]),
        tensor(types_pb2.DT_FLOAT, [-1], float_val=[1]),
        tensor(types_pb2.DT_FLOAT, [1], float_val=[1, 2]),
        tensor(types_pb2.DT_FLOAT, [2], tensor_content=b"12345"),
        tensor(types_pb2.DT_FLOAT, [10**12], tensor_content=b"12345"),
        tensor(types_pb2.DT_BOOL, [2], tensor_content=b"\1\2"),
        tensor(types_pb2.DT_STRING, [1], tensor_content=b"\1a"),
        tensor(types_pb2.DT_COMPLEX64, [1], scomplex_val=[1]),
        tensor(types_pb2.DT_FLOAT, [1] * 100, float_val=[1]),
        tensor(types_pb2.DT_INVALID, [1], float_val=[1]),
        tensor(types_pb2.DT_RESOURCE, [1]),
        tensor(types_pb2.DT_VARIANT, [1]),
        tensor(types_pb2.DT_QINT8, [1], int_val=[1]),
        tensor(types_pb2.DT_FLOAT_REF, [1], float_val=[1]),
        tensor(9999, [1], float_val=[1]),
    ],
)
def test_malformed_tensors_are_refused_before_anything_is_allocated(servable, proto):
    message = refused(CODE.INVALID_ARGUMENT, tensor_protos.to_array, proto, "x")
    assert message.startswith("tensor parsing error: x (")
    request = predict_request("tiny", "linear")
    request.inputs["x"].CopyFrom(proto)
    refused(CODE.INVALID_ARGUMENT, handlers.predict_with, servable, request)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=40))
def test_mutated_tensors_never_crash(mutation):
    content = bytearray(tf.make_tensor_proto(np.float32([[1, 2]])).SerializeToString() + mutation)
    for position, value in enumerate(mutation[:8]):
        content[value % len(content)] ^= 1 << position
    try:
        proto = tensor_pb2.TensorProto.FromString(bytes(content))
    except Exception as error:
        assert type(error).__name__ == "DecodeError"
        return
    try:
        array = tensor_protos.to_array(proto, "x")
    except ServingError as error:
        assert error.code == CODE.INVALID_ARGUMENT
    else:
        assert array.nbytes <= tensor_protos.MAX_FILLED_BYTES + len(content)


# -- Requests --------------------------------------------------------------------------------------


def test_tensors_that_no_input_takes_are_not_read(servable, monkeypatch):
    request = predict_request("tiny", "linear")
    for number in range(3):
        request.inputs[f"other {number}"].dtype = 9999
    monkeypatch.setattr(tensor_protos, "to_array", lambda *_: pytest.fail("it was read"))
    message = refused(CODE.INVALID_ARGUMENT, handlers.predict_with, servable, request)
    assert message.startswith("input size does not match signature")


def test_predict_answers_in_typed_fields_and_names_the_version(manager):
    x = [[1.0, 2.0], [3.0, 4.0]]
    for place in ({}, {"version": 1}, {"label": "stable"}):
        response = handlers.predict(manager, predict_request("tiny", "linear", x=x, **place))
        assert response.model_spec.name == "tiny"
        assert response.model_spec.version.value == 1
        assert response.model_spec.signature_name == "linear"
        assert list(response.outputs["y"].float_val) == [13, 17]
        assert not response.outputs["y"].tensor_content
    request = predict_request("tiny", image_bytes=[serving_models.png()])
    response = handlers.predict(manager, request)
    assert response.model_spec.signature_name == "serving_default"
    (label,) = response.outputs["label"].string_val
    assert label.decode() in serving_models.LABELS


def test_a_payload_comes_back_byte_for_byte(manager):
    payload = [bytes(range(256)), b"", b"\0" * 7]
    request = predict_request("tiny", "echo_bytes", payload=np.array(payload, object))
    response = handlers.predict(manager, request)
    assert list(response.outputs["payload_bytes"].string_val) == payload


def example_request(kind, *rows, signature="", context=None):
    request = kind()
    request.model_spec.name = "tiny"
    request.model_spec.signature_name = signature
    if context is None:
        request.input.example_list.examples.extend(serving_models.example(*r) for r in rows)
    else:
        listed = request.input.example_list_with_context
        listed.context.CopyFrom(serving_models.example(*context))
        listed.examples.extend(
            tf.train.Example() if r is None else serving_models.example(*r) for r in rows
        )
    return request


def test_classify(manager):
    request = example_request(
        classification_pb2.ClassificationRequest, (1, 2), (3, 4), signature="classify"
    )
    response = handlers.classify(manager, request)
    assert response.model_spec.version.value == 1
    rows = [
        [(entry.label, entry.score) for entry in row.classes]
        for row in response.result.classifications
    ]
    assert rows == [
        list(zip(serving_models.LABELS, scores, strict=True))
        for scores in ([1, 2, 1, 10], [3, 4, 1, 10])
    ]


def test_regress_with_and_without_context(manager):
    kind = regression_pb2.RegressionRequest
    for request in (
        example_request(kind, (1, 2), (3, 4), signature="regress"),
        example_request(kind, None, (3, 4), signature="regress", context=(1, 2)),
    ):
        response = handlers.regress(manager, request)
        assert [entry.value for entry in response.result.regressions] == [13, 17]
        assert response.model_spec.signature_name == "regress"


@pytest.mark.parametrize(
    ("handler", "kind", "signature", "rows", "message"),
    [
        ("classify", classification_pb2.ClassificationRequest, "classify", [], "Input is empty."),
        ("regress", regression_pb2.RegressionRequest, "regress", [], "Input is empty."),
        (
            *("classify", classification_pb2.ClassificationRequest, "zzz", [(1, 2)]),
            "No signature was found with the name: zzz",
        ),
        (
            *("classify", classification_pb2.ClassificationRequest, "two_inputs", [(1, 2)]),
            "Expected one input Tensor.",
        ),
        (
            *("classify", classification_pb2.ClassificationRequest, "", [(1, 2)]),
            "Expected one or two output Tensors, found 5",
        ),
        (
            *("regress", regression_pb2.RegressionRequest, "classify", [(1, 2)]),
            "Expected one output Tensor.",
        ),
    ],
)
def test_examples_that_do_not_fit(manager, handler, kind, signature, rows, message):
    request = example_request(kind, *rows, signature=signature)
    assert refused(CODE.INVALID_ARGUMENT, getattr(handlers, handler), manager, request) == message


def test_signatures_without_the_names_of_classify_and_regress(manager):
    for handler, kind, signature, message in (
        ("classify", classification_pb2.ClassificationRequest, "linear", "No classification"),
        ("regress", regression_pb2.RegressionRequest, "linear", "No regression inputs"),
        ("classify", classification_pb2.ClassificationRequest, "regress", "Expected classific"),
    ):
        request = example_request(kind, (1, 2), signature=signature)
        with pytest.raises(ServingError) as caught:
            getattr(handlers, handler)(manager, request)
        assert caught.value.code == CODE.FAILED_PRECONDITION
        assert caught.value.message.startswith(message)


def test_malformed_examples_fail_their_request(manager):
    request = example_request(regression_pb2.RegressionRequest, (1, 2, 3), signature="regress")
    message = refused(CODE.INVALID_ARGUMENT, handlers.regress, manager, request)
    assert "Key: x" in message


def test_metadata_are_the_signatures_of_the_version(manager, servable):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "tiny"
    response = handlers.get_model_metadata(manager, request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert dict(signatures.signature_def) == dict(servable.meta_graph.signature_def)
    assert response.model_spec.version.value == 1
    request.metadata_field.append("other")
    refused(CODE.INVALID_ARGUMENT, handlers.get_model_metadata, manager, request)


def test_reload_takes_a_list_of_models_only(manager):
    request = model_management_pb2.ReloadConfigRequest()
    message = refused(CODE.INVALID_ARGUMENT, handlers.reload_config, manager, request)
    assert message.startswith("ServerModelConfig type not supported")


# -- Recorded answers of the real server -----------------------------------------------------------


@pytest.fixture(scope="module")
def recorded():
    folder = Path(__file__).parent / "recorded"
    config = serving_models.model_config(tiny=folder / "models" / "tiny")
    manager = Manager(config, load=Servable.load, poll_seconds=0)
    manager.start()
    yield manager, json.loads((folder / "grpc_cases.json").read_text())
    manager.stop()


METHODS = {
    "Predict": handlers.predict,
    "Classify": handlers.classify,
    "GetModelMetadata": handlers.get_model_metadata,
    "GetModelStatus": handlers.get_model_status,
}
REQUESTS = {
    "Predict": type(predict_request("tiny")),
    "Classify": classification_pb2.ClassificationRequest,
    "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelStatus": get_model_status_pb2.GetModelStatusRequest,
}


def as_recorded(response):
    """The response in the form of the recording: protobuf's JSON, of metadata the names only."""
    from google.protobuf import json_format

    if isinstance(response, get_model_metadata_pb2.GetModelMetadataResponse):
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        spec = json_format.MessageToDict(response.model_spec, preserving_proto_field_name=True)
        return {"model_spec": spec, "signatures": sorted(signatures.signature_def)}
    return json_format.MessageToDict(response, preserving_proto_field_name=True)


def assert_equal_but_for_rounding(ours, theirs):
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            if key == "float_val":
                np.testing.assert_allclose(ours[key], theirs[key], atol=2e-6)
            else:
                assert_equal_but_for_rounding(ours[key], theirs[key])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal_but_for_rounding(one, other)
    else:
        assert ours == theirs


def test_all_recorded_grpc_cases(recorded):
    manager, cases = recorded
    assert len(cases) == 22
    for case in cases:
        request = REQUESTS[case["method"]].FromString(base64.b64decode(case["request"]))
        handler = METHODS[case["method"]]
        if case["code"] == "OK":
            assert_equal_but_for_rounding(as_recorded(handler(manager, request)), case["response"])
            continue
        with pytest.raises(ServingError) as caught:
            handler(manager, request)
        assert caught.value.code.name == case["code"], case["name"]
        ours, theirs = map(first_clause, (caught.value.message, case["details"]))
        assert ours == theirs, case["name"]
