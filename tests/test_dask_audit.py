"""The audit by the workers of a Dask cluster on loopback: the same bytes, whoever is killed."""

import sys
import threading
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import command
from dask_machines import Cluster, kill_when

from replication.runs import description, steps
from tfds_pap import (
    audit_files,
    cluster,
    leak_audit,
    near_duplicates,
    preparing,
    twin_blocks,
    twin_candidates,
    twin_cluster,
)
from tfds_pap.errors import PapError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import planted_twins as planted

sys.path[:] = [place for place in sys.path if place != sys.path[0]]

pytest.importorskip("distributed")

FILES = ("pairs.csv", "audit.json", "audit.html", "contact_sheet.png")


@pytest.fixture
def prepared(tmp_path):
    """Returns 20 crops with mixed twins, recompressed and equal copies, in two data sets."""
    tree = tmp_path / "crops"
    rng = np.random.default_rng(2)
    crops = [planted.small(one.picture) for one in planted.drawn(20, 40)]
    twins = [planted.small(planted.twin(crop, "mixed", rng).picture) for crop in crops]
    copies = [
        *(planted.jpeg(crop, 60) for crop in crops[:10]),
        *crops[10:18],
        cv2.flip(crops[0], 1),
    ]
    for number, picture in enumerate([*crops, *twins, *copies]):
        split, name = ("train", "test")[number % 3 == 2], ("HSIL", "NILM")[number % 2]
        path = tree / split / name / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), picture)
    return [preparing.prepare_folders(tree, tmp_path / place) for place in ("one", "many")]


@pytest.fixture
def small_blocks(monkeypatch):
    """Six blocks; a side with lists that are dealt to tasks, and one that is compared whole."""
    monkeypatch.setattr(twin_candidates, "_BLOCK", 10)
    monkeypatch.setattr(twin_candidates, "_EXHAUSTIVE_BELOW", 1_800)
    monkeypatch.setattr(twin_cluster, "_PART", 600)


def written(audit, builder, folder):
    audit_files.write(audit, folder, builder)
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.slow
@pytest.mark.usefixtures("small_blocks")
def test_a_killed_worker_and_a_stopped_command_cost_a_block(prepared, tmp_path, monkeypatch):
    one, many = prepared
    alone = leak_audit.audit_builder(one)
    expected = written(alone, one, tmp_path / "report of one")
    assert len(alone.pairs) >= 40 and {pair.kind for pair in alone.pairs} == set(leak_audit.KINDS)
    kept_in, run = Path(many.data_dir), twin_cluster._run

    def blocks(name):
        return list(kept_in.glob(f"leak-audit-*.blocks/{name}_*"))

    def stopped(client, words, step, calls, *told):
        if step is twin_blocks.vote:
            raise KeyboardInterrupt
        run(client, words, step, calls, *told)

    with Cluster(tmp_path, 2) as machines, cluster.connected(str(machines.file)) as client:
        client.wait_for_workers(2, timeout=60)
        at_kill = []
        killed = (machines, machines.workers[0], 1, lambda: blocks("pictures"))
        killer = threading.Thread(target=lambda: at_kill.append(kill_when(*killed)))
        killer.start()
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(twin_cluster, "_run", stopped)
            leak_audit.audit_builder(many, client=client)
        killer.join()
        assert at_kill[0] < 6 and len(blocks("met")) >= 3 and len(blocks("few")) == 1
        assert not blocks("candidates")
        # The rest needs nothing of what was done once more.
        for step in ("describe", "scatter", "gather", "meet"):
            monkeypatch.setattr(twin_blocks, step, None)
        result = leak_audit.audit_builder(many, client=client)
    assert result == alone
    assert written(result, many, tmp_path / "report of many") == expected
    # What was kept of the blocks is gone, and what is kept of the audit has the same bytes.
    assert not list(kept_in.glob("*.blocks"))
    stored = [
        {path.name: path.read_bytes() for path in Path(builder.data_dir).glob("leak-audit-*.json")}
        for builder in prepared
    ]
    assert stored[0] == stored[1] and len(stored[0]) == 1


def test_a_run_has_its_images_audited_there(manual_dir, data_dir, tmp_path, monkeypatch):
    builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)
    clients = []

    def audit(run, builders, effort, notes, client):
        clients.append(client)
        return {}

    monkeypatch.setattr(description, "audit", audit)
    monkeypatch.setattr(steps.audit_flags, "blocks", lambda audits: {})
    monkeypatch.setattr(description, "describe", lambda *_, **__: None)
    run = steps.Steps(
        path=tmp_path / "run",
        sources=types.SimpleNamespace(prepare=lambda stage: builder),
        images=None,
        policy=None,
        identity={},
        planned={},
    )
    run.prepare([2], client="of a cluster")
    assert clients == ["of a cluster"]


def test_a_run_says_that_no_scheduler_answers(tmp_path):
    away = ("--cluster=tcp://127.0.0.1:9", f"--run_dir={tmp_path / 'run'}")
    done = command("replication.run", *away)
    assert done.returncode == 1
    assert "--cluster=tcp://127.0.0.1:9: no scheduler answers" in done.stderr


@pytest.fixture
def in_this_process(monkeypatch):
    """Steps run one after the other, here."""
    monkeypatch.setattr(
        cluster,
        "outcomes",
        lambda client, step, calls: ((n, step(*call)) for n, call in enumerate(calls)),
    )


@pytest.mark.usefixtures("in_this_process", "small_blocks")
@pytest.mark.parametrize("effort", ["full", "fast"])
def test_features_and_sides_lead_to_the_same_pairs(tmp_path, monkeypatch, effort):
    """With keypoints and hashes blinded, features alone; and what is flat has no keypoint."""
    crops = [planted.small(one.picture) for one in planted.drawn(6, 90)]
    flat = np.full_like(crops[0], 200)
    pixels = np.stack([*crops, *(np.rot90(crop) for crop in crops), flat, flat, crops[0]])
    np.save(tmp_path / "crops.npy", pixels)
    sides = np.array(["train", "test", "train"] * 5)
    features = np.repeat(np.eye(8), 2, axis=0)[[*range(0, 12, 2), *range(1, 13, 2), 12, 13, 0]]
    monkeypatch.setattr(near_duplicates, "_HASH_BITS", -1)
    for given in (None, features):
        many = twin_cluster.find(
            None,
            twin_blocks.ArrayFile(tmp_path / "crops.npy"),
            np.arange(15),
            sides,
            made(tmp_path / f"{given is None}"),
            features=given,
            effort=effort,
        )
        one = near_duplicates.find(pixels, given, sides, effort=effort)
        assert many == one and len(one) >= 7


def made(folder):
    folder.mkdir()
    return folder


@pytest.mark.usefixtures("in_this_process")
def test_pictures_without_a_keypoint(tmp_path):
    np.save(tmp_path / "flat.npy", np.full((3, 128, 128, 3), 90, np.uint8))
    images = twin_blocks.ArrayFile(tmp_path / "flat.npy")
    (match, other) = twin_cluster.find(None, images, np.arange(3), np.zeros(3), tmp_path)
    assert match.identical and other.identical


@pytest.mark.usefixtures("in_this_process")
def test_other_images_are_refused_and_not_kept(tmp_path):
    np.save(tmp_path / "noise.npy", np.zeros((3, 128, 128, 3), np.uint8))
    images = twin_blocks.ArrayFile(tmp_path / "noise.npy")
    with pytest.raises(PapError, match="a worker sees other images there than this process"):
        twin_cluster.find(None, images, np.array([0, 1, 7]), np.zeros(3), tmp_path)
    assert not list(tmp_path.glob("pictures_*"))


def test_lists_give_the_same_however_they_are_dealt_out():
    """Also of what is as near: 40 vectors lie there twice."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 64)).astype(np.float32)
    vectors = np.concatenate([vectors, vectors[:40]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whole, *dealt = (twin_candidates.trained(vectors, 100) for _ in range(4))
    lists, nearness = twin_candidates.lists_of(whole, vectors)
    ids = np.arange(len(vectors))
    twin_candidates.add(whole, vectors, lists[:, 0], ids)
    for number, part in enumerate(dealt):
        ours = lists[:, 0] % 3 == number
        twin_candidates.add(part, vectors[ours], lists[ours, 0], ids[ours])
    results = []
    for index_of in (lambda lists: [(whole, lists >= 0)], lambda lists: [
        (part, lists % 3 == number) for number, part in enumerate(dealt)
    ]):  # fmt: skip
        scores = np.full((*lists.shape, 5), -np.inf, np.float32)
        near = np.full(scores.shape, -1)
        for index, there in index_of(lists):
            query = np.nonzero(there)[0]
            scores[there], near[there] = twin_candidates.met(
                index, vectors[query], lists[there], nearness[there], 5
            )
        flat = (a.reshape(len(vectors), -1) for a in (scores, near))
        results.append(twin_candidates.best_of(next(flat), 5, next(flat))[0])
    np.testing.assert_array_equal(*results)
    # Of the two that are as near the lower comes first, and a vector is its own nearest one.
    np.testing.assert_array_equal(results[0][:400, 0], ids[:400])
    np.testing.assert_array_equal(results[0][400:, :2], np.stack([ids[:40], ids[400:]], 1))
