"""A hyperparameter study: search, confirmation, final test and report.

Each stage reads its records, runs the missing jobs and writes its records. A rerun therefore resumes a study.

The methods `_..._stages` are generators. They yield a `Stage`, and continue once its jobs have ended.
`Study._complete` runs such a generator to its end. `Study.open_flow` joins all of them, for a queue of
several studies.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from prometar.cli.console import format_count
from prometar.data.datasets.catalog import file_name
from prometar.errors import FIX_AND_RESUME, UserError, WorkError
from prometar.io.files import lock_folder, resolve_path
from prometar.training.memory import Footprint
from tune.config import StudyConfig
from tune.execution.flows import Flow, Stage, Stages, complete
from tune.execution.live import LiveView, stdout_console
from tune.execution.progress import StageProgress
from tune.execution.resources import (
    JobResources,
    max_concurrent_trials,
    plan_runs,
    plan_trials,
    uses_gpus,
)
from tune.records.folder import BEST_FILE, SETTINGS_FILES, Records, StudyFolder, read_records
from tune.records.schema import Confirmation, FinalTest, StudyRecord, TrialRecord, rank_completed
from tune.space.ranges import Settings
from tune.stages.enqueued import add_settings_of_studies, describe_enqueued
from tune.stages.plan import (
    StudyPlan,
    count_steps_per_epoch,
    estimate,
    inspect_inputs,
    plan_study,
    require_readable_images,
)

if TYPE_CHECKING:
    from tune.report.live_page import LivePage
    from tune.report.page import Report
    from tune.store.trial_store import TrialStore

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _OpenStudy:
    """State of a study while its folder is locked and Ray is running.

    Args:
        plan: Plan of the study.
        digests: Digests, by name, of inputs other than settings that affect results.
        resources: Concurrency, and the resources per trial.
        memory_bytes: Estimated memory of a run.
        page: report.html, which is rewritten while stages run.
    """

    plan: StudyPlan
    digests: Mapping[str, str]
    resources: JobResources
    memory_bytes: int
    page: "LivePage"


class Study:
    """A study in a folder.

    Args:
        folder: OUT/STUDY. Default: a folder in `out`, named after the datasets.
        config: Configuration. If given, `folder` and `options` are ignored. Default: built from `options`,
            or, if there are none, read from the existing study in `folder`.
        console: Console for progress. Default: standard output.
        options: Options of `tune/search.py`, with "_" instead of "-", and `settings` for --set.

    Raises:
        UserError: an option does not exist, a value is invalid, or `folder` is given together with `out` or
            `study`. Also if a study of `enqueue` does not exist or has no completed trial.

    Example:
        >>> study = Study("out/mine", dataset="textures", trials=40, settings={"data.shots": 4})
        >>> study.run().verdict  # doctest: +SKIP
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        config: StudyConfig | None = None,
        console: Console | None = None,
        **options: Any,
    ) -> None:
        if config is None:
            config = _build_config(folder, options)
        self.folder = StudyFolder.of(config)
        self.config, self._enqueue_notes = add_settings_of_studies(config, self.folder)
        self.console = console or stdout_console()
        self._opened: _OpenStudy | None = None

    def run(self) -> FinalTest:
        """Run all stages, or resume an interrupted study. For a finished study, only the report is rebuilt.

        Raises:
            UserError: the study was started with other settings, or data or weights are missing.
            WorkError: another process is running the study, or a stage lacks results because runs failed.
            KeyboardInterrupt: a signal stopped the study.
        """
        with self._open():
            self.search()
            self.confirm()
            test = self.test()
            self.report()
        if test.failures:
            failed = format_count(len(test.failures), "final-test run")
            raise WorkError(f"{failed} failed ({test.failures[0]}). {FIX_AND_RESUME}")
        return test

    def search(self) -> None:
        """Sample, train and score trials until --trials or --max-hours is reached.

        Raises:
            UserError: as in `run`.
            KeyboardInterrupt: as in `run`.
            WorkError: another process is running the study, no trial was completed, or the first new trials
                all failed.
        """
        with self._open() as opened:
            concurrency = opened.resources.num_concurrent
            self._complete(self._search_stages(opened.plan, opened.digests, concurrency=concurrency))

    def _search_stages(
        self, plan: StudyPlan, digests: Mapping[str, str], *, concurrency: int
    ) -> Stages[None]:
        """Yield the stage of the search, whose results determine the settings of its next jobs."""
        from tune.stages.search import SearchJobs
        from tune.store.trial_store import open_trial_store
        from tune.tracking import Trackers

        config = self.config
        steps_per_epoch_of = partial(count_steps_per_epoch, config, plan)
        with (
            open_trial_store(config, self.folder, digests, concurrency=concurrency) as store,
            closing(Trackers(config.location.trackers, self.folder.path, self.console)) as trackers,
        ):
            self._write_study(plan, digests, store)
            num_ended = len(store.ended_trials)
            num_interrupted = len(store.interrupted_trials)
            if num_ended or num_interrupted:
                self.console.print(f"Resuming: {num_ended} done, {num_interrupted} interrupted")
            with closing(SearchJobs(config, self.folder, store, steps_per_epoch_of)) as jobs:
                yield Stage(
                    name="Search",
                    jobs=jobs,
                    total=max(config.search.trials, num_ended),  # an earlier --trials may have been larger
                    done=num_ended,
                    observers=[jobs, trackers],  # `jobs` learns from the results
                    is_adaptive=True,
                )
            for notice in jobs.notices():
                self.console.print(notice)
            reason = store.abort_reason()
            if reason:
                raise WorkError(f"Stopped: the first new trials failed ({reason}). {FIX_AND_RESUME}")
        self._require_completed_trial()

    def _write_study(self, plan: StudyPlan, digests: Mapping[str, str], store: "TrialStore") -> None:
        """Write study.yaml. Print a note for each dataset whose excluded images have changed after trials."""
        from tune.stages.exclusions import exclusion_notes

        notes: list[str] = []
        if store.ended_trials:
            notes += exclusion_notes(self.config, plan.datasets, self.folder.read(StudyRecord))
        for note in notes:
            self.console.print(note)
        excluded: dict[str, tuple[str, ...]] = {}
        for dataset in plan.datasets:
            if dataset.excluded:
                excluded[dataset.name] = tuple(sorted(dataset.excluded))
        self.folder.write_study(self.config, digests, plan.classes, excluded=excluded, exclusion_notes=notes)

    def _require_completed_trial(self) -> None:
        """Raise a WorkError with a failure reason if no trial was completed."""
        records = self.records
        if records.completed:
            return
        reasons = [trial.reason for trial in records.trials if trial.reason]
        reason = reasons[0] if reasons else "all were pruned, or --max-hours was reached"
        raise WorkError(f"No trial was completed ({reason}). {FIX_AND_RESUME}")

    def confirm(self) -> Confirmation:
        """Rerun the best trials and the baseline with fresh seeds. Select settings by mean score.

        Raises:
            UserError: as in `run`.
            KeyboardInterrupt: as in `run`.
            WorkError: another process is running the study, no trial was completed, a rerun of the baseline
                failed, or every trial has a failed rerun.
        """
        with self._open():
            return self._complete(self._confirmation_stages())

    def _confirmation_stages(self) -> Stages[Confirmation]:
        """Yield the stage of the confirmation, unless only one trial can be selected."""
        from tune.stages.confirmation import choose_trials, confirm

        config = self.config
        chosen = choose_trials(self.folder.read_trials(), config.confirm.top)
        if not chosen:
            raise WorkError(f"{self.folder.path} contains no completed trial. Run the search first.")
        if len(chosen) > 1:
            seeds = format_count(config.confirm.seeds, "fresh seed")
            names = ", ".join(_trial_name(trial) for trial in chosen)
            self.console.print(f"Confirming {len(chosen)} trials with {seeds}: {names}")
        confirmation = yield from confirm(config, self.folder, chosen)
        self.folder.write(confirmation)
        self._write_settings(SETTINGS_FILES["selected"], confirmation.selected_candidate.settings)
        self._write_settings(SETTINGS_FILES["baseline"], config.baseline_settings)
        return confirmation

    def test(self) -> FinalTest:
        """Compare the selected settings with the baseline on the test images, seed by seed.

        Failed runs are listed in `FinalTest.failures`.

        Raises:
            UserError: as in `run`.
            KeyboardInterrupt: as in `run`.
            WorkError: another process is running the study, or the confirmation has not finished.
        """
        with self._open() as opened:
            return self._complete(self._test_stages(opened.plan))

    def _test_stages(self, plan: StudyPlan) -> Stages[FinalTest]:
        """Yield the stages of the final test, one per analysis."""
        from tune.report.statements import verdict_text
        from tune.reproduce.published import published_h
        from tune.stages.final_test import run_final_test

        config = self.config
        confirmation = self.folder.read(Confirmation)
        if confirmation is None:
            raise WorkError(f"{self.folder.path} contains no confirmation. Run the confirmation first.")
        selected = confirmation.selected_candidate
        compared = "the default settings"
        if not selected.is_baseline:
            compared = f"trial {selected.number} against the default settings"
        self.console.print(f"Final test on the test images: {compared}")
        test = yield from run_final_test(
            config,
            self.folder,
            selected,
            published={dataset.name: published_h(dataset, config.baseline) for dataset in plan.datasets},
            previous=self.folder.read(FinalTest),
        )
        self.folder.write(test)
        best = config.baseline_settings if test.recommends_baseline else selected.settings
        self._write_settings(BEST_FILE, best, comment=verdict_text(self.records))
        return test

    @contextmanager
    def open_flow(self) -> Iterator[tuple[Flow, Footprint]]:
        """Check the inputs, lock the folder, and yield the flow and the footprint of the study.

        The flow contains all stages, and its result is the final test. The footprint contains the sizes that
        determine the memory of a run. The caller, which runs a queue of several studies, starts Ray and
        writes the reports.

        Raises:
            UserError: as in `run`.
            WorkError: another process is running the study, or images are corrupt.
        """
        plan, digests, footprint = self._check_inputs()
        concurrency = self.config.resources.max_concurrent
        if concurrency is None:
            concurrency = max_concurrent_trials(self.config.search.trials)
        stages = self._all_stages(plan, digests, concurrency=concurrency)
        flow = Flow(self.folder.path.name, stages, total=plan.num_jobs, max_concurrent=concurrency)
        with self._lock(), flow:
            yield flow, footprint

    def _all_stages(
        self, plan: StudyPlan, digests: Mapping[str, str], *, concurrency: int
    ) -> Stages[FinalTest]:
        """Yield the stages of search, confirmation and final test."""
        yield from self._search_stages(plan, digests, concurrency=concurrency)
        yield from self._confirmation_stages()
        test = yield from self._test_stages(plan)
        return test

    def _write_settings(self, name: str, settings: Settings, *, comment: str = "") -> None:
        """Write the complete configuration of a run with these settings, as in the final test.

        The file NAME.yaml is for the first dataset. Another dataset has a file of its own, NAME-DATASET.yaml,
        if its published settings differ from those of the first one.

        Args:
            name: Name of the file, with its suffix.
            settings: Values of the searched settings.
            comment: Comment at the start of the file.
        """
        config = self.config
        seed = config.final_seeds[0] if config.final_seeds else config.search.seed
        file_names = {config.search.datasets[0]: name}
        for dataset in config.baseline_changes:
            file_names[dataset] = f"{Path(name).stem}-{file_name(dataset)}.yaml"
        for dataset, dataset_file in file_names.items():
            run_config = config.run_config(settings, dataset=dataset, seed=seed, final_epochs=True)
            self.folder.write_settings(dataset_file, run_config, comment=comment)

    def report(self) -> "Report":
        """Write report.html from the records, and print the summary.

        Raises:
            UserError: as in `records`.
            InfrastructureError: the disk is full, or the folder is not writable.
        """
        from tune.report.page import write_report
        from tune.report.terminal import print_summary

        if self._opened is not None:
            self._opened.page.stop()
        report = write_report(self.records)
        print_summary(self.console, report.records)
        return report

    @property
    def records(self) -> Records:
        """All records in the study's folder.

        Raises:
            UserError: the folder does not contain a study, or a record is corrupt.
        """
        return read_records(self.folder.path)

    @cached_property
    def _plan(self) -> StudyPlan:
        """Plan for `describe_plan` and `estimate`. `run` plans again, because data may have changed."""
        return plan_study(self.config)

    def describe_plan(self) -> str:
        """Describe the searched settings and the number of runs, without running or writing anything.

        Raises:
            UserError: a dataset is missing or too small, or an option is invalid.
        """
        plan = self._plan
        lines = [self._headline, str(plan)]
        lines += self._about_enqueued
        lines.append("Searched settings:")
        for key, values in self.config.search.space.describe().items():
            lines.append(f"  {key}: {values}")
        lines += plan.notes
        return "\n".join(lines)

    def estimate(self) -> str:
        """Load the weights, time a few training steps, and describe the maximum duration on this machine.

        Raises:
            UserError: the weights are missing, or a trial does not fit on this machine.
            WorkError: images are corrupt.
        """
        require_readable_images(self.config, self._plan, self.console.print)
        return estimate(self.config, self._plan)

    @property
    def _about_enqueued(self) -> list[str]:
        """Lines on the enqueued settings of other studies."""
        return describe_enqueued(self.config) + self._enqueue_notes

    @property
    def _headline(self) -> str:
        """Line that describes the study."""
        config = self.config
        search = config.search
        trials = format_count(search.trials, "trial")
        epochs = format_count(config.max_epochs, "epoch")
        return (
            f"Study {self.folder.path}: {trials} of up to {epochs}, {config.baseline.method} on "
            f"{' + '.join(search.datasets)} with {config.baseline.backbone.name}, "
            f"objective {search.objective}, space {search.space.name}"
        )

    @contextmanager
    def _open(self) -> Iterator[_OpenStudy]:
        """Check the inputs, lock the folder and start Ray. A nested call yields the same value.

        Raises:
            UserError: the study was started with other settings, or data or weights are missing.
            WorkError: another process is running the study, images are corrupt, or Ray cannot be started.
        """
        if self._opened is not None:
            yield self._opened
            return
        config = self.config
        plan, digests, footprint = self._check_inputs()
        from tune.execution.ray_cluster import start_ray
        from tune.report.live_page import LivePage

        with self._lock():
            nodes = start_ray(address=config.location.address)
            on_gpu = uses_gpus(nodes, config.resources)
            memory = max(footprint.memory_bytes(run, on_gpu=on_gpu) for run in config.baselines)
            resources, summary = plan_trials(nodes, config.resources, config.search.trials, memory)
            lines = [self._headline, str(plan), summary]
            lines += self._about_enqueued
            lines += plan.notes
            for line in lines:
                self.console.print(line)
            with LivePage(self.folder, self.console) as page:
                self._opened = _OpenStudy(plan, digests, resources, memory, page)
                try:
                    yield self._opened
                finally:
                    self._opened = None

    def _check_inputs(self) -> tuple[StudyPlan, dict[str, str], Footprint]:
        """Return the plan, the digests of all inputs, and the sizes that determine memory use.

        Raises:
            UserError: the study was started with other settings, or data or weights are missing.
            WorkError: images are corrupt.
        """
        config = self.config
        plan = plan_study(config)
        digests, footprint = inspect_inputs(config, plan)
        require_readable_images(config, plan, self.console.print)
        previous = self.folder.read(StudyRecord)
        if previous is not None:
            config.require_same(previous.config.identity(previous.digests), digests)
        return plan, digests, footprint

    def _lock(self) -> AbstractContextManager[None]:
        """Return a context that locks the study's folder. It raises a WorkError if the folder is locked."""
        return lock_folder(self.folder.path, f"the study {self.folder.path}")

    def _complete(self, stages: Stages[_Result]) -> _Result:
        """Run the stages one after the other, and return the result of the generator."""
        return complete(stages, self._run_stage)

    def _run_stage(self, stage: Stage) -> Mapping[str, str]:
        """Run the jobs of a stage, with a live view. Return failure reasons by job name."""
        from tune.execution.executor import run_jobs

        opened = self._opened
        assert opened is not None
        if stage.is_adaptive:
            resources = opened.resources
            progress = StageProgress(stage.name, stage.total, stage.done, best=self._best_so_far())
        else:
            resources = self._plan_stage(stage, opened.memory_bytes)
            progress = StageProgress(stage.name, stage.total, stage.done, has_best=False)
        opened.page.follow(progress)
        with LiveView(self.console, progress) as view:
            return run_jobs(
                stage.jobs,
                resources,
                [*stage.observers, progress, view, opened.page],
                console=self.console,
                timeout_seconds=self.config.resources.epoch_timeout,
            )

    def _best_so_far(self) -> tuple[float, str] | None:
        """Return the best objective and the name of its trial, or None if no trial was completed."""
        for trial in rank_completed(self.folder.read_trials()):
            if trial.objective is not None:
                return trial.objective, f"trial {trial.number}"
        return None

    def _plan_stage(self, stage: Stage, memory_bytes: int) -> JobResources:
        """Plan the resources of a stage with a fixed list of jobs, and print a summary.

        Such a stage may use all machines, also those that have joined since the search started. The search
        may use fewer, because it learns from results.
        """
        from tune.execution.ray_cluster import start_ray

        # Ray is already running, so this call only returns the resources of the machines.
        nodes = start_ray(address=self.config.location.address)
        num_runs = stage.total - stage.done
        resources, summary = plan_runs(nodes, self.config.resources, num_runs, memory_bytes)
        self.console.print(f"{stage.name}: {summary}")
        return resources


def _trial_name(trial: TrialRecord) -> str:
    """Return the number of a trial, for a list of trials in a message."""
    if trial.is_baseline:
        return f"{trial.number} (default settings)"
    return str(trial.number)


def _build_config(folder: str | Path | None, options: dict[str, Any]) -> StudyConfig:
    """Build the configuration from `options`. If there are none, read that of a study in `folder`.

    Raises:
        UserError: an option does not exist, a value is invalid, `folder` is given together with `out` or
            `study`, or the study's record is corrupt.
    """
    if folder is None:
        return StudyConfig.of(**options)
    path = resolve_path(folder)
    if set(options) & {"out", "study"}:
        raise UserError("Pass either folder, or out and study, not both.")
    record = None if options else StudyFolder(path).read(StudyRecord)
    if record is not None:
        location = record.config.location.model_copy(update={"out": path.parent, "study": path.name})
        return record.config.model_copy(update={"location": location})
    return StudyConfig.of(**options, out=path.parent, study=path.name)
