"""Results of a tuned comparison, read from the records of its studies and the runs of untrained methods."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import mean

from prometar.metrics import HARMONIC, Interval, t_interval
from tune.config import StudyConfig
from tune.records.folder import Records, StudyFolder
from tune.records.schema import RunScores
from tune.reproduce.grid import read_run
from tune.space.ranges import Settings
from tune.stages.plan import StudyPlan, count_steps_per_epoch
from tune.stages.study_jobs import trial_epochs
from tune.tuned.comparison import Cell, TunedComparison
from tune.tuned.ranking import Ranking, rank_methods


@dataclass(frozen=True)
class Cost:
    """Cost of tuning a method on a dataset: search and confirmation, without the final test.

    Args:
        trials: Number of trials that ended.
        steps: Training steps.
        seconds: Training time, summed over runs.
    """

    trials: int = 0
    steps: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.trials + other.trials, self.steps + other.steps, self.seconds + other.seconds)


@dataclass(frozen=True)
class CellResult:
    """Result of a method on a dataset.

    Args:
        published, tuned: H in percent by seed at the published and the selected settings. Both are equal if
            the study selected the published settings, or if the method does not train.
        keeps_published: True if the study selected the published settings.
        changed: Selected settings that differ from the published ones.
        missing: Why a score is missing, or "".
    """

    method: str
    dataset: str
    published: Mapping[int, float] = field(default_factory=dict)
    tuned: Mapping[int, float] = field(default_factory=dict)
    cost: Cost = Cost()
    keeps_published: bool = False
    changed: Settings = field(default_factory=dict)
    missing: str = ""

    @property
    def published_mean(self) -> float | None:
        return mean(self.published.values()) if self.published else None

    @property
    def tuned_mean(self) -> float | None:
        return mean(self.tuned.values()) if self.tuned else None

    @property
    def gains(self) -> list[float]:
        """Tuned minus published H of each seed that has both, in points."""
        return [score - self.published[seed] for seed, score in self.tuned.items() if seed in self.published]

    @property
    def gain(self) -> float | None:
        return mean(self.gains) if self.gains else None

    @property
    def interval(self) -> Interval | None:
        """95% t-interval of the gain over seeds.

        None if the published settings were kept, or if fewer than two seeds have a gain.
        """
        return None if self.keeps_published else t_interval(self.gains)


@dataclass(frozen=True)
class TunedResults:
    """Results of all methods on all datasets.

    Args:
        cells: Results by method and dataset, in the order of the grid.
        untrained: Methods without training.
    """

    cells: Mapping[Cell, CellResult]
    untrained: tuple[str, ...]

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(method for method, _ in self.cells))

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(dataset for _, dataset in self.cells))

    def gains_of(self, method: str) -> dict[str, float]:
        """Return a method's gain by dataset, for the datasets on which it has one."""
        gains: dict[str, float] = {}
        for result in self.cells.values():
            if result.method == method and result.gain is not None:
                gains[result.dataset] = result.gain
        return gains

    def cost_of(self, method: str) -> Cost:
        """Return the cost of tuning a method on all datasets."""
        return sum((result.cost for result in self.cells.values() if result.method == method), Cost())

    def gain_over_datasets(self, method: str) -> Interval | None:
        """Return the 95% t-interval of a method's mean gain over datasets.

        None if fewer than two datasets have a gain.
        """
        return t_interval(list(self.gains_of(method).values()))

    @property
    def missing(self) -> list[str]:
        """Lines that say which scores are missing, and why."""
        results = [result for result in self.cells.values() if result.missing]
        return [f"{result.method} on {result.dataset}: {result.missing}" for result in results]

    @cached_property
    def ranking(self) -> Ranking | None:
        """Ranking of the methods.

        None if there are fewer than two methods, or no dataset on which all methods have scores.
        """
        published = {method: self._scores(method, "published") for method in self.methods}
        tuned = {method: self._scores(method, "tuned") for method in self.methods}
        return rank_methods(published, tuned)

    def _scores(self, method: str, settings: str) -> dict[str, Mapping[int, float]]:
        """Return the scores of a method by dataset and seed.

        Args:
            settings: "published" or "tuned".
        """
        by_dataset: dict[str, Mapping[int, float]] = {}
        for result in self.cells.values():
            scores = getattr(result, settings)
            if result.method == method and scores:
                by_dataset[result.dataset] = scores
        return by_dataset


def collect(comparison: TunedComparison, failures: Mapping[Cell, str]) -> TunedResults:
    """Read the results of a comparison.

    Args:
        failures: Why a study or an untrained run failed, by method and dataset.

    Raises:
        UserError: an untrained run has other settings than those of the comparison.
    """
    results = _untrained_results(comparison, failures)
    untrained = {(result.method, result.dataset): result for result in results}
    cells: dict[Cell, CellResult] = {}
    for dataset in comparison.grid.datasets:
        for method in comparison.grid.methods:
            cell = (method, dataset)
            if cell in untrained:
                cells[cell] = untrained[cell]
            else:
                config = comparison.studies[cell]
                records = StudyFolder.of(config).read_all()
                failure = failures.get(cell, "")
                cells[cell] = study_cell(cell, config, comparison.plans[cell], records, failure)
    return TunedResults(cells, tuple(comparison.untrained))


def _untrained_results(comparison: TunedComparison, failures: Mapping[Cell, str]) -> Iterator[CellResult]:
    """Yield the results of the methods that do not train.

    Raises:
        UserError: a run has other settings than those of the comparison.
    """
    for job in comparison.untrained_jobs:
        method = job.config.method
        dataset = job.config.data.name
        run = read_run(job, digests={})  # the digests were compared before the start
        if run is None:
            reason = failures.get((method, dataset), "no result")
            yield CellResult(method, dataset, keeps_published=True, missing=reason)
        else:
            scores = {run.seed: run.scores[HARMONIC]}
            yield CellResult(method, dataset, published=scores, tuned=scores, keeps_published=True)


def study_cell(
    cell: Cell, config: StudyConfig, plan: StudyPlan, records: Records | None, failure: str = ""
) -> CellResult:
    """Return the result of a study of one dataset.

    Args:
        records: Records of the study, or None if it has not started.
        failure: Why the study failed, or "".
    """
    method, dataset = cell
    if records is None:
        return CellResult(method, dataset, missing=failure or "the study has not started")
    cost = _cost_of(config, plan, records)
    test = records.current_test
    if failure or test is None:
        return CellResult(method, dataset, cost=cost, missing=failure or "the study has not finished")
    result = test.datasets[dataset]
    seeds = config.final_seeds
    defaults = config.baseline_settings
    changed: Settings = {}
    if not test.baseline_selected:
        selected = test.selected.settings
        changed = {key: value for key, value in selected.items() if value != defaults.get(key)}
    missing = ""
    if test.failures:
        missing = test.failures[0]  # all runs usually fail for the same reason, and a table has little room
    return CellResult(
        method,
        dataset,
        published=_scores_by_seed(result.baseline, seeds),
        tuned=_scores_by_seed(result.selected, seeds),
        cost=cost,
        keeps_published=test.baseline_selected,
        changed=changed,
        missing=missing,
    )


def _scores_by_seed(runs: RunScores, seeds: Collection[int]) -> dict[int, float]:
    """Return the score of each run that finished, for these seeds. A final test may have more seeds."""
    return {run.seed: run.objective for run in runs if run.objective is not None and run.seed in seeds}


def _cost_of(config: StudyConfig, plan: StudyPlan, records: Records) -> Cost:
    """Return the cost of search and confirmation."""
    cost = Cost()
    for trial in records.trials:
        steps_per_epoch = count_steps_per_epoch(config, plan, trial.settings)
        cost += Cost(trials=1, steps=steps_per_epoch * trial.epoch, seconds=trial.seconds)
    if records.confirmation is None:
        return cost
    for candidate in records.confirmation.candidates:
        # Only runs with fresh seeds. A candidate may also contain the runs of its trial, counted above.
        runs = [run for run in candidate.runs if run.seed in records.confirmation.seeds and not run.error]
        # The number of steps above is that of a trial, which trains with all seeds of the search. A run of a
        # candidate trains with one seed.
        trial_steps_per_epoch = count_steps_per_epoch(config, plan, candidate.settings)
        run_steps_per_epoch = trial_steps_per_epoch // len(config.search.seeds)
        epochs = trial_epochs(config, candidate.settings, final_epochs=True)
        cost += Cost(
            steps=len(runs) * run_steps_per_epoch * epochs,
            seconds=sum(run.seconds or 0.0 for run in runs),
        )
    return cost
