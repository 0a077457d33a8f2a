"""A hyperparameter study: search, confirmation, final test, report.

Each stage reads its records, runs what is missing and writes its records. Running a study again resumes it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from prometar.errors import UserError, WorkError
from prometar.io.files import locked
from tune.config import StudyConfig
from tune.execution.live import LiveView, plain_console
from tune.execution.ray_cluster import configure_ray
from tune.records.folder import Records, StudyFolder, read_records
from tune.records.schema import Confirmation, FinalTest, StudyRecord, by_score
from tune.stages.plan import StudyPlan, estimate, load_contents, plan_study

if TYPE_CHECKING:
    from tune.execution.jobs import Job, Observer
    from tune.execution.resources import ResourcePlan
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
        self.console = console or plain_console()
        self._opened: tuple[StudyPlan, Mapping[str, str], ResourcePlan] | None = None
        """Plan, digests of contents, and resources per trial, while this process holds the study."""

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

    def search(self) -> None:
        """Sample, train and score trials until the budget is used.

        Raises:
            WorkError: many trials failed and none finished.
        """
        from tune.stages.search import SearchJobs
        from tune.store.trial_store import open_trials
        from tune.tracking import Trackers

        config, folder = self.config, self.folder.path
        with (
            self._open() as (_, contents, resources),
            open_trials(config, folder, contents, concurrency=resources.max_concurrent) as store,
            closing(Trackers(config.location.trackers, folder, self.console)) as tracking,
        ):
            self.folder.write_study(config, contents)
            done, interrupted = len(store.finished), len(store.interrupted)
            if done or interrupted:
                self.console.print(f"Resuming: {done} trials finished, {interrupted} interrupted")
            with closing(SearchJobs(config, self.folder, store)) as jobs:
                self._run(jobs, "Search", config.search.trials, done, [jobs, tracking])
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
            rerun = candidates(self.folder.read_trials(), config.confirm.top)
            if not rerun:
                raise WorkError(f"{self.folder.path} has no finished trial. Run the search first.")
            if len(rerun) > 1:
                self.console.print(
                    f"Confirming the {len(rerun)} best trials, with the default settings among them, with "
                    f"{config.confirm.seeds} fresh seeds"
                )
            confirmation = confirm(config, self.folder, rerun, partial(self._run_missing, "Confirmation"))
            self.folder.write(confirmation)
            settings = confirmation.selected_candidate.settings
            dataset, seed = config.search.datasets[0], (*config.final_seeds, config.search.seed)[0]
            self.folder.write_best(
                config.run_config(settings, dataset=dataset, seed=seed, epochs=config.test.epochs)
            )
        return confirmation

    def test(self) -> FinalTest:
        """Compare the selected settings with the baseline on test images, seed pair by seed pair."""
        from tune.reproduce.published import published_h
        from tune.stages.final_test import run_final_test

        with self._open() as (plan, *_):
            confirmation = self.folder.read(Confirmation)
            if confirmation is None:
                raise WorkError(f"{self.folder.path} has no confirmation. Run the search first.")
            selected = confirmation.selected_candidate
            trial = f"trial {selected.number} against the default settings"
            what = "the default settings" if selected.baseline else trial
            self.console.print(f"Final test on the test images: {what}")
            test = run_final_test(
                self.config,
                self.folder,
                selected,
                partial(self._run_missing, "Final test"),
                published={dataset.name: published_h(dataset, self.config.run) for dataset in plan.datasets},
                before=self.folder.read(FinalTest),
            )
            self.folder.write(test)
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

    @cached_property
    def _described(self) -> StudyPlan:
        """Plan for descriptions. A study that is run makes its own, because data may have changed."""
        return plan_study(self.config)

    def describe_plan(self) -> str:
        """Describe the plan for `--plan`: what is searched and what it costs. Nothing is run or written."""
        ranges = self.config.search.space.describe()
        searched = [f"  {key}: {values}" for key, values in ranges.items()]
        plan = self._described
        return "\n".join([self._headline, str(plan), "Searched settings:", *searched, *plan.notes])

    def estimate(self) -> str:
        """Load the weights, time a few training steps, and describe how long the study takes here at most.

        Raises:
            UserError: the weights are missing, or a trial does not fit on this machine.
        """
        return estimate(self.config, self._described)

    @property
    def _headline(self) -> str:
        """The study in one line."""
        config, search = self.config, self.config.search
        return (
            f"Study {self.folder.path}: {search.trials} trials of up to {config.max_epochs} epochs, "
            f"{config.run.method} on {' + '.join(search.datasets)} with {config.run.backbone.name}, "
            f"objective {search.objective}, space {search.space.name}"
        )

    @contextmanager
    def _open(self) -> "Iterator[tuple[StudyPlan, Mapping[str, str], ResourcePlan]]":
        """Check the study, lock its folder and start Ray. Stages within a run share it."""
        if self._opened is not None:
            yield self._opened
            return
        config, plan = self.config, plan_study(self.config)
        contents, footprint = load_contents(config, plan)
        configure_ray(local=config.location.address is None)  # before ray is imported
        from tune.execution.ray_cluster import start_ray
        from tune.execution.resources import on_gpus, study_plan

        if before := self.folder.read(StudyRecord):
            config.require_same(before.config.identity(before.contents), contents)
        with locked(self.folder.path, f"the study {self.folder.path}"):
            nodes = start_ray(address=config.location.address)
            memory = footprint.memory(config.run, on_gpu=on_gpus(nodes, config.resources))
            resources, reason = study_plan(nodes, config.resources, config.search.trials, memory)
            for line in (self._headline, str(plan), reason, *plan.notes):
                self.console.print(line)
            self._opened = plan, contents, resources
            try:
                yield self._opened
            finally:
                self._opened = None

    def _run(
        self,
        jobs: "Iterator[Job]",
        stage: str,
        total: int,
        done: int = 0,
        observers: "Sequence[Observer]" = (),
    ) -> Mapping[str, str]:
        """Run the jobs of a stage under a live view. Return the reasons of those that failed, by name."""
        from tune.execution.executor import run_jobs

        assert self._opened is not None
        leader = next(iter(by_score(self.folder.read_trials())), None) if stage == "Search" else None
        best = (leader.score, f"trial {leader.number}") if leader and leader.score is not None else None
        with LiveView(self.console, stage, total, done, best=best, show_best=stage == "Search") as view:
            return run_jobs(
                jobs,
                self._opened[2],
                [*observers, view],
                console=self.console,
                timeout_seconds=self.config.resources.trial_timeout,
            )

    def _run_missing(self, stage: str, jobs: "Sequence[Job]") -> Mapping[str, str]:
        """Run the jobs that lack a result."""
        from tune.stages.jobs import missing

        lacking = missing(jobs)
        return self._run(iter(lacking), stage, len(lacking)) if lacking else {}


def _configured(folder: str | Path | None, options: dict[str, Any]) -> StudyConfig:
    """Configuration from options, or from the study in a folder."""
    if folder is None:
        return StudyConfig.of(**options)
    path = Path(folder).absolute()
    if set(options) & {"out", "study"}:
        raise UserError("Study takes the folder OUT/STUDY as its first argument, without out and study.")
    if not options and (record := StudyFolder(path).read(StudyRecord)):
        place = record.config.location.model_copy(update={"out": path.parent, "study": path.name})
        return record.config.model_copy(update={"location": place})
    return StudyConfig.of(**options, out=path.parent, study=path.name)
