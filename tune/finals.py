"""The last comparison: best against released settings, same final seeds, tested once, paired by seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from rich.console import Console

from prometar.analysis.alignment import of_run
from prometar.checkpoint import write_atomically
from prometar.intervals import t_interval
from prometar.placement import ResourcePlan
from tune.folder import StudyFolder
from tune.job import unpack
from tune.request import Request
from tune.runner import run_trials
from tune.searcher import ListSearcher, reason_of


class FinalRuns(Callback):
    """Says a line for each final run that ends, and keeps why runs failed, by their folder."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._ended = console, total, 0
        self.reasons: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        result = trial.last_result
        if result.get("failed"):
            self._fail(trial, str(result["failed"]))
        else:
            self._say(trial, f"H {result['objective']:.2f}")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        if trial.status == trial.ERROR:  # not where it is tried again
            self._fail(trial, reason_of(trial))

    def _fail(self, trial: Any, reason: str) -> None:
        self.reasons[unpack(trial.config)[0].run_dir] = reason
        self._say(trial, f"failed: {reason}")

    def _say(self, trial: Any, what: str) -> None:
        self._ended += 1
        name = Path(unpack(trial.config)[0].run_dir).name
        self._console.print(f"final run {name}: {what}; {self._ended} of {self._total} done", markup=False)


def run_finals(
    folder: StudyFolder,
    request: Request,
    best: tuple[int, dict[str, Any]],
    plan: ResourcePlan,
    trainable: type[tune.Trainable],
    *,
    console: Console,
    published: float | None = None,
    verbose: bool = False,
) -> dict[str, Any]:
    """Run what has no result yet, and write finals.json. Returns its content."""
    chosen = {best[0]: best[1], 0: request.reference()}
    jobs = [
        request.final_job(settings, seed, str(folder.final(number, seed)), plan)
        for seed in request.final_seeds
        for number, settings in chosen.items()
        if not (folder.final(number, seed) / "result.json").exists()
    ]
    runs = FinalRuns(console, len(jobs))
    if jobs:
        run_trials(trainable, ListSearcher(jobs), plan, callbacks=[runs], verbose=verbose)
    summary = summarize(folder, request, best, runs.reasons, published)
    write_atomically(folder / "finals.json", json.dumps(summary, indent=1).encode())
    return summary


def summarize(
    folder: StudyFolder,
    request: Request,
    best: tuple[int, dict[str, Any]],
    failures: dict[str, str],
    published: float | None,
) -> dict[str, Any]:
    """finals.json from the runs' folders."""
    number, settings = best
    ours = [_run(folder, number, seed, failures) for seed in request.final_seeds]
    released = [_run(folder, 0, seed, failures) for seed in request.final_seeds]
    pairs = [(a, b) for a, b in zip(ours, released, strict=True) if "objective" in a and "objective" in b]
    same = number == 0
    interval = None if same else t_interval([a["objective"] - b["objective"] for a, b in pairs])
    return {
        "seeds": list(request.final_seeds),
        "same": same,
        "best": {"number": number, "settings": settings, "runs": ours},
        "released": {"number": 0, "settings": request.reference(), "runs": released},
        "difference": vars(interval) if interval else None,
        "shown": bool(interval and interval.excludes_zero),
        "published": published,
    }


def _run(folder: StudyFolder, number: int, seed: int, failures: dict[str, str]) -> dict[str, Any]:
    path = folder.final(number, seed)
    if not (path / "result.json").exists():
        return {"seed": seed, "failed": failures.get(str(path), "no result")}
    result = json.loads((path / "result.json").read_text("utf-8"))["result"]
    run = {"seed": seed, **{key: result[key] for key in ("base", "new", "objective", "seconds")}}
    alignment = of_run(path)
    return run if alignment is None else run | {"alignment": alignment.mean}


def failed_runs(finals: dict[str, Any]) -> list[str]:
    """Reasons of final runs that failed."""
    runs = [*finals["best"]["runs"], *([] if finals["same"] else finals["released"]["runs"])]
    return [run["failed"] for run in runs if "failed" in run]
