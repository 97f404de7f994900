"""Kills commands where a seed says, resumes them, and compares what they found in the end.

Used by benchmarks/faults.py for all kills and by test_faults.py for a few.
"""

import dataclasses
import os
import random
import signal
import time
from pathlib import Path

import outcomes
from commands import start

from tfds_pap import phantom_set

_IMAGES = "--manual_dir=../manual --images=stand-in --data_dir=data --deterministic"
_TINY = "--weights=none --size=32 --features_dir=features"

#: Each command as it is typed in a folder of its own, and where there lies what it finds. RUN is
#: the run of the first one, undisturbed.
COMMANDS = {
    "replication.run": (
        f"{_IMAGES} --run_dir=run --protocol=clean --epochs=2 --batch_size=8 --scan_fields=0",
        "run",
    ),
    "replication.compare": (
        f"{_IMAGES} {_TINY} --run_dir=run --backbones=mobilenetv2_035 --epochs=2 --seeds=0,1",
        "run",
    ),
    "finetune.search": (
        f"{_IMAGES} {_TINY} --search_dir=run --backbone=mobilenetv2_035 --tuner=random "
        "--max_trials=4 --max_epochs=2",
        "run",
    ),
    "serving.export": ("--run_dir=RUN --serving_dir=pap_stage2 --check_images=2", "pap_stage2"),
    "replication.scan": ("--stage1=RUN --stage2=RUN --scan_dir=run --stride=100 ../fields", "run"),
    # The cheapest step: kills meet what goes on around steps, which are commands of above.
    "replication.paper": (
        f"{_IMAGES} --weights=none --backbones=mobilenetv2_035 --run_dir=run --only=audit",
        "run/audit",
    ),
}
_RUN = "../whole-replication.run/run"


@dataclasses.dataclass
class Killed:
    """What became of a command that was killed again and again.

    Attributes:
        command: Its module.
        kills: How many met it at work.
        resumes: How many times it was started again and ended.
        undisturbed: Seconds of the whole command, undisturbed.
        lost: Seconds by the clock that kills and resumes took more than as many whole commands.
        differing: Files that an undisturbed command writes otherwise; [] where all are equal.
    """

    command: str
    kills: int
    resumes: int
    undisturbed: float
    lost: float
    differing: list[str]


class Workplace:
    """Images, an undisturbed outcome of each command, and folders in which they are killed."""

    def __init__(self, folder, seed=0):
        self.folder, self.rng = Path(folder), random.Random(seed)
        self.whole, self.seconds = {}, {}
        counts = {"train": 10, "validation": 4}
        phantom_set.write_tree(self.folder / "manual", db3=counts, db4=counts, slides=8)
        phantom_set.write_fields(self.folder / "fields", 2)

    def undisturbed(self, name):
        """Runs a command to its end, once; returns its folder."""
        place = self.folder / f"whole-{name}"
        if name not in self.whole:
            if "RUN" in COMMANDS[name][0]:
                self.undisturbed("replication.run")
            begun = time.monotonic()
            self._to_its_end(name, place)
            self.seconds[name] = time.monotonic() - begun
            self.whole[name] = self._found(name, place)
            assert self.whole[name], f"{name} found nothing"
        return place

    def killed(self, name, kills):
        """Kills a command so many times in all, and brings it to its end each time it can be."""
        self.undisturbed(name)
        done = Killed(name, 0, 0, self.seconds[name], 0.0, [])
        number, spent = 0, 0.0
        while done.kills < kills:
            number += 1
            place = self.folder / f"killed-{name}-{number}"
            # Some folders see one kill, some several.
            for _ in range(min(self.rng.choice((1, 2, 3)), kills - done.kills)):
                begun = time.monotonic()
                met = self._kill(name, place, self.rng.uniform(0.0, self.seconds[name]))
                spent += time.monotonic() - begun
                done.kills += met
                if not met:
                    break
            begun = time.monotonic()
            self._to_its_end(name, place)
            spent += time.monotonic() - begun
            done.resumes += 1
            done.lost = spent - done.resumes * self.seconds[name]
            found, whole = self._found(name, place), self.whole[name]
            done.differing += [
                f"{place.name}/{each}"
                for each in sorted({*found, *whole})
                if found.get(each) != whole.get(each)
            ]
        return done

    def _found(self, name, place):
        folder = place / COMMANDS[name][1]
        if name == "serving.export":
            # One that was killed when it had published publishes the same once more.
            folder = max(folder.iterdir(), key=lambda version: int(version.name))
        return outcomes.digests(folder)

    def _start(self, name, place):
        place.mkdir(exist_ok=True)
        arguments = COMMANDS[name][0].replace("RUN", _RUN).split()
        log = place / "log"
        return start(name, *arguments, cwd=place, stdout=log, stderr=log, draws=False)

    def _to_its_end(self, name, place):
        status = self._start(name, place).wait(600)
        log = (place / "log").read_text()
        assert status == 0 and "Traceback" not in log, f"{name}: {place}: {log[-3000:]}"

    def _kill(self, name, place, after):
        """Whether the command was still at work after so many seconds."""
        process = self._start(name, place)
        end = time.monotonic() + after
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.005)
        if process.poll() is not None:
            return False
        # With its children: whoever kills a job kills all of it.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
