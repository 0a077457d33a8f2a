"""Ask-and-tell wrapper around an Optuna study. Its storage is the only state, so any process may crash."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import cast

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from prometar.errors import UserError
from prometar.io.custom import failing
from tune.config import GOALS, StudyConfig
from tune.records.schema import REPORT, EpochReport, State, TrialRecord
from tune.space.ranges import Settings, Value
from tune.store.pruners import make_pruner
from tune.store.samplers import make_sampler, seed_of
from tune.store.storage import another_writer, open_storage, storage_errors

HOPELESS = 5
"""Failed trials in one process, and none finished, after which a study stops."""
REDRAWS = 20
"""Consecutive repetitions, after which a finite space is enumerated, and an infinite one sampled randomly."""

IDENTITY, OWNER = "identity", "owner"  # user attributes of trial 0: created with it, at once
ORIGIN, REASON, RESULT = "origin", "reason", "result"  # of trials
SECONDS = "seconds_searched"  # of the study
GIVEN = "fixed_params"  # Optuna's key of the settings that a trial was enqueued with


@contextmanager
def open_trials(
    config: StudyConfig, folder: Path, contents: Mapping[str, str], *, concurrency: int = 1
) -> Iterator["TrialStore"]:
    """Open the storage of a study, and create it if there is none.

    Args:
        folder: Folder of the study.
        contents: Digests of what determines results beside the configuration, by name.
        concurrency: Concurrent trials. Samplers and pruners wait for the first wave.

    Raises:
        UserError: the storage holds this study with other settings, or of another folder; the URL is invalid.
        StorageError: the storage cannot be reached, also later.
    """
    with storage_errors(config.storage), ExitStack() as ends:
        storage = open_storage(config.storage)
        ends.callback(storage.engine.dispose)
        store = TrialStore(config, storage, folder, contents, concurrency=concurrency)
        ends.callback(store.release)
        yield store


class TrialStore:
    """Trials of one study.

    Attributes:
        exhausted: True if all settings of the space have been tried.
        seconds_searched: Duration of the search so far, of all commands.
    """

    def __init__(
        self,
        config: StudyConfig,
        storage: BaseStorage,
        folder: Path,
        contents: Mapping[str, str],
        *,
        concurrency: int = 1,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._config, self._search, self._space = config, config.search, config.search.space
        self._storage, self._concurrency = storage, concurrency
        with _custom(self._search.pruner):
            pruner = make_pruner(self._search, config.max_epochs, concurrency)
        self._study = optuna.create_study(
            storage=storage, study_name=config.name, pruner=pruner, load_if_exists=True,
            directions=[GOALS[goal] for goal in self._search.goals],
        )  # fmt: skip
        self._id = storage.get_study_id_from_name(config.name)
        self._running: dict[int, tuple[int, EpochReport]] = {}  # ID in the storage, and last report
        self._failures, self._successes = list[str](), 0  # in this process
        self.exhausted = False
        self.seconds_searched = float(self._study.user_attrs.get(SECONDS, 0.0))
        self._claim = self._checked(folder, contents)
        # A failed baseline is run again, once per process.
        self._baseline_missing = all(t.state is TrialState.FAIL for t in self._trials if _is_baseline(t))

    @property
    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _checked(self, folder: Path, contents: Mapping[str, str]) -> dict[str, object]:
        """Return what trial 0 states about the study.

        Raises:
            UserError: the storage holds this study with other settings or of another folder, or lost it.
        """
        config, owner = self._config, str(folder.absolute())
        if trials := self._trials:
            first = trials[0].user_attrs
            config.require_same(first.get(IDENTITY, {}), contents)
            if first[OWNER] != owner:
                raise UserError(
                    f"The study {config.name} belongs to {first[OWNER]}. Choose another --study NAME."
                )
        elif any((folder / "trials").glob("*/record.json")):
            raise UserError(
                f"{folder} contains trials, but the study's database does not. Restore it, or start another "
                "study with --study NAME."
            )
        return {} if trials else {IDENTITY: config.identity(contents), OWNER: owner}

    @property
    def finished(self) -> list[TrialRecord]:
        """Finished trials, by number."""
        return [record_of(trial) for trial in self._trials if trial.state.is_finished()]

    @property
    def interrupted(self) -> list[FrozenTrial]:
        """Trials that another process started and nobody finished."""
        return [t for t in self._trials if not t.state.is_finished() and t.number not in self._running]

    def trial(self, number: int) -> TrialRecord | None:
        """A trial, None if it has not finished."""
        trial = self._trials[number]
        return record_of(trial) if trial.state.is_finished() else None

    def ask(self, *, new: bool = True) -> FrozenTrial | None:
        """Start a trial: an interrupted one first, then the baseline, enqueued and sampled ones.

        Args:
            new: False: interrupted ones only.

        Returns:
            None if the budget is used, the space is exhausted, or the study is hopeless.
        """
        for trial in self.interrupted:
            number = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)
            if trial.state is TrialState.WAITING:
                self._storage.set_trial_state_values(number, TrialState.RUNNING)
            self._running[trial.number] = number, EpochReport()
            return trial
        if not new or self.hopeless() is not None:
            return None
        sampled = self._next(self._trials)
        return None if sampled is None else self._create(sampled)

    def _next(self, trials: list[FrozenTrial]) -> FrozenTrial | None:
        """Sample the next trial. The baseline always has one slot of the budget."""
        if self._baseline_missing:
            return self._sample(trials, self._config.baseline, "baseline")
        if 1 + sum(not _is_baseline(trial) for trial in trials) >= self._search.trials:
            return None
        # Failed trials count: they would fail again with the same seeds.
        tried = {self._key(trial.params) for trial in trials}
        given = [trial.system_attrs.get(GIVEN) for trial in trials]
        for settings in self._search.enqueue:
            if settings not in given:
                trial = self._sample(trials, settings, "enqueued")
                if self._key(trial.params) not in tried:
                    return trial
        for attempt in range(REDRAWS):
            trial = self._sample(trials, attempt=attempt)
            if self._key(trial.params) not in tried:
                return trial
        combinations = self._space.combinations()
        if combinations is None:
            return self._sample(trials, sampler="random")
        untried = next((each for each in combinations if self._key(each) not in tried), None)
        self.exhausted = untried is None
        return None if untried is None else self._sample(trials, untried)

    def _sample(
        self,
        trials: list[FrozenTrial],
        given: Settings | None = None,
        origin: str = "sampled",
        *,
        attempt: int = 0,
        sampler: str = "",
    ) -> FrozenTrial:
        """Sample a trial beside a copy of the study in memory, so that the storage gets it as a whole.

        Args:
            given: Settings that are not sampled.
            sampler: Default: the search's.
        """
        number, sampler = len(trials), sampler or self._search.sampler
        with _custom(sampler):
            copy = optuna.create_study(
                sampler=make_sampler(
                    sampler, self._space, seed_of(self._search.seed, number, attempt), self._concurrency
                ),
                pruner=self._study.pruner,
                directions=self._study.directions,
            )
            copy.add_trials(trials)
            if given is not None:
                copy.enqueue_trial(dict(given))
            settings = self._space.sample(copy.ask())
        for key, value in settings.items():
            if not (allowed := self._space.ranges[key]).contains(value):
                raise UserError(f"--sampler {sampler} sampled {key} = {value}, outside {allowed.describe()}.")
        trial = copy.get_trials()[-1]
        trial.set_user_attr(ORIGIN, origin)
        return trial

    def _create(self, trial: FrozenTrial) -> FrozenTrial:
        for key, value in self._claim.items():
            trial.set_user_attr(key, value)
        stored = self._storage.create_new_trial(self._id, trial)
        if self._storage.get_trial(stored).number != trial.number:
            raise another_writer(self._config.storage)
        self._running[trial.number] = stored, EpochReport()
        self._claim, self._baseline_missing = {}, False
        return trial

    def _key(self, settings: Settings) -> tuple[Value | None, ...]:
        return tuple(settings.get(name) for name in self._space.ranges)

    def report(self, number: int, report: EpochReport) -> bool:
        """Store an epoch's figures. It is safe to report an epoch twice.

        A report that failed or lacks a figure ends the trial as failed.

        Returns:
            False if the trial is over.
        """
        if number not in self._running:
            return False
        stored, _ = self._running[number]
        values = {goal: getattr(report, goal) for goal in ("objective", *self._search.goals)}
        missing = [goal for goal, value in values.items() if value is None]
        if report.failed or missing:
            self.fail(number, report.failed or f"the trial did not report {', '.join(missing)}")
            return False
        self._running[number] = stored, report
        self._storage.set_trial_intermediate_value(stored, report.epoch, values["objective"])
        if report.finished:
            self._tell(number, TrialState.COMPLETE, [values[goal] for goal in self._search.goals])
            return False
        trial = self._storage.get_trial(stored)
        with _custom(self._search.pruner):
            prunes = not _is_baseline(trial) and self._study.pruner.prune(self._study, trial)
        if prunes:
            self._tell(number, TrialState.PRUNED)
        return not prunes

    def fail(self, number: int, reason: str) -> None:
        """End a trial as failed. Does nothing if it is over."""
        if number in self._running:
            self._storage.set_trial_user_attr(self._running[number][0], REASON, reason)
            self._tell(number, TrialState.FAIL)
            self._failures.append(reason)

    def _tell(self, number: int, state: TrialState, values: list[float] | None = None) -> None:
        stored, report = self._running[number]
        self._storage.set_trial_user_attr(stored, RESULT, REPORT.dump_python(report, mode="json"))
        del self._running[number]  # even if only the answer is lost, it is over
        self._study.tell(number, values, state=state)
        self._successes += state is not TrialState.FAIL

    def hopeless(self) -> str | None:
        """The last error if many trials have failed and none has finished in this process."""
        return self._failures[-1] if len(self._failures) >= HOPELESS and not self._successes else None

    def add_seconds(self, seconds: float) -> None:
        """Add to the duration of the search."""
        self.seconds_searched += seconds
        self._study.set_user_attr(SECONDS, self.seconds_searched)

    def release(self) -> None:
        """Let the running trials wait for the next process."""
        for stored, _ in self._running.values():
            self._storage.set_trial_state_values(stored, TrialState.WAITING)
        self._running.clear()


def _is_baseline(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get(ORIGIN) == "baseline"


def _custom(name: str) -> AbstractContextManager[None]:
    """Convert errors of a custom sampler or pruner into one line."""
    return failing(name) if ":" in name else nullcontext()


def record_of(trial: FrozenTrial) -> TrialRecord:
    """A finished trial as its record."""
    marks = trial.user_attrs
    last = REPORT.validate_python(marks.get(RESULT, {}), strict=False)
    return TrialRecord(
        number=trial.number,
        state=cast(State, trial.state.name),
        origin=marks[ORIGIN],
        settings=dict(trial.params),
        objective=last.objective,
        base=last.base,
        new=last.new,
        epoch=last.epoch,
        epochs=dict(sorted(trial.intermediate_values.items())),
        runs=last.runs,
        seconds=last.seconds or 0.0,
        notes=last.notes,
        reason=marks.get(REASON, ""),
        started=trial.datetime_start and trial.datetime_start.replace(microsecond=0),
        ended=trial.datetime_complete and trial.datetime_complete.replace(microsecond=0),
    )
