"""Fields read by the workers of a Dask cluster on loopback: the same files, whoever is killed."""

import csv
import threading

import numpy as np
import pytest
from commands import command
from dask_machines import Cluster, kill_when
from scanning import scan
from slides import TILE, write_repeated

from tfds_pap import cluster, files, images, phantom
from tfds_pap.errors import PapError

pytest.importorskip("distributed")

#: Of a field, what holds neither its path nor a time.
_PARTS = ("cells.csv", "scores.npy", "heat_map.png", "overlay.jpg")


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """A slide of six blocks, the left half with cells, the right without; and what is no slide."""
    folder = tmp_path_factory.mktemp("slides")
    drawn, _ = phantom.draw_field(0, slide=0, width=512, height=512, cells=20)
    tiles = [drawn[y : y + TILE, x : x + TILE] for y in (0, TILE) for x in (0, TILE)]
    pick = np.full((9, 17), -1)
    pick[:, :8] = 2 * (np.arange(9)[:, None] % 2) + np.arange(8) % 2
    write_repeated(folder / "half.tif", tiles, pick, "deflate")
    (folder / "broken.tif").write_bytes(b"no slide")
    return folder


def contents(folder):
    """Every table, score and picture of a scan's fields, and its cells."""
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.glob("fields/*/**/*"))
        if path.is_file() and path.name not in ("field.json", files.SUMS)
    }
    return found | {"cells.csv": (folder / "cells.csv").read_bytes()}


def rows(folder):
    with (folder / "archive.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_killed_worker_and_a_killed_scheduler_cost_a_block(
    two_stage_run, slides, tmp_path, undrawn
):
    paths = [slides / "half.tif", slides / "broken.tif"]
    scan(two_stage_run, paths, tmp_path / "one")
    many = tmp_path / "many"

    def blocks():
        return list(many.glob("fields/*/blocks/scores_*.npy"))

    with Cluster(tmp_path, 2) as machines, cluster.connected(str(machines.file)) as client:
        client.wait_for_workers(2, timeout=60)

        def kill():
            kill_when(machines, machines.workers[0], 1, blocks)
            kill_when(machines, machines.scheduler, 2, blocks)

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(PapError, match="the scheduler of --cluster went away"):
            scan(two_stage_run, paths, many, client=client)
        killer.join()
    half, broken = rows(many)
    assert (half["state"], half["attempts"], half["blocks"]) == ("reading", "1", "6")
    kept = {path: path.stat().st_mtime_ns for path in blocks()}
    assert kept
    (tmp_path / "again").mkdir()
    with (
        Cluster(tmp_path / "again", 1) as machines,
        cluster.connected(str(machines.file)) as client,
    ):
        client.wait_for_workers(1, timeout=60)
        outcome = scan(two_stage_run, paths, many, client=client)
    assert contents(many) == contents(tmp_path / "one")
    assert len(outcome.unreadable) == 1
    half, broken = rows(many)
    assert (half["state"], half["attempts"], half["error"]) == ("finished", "2", "")
    assert int(half["cells"]) == len((many / "cells.csv").read_text().splitlines()) - 1 > 0
    assert float(half["seconds"]) > 0
    assert broken["state"] == "failed" and "broken.tif" in broken["error"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("nowhere.json", "expected local, an address such as tcp://HOST:8786, or a scheduler file"),
        ("tcp://127.0.0.1:9", "--cluster=tcp://127.0.0.1:9: no scheduler answers"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(two_stage_run, slides, value, said):
    done = command(
        "replication.scan", f"--stage1={two_stage_run}", f"--cluster={value}", slides / "half.tif"
    )
    assert done.returncode == 1 and said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_workers_read_a_folder_behind_a_url_as_one_process_reads_its_path(
    two_stage_run, tmp_path, undrawn
):
    folder = tmp_path / "fields"
    folder.mkdir()
    pixels, _ = phantom.draw_field(1, width=300, height=260, cells=4)
    (folder / "a b.png").write_bytes(images.encode_png(pixels))
    (folder / "nuclei.csv").write_text("field,x,y,label\na b.png,150,130,HSIL\n")
    scan(two_stage_run, [folder], tmp_path / "one")
    url = f"file://{folder}"
    with Cluster(tmp_path, 1) as machines, cluster.connected(str(machines.file)) as client:
        client.wait_for_workers(1, timeout=60)
        scan(two_stage_run, [url], tmp_path / "many", client=client)
    one, many = (
        [contents(tmp_path / name)[f"fields/{field.name}/{part}"] for part in _PARTS]
        for name in ("one", "many")
        for field in (tmp_path / name / "fields").iterdir()
    )
    assert one == many
    (row,) = rows(tmp_path / "many")
    assert row["field"] == f"{url}/a b.png" and row["state"] == "finished"
    evaluations = [(tmp_path / name / "evaluation.json").read_bytes() for name in ("one", "many")]
    assert evaluations[0] == evaluations[1]
