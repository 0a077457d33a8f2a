"""Ask-and-tell wrapper around an Optuna study. Its storage is the only state, so any process may crash."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from prometar.config.settings import differences
from prometar.errors import UserError
from prometar.io.custom import failing
from tune.config import GOALS, StudyConfig
from tune.records.schema import Epoch, RunScore, State, TrialRecord
from tune.store.pruners import make_pruner
from tune.store.samplers import make_sampler, seed_of
from tune.store.storage import open_storage

HOPELESS = 5
"""Failed trials in one process, and none finished, after which a study stops."""
REDRAWS = 20
"""Consecutive repetitions, after which a finite space is enumerated, and an infinite one sampled randomly."""

IDENTITY, OWNER = "identity", "owner"  # user attributes of trial 0: created with it, at once
BASELINE, ORIGIN, REASON, RESULT, REPEAT = "baseline", "origin", "reason", "result", "repeat_of"  # of trials
SECONDS = "seconds_searched"  # of the study
ENQUEUED = "fixed_params"  # Optuna's key of the settings that a trial was enqueued with
FIGURES = ("epoch", "objective", "base", "new", "seconds", "runs", "notes", "cpus", "gpus")
"""Entries of a trial's last report that are stored."""


@dataclass(frozen=True)
class PendingTrial:
    """Trial to run: its number and its settings."""

    number: int
    settings: dict[str, Any]


class TrialCounts(NamedTuple):
    """Numbers of trials. `waiting`: enqueued and not started."""

    done: int
    running: int
    interrupted: int
    waiting: int


class TrialStore:
    """Trials of one study.

    Args:
        storage: URL of the Optuna storage, or a storage.
        concurrency: Concurrent trials. Samplers and pruners wait for the first wave.

    Attributes:
        exhausted: True if all settings of the space have been tried.
        seconds_searched: Duration of the search in earlier commands.
    """

    def __init__(self, config: StudyConfig, storage: str | BaseStorage, concurrency: int = 1) -> None:
        search = config.search
        self._config, self._search, self._space = config, search, search.space
        self._concurrency = concurrency
        with _custom(search.pruner):
            pruner = make_pruner(search, config.max_epochs, concurrency)
        with _custom(search.sampler):
            make_sampler(search.sampler, self._space, 1, concurrency)  # refuses an unknown one
        self._storage = open_storage(storage, config.name, [GOALS[goal] for goal in search.goals])
        self._study = optuna.load_study(storage=self._storage, study_name=config.name, pruner=pruner)
        self._running: dict[int, tuple[Trial, Mapping[str, Any]]] = {}  # with the last report
        self._failures, self._successes = list[str](), 0  # in this process
        self.exhausted = False
        self.seconds_searched = float(self._study.user_attrs.get(SECONDS, 0.0))

    @classmethod
    def open(
        cls, config: StudyConfig, folder: Path, contents: Mapping[str, str], *, concurrency: int = 1
    ) -> Self:
        """Open the storage of a study, and create it if there is none.

        Args:
            folder: Folder of the study.
            contents: Digests of what determines results beside the configuration, by name.

        Raises:
            UserError: the storage holds this study with other settings, or a sampler, pruner or URL is
                invalid. StorageError: the storage cannot be reached.
        """
        store = cls(config, config.storage, concurrency)
        store.claim(folder, contents)
        return store

    def claim(self, folder: Path, contents: Mapping[str, str]) -> None:
        """Start or resume the study. Enqueue what is missing: the baseline and given settings.

        Raises:
            UserError: the storage holds this study with other settings or of another folder.
        """
        trials, name, owner = self._storage.trials, self._config.name, str(folder.absolute())
        digests = {f"contents.{key}": digest for key, digest in contents.items()}
        identity = {**self._config.identity(), **digests}
        if trials:
            first = trials[0].user_attrs
            if changed := differences(first.get(IDENTITY, {}), identity):
                raise UserError(
                    f"The study {name} was started with other settings ({changed}). "
                    "Use these again, or start another study with --study NAME."
                )
            if first[OWNER] != owner:
                raise UserError(f"The study {name} belongs to {first[OWNER]}. Choose another --study NAME.")
        elif any((folder / "trials").glob("*/record.json")):
            raise UserError(
                f"{folder} contains trials, but the study's database does not. Restore it, or start another "
                "study with --study NAME."
            )
        if all(trial.state is TrialState.FAIL for trial in trials if BASELINE in trial.user_attrs):
            claim = {} if trials else {IDENTITY: identity, OWNER: owner}
            self._enqueue(self._config.baseline, {BASELINE: True, ORIGIN: "baseline", **claim})
        known = [trial.system_attrs.get(ENQUEUED) for trial in trials]
        for settings in self._search.enqueue:
            if settings not in known:
                self._enqueue(settings, {ORIGIN: "enqueued"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _enqueue(self, settings: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
        self._study.enqueue_trial(dict(settings), user_attrs=dict(attributes))

    @property
    def _counted(self) -> list[FrozenTrial]:
        """All trials but repetitions."""
        return [trial for trial in self._storage.trials if REPEAT not in trial.user_attrs]

    @property
    def counts(self) -> TrialCounts:
        """Trials by state."""
        trials = self._counted
        return TrialCounts(
            sum(trial.state.is_finished() for trial in trials),
            len(self._running),
            sum(map(self._is_interrupted, self._storage.trials)),
            sum(map(_is_waiting, trials)),
        )

    def trials(self) -> list[TrialRecord]:
        """Finished trials, by number."""
        return [record_of(trial) for trial in self._counted if trial.state.is_finished()]

    def trial(self, number: int) -> TrialRecord | None:
        """A trial, None if it has not finished."""
        trial = self._storage.get_trial(number)
        return record_of(trial) if trial.state.is_finished() else None

    def ask(self, *, new: bool = True) -> PendingTrial | None:
        """Start a trial: an interrupted one first, then the baseline, enqueued and sampled ones.

        Args:
            new: False: interrupted ones only.

        Returns:
            None if the budget is used, the space is exhausted, or the study is hopeless.
        """
        while (trial := self._resume() or (self._start() if new else None)) is not None:
            if (pending := self._complete(trial)) is not None:
                return pending
        return None

    def _resume(self) -> Trial | None:
        number = next((t.number for t in self._storage.trials if self._is_interrupted(t)), None)
        return None if number is None else self._begin(number)

    def _is_interrupted(self, trial: FrozenTrial) -> bool:
        """Return True for a trial that another process started and nobody finished."""
        started = trial.state is TrialState.RUNNING or (trial.state is TrialState.WAITING and trial.params)
        return bool(started) and trial.number not in self._running

    def _start(self) -> Trial | None:
        """Start a waiting or a sampled trial. The baseline always has one slot of the budget."""
        if self.hopeless() is not None:
            return None
        trials = self._counted
        waiting = [trial for trial in trials if _is_waiting(trial)]
        baseline = next((trial for trial in waiting if BASELINE in trial.user_attrs), None)
        if baseline is not None:
            return self._begin(baseline.number)
        others = sum(BASELINE not in trial.user_attrs for trial in trials) - len(waiting)
        if 1 + others >= self._search.trials:
            return None
        return self._begin(waiting[0].number) if waiting else self._sample()

    def _begin(self, number: int) -> Trial:
        """Start a stored trial. Settings that are stored already stay the same."""
        with self._sampling(number):
            if self._storage.get_trial(number).state is TrialState.WAITING:
                self._storage.set_trial_state_values(number, TrialState.RUNNING)
            return Trial(self._study, number)

    def _sample(self) -> Trial | None:
        trials, counted = self._storage.trials, self._counted
        number = len(trials)
        repeating = number - 1 - counted[-1].number >= REDRAWS
        combinations = self._space.combinations() if repeating else None
        if combinations is None:
            with self._sampling(number, "random" if repeating else self._search.sampler):
                return self._study.ask()
        tried = self._tried()
        untried = next((each for each in combinations if self._key(each) not in tried), None)
        if untried is None:
            self.exhausted = True
            return None
        self._enqueue(untried, {ORIGIN: "sampled"})
        return self._begin(number)

    @contextmanager
    def _sampling(self, number: int, sampler: str = "") -> Iterator[None]:
        """Use the sampler of trial `number`. Errors of a custom one become one line."""
        sampler = sampler or self._search.sampler
        with _custom(sampler):
            self._study.sampler = make_sampler(
                sampler, self._space, seed_of(self._search.seed, number), self._concurrency
            )
            yield

    def _complete(self, trial: Trial) -> PendingTrial | None:
        """Sample a trial's settings and store them. None if they repeat an earlier trial's."""
        with _custom(self._search.sampler):
            settings = self._space.sample(trial)
        for key, value in settings.items():
            if not (allowed := self._space.ranges[key]).contains(value):
                raise UserError(
                    f"--sampler {self._search.sampler} sampled {key} = {value}, outside {allowed.describe()}."
                )
        first = self._tried().get(self._key(settings), trial.number)
        if first < trial.number and BASELINE not in trial.user_attrs:
            # It stays in the storage, so that the next number is sampled with another seed.
            trial.set_user_attr(REPEAT, first)
            trial.set_user_attr(REASON, f"the settings of trial {first}")
            self._study.tell(trial, state=TrialState.FAIL)
            return None
        self._storage.store(trial.number)
        self._running[trial.number] = trial, {}
        return PendingTrial(trial.number, settings)

    def _key(self, settings: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(settings.get(name) for name in self._space.ranges)

    def _tried(self) -> dict[tuple[Any, ...], int]:
        """The earliest trial by settings. Failed ones count: they would fail again with the same seeds."""
        return {self._key(trial.params): trial.number for trial in reversed(self._counted) if trial.params}

    def report(
        self, number: int, report: Mapping[str, Any], resources: Mapping[str, float] | None = None
    ) -> bool:
        """Store an epoch's figures. It is safe to report an epoch twice.

        A report that failed, lacks a figure, or is not finite ends the trial as failed.

        Args:
            resources: Allocated `cpus` and `gpus`.

        Returns:
            False if the trial is over.
        """
        if number not in self._running:
            return False
        trial, last = self._running[number]
        if reason := failure(report, self._search.goals):
            self.fail(number, reason)
            return False
        epoch = int(report["epoch"])
        if epoch not in self._storage.get_trial(number).intermediate_values:
            # Not `trial.report`, which refuses several goals.
            self._storage.set_trial_intermediate_value(number, epoch, float(report["objective"]))
        if epoch >= last.get("epoch", 0):
            self._running[number] = trial, {**report, **(resources or {})}
        if report.get("finished"):
            self._tell(number, TrialState.COMPLETE, [float(report[goal]) for goal in self._search.goals])
            return False
        if BASELINE not in trial.user_attrs and self._prunes(number):
            self._tell(number, TrialState.PRUNED)
            return False
        return True

    def _prunes(self, number: int) -> bool:
        with _custom(self._search.pruner):
            return self._study.pruner.prune(self._study, self._storage.get_trial(number))

    def fail(self, number: int, reason: str) -> None:
        """End a trial as failed. Does nothing if it is over."""
        if number in self._running:
            self._running[number][0].set_user_attr(REASON, reason)
            self._tell(number, TrialState.FAIL)
            self._failures.append(reason)

    def _tell(self, number: int, state: TrialState, values: list[float] | None = None) -> None:
        trial, last = self._running[number]
        trial.set_user_attr(RESULT, {key: last[key] for key in FIGURES if key in last})
        self._study.tell(trial, values, state=state)
        del self._running[number]
        self._successes += state is not TrialState.FAIL

    def hopeless(self) -> str | None:
        """The last error if many trials have failed and none has finished in this process."""
        return self._failures[-1] if len(self._failures) >= HOPELESS and not self._successes else None

    def add_seconds(self, seconds: float) -> None:
        """Add to the duration of the search."""
        self._study.set_user_attr(SECONDS, self.seconds_searched + seconds)
        self.seconds_searched += seconds

    def close(self) -> None:
        """Release the trials that are running, so that the next process resumes them."""
        for number in sorted(self._running):
            self._storage.set_trial_state_values(number, TrialState.WAITING)
        self._running.clear()
        self._storage.close()


def _is_waiting(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.WAITING and not trial.params


def _custom(name: str) -> AbstractContextManager[None]:
    """Convert errors of a custom sampler or pruner into one line."""
    return failing(name) if ":" in name else nullcontext()


def failure(report: Mapping[str, Any], goals: Sequence[str]) -> str:
    """Why a report counts as a failure, or ""."""
    if report.get("failed"):
        return str(report["failed"])
    needed = ["epoch", *dict.fromkeys(["objective", *(goals if report.get("finished") else ())])]
    if missing := [key for key in needed if report.get(key) is None]:
        return f"the trial did not report {', '.join(missing)}"
    for key in needed:
        if not math.isfinite(float(report[key])):
            return f"{key} is {report[key]} in epoch {report['epoch']}"
    return ""


def record_of(trial: FrozenTrial) -> TrialRecord:
    """A finished trial as its record."""
    marks, curve = trial.user_attrs, sorted(trial.intermediate_values.items())
    last = marks.get(RESULT, {})
    return TrialRecord(
        number=trial.number,
        state=cast(State, trial.state.name),
        baseline=BASELINE in marks,
        origin=marks.get(ORIGIN, "sampled"),
        settings=dict(trial.params),
        objective=last.get("objective"),
        base=last.get("base"),
        new=last.get("new"),
        epoch=last.get("epoch", 0),
        epochs=tuple(Epoch(epoch, value) for epoch, value in curve),
        runs=tuple(RunScore(**run) for run in last.get("runs", ())),
        seconds=float(last.get("seconds", 0.0)),
        cpus=float(last.get("cpus", 0.0)),
        gpus=float(last.get("gpus", 0.0)),
        notes=tuple(last.get("notes", ())),
        reason=marks.get(REASON, ""),
        started=trial.datetime_start and trial.datetime_start.replace(microsecond=0),
        ended=trial.datetime_complete and trial.datetime_complete.replace(microsecond=0),
    )
