"""The audit by the workers of a Dask cluster on loopback: the same bytes, whoever is killed."""

import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from dask_machines import Cluster, kill_when

from tfds_pap import (
    audit_files,
    cluster,
    leak_audit,
    pipeline,
    twin_blocks,
    twin_candidates,
    twin_cluster,
)

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
    return [pipeline.prepare_folders(tree, tmp_path / place) for place in ("one", "many")]


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
