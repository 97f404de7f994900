"""Versions come and go under load: no request fails, no answer is mixed, no kill reaches a client.

pytest tests/test_hot_swap.py --thorough         # a minute of load, 50 kills of the real export
"""

import contextlib
import functools
import json
import random
import shutil
import threading
import time

import grpc
import hostile
import numpy as np
import pytest
import serving_models
import tensorflow as tf
from commands import start
from served import served
from serving_clients import eventually
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.store import publish

ROWS = np.array([[2, 1], [0, 0], [5, 5], [-1, 3]], np.float32)


def linear_request():
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "linear"
    request.model_spec.signature_name = "linear"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(ROWS))
    return request


def bias(answers):
    """Which version answered: y = x0 + x1 + bias; all rows of a request must agree."""
    found = set(np.round(np.asarray(answers) - ROWS.sum(axis=1), 3).tolist())
    assert len(found) == 1, f"a mixed answer: {found}"
    return found.pop()


class Clients(contextlib.AbstractContextManager):
    """Hammers both ports from several threads until it is left."""

    def __init__(self, server, ask_grpc, ask_rest, threads=2):
        self.answers, self.failures, self._ended = [], [], threading.Event()
        channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        asks = [lambda: ask_grpc(stub)] * threads + [lambda: ask_rest(server)] * threads
        self._threads = [threading.Thread(target=self._hammer, args=(ask,)) for ask in asks]

    def _hammer(self, ask):
        # The pause leaves the processors to the server.
        while not self._ended.wait(0.005):
            try:
                self.answers.append(ask())
            except (grpc.RpcError, AssertionError, OSError) as error:
                self.failures.append(repr(error))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join()


def linear_over_grpc(stub):
    answer = stub.Predict(linear_request(), timeout=30)
    version = answer.model_spec.version.value
    assert bias(answer.outputs["y"].float_val) == version
    return version


def linear_over_rest(server):
    body = json.dumps({"signature_name": "linear", "instances": ROWS.tolist()})
    status, _, text = server.rest("POST", "/v1/models/linear:predict", body)
    assert status == 200, text
    return int(bias(json.loads(text)["predictions"]))


@pytest.mark.parametrize("batching", [True, False])
def test_hot_swap_under_load(tmp_path, pytestconfig, batching):
    thorough = pytestconfig.getoption("thorough")
    if not (thorough or batching):
        pytest.skip("without batching: with --thorough")
    pause, versions = (3, 20) if thorough else (0.5, 3)
    serving_dir = tmp_path / "linear"
    # Saving one takes longer than the pause.
    models = [
        serving_models.write_model(tmp_path / f"written_{version}", bias=float(version))
        for version in range(1, versions + 1)
    ]

    def publish_next(version):
        copy = functools.partial(shutil.copytree, models[version - 1], dirs_exist_ok=True)
        assert publish.publish(serving_dir, copy) == version

    publish_next(1)
    arguments = ["--file_system_poll_wait_seconds=0.2"] + ["--enable_batching"] * batching
    with served(serving_dir, *arguments, start=start) as server:
        with Clients(server, linear_over_grpc, linear_over_rest) as clients:
            for version in range(2, versions + 1):
                time.sleep(pause)
                publish_next(version)
                eventually(lambda version=version: server.available("linear") == [version], 30)
            time.sleep(pause)
        assert not clients.failures
        assert set(clients.answers) == set(range(1, versions + 1))
        print(f"{len(clients.answers)} answers of {versions} versions, none failed, none mixed")


@pytest.mark.timeout(3600)
def test_kills_of_the_publisher_reach_no_client(
    exported_tiny, tiny_run, data_dir, tmp_path, pytestconfig
):
    thorough = pytestconfig.getoption("thorough")
    kills = 50 if thorough else 1
    serving_dir = tmp_path / "pap_stage2"
    shutil.copytree(exported_tiny, serving_dir)
    image = hostile.images(np.random.default_rng(0))[0]
    places = (f"--run_dir={tiny_run}", f"--serving_dir={serving_dir}", f"--data_dir={data_dir}")

    def export():
        return start("serving.export", *places, "--check_images=2")

    moments = random.Random(0)
    if thorough:
        began = time.monotonic()
        assert export().wait() == 0
        duration = time.monotonic() - began

    def await_the_moment():
        if thorough:
            time.sleep(moments.uniform(0.3, 1.2) * duration)
            return
        while not list(serving_dir.glob(".publishing-*/saved_model.pb")):
            time.sleep(0.005)

    def over_grpc(stub):
        request = predict_pb2.PredictRequest.FromString(hostile.image_request("pap_stage2", image))
        answer = stub.Predict(request, timeout=30)
        return list(answer.outputs["probabilities"].float_val)

    def over_rest(server):
        body = hostile.image_body(image)
        status, _, text = server.rest("POST", "/v1/models/pap_stage2:predict", body)
        assert status == 200, text
        return json.loads(text)["predictions"][0]["probabilities"]

    with served(serving_dir, "--file_system_poll_wait_seconds=0.1", start=start) as server:
        with Clients(server, over_grpc, over_rest, threads=1) as clients:
            for _ in range(kills):
                process = export()
                await_the_moment()
                process.kill()
                process.wait()
                if not thorough:
                    # It was killed between the first file and the rename.
                    assert publish.versions(serving_dir) == [1]
                    assert list(serving_dir.glob(".publishing-*"))
                # A version that did get through is whole: it loads, or it would be END here.
                states = json.loads(server.rest("GET", "/v1/models/pap_stage2")[2])
                for found in states["model_version_status"]:
                    assert found["status"]["error_code"] == "OK", found
            publish.publish(
                serving_dir,
                functools.partial(shutil.copytree, exported_tiny / "1", dirs_exist_ok=True),
            )
            newest = publish.versions(serving_dir)[-1]
            waited = time.monotonic() + 30
            while server.available("pap_stage2") != [newest] and time.monotonic() < waited:
                time.sleep(0.1)
        assert not clients.failures
        # Every version holds the same weights.
        assert np.ptp(clients.answers, axis=0).max() < 1e-5
        assert server.available("pap_stage2") == [newest]
        assert not list(serving_dir.glob(".*"))
        print(f"{kills} kills, {newest} versions, {len(clients.answers)} answers, none failed")
