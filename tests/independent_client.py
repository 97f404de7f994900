"""Asks a running server with a client that is none of ours, in an environment of its own.

    python -m venv other && other/bin/pip install ovmsclient
    python -m serving.server --serving_dir=models/pap_stage2 &
    other/bin/python tests/independent_client.py 1 image.jpg

The first argument is the version: the client sends 0 where none is named, which TensorFlow Serving
takes for a version.
"""

import sys
from pathlib import Path

import ovmsclient

version, paths = int(sys.argv[1]), sys.argv[2:]
images = [Path(path).read_bytes() for path in paths]
for name, make, address in (
    ("gRPC", ovmsclient.make_grpc_client, "localhost:8500"),
    ("REST", ovmsclient.make_http_client, "localhost:8501"),
):
    client = make(address)
    state = client.get_model_status("pap_stage2", model_version=version)[version]["state"]
    answers = client.predict({"image_bytes": images}, "pap_stage2", model_version=version)
    for path, label, probabilities in zip(
        paths, answers["label"], answers["probabilities"], strict=True
    ):
        label = label.decode() if isinstance(label, bytes) else label
        print(name, state, path, label, [round(float(value), 4) for value in probabilities])
