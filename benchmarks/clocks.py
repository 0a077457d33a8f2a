"""Where a driver's time goes: its calls by kind, in stretches of so many ended trials."""

import threading
import time
from collections import defaultdict
from functools import wraps
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.samplers import TPESampler
from ray.tune.execution.tune_controller import TuneController
from tune.execution.course import RelayedScheduler
from tune.execution.progress import Progress
from tune.execution.record_keeper import RecordKeeper
from tune.optimizer.ask_tell import Memory
from tune.optimizer.storage import WriteThrough

from tune import study
from tune.execution.jobs import Jobs, SearchJobs

WAITING, ASK, REPORT, TELL, RETRY, PAGE = "waiting", "ask", "report", "tell", "retry", "report.html"
_WATCHED: list[tuple[Any, str, str]] = [
    (ray, "wait", WAITING),
    (ray, "get", "Ray: a result fetched"),
    (TuneController, "step", "Tune: the rest"),
    (TuneController, "checkpoint", "Tune: snapshots"),
    (RelayedScheduler, "choose_trial_to_run", "Tune: next trial"),
    (SearchJobs, "suggest", "job"),
    (Memory, "next", ASK),
    (Memory, "observe", REPORT),
    (optuna.Study, "tell", TELL),
    (optuna.Trial, "should_prune", "pruner"),
    (TPESampler, "sample_relative", "sampler"),
    (RecordKeeper, "catch_up", "records"),
    (Progress, "on_step_end", "progress"),
    (Jobs, "on_death", RETRY),
    (study, "write_report", PAGE),
    *((WriteThrough, name, "storage: write") for name in (
        "keep", "create_new_trial", "set_trial_param", "set_trial_intermediate_value", "set_trial_user_attr",
        "set_trial_system_attr", "set_trial_state_values", "set_study_user_attr")),
    *((WriteThrough, name, "storage: read") for name in (
        "get_all_trials", "get_trial", "get_study_user_attrs", "get_study_system_attrs", "get_best_trial")),
]  # fmt: skip


class Clocks:
    """Times the main thread's calls.

    Args:
        stretch: Ended trials to a stretch.

    Attributes:
        own: Seconds by kind and stretch, without those of watched calls inside.
        whole: With them. calls: How many. mib: The process's memory at the begin of a stretch.
        seconds: From a stretch's begin to its end: by the clock, and of CPU in all threads.
    """

    def __init__(self, stretch: int) -> None:
        self._stretch, self._behind, self._inner = stretch, 0, list[float]()
        self.own: list[dict[str, float]] = []
        self.whole: list[dict[str, float]] = []
        self.calls: list[dict[str, int]] = []
        self.mib: list[float] = []
        self._begins: list[tuple[float, float]] = []
        self._main = threading.get_ident()
        self._turn()
        for owner, name, kind in _WATCHED:
            setattr(owner, name, self._watched(getattr(owner, name), kind))

    @property
    def seconds(self) -> list[tuple[float, float]]:
        ends = [*self._begins[1:], _now()]
        return [(e[0] - b[0], e[1] - b[1]) for b, e in zip(self._begins, ends, strict=True)]

    def _turn(self) -> None:
        for table in (self.own, self.whole, self.calls):
            table.append(defaultdict(int))
        self.mib.append(resident_mib())
        self._begins.append(_now())

    def _watched(self, function: Any, kind: str) -> Any:
        @wraps(function)
        def timed(*args: Any, **named: Any) -> Any:
            if threading.get_ident() != self._main:
                return function(*args, **named)
            self._inner.append(0.0)
            began = time.perf_counter()
            try:
                return function(*args, **named)
            finally:
                took, inner = time.perf_counter() - began, self._inner.pop()
                if self._inner:
                    self._inner[-1] += took
                self._add(kind, took, inner)

        return timed

    def _add(self, kind: str, took: float, inner: float) -> None:
        self.own[-1][kind] += took - inner
        self.whole[-1][kind] += took
        self.calls[-1][kind] += 1
        if kind == TELL:
            self._behind += 1
            if self._behind % self._stretch == 0:
                self._turn()


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def resident_mib() -> float:
    """This process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024
