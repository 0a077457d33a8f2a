"""A hyperparameter study: search, confirmation, final test and report.

Each stage reads its records, runs the missing jobs and writes its records. A rerun therefore resumes a study.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
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
from tune.records.schema import Confirmation, FinalTest, StudyRecord, rank_completed
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
    from tune.execution.flows import Flow, Stage, Stages
    from tune.report.live_page import LivePage
    from tune.report.page import Report

_Result = TypeVar("_Result")
_OpenStudy = tuple[StudyPlan, Mapping[str, str], JobResources]
"""Plan, input digests, and resources per trial of a study whose folder is locked."""


class Study:
    """A study in a folder.

    Args:
        folder: OUT/STUDY. Default: a folder in `out`, named after the datasets.
        config: Configuration. If given, `folder` and `options` are ignored. Default: built from `options`,
            or, if there are none, read from the existing study in `folder`.
        console: Console for progress. Default: standard output.
        options: Options of `tune/search.py`, with "_" instead of "-", and `settings` for --set.

    Raises:
        UserError: an option does not exist, or a value is invalid.

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
        config = config or _build_config(folder, options)
        self.folder = StudyFolder.of(config)
        self.config, self._enqueue_notes = add_settings_of_studies(config, self.folder)
        self.console = console or stdout_console()
        self._opened: _OpenStudy | None = None
        self._memory_bytes = 0  # estimated memory of a run, once the study is open
        self._page: LivePage | None = None

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
            WorkError: no trial was completed, or the first new trials all failed.
        """
        with self._open() as (plan, digests, resources):
            self._complete(self._search_stages(plan, digests, concurrency=resources.num_concurrent))

    def _search_stages(
        self, plan: StudyPlan, digests: Mapping[str, str], *, concurrency: int
    ) -> "Stages[None]":
        from tune.execution.flows import Stage
        from tune.stages.exclusions import exclusion_notes
        from tune.stages.search import SearchJobs
        from tune.store.trial_store import open_trial_store
        from tune.tracking import Trackers

        config = self.config
        path = self.folder.path
        with (
            open_trial_store(config, self.folder, digests, concurrency=concurrency) as store,
            closing(Trackers(config.location.trackers, path, self.console)) as tracking,
        ):
            notes: list[str] = []
            if store.ended_trials:
                notes += exclusion_notes(config, plan.datasets, self.folder.read(StudyRecord))
            for note in notes:
                self.console.print(note)
            excluded = {each.name: tuple(sorted(each.excluded)) for each in plan.datasets if each.excluded}
            self.folder.write_study(config, digests, plan.classes, excluded=excluded, exclusion_notes=notes)
            done = len(store.ended_trials)
            interrupted = len(store.interrupted_trials)
            if done or interrupted:
                self.console.print(f"Resuming: {done} done, {interrupted} interrupted")
            steps_per_epoch_of = partial(count_steps_per_epoch, config, plan)
            with closing(SearchJobs(config, self.folder, store, steps_per_epoch_of)) as jobs:
                # `jobs` is also an observer: the results determine the settings of the next jobs.
                total = max(config.search.trials, done)  # an earlier command may have run more trials
                yield Stage("Search", jobs, total, done, [jobs, tracking], is_adaptive=True)
            for notice in jobs.notices():
                self.console.print(notice)
            if reason := store.abort_reason():
                raise WorkError(f"Stopped: the first new trials failed ({reason}). {FIX_AND_RESUME}")
        records = self.records
        if not records.completed:
            reason = next((trial.reason for trial in records.trials if trial.reason), "pruned, or no time")
            raise WorkError(f"No trial was completed ({reason}). {FIX_AND_RESUME}")

    def confirm(self) -> Confirmation:
        """Rerun the best trials and the baseline with fresh seeds. Select settings by mean score."""
        with self._open():
            return self._complete(self._confirmation_stages())

    def _confirmation_stages(self) -> "Stages[Confirmation]":
        from tune.stages.confirmation import choose_trials, confirm

        config = self.config
        chosen = choose_trials(self.folder.read_trials(), config.confirm.top)
        if not chosen:
            raise WorkError(f"{self.folder.path} contains no completed trial. Run the search first.")
        if len(chosen) > 1:
            names = [str(trial.number) + " (default settings)" * trial.is_baseline for trial in chosen]
            seeds = format_count(config.confirm.seeds, "fresh seed")
            self.console.print(f"Confirming {len(chosen)} trials with {seeds}: {', '.join(names)}")
        confirmation = yield from confirm(config, self.folder, chosen)
        self.folder.write(confirmation)
        self._write_settings(SETTINGS_FILES["selected"], confirmation.selected_candidate.settings)
        self._write_settings(SETTINGS_FILES["baseline"], config.baseline_settings)
        return confirmation

    def test(self) -> FinalTest:
        """Compare the selected settings with the baseline on the test images, seed by seed."""
        with self._open() as (plan, *_):
            return self._complete(self._test_stages(plan))

    def _test_stages(self, plan: StudyPlan) -> "Stages[FinalTest]":
        from tune.report.statements import verdict_text
        from tune.reproduce.published import published_h
        from tune.stages.final_test import run_final_test

        confirmation = self.folder.read(Confirmation)
        if confirmation is None:
            raise WorkError(f"{self.folder.path} contains no confirmation. Run the confirmation first.")
        selected = confirmation.selected_candidate
        prefix = "" if selected.is_baseline else f"trial {selected.number} against "
        self.console.print(f"Final test on the test images: {prefix}the default settings")
        test = yield from run_final_test(
            self.config,
            self.folder,
            selected,
            published={dataset.name: published_h(dataset, self.config.baseline) for dataset in plan.datasets},
            previous=self.folder.read(FinalTest),
        )
        self.folder.write(test)
        best = self.config.baseline_settings if test.recommends_baseline else selected.settings
        self._write_settings(BEST_FILE, best, comment=verdict_text(self.records))
        return test

    @contextmanager
    def open_flow(self) -> "Iterator[tuple[Flow, Footprint]]":
        """Check the inputs, lock the folder, and yield all stages as a flow, for a queue of several studies.

        The flow's result is the final test. It also yields the sizes that determine the memory of a run. The
        caller starts Ray, and writes the report.

        Raises:
            UserError: as in `run`.
            WorkError: another process is running the study, or images are corrupt.
        """
        from tune.execution.flows import Flow

        plan, digests, footprint = self._check_inputs()
        concurrency = self.config.resources.max_concurrent or max_concurrent_trials(self.config.search.trials)
        stages = self._all_stages(plan, digests, concurrency=concurrency)
        with (
            self._lock(),
            Flow(self.folder.path.name, stages, total=plan.num_jobs, max_concurrent=concurrency) as flow,
        ):
            yield flow, footprint

    def _all_stages(
        self, plan: StudyPlan, digests: Mapping[str, str], *, concurrency: int
    ) -> "Stages[FinalTest]":
        yield from self._search_stages(plan, digests, concurrency=concurrency)
        yield from self._confirmation_stages()
        return (yield from self._test_stages(plan))

    def _write_settings(self, name: str, settings: Settings, *, comment: str = "") -> None:
        """Write the complete configuration of a run with these settings, as in the final test.

        NAME.yaml is for the first dataset. A further dataset with other published settings has a file of its
        own, NAME-DATASET.yaml.
        """
        config = self.config
        seed = config.final_seeds[0] if config.final_seeds else config.search.seed
        files = {config.search.datasets[0]: name}
        for dataset in config.baseline_changes:
            files[dataset] = f"{Path(name).stem}-{file_name(dataset)}.yaml"
        for dataset, file in files.items():
            run_config = config.run_config(settings, dataset=dataset, seed=seed, final_epochs=True)
            self.folder.write_settings(file, run_config, comment=comment)

    def report(self) -> "Report":
        """Write report.html from the records, and print the summary."""
        from tune.report.page import write_report
        from tune.report.terminal import print_summary

        if self._page is not None:
            self._page.stop()
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
        """Plan for `describe_plan` and `estimate`. `run` makes another, because data may have changed."""
        return plan_study(self.config)

    def describe_plan(self) -> str:
        """Describe the searched settings and the number of runs, without running or writing anything."""
        ranges = self.config.search.space.describe()
        searched = [f"  {key}: {values}" for key, values in ranges.items()]
        plan = self._plan
        lines = [self._headline, str(plan), *self._about_enqueued, "Searched settings:", *searched]
        return "\n".join([*lines, *plan.notes])

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
        return [*describe_enqueued(self.config), *self._enqueue_notes]

    @property
    def _headline(self) -> str:
        config = self.config
        search = self.config.search
        trials = format_count(search.trials, "trial")
        epochs = format_count(config.max_epochs, "epoch")
        return (
            f"Study {self.folder.path}: {trials} of up to {epochs}, {config.baseline.method} on "
            f"{' + '.join(search.datasets)} with {config.baseline.backbone.name}, "
            f"objective {search.objective}, space {search.space.name}"
        )

    @contextmanager
    def _open(self) -> Iterator[_OpenStudy]:
        """Check the inputs, lock the folder and start Ray. A nested call yields the same value."""
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
            memory = max(footprint.memory_bytes(each, on_gpu=on_gpu) for each in config.baselines)
            resources, summary = plan_trials(nodes, config.resources, config.search.trials, memory)
            self._memory_bytes = memory
            for line in (self._headline, str(plan), summary, *self._about_enqueued, *plan.notes):
                self.console.print(line)
            self._opened = plan, digests, resources
            with LivePage(self.folder, self.console) as self._page:
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
        plan = plan_study(self.config)
        digests, footprint = inspect_inputs(config, plan)
        require_readable_images(config, plan, self.console.print)
        if previous := self.folder.read(StudyRecord):
            config.require_same(previous.config.identity(previous.digests), digests)
        return plan, digests, footprint

    def _lock(self) -> AbstractContextManager[None]:
        return lock_folder(self.folder.path, f"the study {self.folder.path}")

    def _complete(self, stages: "Stages[_Result]") -> "_Result":
        """Run the stages one after the other."""
        from tune.execution.flows import complete

        return complete(stages, self._run_stage)

    def _run_stage(self, stage: "Stage") -> Mapping[str, str]:
        """Run the jobs of a stage, with a live view. Return failure reasons by job name."""
        from tune.execution.executor import run_jobs

        assert self._opened is not None
        assert self._page is not None
        _, _, resources = self._opened
        if not stage.is_adaptive:
            resources = self._plan_stage(stage)
        ranked = rank_completed(self.folder.read_trials()) if stage.is_adaptive else []
        best = next(((t.objective, f"trial {t.number}") for t in ranked if t.objective is not None), None)
        progress = StageProgress(stage.name, stage.total, stage.done, best=best, has_best=stage.is_adaptive)
        self._page.follow(progress)
        with LiveView(self.console, progress) as view:
            return run_jobs(
                stage.jobs,
                resources,
                [*stage.observers, progress, view, self._page],
                console=self.console,
                timeout_seconds=self.config.resources.epoch_timeout,
            )

    def _plan_stage(self, stage: "Stage") -> JobResources:
        """Plan the resources of a stage with a fixed list of jobs.

        The search may run fewer concurrent jobs, because it learns from results, and machines may have joined
        since it started.
        """
        from tune.execution.ray_cluster import start_ray

        nodes = start_ray(address=self.config.location.address)
        num_runs = stage.total - stage.done
        resources, summary = plan_runs(nodes, self.config.resources, num_runs, self._memory_bytes)
        self.console.print(f"{stage.name}: {summary}")
        return resources


def _build_config(folder: str | Path | None, options: dict[str, Any]) -> StudyConfig:
    """Build the configuration from `options`. If there are none, read that of a study in `folder`."""
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
