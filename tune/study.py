"""A hyperparameter study: search, confirmation, final test and report.

Each stage reads its records, runs the missing jobs and writes its records. A rerun therefore resumes a study.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from prometar.cli.console import format_count
from prometar.errors import FIX_AND_RESUME, UserError, WorkError
from prometar.io.files import lock_folder, resolve_path
from tune.config import StudyConfig
from tune.execution.live import LiveView, stdout_console
from tune.execution.progress import StageProgress
from tune.execution.resources import JobResources, plan_runs, plan_trials, uses_gpus
from tune.records.folder import BEST_FILE, SETTINGS_FILES, Records, StudyFolder, read_records
from tune.records.schema import Confirmation, FinalTest, StudyRecord, rank_completed
from tune.space.ranges import Settings
from tune.stages.enqueued import add_settings_of_studies, describe_enqueued
from tune.stages.plan import StudyPlan, estimate, inspect_inputs, plan_study, require_readable_images

if TYPE_CHECKING:
    from tune.execution.job import Job, Observer
    from tune.report.live_page import LivePage
    from tune.report.page import Report

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
        from tune.stages.search import SearchJobs
        from tune.store.trial_store import open_trial_store
        from tune.tracking import Trackers

        config, path = self.config, self.folder.path
        with (
            self._open() as (plan, digests, resources),
            open_trial_store(config, self.folder, digests, concurrency=resources.max_concurrent) as store,
            closing(Trackers(config.location.trackers, path, self.console)) as tracking,
        ):
            self.folder.write_study(config, digests, plan.classes)
            done, interrupted = len(store.ended_trials), len(store.interrupted_trials)
            if done or interrupted:
                self.console.print(f"Resuming: {done} done, {interrupted} interrupted")
            with closing(SearchJobs(config, self.folder, store)) as jobs:
                # `jobs` is also an observer: the results determine the settings of the next jobs.
                total = max(config.search.trials, done)  # an earlier command may have run more trials
                self._run(jobs, resources, "Search", total, done, [jobs, tracking])
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
        from tune.stages.confirmation import choose_trials, confirm

        config = self.config
        with self._open():
            chosen = choose_trials(self.folder.read_trials(), config.confirm.top)
            if not chosen:
                raise WorkError(f"{self.folder.path} contains no completed trial. Run the search first.")
            if len(chosen) > 1:
                names = [str(trial.number) + " (default settings)" * trial.is_baseline for trial in chosen]
                seeds = format_count(config.confirm.seeds, "fresh seed")
                self.console.print(f"Confirming {len(chosen)} trials with {seeds}: {', '.join(names)}")
            confirmation = confirm(config, self.folder, chosen, partial(self._run_unfinished, "Confirmation"))
            self.folder.write(confirmation)
            self._write_settings(SETTINGS_FILES["selected"], confirmation.selected_candidate.settings)
            self._write_settings(SETTINGS_FILES["baseline"], config.baseline_settings)
        return confirmation

    def test(self) -> FinalTest:
        """Compare the selected settings with the baseline on the test images, seed by seed."""
        from tune.report.statements import verdict_text
        from tune.reproduce.published import published_h
        from tune.stages.final_test import run_final_test

        with self._open() as (plan, *_):
            if (confirmation := self.folder.read(Confirmation)) is None:
                raise WorkError(f"{self.folder.path} contains no confirmation. Run the confirmation first.")
            selected = confirmation.selected_candidate
            prefix = "" if selected.is_baseline else f"trial {selected.number} against "
            self.console.print(f"Final test on the test images: {prefix}the default settings")
            test = run_final_test(
                self.config,
                self.folder,
                selected,
                partial(self._run_unfinished, "Final test"),
                published={
                    dataset.name: published_h(dataset, self.config.baseline) for dataset in plan.datasets
                },
                previous=self.folder.read(FinalTest),
            )
            self.folder.write(test)
            best = self.config.baseline_settings if test.recommends_baseline else selected.settings
            self._write_settings(BEST_FILE, best, comment=verdict_text(self.records))
        return test

    def _write_settings(self, name: str, settings: Settings, *, comment: str = "") -> None:
        """Write the complete configuration of a run with these settings, as in the final test."""
        config = self.config
        seed = config.final_seeds[0] if config.final_seeds else config.search.seed
        dataset = config.search.datasets[0]
        run_config = config.run_config(settings, dataset=dataset, seed=seed, final_epochs=True)
        self.folder.write_settings(name, run_config, comment=comment)

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
        config, search = self.config, self.config.search
        trials, epochs = format_count(search.trials, "trial"), format_count(config.max_epochs, "epoch")
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
        config, plan = self.config, plan_study(self.config)
        digests, footprint = inspect_inputs(config, plan)
        require_readable_images(config, plan, self.console.print)
        from tune.execution.ray_cluster import start_ray
        from tune.report.live_page import LivePage

        if previous := self.folder.read(StudyRecord):
            config.require_same(previous.config.identity(previous.digests), digests)
        with lock_folder(self.folder.path, f"the study {self.folder.path}"):
            nodes = start_ray(address=config.location.address)
            on_gpu = uses_gpus(nodes, config.resources)
            memory = footprint.memory_bytes(config.baseline, on_gpu=on_gpu)
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

    def _run(
        self,
        jobs: "Iterator[Job]",
        resources: JobResources,
        stage: str,
        total: int,
        done: int = 0,
        observers: "Sequence[Observer]" = (),
    ) -> Mapping[str, str]:
        """Run a stage's jobs. Show `done` of `total` in a live view. Return failure reasons by job name."""
        from tune.execution.executor import run_jobs

        assert self._page is not None
        ranked = rank_completed(self.folder.read_trials()) if stage == "Search" else []
        best = next(((t.objective, f"trial {t.number}") for t in ranked if t.objective is not None), None)
        progress = StageProgress(stage, total, done, best=best, has_best=stage == "Search")
        self._page.follow(progress)
        with LiveView(self.console, progress) as view:
            return run_jobs(
                jobs,
                resources,
                [*observers, progress, view, self._page],
                console=self.console,
                timeout_seconds=self.config.resources.epoch_timeout,
            )

    def _run_unfinished(self, stage: str, jobs: "Sequence[Job]") -> Mapping[str, str]:
        """Run the jobs that have no result yet. Return failure reasons by job name.

        The jobs have their own resources. The search may run fewer concurrent jobs, because it learns
        from results, and machines may have joined since it started.
        """
        from tune.execution.ray_cluster import start_ray
        from tune.stages.study_jobs import jobs_to_run

        unfinished = jobs_to_run(jobs)
        if not unfinished:
            return {}
        nodes = start_ray(address=self.config.location.address)
        resources, summary = plan_runs(nodes, self.config.resources, len(unfinished), self._memory_bytes)
        self.console.print(f"{stage}: {summary}")
        return self._run(iter(unfinished), resources, stage, len(unfinished))


def _build_config(folder: str | Path | None, options: dict[str, Any]) -> StudyConfig:
    """Build the configuration from `options`. If there are none, read that of a study in `folder`."""
    if folder is None:
        return StudyConfig.of(**options)
    path = resolve_path(folder)
    if set(options) & {"out", "study"}:
        raise UserError("Pass either folder, or out and study, not both.")
    if not options and (record := StudyFolder(path).read(StudyRecord)):
        location = record.config.location.model_copy(update={"out": path.parent, "study": path.name})
        return record.config.model_copy(update={"location": location})
    return StudyConfig.of(**options, out=path.parent, study=path.name)
