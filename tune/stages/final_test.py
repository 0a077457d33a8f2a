"""Final test: selected settings against the baseline on test images, seed pair by seed pair."""

from collections import deque
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Literal

from prometar.metrics import Interval, over_all, t_interval
from tune.config import StudyConfig
from tune.execution.jobs import WAIT, EpochReport, Job, Wait
from tune.records.folder import StudyFolder, paired
from tune.records.schema import DatasetTest, FinalTest, RunScore, SettingsUnderTest, Verdict
from tune.stages.jobs import final_job, missing, scores
from tune.stages.statistics import BASELINE_RUNS, INTERIM_ANALYSES, Decision, InterimAnalysis, decide

Side = dict[tuple[str, int], Job]
"""Jobs of one side by dataset and seed."""


class FinalTestJobs:
    """Source of the final test's runs: seed pairs are added until an interim analysis decides.

    Args:
        selected: Settings under test, number 0 if they are the baseline's.
    """

    def __init__(self, config: StudyConfig, folder: StudyFolder, selected: SettingsUnderTest) -> None:
        self._config, self._folder, self.selected = config, folder, selected
        self.baseline = SettingsUnderTest(number=0, settings=config.baseline)
        self.same = selected.number == 0
        self.failures: dict[str, str] = {}
        self._left = deque(self._analyses())
        self._queue: deque[Job] = deque()
        self._running: set[str] = set()
        self.analysis = InterimAnalysis(0, 0.05)
        self.decision: Decision | None = None
        self._advance()

    def next(self) -> Job | Wait | None:
        if not self._queue and not self._running:
            self._advance()
        if self._queue:
            job = self._queue.popleft()
            self._running.add(job.name)
            return job
        return WAIT if self._running else None

    def report(self, job: Job, report: EpochReport, resources: Mapping[str, float]) -> bool:
        return True

    def finish(self, job: Job, failure: str) -> None:
        self._running.discard(job.name)
        if failure:
            self.failures[job.name] = failure

    @property
    def total(self) -> int:
        """Runs that are missing, at most."""
        pairs = max((analysis.pairs for analysis in self._left), default=self.analysis.pairs)
        later = pairs - self.analysis.pairs
        sides = 1 if self.same else 2
        return len(self._queue) + sides * later * len(self._config.search.datasets)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the pairs so far."""
        return self._config.final_seeds[: self.analysis.pairs]

    def side(self, tested: SettingsUnderTest) -> Side:
        """Jobs of one side by dataset and seed."""
        return {
            (dataset, seed): final_job(
                self._config, self._folder, tested.number, tested.settings, dataset, seed
            )
            for dataset in self._config.search.datasets
            for seed in self.seeds
        }

    def _analyses(self) -> Sequence[InterimAnalysis]:
        seeds = self._config.final_seeds
        if self._config.test.seeds != "auto":
            return (InterimAnalysis(len(seeds), 0.05),)
        return (InterimAnalysis(BASELINE_RUNS, 0.05),) if self.same else INTERIM_ANALYSES

    def _advance(self) -> None:
        """Analyze the pairs so far; queue those of the next analyses until something is missing."""
        while not self._queue:
            if self.analysis.pairs:
                self.decision = self._decide()
            if not self._left or (self.decision and self.decision.final):
                return
            self.analysis = self._left.popleft()
            sides = [self.side(tested) for tested in (self.baseline, self.selected)]
            jobs = {job.runs[0].folder: job for side in sides for job in side.values()}
            self._queue.extend(job for job in missing(list(jobs.values())) if job.name not in self.failures)

    def _decide(self) -> Decision | None:
        """Analyze the mean differences over the datasets, of the seeds whose runs all finished."""
        by_dataset = [paired(*self.runs(name)) for name in self._config.search.datasets]
        complete = [seed for seed in self.seeds if all(seed in found for found in by_dataset)]
        differences = [mean(found[seed] for found in by_dataset) for seed in complete]
        return decide(differences, self.analysis.alpha, matters=self._config.test.matters)

    def runs(self, dataset: str) -> tuple[tuple[RunScore, ...], tuple[RunScore, ...]]:
        """Runs of a dataset by seed: selected settings, baseline."""
        selected, baseline = (
            tuple(
                scores(job, self.failures)[0]
                for (name, _), job in self.side(tested).items()
                if name == dataset
            )
            for tested in (self.selected, self.baseline)
        )
        return selected, baseline

    def record(self, published: Mapping[str, float | None], before: FinalTest | None) -> FinalTest:
        """Summarize the finished test.

        Args:
            published: Published harmonic mean by dataset.
            before: Record of an earlier test of this study, whose analyses are remembered.
        """
        datasets = {name: self._compared(name, published.get(name)) for name in self._config.search.datasets}
        several = len(datasets) > 1
        # Pairs are added for what seeds show on these datasets. Over datasets there is one analysis.
        difference = over_all(
            [each.difference for each in datasets.values()],
            level=0.95 if several else 1 - self.analysis.alpha,
        )
        decision = self.decision
        return FinalTest(
            seeds=self.seeds,
            epochs=self._config.test.epochs,
            selected=self.selected,
            baseline=self.baseline,
            same=self.same,
            datasets=datasets,
            difference=difference,
            verdict=_verdict(difference, same=self.same),
            alpha=0.05 if several else self.analysis.alpha,
            dataset_alpha=self.analysis.alpha,
            matters=self._config.test.matters if self._config.test.seeds == "auto" else None,
            detectable=decision.detectable if decision and not self.same and not several else None,
            earlier_tests=_earlier(before, self.selected.number, self.seeds),
        )

    def _compared(self, dataset: str, published: float | None) -> DatasetTest:
        selected, baseline = self.runs(dataset)

        def interval(figure: Literal["objective", "base", "new"]) -> Interval | None:
            if self.same:
                return None
            differences = paired(selected, baseline, figure)
            return t_interval(list(differences.values()), level=1 - self.analysis.alpha)

        return DatasetTest(
            selected=selected,
            baseline=baseline,
            difference=interval("objective"),
            base_difference=interval("base"),
            new_difference=interval("new"),
            published=published,
        )


def _verdict(difference: Interval | None, *, same: bool) -> Verdict:
    if same or (difference and difference.high < 0):
        return "baseline"
    return "selected" if difference and difference.low > 0 else "either"


def _earlier(before: FinalTest | None, number: int, seeds: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Trial and pairs of earlier tests: whoever saw their result may have asked for more because of it."""
    if before is None or before.same or not before.seeds:
        return before.earlier_tests if before else ()
    if (before.selected.number, tuple(before.seeds)) == (number, tuple(seeds)):
        return before.earlier_tests
    return (*before.earlier_tests, (before.selected.number, len(before.seeds)))
