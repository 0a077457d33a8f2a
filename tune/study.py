"""A hyperparameter study: search, confirmation, final test, report.

Each stage reads its records, runs what is missing and writes its records. Running a study again resumes it.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from prometar.config.settings import differences
from prometar.errors import UserError, WorkError
from tune.config import StudyConfig
from tune.execution.local_ray import configure_ray
from tune.records.folder import Records, StudyFolder, read_records
from tune.records.schema import Confirmation, FinalTest, SettingsUnderTest, StudyRecord, by_score
from tune.stages.plan import StudyPlan, load_contents, plan_study

if TYPE_CHECKING:
    from tune.execution.executor import ExecutionContext
    from tune.execution.jobs import Job, JobSource, Observer
    from tune.report.page import Report

RESUME = "Fix the cause, then rerun this command to resume."


class Study:
    """A study in a folder.

    Args:
        folder: OUT/STUDY. Default: `out` and the datasets' names.
        config: What the study is asked. Default: built from `options`; without options, that of the study in
            `folder`.
        console: Where progress is shown. Default: standard output.
        options: Options of `tune/search.py` by name, with "_" for "-" (`StudyConfig.of`).

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
        self.config = config or _configured(folder, options)
        self.folder = StudyFolder.of(self.config)
        self.console = console or _console()
        self._opened: _Opened | None = None

    def run(self) -> FinalTest:
        """Run all stages. A study that was interrupted resumes; a finished one is summarized again.

        Raises:
            UserError: the study was started with other settings, or something that it needs is missing.
            WorkError: another process runs the study, or its trials fail.
            KeyboardInterrupt: a signal stopped it.
        """
        with self._open():
            self.search()
            self.confirm()
            test = self.test()
            self.report()
        if test.failures:
            raise WorkError(
                f"{len(test.failures)} runs of the final test failed ({test.failures[0]}). {RESUME}"
            )
        return test

    def plan(self) -> StudyPlan:
        """Check the study and count what it trains. Nothing is run or written."""
        return plan_study(self.config)

    def describe_plan(self) -> str:
        """Describe the plan for `--plan`: what is searched and what it costs."""
        plan, ranges = self.plan(), self.config.search.space.describe()
        searched = [f"  {key}: {values}" for key, values in ranges.items()]
        return "\n".join(
            [
                f"Study {self.folder.path}: {self.headline}",
                str(plan),
                "Searched settings:",
                *searched,
                *plan.notes,
            ]
        )

    def search(self) -> None:
        """Sample, train and score trials until the budget is used.

        Raises:
            WorkError: many trials failed and none finished.
        """
        from tune.stages.search import SearchJobs
        from tune.store.trial_store import TrialStore
        from tune.tracking import trackers

        config = self.config
        with self._open() as opened:
            concurrency = opened.context.plan.max_concurrent
            store = TrialStore.open(config, self.folder.path, opened.contents, concurrency=concurrency)
            with store, trackers(config, self.folder.path, self.console) as observers:
                self._begin(opened.contents, store.seconds_searched)
                counts = store.counts
                if counts.done or counts.interrupted:
                    self.console.print(
                        f"Resuming: {counts.done} trials finished, {counts.interrupted} interrupted"
                    )
                jobs = SearchJobs(config, self.folder, store)
                try:
                    self._run(jobs, "Search", config.search.trials, counts.done, observers)
                finally:
                    jobs.close()
                self._begin(opened.contents, store.seconds_searched)
                for line in jobs.notices():
                    self.console.print(line)
                if reason := store.hopeless():
                    raise WorkError(f"Stopped: trials fail and none finished ({reason}). {RESUME}")
        records = self.records
        if not records.completed:
            reason = next((trial.reason for trial in records.trials if trial.reason), "all were pruned")
            raise WorkError(f"No trial finished ({reason}). {RESUME}")

    def confirm(self) -> Confirmation:
        """Rerun the best trials and the baseline with fresh seeds; select the highest mean."""
        from tune.stages.confirmation import candidates, confirm

        config = self.config
        with self._open():
            trials = self.folder.read_trials()
            rerun = candidates(trials, config.confirm.top)
            if len(rerun) > 1:
                self.console.print(
                    f"Confirming the {len(rerun)} best trials, with the default settings among them, with "
                    f"{config.confirm.seeds} fresh seeds"
                )
            confirmation = confirm(config, self.folder, trials, self._run_missing)
            self.folder.write_confirmation(confirmation)
            settings = next(trial.settings for trial in trials if trial.number == confirmation.selected)
            self.folder.write_best(
                config.configured(
                    settings,
                    dataset=config.search.datasets[0],
                    seed=(*config.final_seeds, config.search.seed)[0],
                    epochs=config.test.epochs,
                )
            )
        return confirmation

    def test(self) -> FinalTest:
        """Compare the selected settings with the baseline on test images, seed pair by seed pair."""
        from tune.reproduce.published import published
        from tune.stages.final_test import FinalTestJobs

        with self._open() as opened:
            selected = self.records.selected
            if selected is None:
                raise WorkError(f"{self.folder.path} has no finished trial. Run the search first.")
            number = 0 if selected.baseline else selected.number
            under_test = SettingsUnderTest(number=number, settings=selected.settings)
            jobs = FinalTestJobs(self.config, self.folder, under_test)
            what = f"trial {number} against the default settings" if number else "the default settings"
            self.console.print(f"Final test on the test images: {what}")
            self._run(jobs, "Final test", jobs.total)
            cited = {dataset.name: published(dataset, self.config.run) for dataset in opened.plan.datasets}
            test = jobs.record(cited, self.folder.read_final_test())
            self.folder.write_final_test(test)
        return test

    def report(self) -> "Report":
        """Write report.html from the records, and print the summary."""
        from tune.report.page import write_report
        from tune.report.terminal import print_summary

        report = write_report(self.records)
        print_summary(self.console, report.records)
        return report

    @property
    def records(self) -> Records:
        """Everything that the folder contains.

        Raises:
            UserError: the folder does not contain a study, or a corrupt one.
        """
        return read_records(self.folder.path)

    @contextmanager
    def _open(self) -> "Iterator[_Opened]":
        """Hold the study: check it, lock the folder, start Ray. Stages within a run share it."""
        if self._opened is not None:
            yield self._opened
            return
        config = self.config
        plan = self.plan()
        contents, footprint = load_contents(config, plan)
        configure_ray(local=config.location.address is None)  # before ray is imported
        from tune.execution.executor import ExecutionContext
        from tune.execution.local_ray import start_ray
        from tune.execution.resources import study_plan

        with self.folder.lock():
            _require_same(self.folder.read_study(), config, contents)
            nodes = start_ray(address=config.location.address)
            on_gpu = config.resources.gpus_per_trial != 0 and any(node.get("GPU") for node in nodes)
            memory = footprint.memory(config.run, on_gpu=on_gpu)
            resources, reason = study_plan(nodes, config.resources, config.search.trials, memory)
            self.console.print(f"Study {self.folder.path}: {self.headline}\n{plan}\n{reason}")
            for note in plan.notes:
                self.console.print(note)
            context = ExecutionContext(
                resources, self.console, timeout_seconds=config.resources.trial_timeout
            )
            self._opened = _Opened(plan, contents, context)
            try:
                yield self._opened
            finally:
                self._opened = None

    @property
    def headline(self) -> str:
        """The study in one line."""
        config, search = self.config, self.config.search
        return (
            f"{search.trials} trials of up to {config.max_epochs} epochs, {config.run.method} on "
            f"{' + '.join(search.datasets)} with {config.run.backbone.name}, objective {search.objective}, "
            f"space {search.space.name}"
        )

    def _begin(self, contents: Mapping[str, str], seconds_searched: float) -> None:
        self.folder.write_study(self.config, contents, seconds_searched)

    def _run(
        self, jobs: "JobSource", stage: str, total: int, done: int = 0, observers: "Sequence[Observer]" = ()
    ) -> None:
        """Run the jobs of a stage under a live view."""
        from tune.execution.executor import run_jobs
        from tune.execution.live import LiveView

        assert self._opened is not None
        leader = next(iter(by_score(self.folder.read_trials())), None) if stage == "Search" else None
        best = (leader.score, f"trial {leader.number}") if leader and leader.score is not None else None
        with LiveView(self.console, stage, total, done, best=best, compared=stage == "Search") as view:
            run_jobs(jobs, self._opened.context, [view, *observers])

    def _run_missing(self, jobs: "Sequence[Job]") -> Mapping[str, str]:
        """Run a list of jobs. Return the error messages of those that failed, by name."""
        from tune.execution.jobs import ListedJobs

        listed = ListedJobs(jobs)
        if jobs:
            self._run(listed, "Confirmation", len(jobs))
        return listed.failures


def _console() -> Console:
    """Console for standard output. A notebook's kernel asks for colors, but shows their codes as text."""
    terminal = None if sys.stdout is not None and sys.stdout.isatty() else False
    return Console(
        highlight=False, soft_wrap=True, markup=False, force_jupyter=False, force_terminal=terminal
    )


@dataclass(frozen=True)
class _Opened:
    """A study that is held by this process."""

    plan: StudyPlan
    contents: Mapping[str, str]
    context: "ExecutionContext"


def _configured(folder: str | Path | None, options: dict[str, Any]) -> StudyConfig:
    """Configuration from options, or from the study in a folder."""
    if folder is None:
        return StudyConfig.of(**options)
    path = Path(folder).absolute()
    if set(options) & {"out", "study"}:
        raise UserError("Study takes the folder OUT/STUDY as its first argument, without out and study.")
    if not options and (record := StudyFolder(path).read_study()):
        return StudyConfig.model_validate(record.config)
    return StudyConfig.of(**options, out=path.parent, study=path.name)


def _require_same(record: StudyRecord | None, config: StudyConfig, contents: Mapping[str, str]) -> None:
    """
    Raises:
        UserError: the study was started with other settings. The message shows the differences.
    """
    if record is None:
        return
    before = {**StudyConfig.model_validate(record.config).identity(), **record.contents}
    if changed := differences(before, {**config.identity(), **contents}):
        raise UserError(
            f"The study {config.location.out / config.name} was started with other settings ({changed}). "
            "Use these again, or start another study with --study NAME."
        )
