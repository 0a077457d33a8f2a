"""The last round: the best settings of a search and the released ones, run again with fresh seeds.

The best of many noisy figures flatters. So settings are chosen by the mean of runs that had no part in their
selection, on the search's own images and with the same fresh seeds for all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from optuna.trial import FrozenTrial

from prometar.errors import WorkError
from prometar.io.files import write_atomically
from tune.execution.reruns import Means, figures_of, run_missing
from tune.jobs.files import JobFiles
from tune.optimizer.ask_tell import REFERENCE, ranked, score_of
from tune.optimizer.storage import GO_ON
from tune.results.writer import StudyFolder
from tune.study_spec import StudySpec

_FIGURES = ("base", "new", "objective", "seconds")


def run_last_round(
    folder: StudyFolder, spec: StudySpec, trials: Sequence[FrozenTrial], means: Means
) -> dict[str, Any]:
    """Run what has no result yet, and write lastround.json. Returns its content.

    `chosen` is the number of the settings with the highest mean over all fresh seeds; the released ones win
    a tie. Without a last round (`top` 0) it is the search's own best.
    """
    asked = contenders(trials, spec.top)
    seeds = spec.fresh_seeds if spec.top else ()
    rows = _rows(folder, spec, asked, seeds, means) if seeds else []
    content = {
        "seeds": list(seeds),
        "chosen": _chosen(rows) if rows else asked[0].number,
        "rows": rows,
        "cpus": means.plan.cpus_per_trial,
        "gpus": means.plan.gpus_per_trial,
    }
    write_atomically(folder / "lastround.json", json.dumps(content, indent=1).encode())
    return content


def _rows(
    folder: StudyFolder,
    spec: StudySpec,
    asked: Sequence[FrozenTrial],
    seeds: Sequence[int],
    means: Means,
) -> list[dict[str, Any]]:
    names = ", ".join(str(trial.number) for trial in asked)
    shown = ", ".join(map(str, seeds))
    means.console.print(f"last round on the search's own images: trials {names}, fresh seeds {shown}")
    jobs = {
        (trial.number, seed): spec.rerun_job(
            dict(trial.params), (seed,), str(folder.rerun(trial.number, seed)), means.terms
        )
        for seed in seeds
        for trial in asked
    }
    reasons = run_missing(list(jobs.values()), means, what="last round", required=True)
    for job in jobs.values():
        JobFiles(job).drop_states()  # their figures are all that is needed of them
    rows = []
    for trial in asked:
        own = [job for (number, _), job in jobs.items() if number == trial.number]
        runs = [run for job in own for run in figures_of(job, reasons, _FIGURES)]
        rows.append(_row(trial, runs))
    return rows


def contenders(trials: Sequence[FrozenTrial], top: int) -> list[FrozenTrial]:
    """The released settings first, then the `top` best others; the best alone where `top` is 0."""
    found = ranked(trials)
    if not top:
        return found[:1]
    released = [trial for trial in found if REFERENCE in trial.user_attrs]
    others = [trial for trial in found if REFERENCE not in trial.user_attrs]
    return [*released, *others[:top]]


def _row(trial: FrozenTrial, runs: list[dict[str, Any]]) -> dict[str, Any]:
    whole = [run["objective"] for run in runs if "objective" in run]
    return {
        "number": trial.number,
        "reference": REFERENCE in trial.user_attrs,
        "settings": dict(trial.params),
        "search": score_of(trial),
        "mean": mean(whole) if len(whole) == len(runs) else None,  # else the seeds would not be the same
        "runs": runs,
    }


def _chosen(rows: Sequence[Mapping[str, Any]]) -> int:
    """The number of the highest mean.

    Raises:
        WorkError: no settings finished with all fresh seeds.
    """
    whole = [row for row in rows if row["mean"] is not None]
    if not whole:
        reason = next(run["failed"] for row in rows for run in row["runs"] if "failed" in run)
        raise WorkError(f"no settings have finished the last round: {reason}; {GO_ON}")
    return int(max(whole, key=lambda row: row["mean"])["number"])
