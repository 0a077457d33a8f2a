"""Final test: comparison of the selected settings with the baseline on test images.

A seed pair consists of a run with the selected settings and a baseline run, both with the same seed. With
several datasets, the difference of a pair is its mean over the datasets. Stopping rule and verdict use the
same interval, that of the mean difference over the pairs.
"""

from collections.abc import Mapping
from dataclasses import replace

from prometar.metrics import Interval, t_interval
from tune.config import StudyConfig
from tune.execution.flows import Stages
from tune.execution.job import Job
from tune.records.folder import StudyFolder, mean_differences, paired_differences
from tune.records.schema import Candidate, DatasetTest, FinalTest, RunScores, Verdict
from tune.stages.statistics import (
    ALPHA_BY_PAIRS,
    BASELINE_RUNS,
    is_decided,
    min_detectable,
)
from tune.stages.study_jobs import final_job, read_scores, run_unfinished


def run_final_test(
    config: StudyConfig,
    folder: StudyFolder,
    selected: Candidate,
    *,
    published: Mapping[str, float | None],
    previous: FinalTest | None,
) -> Stages[FinalTest]:
    """Run seed pairs until an analysis is conclusive, a selected run or all pairs fail, or no seeds are left.

    Args:
        published: Published H (harmonic mean of base and new accuracy) by dataset, or None if unknown.
        previous: The study's previous final test, or None if there is none.
    """
    is_sequential = config.test.seeds == "auto"
    min_relevant = config.test.min_relevant
    alphas = ALPHA_BY_PAIRS
    if selected.is_baseline and is_sequential:
        alphas = {BASELINE_RUNS: 0.05}
    elif not is_sequential:
        # With a fixed number of seeds, there is one analysis, which has the whole error probability of 5%.
        alphas = {len(config.final_seeds): 0.05}
    failures: dict[str, str] = {}
    for num_pairs, alpha in alphas.items():
        seeds = config.final_seeds[:num_pairs]
        jobs = _jobs(config, folder, selected, seeds)
        unique_jobs = {job.name: job for sides in jobs.values() for side in sides for job in side}
        remaining = [job for name, job in unique_jobs.items() if name not in failures]
        failures |= yield from run_unfinished("Final test", remaining)
        results = {
            dataset: _compare(
                *(tuple(run for job in side for run in read_scores(job, failures)) for side in sides),
                published=published.get(dataset),
                alpha=None if selected.is_baseline else alpha,
            )
            for dataset, sides in jobs.items()
        }
        differences = list(mean_differences(results.values()).values())
        selected_failed = any(each.selected_failures for each in results.values())
        is_last = selected_failed or not differences
        if is_last or is_decided(differences, alpha, min_relevant=min_relevant):
            break
    difference = None if selected.is_baseline else t_interval(differences, level=1 - alpha)
    test = FinalTest(
        seeds=seeds,
        epochs=config.test.epochs,
        selected=selected,
        datasets=results,
        difference=difference,
        verdict=choose_verdict(selected, difference, selected_failed=selected_failed),
        alpha=alpha,
        min_relevant=min_relevant if is_sequential else None,
        detectable=None if selected.is_baseline else min_detectable(differences, alpha),
    )
    return test if previous is None else _with_history(test, previous)


def _jobs(
    config: StudyConfig, folder: StudyFolder, selected: Candidate, seeds: tuple[int, ...]
) -> dict[str, tuple[list[Job], list[Job]]]:
    """Return the jobs of the baseline and those of the selected settings, by dataset."""
    # A selected baseline may be a later trial that reran trial 0. With number 0, both sides have equal jobs.
    selected_number = 0 if selected.is_baseline else selected.number
    return {
        dataset: (
            [final_job(config, folder, 0, config.baseline_settings, dataset, seed) for seed in seeds],
            [final_job(config, folder, selected_number, selected.settings, dataset, seed) for seed in seeds],
        )
        for dataset in config.search.datasets
    }


def _compare(
    baseline: RunScores, selected: RunScores, *, published: float | None, alpha: float | None
) -> DatasetTest:
    """Compare both sides on a dataset. If the baseline is selected, `alpha` and the intervals are None."""

    def interval(metric: str) -> Interval | None:
        if alpha is None:
            return None
        return t_interval(list(paired_differences(selected, baseline, metric).values()), level=1 - alpha)

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

    A failed run counts against the selected settings: their other runs would otherwise be compared without
    the seeds on which they fail.

    Args:
        difference: Interval of the mean difference in H over the seed pairs, None if it cannot be computed.
        selected_failed: True if a run failed with the selected but not with the default settings.
    """
    if selected.is_baseline or selected_failed:
        return "baseline"
    if difference is None or not difference.excludes_zero:
        return "either"
    return "selected" if difference.mean > 0 else "baseline"


def _with_history(test: FinalTest, previous: FinalTest) -> FinalTest:
    """Return the test with the earlier results, of `previous` and before, that may have influenced users."""
    is_same_comparison = (previous.selected.number, previous.epochs) == (test.selected.number, test.epochs)
    earlier_tests = previous.earlier_tests
    extended_after = previous.extended_after if is_same_comparison else ()
    if previous.seeds and not previous.baseline_selected:
        if not is_same_comparison:
            earlier_tests = tuple(dict.fromkeys((*earlier_tests, previous.selected.number)))
        elif previous.seeds != test.seeds and not (previous.is_sequential and test.is_sequential):
            extended_after = (*extended_after, len(previous.seeds))
    return replace(test, earlier_tests=earlier_tests, extended_after=extended_after)
