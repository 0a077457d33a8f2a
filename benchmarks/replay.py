"""A worker that replays recorded learning curves in shortened time; Ray's workers import it by name.

It gives the study's driver what `tune.trial.TrialWorker` gives, and keeps its epochs in the trial's folder
as that does, so that a killed trial goes on; but it imports neither torch nor open_clip, and sleeps where
the other trains. Each epoch leaves a line in STEPS/<process>.log: trial, epoch, begin, end.
"""

import json
import math
import os
import random
import time
from pathlib import Path
from typing import Any, NamedTuple

from ray import tune
from tune.jobs.spec import jobs_in

from tune.space.spaces import Choice, Space, load_space

SPACE = "full"
SECONDS = "REPLAY_SECONDS"  # environment of a node: mean length of an epoch
STEPS = "REPLAY_STEPS"  # the folder of the logs
NOISE = 0.5  # percent, on every recorded figure: no two trials are equal
_RECORDED = json.loads(Path(__file__).with_name("curves.json").read_text("utf-8"))["trials"]
EPOCHS = len(_RECORDED[0]["objective"])


class Step(NamedTuple):
    """An epoch as a worker has seen it; times in seconds since 1970."""

    trial: int
    epoch: int
    begin: float
    end: float


class Curves:
    """The recorded learning curve whose settings lie nearest."""

    def __init__(self, space: Space) -> None:
        self._ranges = space.ranges
        self._recorded = [(self._point(each["settings"]), each["objective"]) for each in _RECORDED]

    def __call__(self, settings: dict[str, Any]) -> list[float]:
        here = self._point(settings)
        return min(self._recorded, key=lambda recorded: math.dist(recorded[0], here))[1]

    def _point(self, settings: dict[str, Any]) -> list[float]:
        """Every setting between 0 and 1, in the middle where it has no value.

        Two different choices are as far apart as two ends of a range.
        """
        point = []
        for name, entry in self._ranges.items():
            if isinstance(entry, Choice):
                point += [math.sqrt(0.5) * (choice == settings.get(name)) for choice in entry.choices]
            else:
                point.append(entry.unit(settings[name]) if name in settings else 0.5)
        return point


class Replay(tune.Trainable):
    """One step is one epoch of one trial."""

    def setup(self, config: dict[str, Any]) -> None:
        self._curves = Curves(load_space(SPACE))
        self._log = os.open(
            Path(os.environ[STEPS], f"{os.getpid()}.log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT
        )
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        (job,) = jobs_in(config)
        folder = Path(job.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._number, self._state = int(folder.name), folder / "replay.json"
        self._done: list[dict[str, Any]] = json.loads(self._state.read_text()) if self._state.exists() else []
        self._told = 0
        rng = random.Random(self._number)
        self._seconds = float(os.environ[SECONDS]) * rng.uniform(0.7, 1.3)
        self._curve = [value + rng.gauss(0, NOISE) for value in self._curves(job.settings)]

    def step(self) -> dict[str, Any]:
        if self._told == len(self._done):
            self._train()
        self._told += 1
        result = self._done[self._told - 1]
        return result | {"done": result["finished"]}

    def _train(self) -> None:
        begin, epoch = time.time(), len(self._done) + 1
        time.sleep(self._seconds)
        value = self._curve[epoch - 1]
        self._done.append(
            {
                "member": 0,
                "epoch": epoch,
                "objective": value,
                "base": value + 2,
                "new": value - 2,
                "loss": 1.0,
                "seconds": self._seconds * epoch,
                "failed": "",
                "finished": epoch == EPOCHS,
            }
        )
        fresh = self._state.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(self._done))
        fresh.replace(self._state)
        os.write(self._log, f"{self._number} {epoch} {begin:.4f} {time.time():.4f}\n".encode())


def read_steps(folder: Path) -> dict[str, list[Step]]:
    """The epochs of every worker that has ended one, in their order."""
    found = {}
    for path in folder.glob("*.log"):
        rows = [line.split() for line in path.read_text().splitlines()]
        if rows:
            found[path.stem] = [Step(int(t), int(e), float(begin), float(end)) for t, e, begin, end in rows]
    return found
