"""The command `prometar reproduce --tune` with jobs that do not train, and readers of its files.

`compare` runs the command in this process. Tests can also run it in a separate process, to kill it:

    python -m tests.support.tuned OUT [options of prometar reproduce]
"""

import sys

if __name__ == "__main__":
    from tune.execution.ray_cluster import configure_ray

    configure_ray(local="--address" not in sys.argv)  # before ray is imported

import contextlib
import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from prometar.cli.app import main
from tests.support.fake_trial import FakeTraining, FakeTrial
from tune.execution import executor
from tune.tuned import run as tuned_run

SMALL = (
    "--datasets",
    "cells",
    "--methods",
    "zero-shot",
    "maple",
    "vpt",
    "--seeds",
    "1",
    "2",
    "--epochs",
    "2",
)
"""Options of a small comparison: two studies, and a method without training."""


@contextlib.contextmanager
def without_ray(num_cpus: int = 2) -> Iterator[list[str]]:
    """Run the jobs of a comparison one after the other in this process. Yield the names of the jobs run."""
    names: list[str] = []

    def fit(dispatcher: Any, *_: Any) -> None:
        for number in itertools.count():
            request = dispatcher.next_request(str(number))
            if request is None:
                assert dispatcher.finished
                return
            names.append(request.job.name)
            training = FakeTraining(request)
            while not dispatcher.reported(str(number), training.advance()):
                pass
            dispatcher.completed(str(number))

    with (
        mock.patch.object(tuned_run, "start_ray", return_value=[{"CPU": float(num_cpus)}]),
        mock.patch.object(tuned_run, "run_jobs", partial(executor.run_jobs, worker=FakeTrial)),
        mock.patch.object(executor, "_fit", fit),
    ):
        yield names


def compare(out: Path, *options: object, trials: int = 4) -> int:
    """Run `prometar reproduce --tune`. Return the exit status."""
    return main(["reproduce", "--tune", str(trials), "--out", str(out), *map(str, options)])


def num_epochs(out: Path) -> dict[str, int]:
    """Return the number of epochs that each job below OUT has run, by folder.

    The file steps.log in a job's folder has one word per epoch. Repeated epochs count each time.
    """
    numbers: dict[str, int] = {}
    for file in out.rglob("steps.log"):
        folder = file.parent.relative_to(out)
        numbers[str(folder)] = len(file.read_text().split())
    return numbers


def records(out: Path) -> dict[str, bytes]:
    """Return the content of all records of finished trials and runs, by path."""
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in sorted(out.rglob("*.json"))
        if file.name in ("record.json", "result.json")
    }


def trial_settings(out: Path) -> dict[str, list[str]]:
    """Return the settings of all trials, as JSON, by study."""
    by_study: dict[str, list[str]] = {}
    for file in sorted(out.glob("studies/*/trials/*/record.json")):
        study = file.parents[2].name
        settings = json.loads(file.read_text())["settings"]
        by_study.setdefault(study, []).append(json.dumps(settings, sort_keys=True))
    return by_study


if __name__ == "__main__":
    with mock.patch.object(tuned_run, "run_jobs", partial(executor.run_jobs, worker=FakeTrial)):
        sys.exit(compare(Path(sys.argv[1]), *sys.argv[2:]))
