"""The last comparison: chosen against released settings, same final seeds, tested once, paired by seed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from prometar.analysis.alignment import of_run
from prometar.errors import UserError
from prometar.io.files import entries, size_of
from prometar.metrics import over_all, t_interval
from tune.execution.course import Course
from tune.execution.reruns import Means, run_missing, runs_of
from tune.jobs.spec import Job
from tune.results.reader import paired
from tune.results.schema import FINAL_TEST, DatasetTest, FinalTest, Run, Tested
from tune.results.writer import StudyFolder
from tune.stages.sequential import ALONE, LOOKS, Look, verdict
from tune.study_spec import StudySpec


def run_finals(
    folder: StudyFolder, spec: StudySpec, best: Tested, means: Means, *, published: Mapping[str, float | None]
) -> Course[FinalTest]:
    """Run what has no result yet, and write finals.json. Returns its content.

    With `spec.matters`, pairs are added until the comparison is decided (`tune.stages.sequential`).

    Args:
        best: The chosen settings, number 0 for the released ones.
        published: The published harmonic mean of each data set, or None.
    """
    released = Tested(0, spec.reference())
    for look in _looks(spec, same=best.number == 0):
        seeds = spec.final_seeds[: look.pairs]
        runs = yield from _runs(folder, spec, best, released, seeds, means)
        found = verdict(_over_sets(runs, spec.names, seeds), look.alpha, matters=spec.matters or 0.0)
        if found is not None and found.decided and spec.matters is not None:
            break
    datasets = {
        dataset: _compared(
            *(tuple(runs[side, dataset, seed] for seed in seeds) for side in _SIDES),
            level=1 - look.alpha,
            same=best.number == 0,
            published=published.get(dataset),
        )
        for dataset in spec.names
    }
    several = len(datasets) > 1
    # Pairs are added for what seeds show on these data sets: over data sets it is looked at once.
    alpha = _OVER_SETS if several else look.alpha
    difference = over_all([each.difference for each in datasets.values()], level=1 - alpha)
    tested = {
        int(run[1])
        for each in entries(folder.path / "finals")
        if (run := re.match(r"trial-(\d+)-", each.name)) and size_of(each / "result.json") is not None
    }
    record = FinalTest(
        seeds=seeds,
        same=best.number == 0,
        best=best,
        released=released,
        datasets=datasets,
        difference=difference,
        shown=bool(difference and difference.excludes_zero),
        tested=tuple(sorted(tested)),
        alpha=look.alpha,
        alpha_over_sets=alpha if several else None,
        looks=_looks_before(folder, best, seeds),
        matters=spec.matters,
        # Of training seeds alone: with several data sets the difference shown is over those.
        excluded=bool(found and found.excluded and spec.matters is not None and not several),
        detectable=found.detectable if found and best.number and not several else None,
    )
    FINAL_TEST.write(folder / "finals.json", record)
    return record


_OVER_SETS = 0.05
_SIDES = ("best", "released")
_Runs = Mapping[tuple[str, str, int], Run]


def _looks(spec: StudySpec, *, same: bool) -> tuple[Look, ...]:
    """When the comparison is looked at: once after all seeds, or until it is decided."""
    if spec.matters is None:
        return (Look(len(spec.final_seeds), 0.05),)
    return (Look(ALONE, 0.05),) if same else LOOKS


def _looks_before(folder: StudyFolder, best: Tested, seeds: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """What finals.json has told so far: whoever has seen it may have asked for more because of it."""
    try:
        before = FINAL_TEST.read(folder / "finals.json")
    except UserError:  # there is none, or nobody can read it
        return ()
    again = (before.best.number, before.seeds) == (best.number, tuple(seeds))
    if again or before.same or not before.seeds:
        return before.looks
    return (*before.looks, (before.best.number, len(before.seeds)))


def _runs(
    folder: StudyFolder, spec: StudySpec, best: Tested, released: Tested, seeds: Sequence[int], means: Means
) -> Course[_Runs]:
    """The final runs of both sides with these seeds, by side, data set and seed."""
    jobs = {
        (side, dataset, seed): spec.final_job(
            dict(tested.settings), dataset, seed, str(folder.final(tested.number, dataset, seed)), means.terms
        )
        for dataset in spec.names
        for seed in seeds
        for side, tested in zip(_SIDES, (best, released), strict=True)
    }
    what = f"trial {best.number} and the released settings" if best.number else "the released settings"
    shown = f"final comparison on the test images: {what}, seeds {', '.join(map(str, seeds))}"
    means.console.print(shown if seeds else "no final comparison")
    unique = {job.run_dir: job for job in jobs.values()}  # the same runs, where the released settings won
    reasons = yield from run_missing(list(unique.values()), means, what="final run")
    return {place: _run(job, reasons) for place, job in jobs.items()}


def _over_sets(runs: _Runs, datasets: Sequence[str], seeds: Sequence[int]) -> list[float]:
    """Differences by seed, means over the data sets; of seeds whose runs have all finished."""
    found = []
    for seed in seeds:
        scores = {side: [runs[side, dataset, seed].objective for dataset in datasets] for side in _SIDES}
        best, released = ([x for x in scores[side] if x is not None] for side in _SIDES)
        if len(best) == len(released) == len(datasets):
            found.append(mean(best) - mean(released))
    return found


def _compared(
    best: tuple[Run, ...], released: tuple[Run, ...], *, level: float, same: bool, published: float | None
) -> DatasetTest:
    """One data set's runs by side, and their paired difference."""
    interval = None if same else t_interval(list(paired(best, released).values()), level=level)
    return DatasetTest(best, released, interval, bool(interval and interval.excludes_zero), published)


def _run(job: Job, reasons: Mapping[str, str]) -> Run:
    (run,) = runs_of(job, reasons)
    alignment = None if run.failed else of_run(Path(job.run_dir))
    return replace(run, alignment=alignment.mean if alignment else None)


def failed_runs(finals: FinalTest) -> list[str]:
    """Reasons of final runs that failed."""
    runs = [run for name in finals.datasets for side in finals.sides(name).values() for run in side]
    return [run.failed for run in runs if run.failed]
