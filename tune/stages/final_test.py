"""The last comparison: chosen against released settings, same final seeds, tested once, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from prometar.analysis.alignment import of_run
from prometar.metrics import Interval, t_interval
from tune.execution.reruns import Means, run_missing, runs_of
from tune.jobs.spec import Job
from tune.results.reader import paired
from tune.results.schema import FINAL_TEST, DatasetTest, FinalTest, Run, Tested
from tune.results.writer import StudyFolder
from tune.study_spec import StudySpec


def run_finals(
    folder: StudyFolder,
    spec: StudySpec,
    best: Tested,
    means: Means,
    *,
    published: Mapping[str, float | None],
) -> FinalTest:
    """Run what has no result yet, and write finals.json. Returns its content.

    Args:
        best: The chosen settings, number 0 for the released ones.
        published: The published harmonic mean of each data set, or None.
    """
    released = Tested(0, spec.reference())
    jobs = {
        (side, dataset, seed): spec.final_job(
            dict(tested.settings), dataset, seed, str(folder.final(tested.number, dataset, seed)), means.terms
        )
        for dataset in spec.names
        for seed in spec.final_seeds
        for side, tested in (("best", best), ("released", released))
    }
    unique = {job.run_dir: job for job in jobs.values()}  # the same runs, where the released settings won
    reasons = run_missing(list(unique.values()), means, what="final run")
    runs = {place: _run(job, reasons) for place, job in jobs.items()}
    datasets = {
        dataset: _compared(
            *(tuple(runs[side, dataset, seed] for seed in spec.final_seeds) for side in ("best", "released")),
            same=best.number == 0,
            published=published.get(dataset),
        )
        for dataset in spec.names
    }
    difference = _over_all(datasets)
    tested = {int(path.parent.name.split("-")[1]) for path in folder.path.glob("finals/trial-*/result.json")}
    found = FinalTest(
        seeds=spec.final_seeds,
        same=best.number == 0,
        best=best,
        released=released,
        datasets=datasets,
        difference=difference,
        shown=bool(difference and difference.excludes_zero),
        tested=tuple(sorted(tested)),
        cpus=means.plan.cpus_per_trial,
        gpus=means.plan.gpus_per_trial,
    )
    FINAL_TEST.write(folder / "finals.json", found)
    return found


def _compared(
    best: tuple[Run, ...], released: tuple[Run, ...], *, same: bool, published: float | None
) -> DatasetTest:
    """One data set's runs by side, and their paired difference."""
    interval = None if same else t_interval(list(paired(best, released).values()))
    return DatasetTest(best, released, interval, bool(interval and interval.excludes_zero), published)


def _run(job: Job, reasons: Mapping[str, str]) -> Run:
    (run,) = runs_of(job, reasons)
    alignment = None if run.failed else of_run(Path(job.run_dir))
    return replace(run, alignment=alignment.mean if alignment else None)


def _over_all(datasets: Mapping[str, DatasetTest]) -> Interval | None:
    """The one data set's difference; of several, the interval over their mean differences."""
    found = [each.difference for each in datasets.values()]
    if len(found) == 1:
        return found[0]
    return t_interval([each.mean for each in found if each])


def failed_runs(finals: FinalTest) -> list[str]:
    """Reasons of final runs that failed."""
    runs = [run for name in finals.datasets for side in finals.sides(name).values() for run in side]
    return [run.failed for run in runs if run.failed]
