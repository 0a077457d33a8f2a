"""The last comparison: chosen against released settings, same final seeds, tested once, paired by seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometar.analysis.alignment import of_run
from prometar.io.files import write_atomically
from prometar.metrics import Interval, t_interval
from tune.execution.reruns import Means, figures_of, run_missing
from tune.jobs.spec import Job
from tune.results.writer import StudyFolder
from tune.study_spec import StudySpec

_FIGURES = ("base", "new", "objective", "seconds")
_SIDES = ("best", "released")


def run_finals(
    folder: StudyFolder,
    spec: StudySpec,
    best: tuple[int, dict[str, Any]],
    means: Means,
    *,
    published: Mapping[str, float | None],
) -> dict[str, Any]:
    """Run what has no result yet, and write finals.json. Returns its content.

    Args:
        best: The chosen trial's number, 0 for the released settings, and its settings.
        published: The published harmonic mean of each data set, or None.
    """
    chosen = {"best": best, "released": (0, spec.reference())}
    jobs = {
        (dataset, seed, side): spec.final_job(
            settings, dataset, seed, str(folder.final(number, dataset, seed)), means.terms
        )
        for dataset in spec.names
        for seed in spec.final_seeds
        for side, (number, settings) in chosen.items()
    }
    unique = {job.run_dir: job for job in jobs.values()}  # the same runs, where the released settings won
    reasons = run_missing(list(unique.values()), means, what="final run")
    datasets = {
        dataset: _dataset(spec, dataset, jobs, reasons, published.get(dataset)) for dataset in spec.names
    }
    difference = _over_all(datasets)
    tested = {int(path.parent.name.split("-")[1]) for path in folder.path.glob("finals/trial-*/result.json")}
    content = {
        "seeds": list(spec.final_seeds),
        "same": best[0] == 0,
        "best": {"number": best[0], "settings": best[1]},
        "released": {"number": 0, "settings": spec.reference()},
        "datasets": datasets,
        "difference": difference,
        "shown": bool(difference and Interval(**difference).excludes_zero),
        "tested": sorted(tested),
        "cpus": means.plan.cpus_per_trial,
        "gpus": means.plan.gpus_per_trial,
    }
    write_atomically(folder / "finals.json", json.dumps(content, indent=1).encode())
    return content


def _dataset(
    spec: StudySpec,
    dataset: str,
    jobs: Mapping[tuple[str, int, str], Job],
    reasons: Mapping[str, str],
    published: float | None,
) -> dict[str, Any]:
    """One data set's runs, by seed and side, and their paired difference."""
    runs = {side: [_run(jobs[dataset, seed, side], reasons) for seed in spec.final_seeds] for side in _SIDES}
    same = all(jobs[dataset, s, "best"] == jobs[dataset, s, "released"] for s in spec.final_seeds)
    pairs = [pair for pair in zip(*(runs[side] for side in _SIDES), strict=True) if _whole(pair)]
    interval = None if same else t_interval([a["objective"] - b["objective"] for a, b in pairs])
    return {
        **runs,
        "difference": vars(interval) if interval else None,
        "shown": bool(interval and interval.excludes_zero),
        "published": published,
    }


def _run(job: Job, reasons: Mapping[str, str]) -> dict[str, Any]:
    (run,) = figures_of(job, reasons, _FIGURES)
    alignment = None if "failed" in run else of_run(Path(job.run_dir))
    return run if alignment is None else run | {"alignment": alignment.mean}


def _whole(pair: tuple[dict[str, Any], ...]) -> bool:
    return all("objective" in run for run in pair)


def _over_all(datasets: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The one data set's difference; of several, the interval over their mean differences."""
    found = [each["difference"] for each in datasets.values()]
    if len(found) == 1:
        return found[0]
    interval = t_interval([each["mean"] for each in found if each])
    return vars(interval) if interval else None


def failed_runs(finals: dict[str, Any]) -> list[str]:
    """Reasons of final runs that failed."""
    sides = _SIDES[:1] if finals["same"] else _SIDES
    runs = [run for each in finals["datasets"].values() for side in sides for run in each[side]]
    return [run["failed"] for run in runs if "failed" in run]
