"""Hostile requests, drawn from a seed: broken images, JSON, URLs, tensors and protocol buffers."""

import base64
import io
import json
import struct

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import predict_pb2

PATH = "/v1/models/{}:predict"

_WORDS = (
    '{"instances": [{"b64": "AAAA"}]}',
    '{"signature_name": "pixels", "instances": [[[[1, 2, 3]]]]}',
    '{"inputs": {"image_bytes": [{"b64": "/9j/"}]}}',
    '{"instances": ["\\ud800", 1e999, -0.0, null, true]}',
    '{"inputs": [[[[[[[[[[]]]]]]]]]], "signature_name": "classify"}',
)
_TOKENS = (
    *(b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\0", b"\xff", b"null", b"true", b"NaN"),
    *(b"-Infinity", b"1e400", b"9" * 400, b"[" * 3000, b'{"b64":' * 500, b'"instances"'),
    *(b'"inputs"', b'"signature_name"', b'"\\u0000"', b'"\\ud800"', b'"b64"', b"\xef\xbb\xbf"),
)


def images(rng):
    """One honest image of each format and kind."""
    found = []
    for width, height in ((40, 30), (1, 1), (300, 2)):
        pixels = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        for form, mode, options in (
            ("JPEG", "RGB", {}),
            ("JPEG", "RGB", {"progressive": True}),
            ("JPEG", "CMYK", {}),
            ("JPEG", "L", {}),
            ("PNG", "RGB", {}),
            ("PNG", "RGBA", {}),
            ("PNG", "P", {}),
            ("PNG", "1", {}),
            ("BMP", "RGB", {}),
            ("GIF", "P", {}),
            ("WEBP", "RGB", {}),
            ("TIFF", "RGB", {}),
        ):
            data = io.BytesIO()
            pixels.convert(mode).save(data, form, **options)
            found.append(data.getvalue())
    return found


def mutated(rng, data):
    """The bytes with a few changes: flips, cuts, insertions, repeats, huge sizes."""
    data = bytearray(data)
    for _ in range(rng.geometric(0.4)):
        place = int(rng.integers(0, max(len(data), 1)))
        match rng.integers(0, 7):
            case 0 if data:
                data[place] ^= 1 << int(rng.integers(0, 8))
            case 1 if data:
                data[place] = int(rng.integers(0, 256))
            case 2:
                del data[place:]
            case 3:
                data[place:place] = rng.bytes(int(rng.integers(1, 40)))
            case 4:
                del data[place : place + int(rng.integers(1, 40))]
            case 5:
                data[place:place] = data[place : place + int(rng.integers(1, 400))]
            case 6:
                huge = int(rng.choice([0, 1, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**32 - 1]))
                data[place : place + 4] = struct.pack(rng.choice([">I", "<I"]), huge)
    return bytes(data)


def json_body(rng):
    """A body that is JSON, nearly JSON, or nothing of the kind."""
    kind = rng.integers(0, 4)
    text = bytearray(_WORDS[rng.integers(len(_WORDS))].encode())
    if kind == 0:
        return mutated(rng, text)
    if kind == 1:
        for _ in range(rng.integers(1, 5)):
            place = int(rng.integers(0, len(text) + 1))
            text[place:place] = _TOKENS[rng.integers(len(_TOKENS))]
        return bytes(text)
    if kind == 2:
        return b"".join(_TOKENS[n] for n in rng.integers(0, len(_TOKENS), rng.integers(0, 12)))
    return json.dumps(
        {
            str(rng.choice(["instances", "inputs", "examples", "signature_name", "x"])): _value(rng)
            for _ in range(rng.integers(0, 3))
        }
    ).encode()


def _value(rng, depth=0):
    kind = rng.integers(0, 6 if depth < 4 else 4)
    if kind == 0:
        return float(rng.normal())
    if kind == 1:
        return str(rng.choice(["", "pixels", "explain", "classify", "no such", "x" * 5000]))
    if kind == 2:
        return [None, True, False, 2**63, -(2**70)][rng.integers(5)]
    if kind == 3:
        return {"b64": str(rng.choice(["", "AAAA", "@@@", "A", "/9j/4AAQ"]))}
    if kind == 4:
        return [_value(rng, depth + 1) for _ in range(rng.integers(0, 4))]
    return {str(rng.choice(["image", "image_bytes", "b64"])): _value(rng, depth + 1)}


def url(rng, name):
    """A path that is nearly one of the server's."""
    parts = ["v1", "models", name, "versions", "labels", "1", "stable", "metadata", "..", "%00", ""]
    parts += [
        f"{name}:predict",
        f"{name}:classify",
        "18446744073709551616",
        "-1",
        "%ff",
        "a" * 3000,
    ]
    return "/" + "/".join(parts[n] for n in rng.integers(0, len(parts), rng.integers(0, 6)))


def tensor_request(rng, name, data):
    """A PredictRequest whose tensor contradicts itself or the signature."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = str(rng.choice([name, name, name, "", "other"]))
    request.model_spec.signature_name = str(
        rng.choice(["", "pixels", "classify", "features", "explain", "no such"])
    )
    if rng.integers(0, 4) == 0:
        request.model_spec.version.value = int(rng.integers(-1, 3))
    for _ in range(rng.integers(0, 3)):
        tensor = request.inputs[str(rng.choice(["image_bytes", "image", "inputs", "x"]))]
        tensor.dtype = int(rng.choice([tf.string.as_datatype_enum, 1, 3, 9, 10, 14, 19, 0, 101]))
        for _ in range(rng.integers(0, 5)):
            sizes = [0, 1, 2, 3, 24, -1, -5, 2**31, 2**62]
            tensor.tensor_shape.dim.add(size=sizes[rng.integers(len(sizes))])
        tensor.tensor_shape.unknown_rank = bool(rng.integers(0, 10) == 0)
        if rng.integers(0, 2):
            tensor.tensor_content = rng.bytes(int(rng.choice([0, 1, 4, 12, 6912])))
        tensor.string_val.extend([data] * int(rng.integers(0, 3)))
        tensor.float_val.extend(rng.normal(size=int(rng.integers(0, 4))))
    request.output_filter.extend(
        str(name) for name in rng.choice(["label", "no such", ""], int(rng.integers(0, 3)))
    )
    return request.SerializeToString()


def image_request(name, data, signature=""):
    """A PredictRequest that is right but for its image, serialised."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.model_spec.signature_name = signature
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(np.array([data], object)))
    return request.SerializeToString()


def image_body(data, signature=""):
    """The same as a body of REST."""
    rows = [{"b64": base64.b64encode(data).decode()}]
    return json.dumps(
        {"signature_name": signature or "serving_default", "instances": rows}
    ).encode()
