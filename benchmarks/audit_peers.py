"""The leak audit beside imagededup, cleanvision and fastdup, on the same planted twins.

    python benchmarks/audit_peers.py --fields=DIR --window=256 --environments=DIR

DIR of environments holds imagededup/bin/python, cleanvision/bin/python and fastdup/bin/python, one
environment each (`python -m venv`, `pip install`): no two of them agree on what they need. The
planted twins are files that every tool reads. A tool's recall is that at the best threshold at
which it raises no false alarm, which flatters the tools that have one: it is chosen on what is
reported. The audit has its own thresholds, set on other fields.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parent))
import audit_recall
import machine
import peer_pairs
import planted_twins as planted

_ENVIRONMENTS = flags.DEFINE_string(
    "environments", None, "Folder of the tools' environments (required).", required=True
)
_TOOLS = flags.DEFINE_list(
    "tools", [], "Numbers of the tools of peer_pairs.py, from 0 (default: all)."
)
_FEATURES = flags.DEFINE_string(
    "features",
    None,
    "MobileNetV2 .h5 without top whose features imagededup's CNN search is given, where its own "
    "weights cannot be downloaded (default: none, it downloads its own).",
)
_TIMEOUT = 3600


def best(
    originals: list[planted.Original],
    structure: list[float],
    scored: list[peer_pairs.Pair],
) -> planted.Score:
    """What a tool finds at the loosest threshold at which it raises no false alarm."""
    count = len(originals)
    strength: dict[tuple[int, int], float] = {}
    for first, second, score in scored:
        if first != second:
            pair = (min(first, second), max(first, second))
            strength[pair] = max(score, strength.get(pair, -np.inf))
    alarm = max(
        (
            score
            for (a, b), score in strength.items()
            if a % count != b % count and originals[a % count].innocent(originals[b % count])
        ),
        default=-np.inf,
    )
    return planted.score(originals, structure, {p for p, s in strength.items() if s > alarm})


def features(folder: Path, weights: str) -> np.ndarray:
    """MobileNetV2's features of the pictures of a folder, float32 `[n, 1280]`."""
    import keras

    model = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(224, 224, 3), pooling="avg"
    )
    model.load_weights(weights)
    files = sorted(folder.iterdir(), key=lambda path: int(path.stem))
    pictures = [cv2.resize(cv2.imread(str(file))[..., ::-1], (224, 224)) for file in files]
    scaled = keras.applications.mobilenet_v2.preprocess_input(np.stack(pictures).astype("float32"))
    return model.predict(scaled, batch_size=32, verbose=0)


def look(tool: str, folder: Path) -> dict[str, object]:
    """Runs a tool on a folder of files; returns what peer_pairs.py writes."""
    name = tool.partition(",")[0]
    python = sys.executable
    if name != "audit":
        python = str(Path(_ENVIRONMENTS.value) / name / "bin" / "python")
    output = folder.parent / "pairs.json"
    output.unlink(missing_ok=True)
    script = str(Path(peer_pairs.__file__).resolve())
    done = subprocess.run(
        [python, script, tool, str(folder), str(output)],
        capture_output=True, text=True, timeout=_TIMEOUT, check=False,
    )  # fmt: skip
    if not output.exists():
        raise SystemExit(f"{tool}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(output.read_text())


def main(argv: list[str]) -> None:
    """Plants, lets every tool look, prints and writes."""
    del argv
    originals, name = audit_recall.chosen()
    innocent = planted.innocent_pairs(originals)
    print(machine.describe())
    print(f"{len(originals)} {name}, {innocent:,} innocent pairs")
    tools = list(peer_pairs.TOOLS)
    tools = [tools[int(number)] for number in _TOOLS.value] or tools
    for kind in planted.KINDS[: flags.FLAGS.kinds]:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "pictures"
            folder.mkdir()
            rng = np.random.default_rng(1)
            twins = [planted.twin(original.picture, kind, rng) for original in originals]
            pictures = [o.picture for o in originals] + [twin.picture for twin in twins]
            for number, picture in enumerate(pictures):
                cv2.imwrite(str(folder / f"{number}.png"), picture)
            if _FEATURES.value:
                np.save(Path(place) / "features.npy", features(folder, _FEATURES.value))
            for tool in tools:
                told = look(tool, folder)
                score = best(originals, [twin.structure for twin in twins], told["pairs"])
                called = tool
                if tool == "imagededup, CNN" and _FEATURES.value:
                    called = "imagededup, CNN search on MobileNetV2 features"
                row = {
                    "source": flags.FLAGS.source, "pictures": name, "kind": kind, "tool": called,
                    "twins": score.pairs, "found": round(score.found, 4),
                    "without_structure": score.bare, "found_of_those": round(score.bare_found, 4),
                    "false_alarms": score.false_alarms, "innocent_pairs": innocent,
                    "images": len(pictures),
                    "processor_seconds": round(told["processor_seconds"], 1),
                    "peak_mib": told["peak_mib"],
                }  # fmt: skip
                print(
                    f"{kind:24s}{called:50s}{score.found:8.1%}{score.false_alarms:3d} false"
                    f"{told['processor_seconds']:8.1f} s{told['peak_mib']:7d} MiB",
                    flush=True,
                )
                machine.add_rows(flags.FLAGS.csv, [row])


if __name__ == "__main__":
    app.run(main)
