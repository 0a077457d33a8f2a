"""Ask-and-tell wrapper around an Optuna study. All state is in the storage and thus survives crashes."""

from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import datetime
from typing import NamedTuple, cast

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from prometar.errors import UserError
from prometar.io.custom import convert_errors
from tune.config import DIRECTIONS, StudyConfig
from tune.records.folder import StudyFolder
from tune.records.schema import REPORT_ADAPTER, EpochReport, State, TrialRecord
from tune.space.ranges import Settings, Value
from tune.store.pruners import make_pruner
from tune.store.samplers import derive_seed, make_sampler
from tune.store.storage import convert_db_errors, open_storage, second_writer_error

MAX_FAILURES = 5
"""A process stops the study after this many failed trials, if it has completed or pruned no trial."""
MAX_DUPLICATES = 20
"""After this many consecutive samples that repeat earlier settings, the next trial is the first untried
combination. If the space has too many combinations to list, it is a random sample."""

# User attributes of trial 0
IDENTITY = "identity"
STUDY_ID = "study_id"  # missing in studies of version 0.2.0
OWNER = "owner"  # folder in which the study was created

# User attributes of any trial
ORIGIN = "origin"
SOURCE = "source"  # only of enqueued trials
REASON = "reason"  # only of failed trials
RESULT = "result"  # only of ended trials

# User attribute of the study
SECONDS = "seconds_searched"

# Optuna's system attribute for the settings of an enqueued trial
FIXED = "fixed_params"

_Combination = tuple[Value | None, ...]
"""Values of the settings of a space, in the order of its ranges. None: a conditional one does not apply."""


class _RunningTrial(NamedTuple):
    """Trial that this process is running.

    Args:
        trial_id: ID of the trial in the storage. It differs from the number of the trial in the study.
        report: Latest report of the trial.
    """

    trial_id: int
    report: EpochReport


@contextmanager
def open_trial_store(
    config: StudyConfig, folder: StudyFolder, digests: Mapping[str, str], *, concurrency: int = 1
) -> Iterator["TrialStore"]:
    """Open the trial store of a study in this context. Create the study if it does not exist.

    Args:
        config: Configuration of the study.
        folder: Folder of the study.
        digests: Digests, by name, of the inputs that determine results, except the configuration.
        concurrency: Number of concurrent trials (see `make_sampler` and `make_pruner`).

    Raises:
        UserError: the storage URL is invalid, or the stored study has other settings or another folder.
        InfrastructureError: the storage cannot be opened, or fails later in this context.
    """
    with convert_db_errors(config.storage), ExitStack() as stack:
        storage = open_storage(config.storage)
        stack.callback(storage.engine.dispose)
        store = TrialStore(config, storage, folder, digests, concurrency=concurrency)
        stack.callback(store.release)
        yield store


class TrialStore:
    """Trials of one study.

    Attributes:
        exhausted: True once `ask` finds that every combination of the space has been tried.
        seconds_searched: Duration of the search in seconds, including earlier processes.
    """

    def __init__(
        self,
        config: StudyConfig,
        storage: BaseStorage,
        folder: StudyFolder,
        digests: Mapping[str, str],
        *,
        concurrency: int = 1,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._config = config
        self._search = config.search
        self._space = config.search.space
        self._storage = storage
        self._concurrency = concurrency
        with self._convert_errors(self._search.pruner):
            pruner = make_pruner(self._search, config.max_epochs, concurrency)
        name = self._stored_name()
        self._study = optuna.create_study(
            storage=storage,
            study_name=name,
            pruner=pruner,
            load_if_exists=True,
            directions=[DIRECTIONS[goal] for goal in self._search.goals],
        )
        self._study_id = storage.get_study_id_from_name(name)
        self._running: dict[int, _RunningTrial] = {}  # by number of the trial
        self._failure_reasons: list[str] = []  # of the trials that have failed in this process
        self._num_not_failed = 0  # number of trials that this process has completed or pruned
        self.exhausted = False
        self.seconds_searched = float(self._study.user_attrs.get(SECONDS, 0.0))
        self._attrs_of_trial_0 = self._check_identity(folder, digests)
        # The baseline is the first trial. If it failed, each later process reruns it once.
        baselines = [trial for trial in self._trials if _is_baseline(trial)]
        self._baseline_missing = all(trial.state is TrialState.FAIL for trial in baselines)

    def _stored_name(self) -> str:
        """Return the name of the study in the storage. A study in its own database may have been renamed."""
        name = self._config.name
        if self._config.location.storage:
            return name
        stored = optuna.get_all_study_names(self._storage)
        if not stored or name in stored:
            return name
        return stored[0]

    @property
    def _trials(self) -> list[FrozenTrial]:
        """All trials in the storage, in order of their numbers."""
        return self._study.get_trials(deepcopy=False)

    def _check_identity(self, folder: StudyFolder, digests: Mapping[str, str]) -> dict[str, object]:
        """Check the stored study. Return the user attributes to write with trial 0, or {} if trial 0 exists.

        Raises:
            UserError: the stored study has other settings or another folder, or its trials are missing.
        """
        config = self._config
        path = str(folder.path)
        trials = self._trials
        if not trials:
            if folder.has_trials:
                raise UserError(
                    f"{folder.path} contains trials, but the study's database does not. Restore the "
                    "database, or start another study with --study NAME."
                )
            return {IDENTITY: config.identity(digests), STUDY_ID: folder.study_id, OWNER: path}
        attrs = trials[0].user_attrs
        config.require_same(attrs.get(IDENTITY, {}), digests)
        is_same_study = path == attrs[OWNER] or folder.study_id == attrs.get(STUDY_ID)
        if config.location.storage and not is_same_study:
            raise UserError(
                f"The study {config.name} in --storage was created in {attrs[OWNER]}, and {folder.path} is "
                "another study. Choose another --study, or move that folder here."
            )
        return {}

    @property
    def ended_trials(self) -> list[TrialRecord]:
        """Completed, pruned and failed trials, in order of their numbers."""
        return [build_record(trial) for trial in self._trials if trial.state.is_finished()]

    @property
    def interrupted_trials(self) -> list[FrozenTrial]:
        """Unfinished trials of earlier processes."""
        unfinished = [trial for trial in self._trials if not trial.state.is_finished()]
        return [trial for trial in unfinished if trial.number not in self._running]

    @property
    def running_trials(self) -> list[tuple[Settings, EpochReport]]:
        """Settings and latest report of each trial that this process is running."""
        trials = self._trials
        return [(trials[number].params, running.report) for number, running in self._running.items()]

    def record(self, number: int) -> TrialRecord:
        """Return the record of a trial that has ended."""
        return build_record(self._trials[number])

    def ask(self, *, allow_new: bool = True) -> FrozenTrial | None:
        """Resume an interrupted trial or, if none is left, start a new one.

        New trials start in this order: the baseline, enqueued settings, sampled settings.

        Args:
            allow_new: False to resume interrupted trials only.

        Returns:
            The trial, or None if no trials are left or too many have failed.
        """
        for trial in self.interrupted_trials:
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
            if trial.state is TrialState.WAITING:
                self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
            self._running[trial.number] = _RunningTrial(trial_id, EpochReport())
            return trial
        if not allow_new or self.abort_reason() is not None:
            return None
        sampled = self._sample_next(self._trials)
        if sampled is None:
            return None
        return self._create(sampled)

    def _sample_next(self, trials: list[FrozenTrial]) -> FrozenTrial | None:
        """Return the next trial, which is not stored yet, or None if no trial is left.

        `--trials` counts a baseline that is rerun only once.
        """
        if self._baseline_missing:
            return self._sample(trials, self._config.baseline_settings, "baseline")
        num_others = sum(not _is_baseline(trial) for trial in trials)
        if 1 + num_others >= self._search.trials:
            return None

        # Settings of failed trials are not retried, because they would fail again with the same seeds.
        tried = {self._combination(trial.params) for trial in trials}
        enqueued = self._next_enqueued(trials, tried)
        if enqueued is not None:
            return enqueued
        for duplicates in range(MAX_DUPLICATES):
            trial = self._sample(trials, duplicates=duplicates)
            if self._combination(trial.params) not in tried:
                return trial

        combinations = self._space.combinations()
        if combinations is None:
            return self._sample(trials, sampler="random")
        for settings in combinations:
            if self._combination(settings) not in tried:
                return self._sample(trials, settings)
        self.exhausted = True
        return None

    def _next_enqueued(self, trials: list[FrozenTrial], tried: Set[_Combination]) -> FrozenTrial | None:
        """Return a trial with the first enqueued settings that have not been tried, or None."""
        already_enqueued = [trial.system_attrs.get(FIXED) for trial in trials]
        for enqueued in self._search.enqueue:
            if enqueued.settings in already_enqueued:
                continue
            trial = self._sample(trials, enqueued.settings, "enqueued")
            if self._combination(trial.params) not in tried:
                trial.set_user_attr(SOURCE, str(enqueued))
                return trial
        return None

    def _sample(
        self,
        trials: list[FrozenTrial],
        fixed: Settings | None = None,
        origin: str = "sampled",
        *,
        duplicates: int = 0,
        sampler: str = "",
    ) -> FrozenTrial:
        """Sample a trial in an in-memory copy of the study. The caller then stores it in a single step.

        Args:
            trials: All trials so far.
            fixed: Settings with fixed values. All other settings are sampled.
            origin: Origin of the settings, which is stored with the trial.
            duplicates: Number of samples already rejected as duplicates. It changes the seed of the sampler.
            sampler: Name of the sampler. Default: the sampler of the search.
        """
        sampler = sampler or self._search.sampler
        seed = derive_seed(self._search.seed, len(trials), duplicates)
        with self._convert_errors(sampler):
            study = optuna.create_study(
                sampler=make_sampler(sampler, self._space, seed, self._concurrency),
                pruner=self._study.pruner,
                directions=self._study.directions,
            )
            study.add_trials(trials)
            if fixed is not None:
                study.enqueue_trial(dict(fixed))
            settings = self._space.sample(study.ask())

        # A custom sampler may ignore the ranges.
        for key, value in settings.items():
            allowed = self._space.ranges[key]
            if not allowed.contains(value):
                raise UserError(f"--sampler {sampler} sampled {key} = {value}, outside {allowed.describe()}.")

        trial = study.get_trials()[-1]  # the sampled one
        trial.set_user_attr(ORIGIN, origin)
        return trial

    def _create(self, trial: FrozenTrial) -> FrozenTrial:
        """Store a new trial as running. Return the trial.

        Raises:
            InfrastructureError: another process has stored a trial with this number.
        """
        for key, value in self._attrs_of_trial_0.items():
            trial.set_user_attr(key, value)
        trial_id = self._storage.create_new_trial(self._study_id, trial)
        if self._storage.get_trial(trial_id).number != trial.number:
            raise second_writer_error(self._config.storage)
        self._running[trial.number] = _RunningTrial(trial_id, EpochReport())
        self._attrs_of_trial_0 = {}
        self._baseline_missing = False
        return trial

    def _combination(self, settings: Settings) -> _Combination:
        """Return the values of all settings of the space, None for conditional ones that do not apply."""
        return tuple(settings.get(name) for name in self._space.ranges)

    def report(self, number: int, report: EpochReport) -> bool:
        """Store the report of an epoch. After a crash, an epoch may be reported again.

        If the report contains an error, or lacks the objective or another goal, the trial fails.

        Returns:
            True if the trial continues. The baseline is never pruned.
        """
        if number not in self._running:
            return False
        trial_id = self._running[number].trial_id
        values = report.metrics
        required = dict.fromkeys(("objective", *self._search.goals))  # without repetitions
        missing = ", ".join(goal for goal in required if goal not in values)
        if report.error or missing:
            self.fail(number, report.error or f"the trial did not report {missing}")
            return False

        self._running[number] = _RunningTrial(trial_id, report)
        self._storage.set_trial_intermediate_value(trial_id, report.epoch, values["objective"])
        if report.finished:
            self._tell(number, TrialState.COMPLETE, [values[goal] for goal in self._search.goals])
            return False

        trial = self._storage.get_trial(trial_id)
        is_new_epoch = report.epoch == trial.last_step
        may_be_pruned = is_new_epoch and not _is_baseline(trial)
        with self._convert_errors(self._search.pruner):
            pruned = may_be_pruned and self._study.pruner.prune(self._study, trial)
        if pruned:
            self._tell(number, TrialState.PRUNED)
        return not pruned

    def fail(self, number: int, reason: str) -> None:
        """Mark a trial as failed, unless it has already ended."""
        if number not in self._running:
            return
        trial_id = self._running[number].trial_id
        self._storage.set_trial_user_attr(trial_id, REASON, reason)
        self._tell(number, TrialState.FAIL)
        self._failure_reasons.append(reason)

    def _tell(self, number: int, state: TrialState, values: list[float] | None = None) -> None:
        """Store the result and the final state of a running trial. `values` are the goals if it completed."""
        trial_id, report = self._running[number]
        result = REPORT_ADAPTER.dump_python(report, mode="json", by_alias=True)
        self._storage.set_trial_user_attr(trial_id, RESULT, result)
        del self._running[number]  # before `tell`: the database may commit even if the connection then fails
        self._study.tell(number, values, state=state)
        # After `MAX_FAILURES`, the success of a trial that was running must not cancel the stop.
        if state is not TrialState.FAIL and self.abort_reason() is None:
            self._num_not_failed += 1

    def abort_reason(self) -> str | None:
        """Return the reason of the latest failure if the study must stop (see `MAX_FAILURES`), else None."""
        if self._num_not_failed or len(self._failure_reasons) < MAX_FAILURES:
            return None
        return self._failure_reasons[-1]

    def add_seconds(self, seconds: float) -> None:
        """Add seconds to the stored duration of the search."""
        self.seconds_searched += seconds
        self._study.set_user_attr(SECONDS, self.seconds_searched)

    def release(self) -> None:
        """Set running trials to WAITING, so that the next process resumes them."""
        for running in self._running.values():
            self._storage.set_trial_state_values(running.trial_id, TrialState.WAITING)
        self._running.clear()

    @contextmanager
    def _convert_errors(self, name: str) -> Iterator[None]:
        """Prefix errors of a custom sampler or pruner with its name. Storage errors get no prefix."""
        convert_custom_errors = convert_errors(name) if ":" in name else nullcontext()
        with convert_custom_errors, convert_db_errors(self._config.storage):
            yield


def _is_baseline(trial: FrozenTrial) -> bool:
    """Return True for a trial with the default settings."""
    return trial.user_attrs.get(ORIGIN) == "baseline"


def _in_seconds(time: datetime | None) -> datetime | None:
    """Return a time without fractions of a second."""
    return None if time is None else time.replace(microsecond=0)


def build_record(trial: FrozenTrial) -> TrialRecord:
    """Return the record of a completed, pruned or failed trial."""
    attrs = trial.user_attrs
    is_failed = trial.state is TrialState.FAIL
    last = REPORT_ADAPTER.validate_python(attrs.get(RESULT, {}), strict=False)
    metrics = last.metrics
    return TrialRecord(
        number=trial.number,
        state=cast(State, trial.state.name),
        origin=attrs[ORIGIN],
        settings=dict(trial.params),
        objective=metrics.get("objective"),
        base=metrics.get("base"),
        new=metrics.get("new"),
        epoch=last.epoch,
        scores_by_epoch=dict(sorted(trial.intermediate_values.items())),
        runs=last.runs,
        seconds=metrics.get("seconds", 0.0),
        notes=last.notes,
        reason=attrs.get(REASON, "") if is_failed else "",
        started=_in_seconds(trial.datetime_start),
        ended=_in_seconds(trial.datetime_complete),
        source=attrs.get(SOURCE, ""),
    )
