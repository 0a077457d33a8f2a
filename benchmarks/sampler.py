"""What a trial costs the driver, ask to tell, in a study that has N behind it: bare Optuna, and ours.

    python benchmarks/sampler.py [--trials 100 1000 10000] [--window 20] [--repeats 3] [--quick] [--json FILE]

No training: two trials at a time run in simulated time and read their learning curves from `curves.json`, a
real study's records. `bare`: Optuna's TPE and median pruner on in-memory storage, asked, reported to and told
in the same order. `ours`: the searcher, the scheduler, the records and the progress lines of a study, on
SQLite. N trials are put into the storage first, then `--window` trials are timed. TPE's own work grows with
N; what must not is the difference. Memory is what a trial leaves behind on the heap (tracemalloc).
"""

import argparse
import gc
import heapq
import io
import json
import random
import sqlite3
import time
import tracemalloc
import warnings
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from common import Figures, arguments, describe, in_turn, median_of, table, tell, write_json
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial
from replay import EPOCHS, SPACE, Curves
from rich.console import Console

from prometar.config.settings import configure
from prometar.distributed.placement import ResourcePlan, Room
from tune.execution.jobs import SearchJobs
from tune.execution.progress import Progress
from tune.execution.record_keeper import RecordKeeper
from tune.execution.stopping import Stopping
from tune.jobs.spec import Job, Terms, jobs_in
from tune.optimizer.ask_tell import Asked, Memory
from tune.optimizer.pruners import PRUNERS
from tune.optimizer.samplers import STARTUP_TRIALS
from tune.optimizer.trial_schema import RESULT
from tune.results.schema import TrialRecord
from tune.results.writer import StudyFolder
from tune.space.spaces import Space, load_space
from tune.study_spec import StudySpec

SLOTS = 2
BEGAN = datetime(2026, 1, 1)


class Bare:
    """Optuna alone, in memory."""

    def __init__(self, space: Space) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        sampler = optuna.samplers.TPESampler(
            seed=1, multivariate=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS
        )
        self._study = optuna.create_study(
            direction="maximize", sampler=sampler, pruner=PRUNERS["median"](EPOCHS)
        )

    def fill(self, trials: list[FrozenTrial]) -> None:
        self._study.add_trials(trials)

    def ask(self) -> tuple[optuna.Trial, dict[str, Any]]:
        trial = self._study.ask()
        return trial, self._space.draw(trial)

    def report(self, trial: optuna.Trial, epoch: int, value: float) -> bool:
        trial.report(value, epoch)
        if epoch == EPOCHS:
            self._study.tell(trial, value)
        elif trial.should_prune():
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            return False
        return True


class Ours:
    """A study's driver without Ray: what `tune.study` hands to Tune, called in the order that Tune does."""

    def __init__(self, space: Space, folder: Path) -> None:
        config = configure("prometar", {"train.epochs": EPOCHS})
        self._request = StudySpec(
            config=config, space=space, objective="drift", seed=1, pruner="median", val_per_class=20,
            trials=10**6, final_seeds=(),
        )  # fmt: skip
        self._folder = StudyFolder(folder, "s")
        self._folder.path.mkdir()
        self._begun = 0
        self.fill([])

    def fill(self, trials: list[FrozenTrial]) -> None:
        self._open()
        if trials:
            job, _ = self.ask()  # the released settings are the first trial
            for epoch in range(1, EPOCHS + 1):
                self.report(job, epoch, 75.0)
            insert(self._folder.path / "study.db", trials)
            self._open()

    def _open(self) -> None:
        spec, plan = self._request, ResourcePlan(SLOTS, 1.0, 0.0)

        def job_of(asked: Asked) -> Job:
            at = str(self._folder.trial(asked.number))
            return spec.search_job(asked.settings, spec.seeds, at, terms, number=asked.number)

        stopping, terms = Stopping(Console(file=io.StringIO())), Terms(plan)
        memory = Memory(self._folder.storage, "s", spec, reference=spec.reference())
        self._jobs = SearchJobs(memory, job_of, spec.trials, stopping, Room(SLOTS, 0.0))
        self._place = PlacementGroupFactory(plan.bundles())
        progress = Progress(memory, spec, console=Console(file=io.StringIO()))
        self._callbacks = (progress, _Unwritten(self._folder, memory, stopping, job_of))

    def ask(self) -> tuple[Trial, dict[str, Any]]:
        self._begun += 1
        trial = Trial("", trial_id=f"{self._begun:08d}", placement_group_factory=self._place, stub=True)
        trial.create_placement_group_factory()
        trial.config = self._jobs.suggest(trial.trial_id)
        for callback in self._callbacks:
            callback.on_trial_start(self._begun, [], trial)
        return trial, jobs_in(trial.config)[0].settings

    def report(self, trial: Trial, epoch: int, value: float) -> bool:
        result = {"epoch": epoch, "objective": value, "base": value, "new": value, "loss": 1.0,
                  "seconds": float(epoch), "failed": "", "finished": epoch == EPOCHS}  # fmt: skip
        stop = self._jobs.on_result(trial, result) == "STOP"
        for callback in self._callbacks:
            callback.on_trial_result(self._begun, [], trial, result)
        if stop:
            self._jobs.on_end(trial.trial_id, error=False)
            for callback in self._callbacks:
                callback.on_trial_complete(self._begun, [], trial)
        for callback in self._callbacks:
            callback.on_step_end(self._begun, [])
        return stop


class _Unwritten(RecordKeeper):
    """Records of the trials that were only put into the storage are not there, and not wanted."""

    _wanted = False

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._wanted = True

    def _write(self, trial: TrialRecord) -> None:
        if self._wanted:
            super()._write(trial)


def random_trials(space: Space, count: int) -> list[FrozenTrial]:
    """Finished trials with random settings."""
    rng, curves = random.Random(0), Curves(space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = []
    for _ in range(count):
        drawn = study.ask()
        params = space.draw(drawn)
        curve = curves(params)
        values = {epoch: curve[epoch - 1] + rng.gauss(0, 0.5) for epoch in range(1, EPOCHS + 1)}
        attributes = {RESULT: {"epoch": EPOCHS, "objective": values[EPOCHS], "seconds": 5.0}}
        trials.append(
            create_trial(params=params, distributions=drawn.distributions, value=values[EPOCHS],
                         intermediate_values=values, user_attrs=attributes)
        )  # fmt: skip
    return trials


def insert(path: Path, trials: list[FrozenTrial]) -> None:
    """Put trials into Optuna's SQLite file at once; through its own interface 10,000 would take minutes."""
    base = sqlite3.connect(path)
    (first,) = base.execute("select max(trial_id) from trials").fetchone()
    keyed = list(enumerate(trials, start=first + 1))
    rows: dict[str, list[tuple[Any, ...]]] = {
        "trials (trial_id, number, study_id, state, datetime_start, datetime_complete)": [
            (k, k - 1, 1, "COMPLETE", str(BEGAN), str(BEGAN)) for k, _ in keyed
        ],
        "trial_params (trial_id, param_name, param_value, distribution_json)": [
            (k, name, d.to_internal_repr(t.params[name]), distribution_to_json(d))
            for k, t in keyed
            for name, d in t.distributions.items()
        ],
        "trial_values (trial_id, objective, value, value_type)": [
            (k, 0, t.value, "FINITE") for k, t in keyed
        ],
        "trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)": [
            (k, step, value, "FINITE") for k, t in keyed for step, value in t.intermediate_values.items()
        ],
        "trial_user_attributes (trial_id, key, value_json)": [
            (k, key, json.dumps(value)) for k, t in keyed for key, value in t.user_attrs.items()
        ],
    }
    with base:
        for target, values in rows.items():
            marks = ", ".join("?" * len(values[0]))
            base.executemany(f"insert into {target} values ({marks})", values)
    base.close()


def run(driver: Bare | Ours, curves: Curves, count: int) -> Figures:
    """Drive `count` trials, two at a time in simulated time: milliseconds a trial, by what was called."""
    spent = {"ask": 0.0, "report": 0.0}
    slots: list[tuple[int, int, int]] = [(0, slot, 0) for slot in range(SLOTS)]  # when, which, epochs done
    at_work: dict[int, tuple[Any, list[float]]] = {}
    left = count
    while slots:
        now, slot, epoch = heapq.heappop(slots)
        began = time.perf_counter()
        if slot not in at_work:
            if not left:
                continue
            left -= 1
            trial, settings = driver.ask()
            spent["ask"] += time.perf_counter() - began
            at_work[slot] = trial, curves(settings)
            heapq.heappush(slots, (now + 2 + slot, slot, 1))
            continue
        trial, curve = at_work[slot]
        stop = driver.report(trial, epoch, curve[epoch - 1])
        spent["report"] += time.perf_counter() - began
        if stop:
            del at_work[slot]
        heapq.heappush(slots, (now + (0 if stop else 2 + slot), slot, 0 if stop else epoch + 1))
    figures = {f"{name} ms": 1000 * seconds / count for name, seconds in spent.items()}
    return figures | {"ms": sum(figures.values())}


def measure(side: str, behind: int, window: int, heap: bool) -> Figures:
    """Milliseconds a trial with `behind` trials in the storage; or, with `heap`, KiB that one leaves."""
    warnings.simplefilter("ignore")  # of arguments that Optuna calls experimental
    space = load_space(SPACE)
    curves = Curves(space)
    with TemporaryDirectory() as folder:
        driver = Bare(space) if side == "bare" else Ours(space, Path(folder))
        driver.fill(random_trials(space, behind - 1))
        run(driver, curves, SLOTS)  # what is loaded at the first use
        if not heap:
            return run(driver, curves, window)
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        run(driver, curves, window)
        gc.collect()
        return {"kib": (tracemalloc.get_traced_memory()[0] - before) / window / 1024}


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 10000])
        parser.add_argument("--window", type=int, default=20, help="trials that are timed")

    args = arguments(__doc__, add, repeats=3)
    if args.side:
        return tell(measure(**args.side))
    if args.quick:
        args.repeats, args.trials, args.window = 1, [100], 5
    cases = [(n, side) for n in args.trials for side in ("bare", "ours")]
    speed = in_turn([{"side": s, "behind": n, "window": args.window, "heap": False} for n, s in cases], args)
    args.repeats = 1
    heaps = in_turn(
        [
            {"side": s, "behind": args.trials[0], "window": 5 * args.window, "heap": True}
            for _, s in cases[:2]
        ],
        args,
    )
    show(cases, speed, heaps, args)
    write_json(args, [*speed, *heaps])
    return None


def show(
    cases: list[tuple[int, str]],
    speed: list[list[Figures]],
    heaps: list[list[Figures]],
    args: argparse.Namespace,
) -> None:
    took = dict(zip(cases, speed, strict=True))
    rows = []
    for n in args.trials:
        bare, ours = (median_of(took[n, side], "ms") for side in ("bare", "ours"))
        parts = [median_of(took[n, "ours"], name) for name in ("ask ms", "report ms")]
        rows.append((n, bare, ours, *parts, ours - bare, ours / bare))
    print(describe(args.threads))
    head = ("trials behind", "bare ms a trial", "ours ms", "of it ask", "report and tell", "more ms", "ratio")
    print(table(head, rows))
    bare, ours = (median_of(side, "kib") for side in heaps)
    print(f"a trial leaves {bare:.1f} KiB in the bare study's memory, {ours:.1f} KiB in ours")


if __name__ == "__main__":
    main()
