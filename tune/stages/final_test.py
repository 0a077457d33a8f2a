"""Final test: comparison of the selected settings with the baseline on test images.

A seed pair consists of a run with the selected settings and a baseline run, both with the same seed. With
several datasets, the difference of a pair is its mean over the datasets. Stopping rule and verdict use the
same interval, that of the mean difference over the pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from prometar.metrics import Interval, t_interval
from tune.config import StudyConfig
from tune.execution.flows import Stages
from tune.execution.job import Job
from tune.records.folder import StudyFolder
from tune.records.schema import (
    Candidate,
    DatasetTest,
    FinalTest,
    RunScore,
    RunScores,
    Verdict,
    mean_differences,
    paired_differences,
)
from tune.space.ranges import Settings
from tune.stages.statistics import ALPHA_BY_PAIRS, BASELINE_RUNS, is_decided, min_detectable
from tune.stages.study_jobs import final_job, read_scores, run_unfinished


class _PairedJobs(NamedTuple):
    """Jobs of both sides of the comparison on a dataset, one per seed."""

    baseline: list[Job]
    selected: list[Job]


def run_final_test(
    config: StudyConfig,
    folder: StudyFolder,
    selected: Candidate,
    *,
    published: Mapping[str, float | None],
    previous: FinalTest | None,
) -> Stages[FinalTest]:
    """Run seed pairs, and compare the selected settings with the baseline.

    Stop when an analysis is conclusive, a run with the selected settings fails, every pair has failed, or no
    seeds are left.

    Args:
        config: Configuration of the study.
        folder: Folder of the study.
        selected: Candidate that the confirmation selected.
        published: Published H (harmonic mean of base and new accuracy) by dataset, or None if unknown.
        previous: The study's previous final test, or None if there is none.
    """
    failures: dict[str, str] = {}
    for num_pairs, alpha in _alpha_by_pairs(config, selected).items():
        seeds = config.final_seeds[:num_pairs]
        jobs = _jobs(config, folder, selected, seeds)
        failures |= yield from run_unfinished("Final test", _without_failed(jobs, failures))
        datasets = {
            dataset: _compare(
                baseline=_scores(pair.baseline, failures),
                selected=_scores(pair.selected, failures),
                published=published.get(dataset),
                alpha=None if selected.is_baseline else alpha,
            )
            for dataset, pair in jobs.items()
        }
        test = _final_test(config, selected, seeds, datasets, alpha=alpha)
        if _is_conclusive(test, config.test.min_relevant):
            break
    return test if previous is None else _with_history(test, previous)


def _alpha_by_pairs(config: StudyConfig, selected: Candidate) -> Mapping[int, float]:
    """Return the error probability of each analysis, by the number of pairs after which it takes place."""
    if config.test.seeds != "auto":
        # With a fixed number of seeds, there is one analysis, which has the whole error probability of 5%.
        return {len(config.final_seeds): 0.05}
    if selected.is_baseline:
        # Nothing is compared. The runs only measure the accuracy of the baseline.
        return {BASELINE_RUNS: 0.05}
    return ALPHA_BY_PAIRS


def _without_failed(jobs: Mapping[str, _PairedJobs], failures: Mapping[str, str]) -> list[Job]:
    """Return the jobs of all datasets, without those that have failed in this final test."""
    # If the baseline is selected, both sides have the same jobs. By name, each of them is listed once.
    by_name: dict[str, Job] = {}
    for pair in jobs.values():
        by_name |= {job.name: job for job in pair.baseline}
        by_name |= {job.name: job for job in pair.selected}
    return [job for name, job in by_name.items() if name not in failures]


def _scores(jobs: Sequence[Job], failures: Mapping[str, str]) -> RunScores:
    """Return the scores of the runs of all jobs, in order."""
    scores: list[RunScore] = []
    for job in jobs:
        scores += read_scores(job, failures)
    return tuple(scores)


def _final_test(
    config: StudyConfig,
    selected: Candidate,
    seeds: tuple[int, ...],
    datasets: Mapping[str, DatasetTest],
    *,
    alpha: float,
) -> FinalTest:
    """Return the result of an analysis: intervals and verdict, given the comparison on each dataset."""
    differences = _differences(datasets)
    difference: Interval | None = None
    detectable: float | None = None
    if not selected.is_baseline:
        difference = t_interval(differences, level=1 - alpha)
        detectable = min_detectable(differences, alpha)
    selected_failed = any(test.selected_failures for test in datasets.values())
    is_sequential = config.test.seeds == "auto"
    return FinalTest(
        seeds=seeds,
        epochs=config.test.epochs,
        selected=selected,
        datasets=datasets,
        difference=difference,
        verdict=choose_verdict(selected, difference, selected_failed=selected_failed),
        alpha=alpha,
        min_relevant=config.test.min_relevant if is_sequential else None,
        detectable=detectable,
    )


def _differences(datasets: Mapping[str, DatasetTest]) -> list[float]:
    """Return the difference in H of each seed pair, in points: the mean over the datasets."""
    difference_by_seed = mean_differences(datasets.values())
    return list(difference_by_seed.values())


def _is_conclusive(test: FinalTest, min_relevant: float) -> bool:
    """Return True if no further seed pairs are needed.

    Args:
        test: Result of the latest analysis.
        min_relevant: Smallest relevant difference in H, in points.
    """
    if test.selected_failures:
        return True
    differences = _differences(test.datasets)
    if not differences:  # every pair has failed
        return True
    return is_decided(differences, test.alpha, min_relevant=min_relevant)


def _jobs(
    config: StudyConfig, folder: StudyFolder, selected: Candidate, seeds: tuple[int, ...]
) -> dict[str, _PairedJobs]:
    """Return the jobs of the baseline and those of the selected settings, by dataset."""
    # A selected baseline may be a later trial that reran trial 0. With number 0, both sides have equal jobs.
    selected_number = 0 if selected.is_baseline else selected.number

    def jobs_of(number: int, settings: Settings, dataset: str) -> list[Job]:
        return [final_job(config, folder, number, settings, dataset, seed) for seed in seeds]

    return {
        dataset: _PairedJobs(
            baseline=jobs_of(0, config.baseline_settings, dataset),
            selected=jobs_of(selected_number, selected.settings, dataset),
        )
        for dataset in config.search.datasets
    }


def _compare(
    baseline: RunScores, selected: RunScores, *, published: float | None, alpha: float | None
) -> DatasetTest:
    """Compare the runs of both sides on a dataset.

    Args:
        published: Published H, or None if it is unknown.
        alpha: Error probability of the intervals, or None for no intervals, if the baseline is selected.
    """

    def interval(metric: str) -> Interval | None:
        """Return the interval of the mean difference in a metric, over the seed pairs."""
        if alpha is None:
            return None
        differences = paired_differences(selected, baseline, metric)
        return t_interval(list(differences.values()), level=1 - alpha)

    return DatasetTest(
        selected=selected,
        baseline=baseline,
        difference=interval("objective"),  # H
        base_difference=interval("base"),
        new_difference=interval("new"),
        published=published,
    )


def choose_verdict(selected: Candidate, difference: Interval | None, *, selected_failed: bool) -> Verdict:
    """Return the verdict of a final test.

    A failed run counts against the selected settings. Otherwise, they would be compared only on the seeds on
    which they succeed.

    Args:
        selected: Candidate that the confirmation selected.
        difference: Interval of the mean difference in H over the seed pairs, None if it cannot be computed.
        selected_failed: True if a run failed with the selected but not with the default settings.

    Returns:
        "selected" or "baseline" if one of them is better, "either" if no difference was shown.
    """
    if selected.is_baseline or selected_failed:
        return "baseline"
    if difference is None or not difference.excludes_zero:
        return "either"
    return "selected" if difference.mean > 0 else "baseline"


def _with_history(test: FinalTest, previous: FinalTest) -> FinalTest:
    """Return the test, with a record of earlier results.

    A user may have seen these results before choosing seeds or settings.
    """
    is_same_selection = previous.selected.number == test.selected.number
    is_same_comparison = is_same_selection and previous.epochs == test.epochs
    earlier_tests = previous.earlier_tests
    # Kept if only the epochs change, because the user may change them back.
    extended_after = previous.extended_after if is_same_selection else ()
    has_compared = bool(previous.seeds) and not previous.baseline_selected
    if has_compared and not is_same_comparison:
        # The user may have chosen the settings of this test after the previous test of other settings.
        if previous.selected.number not in earlier_tests:
            earlier_tests = (*earlier_tests, previous.selected.number)
    elif has_compared and previous.seeds != test.seeds:
        # The user may have changed the seeds after the result. A sequential test adds seeds by a fixed rule.
        is_by_rule = previous.is_sequential and test.is_sequential
        if not is_by_rule:
            extended_after = (*extended_after, len(previous.seeds))
    return replace(test, earlier_tests=earlier_tests, extended_after=extended_after)
