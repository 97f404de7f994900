"""REST's bodies: JSON to arrays and back, by TensorFlow Serving's rules."""

import base64
import itertools
import json
import math

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf import meta_graph_pb2

from serving.server.errors import ServingError
from serving.server.rest import json_text, predict_json

FLOAT, DOUBLE, INT32, UINT8, INT64, UINT64, BOOL, STRING, HALF = (
    types_pb2.DataType.Value(f"DT_{name}")
    for name in ("FLOAT", "DOUBLE", "INT32", "UINT8", "INT64", "UINT64", "BOOL", "STRING", "HALF")
)
ELEMENT_0 = "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: "


def signatures(**dtypes):
    """One signature, the default, with these inputs."""
    found = meta_graph_pb2.MetaGraphDef()
    for name, dtype in dtypes.items():
        found.signature_def["serving_default"].inputs[name].dtype = dtype
    return found.signature_def


def parse(body, **dtypes):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return predict_json.parse_predict(json_text.parse(text), signatures(**dtypes))


def row(value, dtype):
    """What one instance of the only input becomes."""
    return parse({"instances": [value]}, x=dtype).inputs["x"][0]


def refused(call, *arguments, **options):
    with pytest.raises(ServingError) as caught:
        call(*arguments, **options)
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    return caught.value.message


# -- Reading JSON ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "at offset 0: The document is empty."),
        (b"  ", "at offset 2: The document is empty."),
        (b'{"a": 1', "at offset 7: Missing a comma"),
        (b'{"a": [1 2]}', "at offset 9: Missing a comma"),
        (b'{"a": 1e400}', "at offset 6: Number too big"),
        (b'{"a": ' + b"9" * 400 + b"}", "at offset 6: Number too big"),
        (b'{"a": "\\ud800"}', "at offset 7: The surrogate pair"),
        (b'{"a": "\\udc00"}', "at offset 7: The surrogate pair"),
        (b'{"a": "\xff"}', "'utf-8' codec can't decode"),
        (b'{"a": 1\0}', "at offset 7: Missing a comma"),
        (b'{"a": 1, "b": 2, "a": 3}', 'the key "a" is there twice.'),
        (b'{"a": [{"b": 1, "b": 1}]}', 'the key "b" is there twice.'),
        (json.dumps({str(n): 1 for n in range(10**5)})[:-1].encode() + b',"7": 1}', 'the key "7"'),
        (b'{"a": ' + b"[" * 100_000, "lists and objects are nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "lists and objects are nested too"),
        (b'{"a":' * 100_000, "lists and objects are nested too deeply"),
    ],
    ids=itertools.count(),
)
def test_what_is_no_json(body, message):
    assert refused(json_text.parse, body).startswith(f"JSON Parse error: {message}")


def test_numbers_and_text_that_json_does_not_know():
    body = '{"a": [NaN, Infinity, -Infinity, 18446744073709551616], "\\u0000": "é"} {'
    found = json_text.parse(b"\xef\xbb\xbf" + body.encode())
    assert math.isnan(found["a"][0])
    assert found["a"][1:] == [math.inf, -math.inf, 2.0**64] and found["\0"] == "é"
    assert refused(json_text.parse, b"[1]") == "JSON Value: a list Is not object"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.5, "2.5"),
        (True, "true"),
        ("é" * 10**7, f'"{"é" * 100}"'),
        ([1], "a list"),
        ({}, "an object"),
    ],
    ids=itertools.count(),
)
def test_how_a_value_is_shown_in_a_message(value, text):
    assert json_text.shown(value) == text


# -- Requests ------------------------------------------------------------------------------------


def test_rows_and_columns_are_the_same_arrays():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 4
    plain = parse({"instances": x.tolist()}, x=FLOAT)
    named = parse({"instances": [{"x": value} for value in x.tolist()]}, x=FLOAT)
    columns = parse({"inputs": x.tolist()}, x=FLOAT)
    named_columns = parse({"inputs": {"x": x.tolist(), "ignored": 1}}, x=FLOAT)
    for call in (plain, named, columns, named_columns):
        np.testing.assert_array_equal(call.inputs["x"], x, strict=True)
    assert [call.row_form for call in (plain, named, columns, named_columns)] == [1, 1, 0, 0]
    assert parse({"inputs": 3}, x=INT64).inputs["x"].shape == ()
    assert parse({"instances": [[], []]}, x=FLOAT).inputs["x"].shape == (2, 0)


def test_two_inputs():
    rows = [{"a": 1.5, "b": 2}, {"b": 4, "a": 3}]
    expected = {"a": np.float32([1.5, 3]), "b": np.int64([2, 4])}
    for body in ({"instances": rows}, {"inputs": {"b": [2, 4], "a": [1.5, 3]}}):
        found = parse(body, a=FLOAT, b=INT64).inputs
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], strict=True)
    dtypes = {"a": FLOAT, "b": INT64}
    assert refused(parse, {"instances": [1]}, **dtypes) == (
        "instances is a plain list, but expecting list of objects with the keys a, b"
    )
    assert refused(parse, {"inputs": [1]}, **dtypes).startswith("inputs is a plain value/list, but")
    assert refused(parse, {"inputs": {"a": [1]}}, **dtypes) == (
        "Missing named input: b in 'inputs' object."
    )
    assert refused(parse, {"instances": [rows[0], {"a": 1}]}, **dtypes) == (
        "Failed to process element: 1 of 'instances' list. expected an object with the keys a, b"
    )


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (16777215, FLOAT, np.float32(16777215)),
        (16777217.0, FLOAT, np.float32(16777216)),
        (1e30, FLOAT, np.float32(1e30)),
        (math.inf, FLOAT, np.float32(math.inf)),
        (0.1, DOUBLE, np.float64(0.1)),
        (2**53 - 1, DOUBLE, np.float64(2**53 - 1)),
        (300, UINT8, np.uint8(44)),
        (-1, UINT8, np.uint8(255)),
        (-(2**31), INT32, np.int32(-(2**31))),
        (2**63 - 1, INT64, np.int64(2**63 - 1)),
        (2**64 - 1, UINT64, np.uint64(2**64 - 1)),
        (True, BOOL, np.True_),
        ("é\0", STRING, b"\xc3\xa9\0"),
    ],
)
def test_values_that_fit(value, dtype, expected):
    found = row(value, dtype)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (
            16777217,
            FLOAT,
            "Cannot convert JSON value: 16777217 to float without loss of precision.",
        ),
        (-(2**53), DOUBLE, "Cannot convert JSON value: -9007199254740992 to double without loss"),
        (-1e39, FLOAT, "Cannot convert JSON value: -1e+39 to float without loss of precision."),
        (True, FLOAT, "JSON Value: true is not of expected type: float"),
        (
            [[1, 2], [3, False]],
            FLOAT,
            "JSON Value: false is not of expected type: float",
        ),
        ([1, None], FLOAT, "JSON Value: null is not of expected type: float"),
        (["1"], FLOAT, 'JSON Value: "1" is not of expected type: float'),
        (1.0, INT64, "JSON Value: 1.0 is not of expected type: int64"),
        (2**31, INT32, "JSON Value: 2147483648 is not of expected type: int32"),
        (
            2**63,
            INT64,
            "JSON Value: 9223372036854775808 is not of expected type: int64",
        ),
        (-1, UINT64, "JSON Value: -1 is not of expected type: uint64"),
        (1, BOOL, "JSON Value: 1 is not of expected type: bool"),
        (1, STRING, "JSON Value: 1 is not of expected type: string"),
        ([[1], 2], FLOAT, "Encountered list at unexpected size at level: 1"),
        ([1, [2]], FLOAT, "JSON Value: a list is not of expected type: float"),
        ([[1], [2, 3]], FLOAT, "Encountered list at unexpected size at level: 1"),
    ],
)
def test_values_that_do_not_fit(value, dtype, message):
    assert refused(row, value, dtype).startswith(ELEMENT_0 + message)


def test_rows_that_differ():
    start = "Failed to process element: 1 of 'instances' list. "
    assert refused(parse, {"instances": [[1, 2], [3]]}, x=FLOAT) == (
        start + "expected the shape [2], got [1]"
    )
    assert refused(parse, {"instances": [[1, 2], [[3], [4]]]}, x=FLOAT) == (
        start + "expected the shape [2], got [2,1]"
    )


def test_a_dtype_that_json_does_not_reach():
    with pytest.raises(ServingError) as caught:
        parse({"inputs": [1]}, x=HALF)
    assert caught.value.code == grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.message == "Conversion of JSON Value to type: half"


def test_nesting_ends_before_an_array_does():
    deep = 0
    for _ in range(40):
        deep = [deep]
    assert "nested more than 32 deep" in refused(row, deep, FLOAT)
    assert row([[[[[1]]]]], FLOAT).shape == (1,) * 5


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("aGVsbG8=", b"hello"),
        ("aGVsbG8", b"hello"),
        ("aGVs\nbG8= ", b"hello"),
        ("", b""),
        ("/+8=", b"\xff\xef"),
    ],
)
def test_base64(text, data):
    assert row({"b64": text}, STRING) == data


@pytest.mark.parametrize("text", ["@@@", "_-8=", "a", "aGVsbG8==", "=aaa", "aGV=bG8=", "é"])
def test_what_is_no_base64(text):
    assert refused(row, {"b64": text}, STRING) == ELEMENT_0 + "Unable to base64 decode"


def test_an_object_that_is_no_base64():
    assert refused(row, [{"b64": "aGk=", "x": 1}], STRING).startswith(ELEMENT_0 + "JSON Value: an")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"signature_name": 1, "instances": [1]}, "'signature_name' key must be a string value."),
        ({"signature_name": "no", "instances": [1]}, '"no" not found in signature def'),
        ({"instances": 1}, "'instances': expected a list of one value or more"),
        ({"instances": []}, "'instances': expected a list of one value or more"),
        ({"instances": [1], "inputs": [1]}, "only one of the keys 'inputs' and 'instances'"),
        ({"instance": [1]}, "Missing 'inputs' or 'instances' key"),
    ],
)
def test_bodies_that_ask_nothing(body, message):
    assert refused(parse, body, x=FLOAT).endswith(message)


numbers = st.integers(-(2**64), 2**65) | st.floats(width=64) | st.integers(-9, 9)
leaves = numbers | st.booleans() | st.none() | st.text(max_size=3) | st.just({"b64": "aGk="})
ragged = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3), max_leaves=8)
regular = st.integers(0, 3).flatmap(
    lambda n: st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=1, max_size=3)
)


@settings(max_examples=200, deadline=None)
@given(
    instances=st.lists(ragged, min_size=1, max_size=3) | regular | st.lists(numbers, min_size=1),
    dtype=st.sampled_from([FLOAT, DOUBLE, INT32, UINT8, INT64, UINT64, BOOL, STRING]),
)
def test_rows_together_are_the_rows_alone(instances, dtype):
    def outcome(body):
        try:
            document = json_text.parse(json.dumps(body).encode())
            return predict_json.parse_predict(document, signatures(x=dtype)).inputs["x"]
        except ServingError as error:
            assert error.code == grpc.StatusCode.INVALID_ARGUMENT
            return None

    together = [
        outcome({"instances": instances}),
        outcome({"instances": [{"x": value} for value in instances]}),
        outcome({"inputs": instances}),
    ]
    alone = [outcome({"instances": [value]}) for value in instances]
    fit = all(row is not None and row.shape == alone[0].shape for row in alone)
    for array in together:
        if fit:
            np.testing.assert_array_equal(array, np.concatenate(alone), strict=True)
        else:
            assert array is None


@pytest.mark.parametrize(
    ("body", "dtype", "what"),
    [
        (lambda n: {"instances": ["a"] * n}, STRING, "strings"),
        (lambda n: {"inputs": ["a"] * n}, STRING, "strings"),
        (lambda n: {"instances": [{"x": "a"}] * n}, STRING, "rows that name their inputs"),
        (lambda n: {"instances": [[{"b64": ""}] * n]}, STRING, "strings"),
        (lambda n: {"instances": [["a"] * (n // 2)] * 2}, STRING, "strings"),
        (lambda n: {"instances": [1e30] * n}, FLOAT, "numbers as large as these"),
    ],
)
def test_values_that_are_looked_at_one_by_one_are_bounded(body, dtype, what, monkeypatch):
    monkeypatch.setattr(predict_json, "_MAX_ONE_BY_ONE", 10)
    assert parse(body(10), x=dtype).inputs["x"].size == 10
    with pytest.raises(ServingError, match=f"at most 10 {what} in a request, got 12"):
        parse(body(12), x=dtype)
    assert len(parse({"instances": [1] * 12}, x=FLOAT).inputs["x"]) == 12


@pytest.mark.parametrize("form", ["instances", "inputs"])
def test_lists_are_bounded(form, monkeypatch):
    monkeypatch.setattr(predict_json, "_MAX_LISTS", 10)
    assert parse({form: [[1]] * 10}, x=FLOAT).inputs["x"].shape == (10, 1)
    with pytest.raises(ServingError, match="at most 10 lists in a request, got 11"):
        parse({form: [[1]] * 11}, x=FLOAT)


def test_only_the_first_rows_are_looked_at_for_the_one_at_fault(monkeypatch):
    monkeypatch.setattr(predict_json, "_MAX_ONE_BY_ONE", 3)
    with pytest.raises(ServingError, match="element: 2 of"):
        parse({"instances": [1, 2, "a", 4]}, x=FLOAT)
    with pytest.raises(ServingError, match="is not of expected type"):
        parse({"instances": [1, 2, 3, "a"]}, x=FLOAT)


# -- Answers -------------------------------------------------------------------------------------


def answer(row_form=True, **outputs):
    return json.loads(predict_json.format_predict(outputs, row_form))


def test_answers_in_rows_and_columns():
    y, label = np.float32([[0.5, 2], [3, 4]]), np.array([b"a", "é".encode()], object)
    assert answer(y=y) == {"predictions": [[0.5, 2.0], [3.0, 4.0]]}
    assert answer(False, y=y) == {"outputs": [[0.5, 2.0], [3.0, 4.0]]}
    both = answer(y=y, label=label)
    assert both == {
        "predictions": [{"y": [0.5, 2.0], "label": "a"}, {"y": [3.0, 4.0], "label": "é"}]
    }
    assert answer(False, y=y, label=label)["outputs"] == {"y": y.tolist(), "label": ["a", "é"]}
    assert answer(False, total=np.float32(2)) == {"outputs": 2.0}
    assert answer(n=np.int64([2**62]), ok=np.array([True])) == {
        "predictions": [{"n": 2**62, "ok": True}]
    }


def test_text_looks_as_the_real_servers():
    text = predict_json.format_predict({"y": np.float32([[0.0974182487, 3]])}, True).decode()
    assert text == '{\n    "predictions": [[0.0974182487, 3.0]]\n}'


def test_answers_that_cannot_be_written():
    def message(row_form=True, **outputs):
        return refused(predict_json.format_predict, outputs, row_form)

    assert message(total=np.float32(2)) == "Tensor name: total has no shape information "
    assert message(a=np.zeros(2), b=np.zeros(3)) == (
        "Tensor name: b has inconsistent batch size: 3 expecting: 2"
    )
    assert message(h=np.zeros(1, np.float16)) == "Failed to write JSON value for tensor type: half"
    assert "complex64" in message(c=np.zeros(1, np.complex64))
    assert "label is not UTF-8" in message(label=np.array([b"\xff"], object))


def test_bytes_are_base64_where_the_name_says_so():
    data = np.array([[b"\xff\0", b""]], object)
    assert answer(image_bytes=data)["predictions"] == [[{"b64": "/wA="}, {"b64": ""}]]
    back = row(answer(image_bytes=data)["predictions"][0], STRING)
    assert back.tolist() == data[0].tolist()


def test_every_float32_survives_and_has_at_most_nine_digits():
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, 20_000, dtype=np.uint64).astype(np.uint32)
    special = np.float32([0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 3.4028235e38, 1e-38])
    normal = random.normal(size=20_000).astype(np.float32)
    values = np.concatenate([bits.view(np.float32), special, normal])
    # Python reads NaN and Infinity, as rapidjson does.
    back = np.float32(answer(y=values)["predictions"])
    np.testing.assert_array_equal(back, values)
    ordinary = values[(np.abs(values) > 1e-6) & (np.abs(values) < 1e9)]
    for value, number in zip(ordinary, json_text.shortest(ordinary).tolist(), strict=True):
        # The real server's rule: six digits where they are enough, else nine.
        six = f"{float(value):.6g}"
        expected = float(six if np.float32(six) == value else f"{float(value):.9g}")
        assert number == expected


def test_base64_of_the_standard_library_is_understood():
    data = np.random.default_rng(0).bytes(1000)
    assert row({"b64": base64.b64encode(data).decode()}, STRING) == data
