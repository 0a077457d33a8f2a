"""Passes a search's figures on to experiment trackers; none of them can stop or slow a study for long."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel
from ray.tune import Callback
from rich.console import Console

from prometar.errors import UserError
from prometar.io.files import write_atomically
from tune.jobs.spec import jobs_in
from tune.optimizer.ask_tell import Memory
from tune.results.schema import TrialRecord
from tune.tracking.kinds import KINDS, Tracker

LEDGER = "tracking.json"
_FIGURES = ("objective", "base", "new", "loss", "seconds")


class Trackers(Callback):
    """Tells every tracker each trial's settings, epochs and end, once, however often the study is resumed.

    What a tracker has missed, because it was asked for later or the driver died, it is told when the study
    goes on: of trials that have ended, the objectives by epoch and the last epoch's figures.

    Args:
        names: Of trackers that can be had (`check_trackers`).
        folder: OUT/STUDY, where local trackers have their files.
        study: Its name, under which trials are shown.
        memory: Whose trials are shown.
        console: Where a tracker that fails is named; it is off from then on.
    Raises:
        UserError: tracking.json is damaged.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        study: str,
        memory: Memory,
        *,
        console: Console,
    ) -> None:
        self._memory, self._console = memory, console
        self._num_ended = 0
        self._begun: dict[str, set[int]] = {name: set() for name in names}
        self._trackers: dict[str, Tracker] = {}
        if not names:
            return
        self._ledger = Ledger(folder / LEDGER)
        for name in names:
            try:
                self._trackers[name] = KINDS[name](folder, study, self._ledger.kept.token)
            except Exception as error:  # whatever other people's code raises
                self._drop(name, error)

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        for job in jobs_in(trial.config):
            self._each(self._begin, job.number, job.settings)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        job = jobs_in(trial.config)[result.get("member", 0)]
        if "epoch" in result and not result.get("failed"):
            self._each(self._log, job.number, result["epoch"], _finite(result))

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self.catch_up()

    def catch_up(self) -> None:
        """Tell of the trials that have ended since."""
        if self._trackers:
            for trial in self._memory.ended(self._num_ended):
                self._each(self._end, trial)
                self._num_ended += 1

    def close(self) -> None:
        """Let go of the trackers. Safe to call twice."""
        self._each(lambda name: self._trackers[name].close())
        self._trackers.clear()

    def _begin(self, name: str, number: int, settings: Mapping[str, Any]) -> None:
        if number not in self._begun[name] and not self._ledger.told(name, number).get("ended"):
            self._trackers[name].begin(number, settings)
            self._begun[name].add(number)

    def _log(self, name: str, number: int, epoch: int, values: Mapping[str, float]) -> None:
        """An epoch that the tracker may have; it is told anew of those that a worker tells again."""
        last = self._ledger.told(name, number).get("epoch", 0)
        if values and number in self._begun[name] and epoch > last:
            self._trackers[name].log(number, epoch, values)
            self._ledger.note(name, number, epoch=epoch)

    def _end(self, name: str, trial: TrialRecord) -> None:
        number = trial.number
        if self._ledger.told(name, number).get("ended"):
            return
        self._begin(name, number, trial.settings)
        for told in trial.epochs:
            figures = vars(trial) if told.epoch == trial.epoch else vars(told)
            self._log(name, number, told.epoch, _finite(figures))
        self._trackers[name].end(number, trial.state, trial.score)
        self._ledger.note(name, number, ended=True)
        self._begun[name].discard(number)

    def _each(self, act: Callable[..., None], *args: Any) -> None:
        for name in list(self._trackers):
            try:
                act(name, *args)
            except Exception as error:  # whatever other people's code raises
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self._trackers.pop(name, None)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        self._console.print(
            f"warning: {name} has failed and is off: {reason}; the same command tells it the rest",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


class _Kept(BaseModel):
    """`told`: by tracker and trial, its last epoch, and whether it has ended."""

    token: str
    told: dict[str, dict[str, dict[str, int | bool]]]


class Ledger:
    """What each tracker has been told of, and the name that a study's runs have in no other's.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.kept = path, _Kept(token=uuid4().hex[:12], told={})
        if not path.exists():
            self._write()  # before any run is made under this name
            return
        try:
            self.kept = _Kept.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            raise UserError(f"{path} is damaged: remove it to show the trials anew") from None

    def told(self, tracker: str, number: int) -> Mapping[str, int | bool]:
        """What a tracker has been told of a trial, as noted; empty before the first epoch."""
        return self.kept.told.get(tracker, {}).get(str(number), {})

    def note(self, tracker: str, number: int, **news: int | bool) -> None:
        """Keep what a tracker has been told of a trial: its last `epoch`, or that it has `ended`."""
        self.kept.told.setdefault(tracker, {}).setdefault(str(number), {}).update(news)
        self._write()

    def _write(self) -> None:
        write_atomically(self._path, self.kept.model_dump_json(indent=1).encode())


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    """The figures among a result's values; a tracker can plot no others."""
    figures = {key: values[key] for key in _FIGURES if isinstance(values.get(key), int | float)}
    return {key: float(value) for key, value in figures.items() if math.isfinite(value)}
