"""Features by the workers of a Dask cluster on loopback: the same bytes, whoever is killed."""

import os
import threading

import pytest
from dask_machines import Cluster, kill_when

from replication.learning import features, weights
from replication.runs.device import DevicePolicy
from tfds_pap import cluster, preparing
from tfds_pap.errors import PapError

pytest.importorskip("distributed")

POLICY = DevicePolicy("CPU", False, "float32")


@pytest.fixture(scope="module")
def builder(manual_dir, data_dir):
    return preparing.prepare("pap_db4", "original", manual_dir, data_dir)


@pytest.fixture
def spec(tiny_backbone):
    found = weights.find(tiny_backbone, "none")
    return features.FeatureSpec(tiny_backbone, found, 32, "torch", views=8)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """52 images: 26 chunks."""
    monkeypatch.setattr(features, "_CHUNK", 2)


def chunks(directory):
    return {path.name: path.read_bytes() for path in directory.glob("*/chunk_*.npz")}


def test_a_killed_worker_and_a_killed_scheduler_cost_a_chunk(builder, spec, tmp_path):
    alone = features.extract_features(builder, spec, tmp_path / "one", policy=POLICY, batch_size=2)
    expected = chunks(tmp_path / "one")
    assert len(expected) == 26
    directory, at_kill = tmp_path / "many", {}

    def extract(client):
        return features.extract_features(
            builder, spec, directory, policy=POLICY, batch_size=2, client=client
        )

    with (
        Cluster(tmp_path, 2, tiny=True) as machines,
        cluster.connected(str(machines.file)) as client,
    ):
        client.wait_for_workers(2, timeout=60)

        def kill():
            for count, process in ((1, machines.workers[0]), (3, machines.scheduler)):
                at_kill[count] = kill_when(machines, process, count, lambda: chunks(directory))

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(PapError, match=r"^the scheduler of --cluster went away; [^\n]*$"):
            extract(client)
        killer.join()
    assert at_kill[3] < 26
    kept = {path: path.stat().st_mtime_ns for path in directory.glob("*/chunk_*.npz")}
    assert len(kept) >= 3

    (tmp_path / "again").mkdir()
    with (
        Cluster(tmp_path / "again", 1, tiny=True) as machines,
        cluster.connected(str(machines.file)) as client,
    ):
        client.wait_for_workers(1, timeout=60)
        store = extract(client)
    assert chunks(directory) == expected
    for path, modified in kept.items():
        assert path.stat().st_mtime_ns == modified
    assert (store.features == alone.features).all()
    assert store.about.keys() == alone.about.keys()
    assert store.about["key"] == alone.about["key"]
    assert store.about["gflops"] == alone.about["gflops"]
    assert not list(directory.rglob("*.partial"))


def test_a_cluster_of_this_machine_leaves_the_environment_as_it_was(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before = dict(os.environ)
    with cluster.connected("local", workers=1) as client:
        assert client.submit(os.getenv, "OMP_NUM_THREADS").result() is not None
    assert dict(os.environ) == before
