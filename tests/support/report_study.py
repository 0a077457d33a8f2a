"""Study folders made up for the reports' tests: realistic records, hostile names on request."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from pydantic import TypeAdapter
from tune.results.schema import VERSION, Run, TrialRecord

from prometar.metrics import t_interval
from tune.space.spaces import Range, Space

SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(2)>'

RANGES: dict[str, dict[str, Any]] = {
    "regularizer.kind": {"type": "choice", "choices": ["l1", "l2", "none"]},
    "regularizer.text_weight": {
        "type": "float", "low": 0.5, "high": 200.0, "log": True, "when": {"regularizer.kind": ["l1", "l2"]},
    },
    "optim.lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True},
    "inner.lr": {"type": "float", "low": 1e-5, "high": 1.0, "log": True},
    "inner.order": {"type": "choice", "choices": ["second", "first"]},
    "prompts.text_depth": {"type": "int", "low": 0, "high": 12, "log": False},
    "augment.flip": {"type": "float", "low": 0.0, "high": 0.5},
}  # fmt: skip
RELEASED: dict[str, Any] = {
    "regularizer.kind": "l1", "regularizer.text_weight": 25.0, "optim.lr": 0.0025, "inner.lr": 5e-4,
    "inner.order": "second", "prompts.text_depth": 9, "augment.flip": 0.5,
}  # fmt: skip

_TRIAL, _RUN = TypeAdapter(TrialRecord), TypeAdapter(Run)


def ranges_of(tree: Mapping[str, Any] = RANGES) -> Mapping[str, Range]:
    """Ranges as a space has them."""
    return Space.of(tree).ranges


def record(content: Mapping[str, Any]) -> TrialRecord:
    """A trial as it is read."""
    return _TRIAL.validate_json(json.dumps(content))


def run_of(content: Mapping[str, Any]) -> Run:
    """A run as it is read."""
    return _RUN.validate_json(json.dumps(content))


def write(
    folder: Path, description: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], **files: Any
) -> Path:
    """A study's folder; `files` are others by their stem, None for no such file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(dict(description), sort_keys=False))
    for trial in trials:
        path = folder / "trials" / f"{trial['number']:04d}"
        path.mkdir(parents=True, exist_ok=True)
        (path / "record.json").write_text(json.dumps(trial))
    for name, content in files.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def description(**changes: Any) -> dict[str, Any]:
    """study.yaml; `changes` are of what was asked, or of the space (`ranges`), the name, the command."""
    study = {
        "name": "a-study",
        "command": "python tune/search.py --dataset dtd --trials 60",
        "ranges": RANGES,
    }
    study = {key: changes.pop(key, value) for key, value in study.items()}
    asked = {
        "datasets": ["dtd"], "data_root": "data",
        "backbone": "ViT-B-16-quickgelu", "pretrained": "openai", "method": "prometar",
        "objective": "drift", "goals": ["objective"], "trials": 60, "epochs": 5, "shots": 16,
        "seed": 7, "seeds": [0, 1], "sampler": "tpe", "pruner": "median", "val_per_class": 20,
        "final_seeds": [1, 2, 3], "top": 3, "top_seeds": [1001, 1002], "max_hours": None, **changes,
    }  # fmt: skip
    asked |= {
        "leaks": asked["objective"] == "oracle_test",
        "score": "base accuracy" if asked["objective"] == "base_val" else "H",
    }
    return {
        "version": VERSION,
        "name": study["name"],
        "key": "4b1d",
        "command": study["command"],
        "asked": asked,
        "space": {"name": "regularizer", "ranges": study["ranges"]},
        "identity": {"seed": 7},
        "config": {"method": "prometar", "optim": {"lr": 0.0025}},
        "environment": {"python": "3.11.2", "torch": "2.9.0", "cpu": "a processor", "cores": "16"},
    }


def settings_of(number: int) -> dict[str, Any]:
    """The released settings for trial 0, drawn ones for the others."""
    if number == 0:
        return dict(RELEASED)
    rng = random.Random(number)
    drawn = {
        "regularizer.kind": rng.choice(["l1", "l1", "l2", "none"]),
        "regularizer.text_weight": 0.5 * 400 ** rng.random(),
        "optim.lr": 1e-4 * 1000 ** rng.random(),
        "inner.lr": 1e-5 * 1e5 ** rng.random(),
        "inner.order": rng.choice(["second", "first"]),
        "prompts.text_depth": rng.randint(0, 12),
        "augment.flip": rng.uniform(0, 0.5),
    }
    if drawn["regularizer.kind"] == "none":
        del drawn["regularizer.text_weight"]
    return drawn


def accuracies(settings: Mapping[str, Any], noise: random.Random) -> tuple[float, float]:
    """Base and new accuracy: the rate has an optimum for base, and what learns more forgets more."""
    rate = math.log10(settings["optim.lr"]) + 2.3
    held = math.log10(settings.get("regularizer.text_weight", 0.1)) / 2.3
    base = 78 - 5 * rate**2 - 3 * held + 0.3 * settings["prompts.text_depth"] + noise.gauss(0, 0.6)
    new = 64 - 3 * max(0, rate) ** 2 + 6 * held - 0.4 * settings["prompts.text_depth"] + noise.gauss(0, 0.8)
    return min(99.0, max(5.0, base)), min(99.0, max(5.0, new))


def harmonic(base: float, new: float) -> float:
    return 2 * base * new / (base + new)


def figures(settings: Mapping[str, Any], noise: random.Random, shift: float = 0.0) -> dict[str, float]:
    base, new = accuracies(settings, noise)
    base, new = base + shift, new + shift
    return {"base": base, "new": new, "objective": harmonic(base, new)}


def trial(number: int, state: str = "COMPLETE", **changes: Any) -> dict[str, Any]:
    """A trial's record on two data sets and two seeds; `settings` may be given."""
    settings = changes.pop("settings", None) or settings_of(number)
    datasets = changes.pop("datasets", ["dtd"])
    noise = random.Random(1000 + number)
    epochs = {"COMPLETE": 5, "PRUNED": 2, "FAIL": 1}[state]
    runs = [
        {"dataset": name, "seed": seed, **figures(settings, noise, -6.0 * place)}
        for place, name in enumerate(datasets)
        for seed in (0, 1)
    ]
    last = {key: mean(run[key] for run in runs) for key in ("base", "new", "objective")}
    curve = [last["objective"] - 8 * 0.5 ** (e + 1) + 8 * 0.5**epochs for e in range(epochs)]
    if state == "FAIL":
        runs, last, curve = [], dict.fromkeys(last), []
    start = datetime(2026, 1, 1) + timedelta(minutes=7 * number)
    return {
        "version": VERSION, "number": number, "state": state, "reference": number == 0,
        "settings": settings, "given": settings if number < 2 else {}, **last,
        "epoch": 0 if state == "FAIL" else epochs, "runs": runs,
        "epochs": [{"epoch": e + 1, "objective": value} for e, value in enumerate(curve)],
        "seconds": 120.0 * epochs + 10 * settings["prompts.text_depth"] + number % 5,
        "reason": "", "notes": [], "cpus": 2.0, "gpus": 0.5,
        "origin": {0: "released", 1: "enqueued"}.get(number, "sampled"),
        "started": start.isoformat(), "ended": (start + timedelta(seconds=55)).isoformat(),
        **changes,
    }  # fmt: skip


def final_runs(settings: Mapping[str, Any], seeds: Sequence[int], shift: float = 0.0) -> list[dict[str, Any]]:
    return [
        {
            "dataset": "dtd",
            "seed": s,
            **figures(settings, random.Random(f"{s} {settings}"), shift),
            "seconds": 900.0,
            "cpus": 2.0,
            "gpus": 0.5,
            "alignment": 0.2 + s / 50,
        }
        for s in seeds
    ]


def compared(
    ours: Sequence[Mapping], theirs: Sequence[Mapping], published: float | None = None
) -> dict[str, Any]:
    """An entry of finals.json's `datasets`."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if "objective" in a and "objective" in b]
    interval = t_interval([a["objective"] - b["objective"] for a, b in pairs])
    return {
        "best": list(ours), "released": list(theirs), "difference": vars(interval) if interval else None,
        "shown": bool(interval and interval.excludes_zero), "published": published,
    }  # fmt: skip


def finals(best: Mapping[str, Any], datasets: Mapping[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """finals.json of entries by data set."""
    differences = [entry["difference"] for entry in datasets.values()]
    if len(datasets) == 1:
        overall = differences[0]
    else:
        interval = t_interval([d["mean"] for d in differences if d])
        overall = vars(interval) if interval else None
    return {
        "version": VERSION, "seeds": [1, 2, 3], "same": False,
        "best": {"number": best["number"], "settings": best["settings"]},
        "released": {"number": 0, "settings": RELEASED},
        "datasets": dict(datasets), "difference": overall,
        "shown": bool(overall and not overall["low"] <= 0 <= overall["high"]), **changes,
    }  # fmt: skip


def last_round(trials: Sequence[Mapping[str, Any]], *, datasets: Sequence[str] = ("dtd",)) -> dict[str, Any]:
    """The three best of `trials` and the released settings, with fresh seeds."""
    done = sorted((t for t in trials if t["state"] == "COMPLETE"), key=lambda t: -t["objective"])
    rows = []
    for t in [*done[:3], *(t for t in trials if t["reference"] and t not in done[:3])]:
        runs: list[dict[str, Any]] = [
            {"dataset": name, "seed": seed,
             **figures(t["settings"], random.Random(seed + t["number"]), -6.0 * place), "seconds": 610.0,
             "cpus": 2.0, "gpus": 0.5}
            for place, name in enumerate(datasets) for seed in (1001, 1002)
        ]  # fmt: skip
        rows.append(
            {"number": t["number"], "reference": t["reference"], "settings": t["settings"],
             "search": t["objective"], "mean": mean(run["objective"] for run in runs), "runs": runs}
        )  # fmt: skip
    chosen = max(rows, key=lambda row: row["mean"])["number"]
    return {
        "version": VERSION, "seeds": [1001, 1002], "chosen": chosen, "rows": rows, "among": len(done)
    }  # fmt: skip


def learned(*datasets: str, number: int = 4) -> dict[str, Any]:
    """learned.json: `number` trials on each of the data sets."""
    trials = [{"settings": settings_of(k), "score": 60.0 + k} for k in range(1, number)]
    return {
        "version": VERSION,
        "studies": [
            {
                "folder": f"out/{name}",
                "datasets": [name],
                "objective": "drift",
                "trials": trials,
                "released": 60.0,
            }
            for name in datasets or ("caltech101", "eurosat")
        ],
        "starts": [settings_of(1)],
    }


def rich_study(folder: Path, *, hostile: bool = False, **asked: Any) -> Path:
    """60 trials on two data sets with two goals, a conditional setting, failures, pruned trials, all rounds.

    With `hostile`, every name that comes from outside tries to be a script.
    """
    evil, image = (SCRIPT, IMAGE) if hostile else ("", "")
    datasets = [f"dtd{evil}", f"eurosat{image}"]
    ranges = dict(RANGES)
    choice = f"first{evil}"
    ranges["inner.order"] = {"type": "choice", "choices": ["second", choice]}
    trials = []
    for number in range(60):
        settings = settings_of(number)
        if settings["inner.order"] == "first":
            settings["inner.order"] = choice
        state = "PRUNED" if number % 4 == 3 else "FAIL" if number in (10, 41) else "COMPLETE"
        changes: dict[str, Any] = {"settings": settings, "datasets": datasets}
        if state == "FAIL":
            changes["reason"] = f"the loss is nan in epoch 1, class 'zig{evil or 'zag'}' {image}"
        if number == 5:
            changes["notes"] = [f"out of memory: batch halved {evil}"]
        trials.append(trial(number, state, **changes))
    again = last_round(trials, datasets=datasets)
    best = next(t for t in trials if t["number"] == again["chosen"])
    shifts = {datasets[0]: 0.0, datasets[1]: -6.0}
    entries = {
        name: compared(
            final_runs(best["settings"], [1, 2, 3], shift),
            [
                *final_runs(RELEASED, [1, 2], shift),
                {"dataset": name, "seed": 3, "failed": f"out of memory {evil}"},
            ]
            if place
            else final_runs(RELEASED, [1, 2, 3], shift - 2),
            published=70.4,
        )
        for place, (name, shift) in enumerate(shifts.items())
    }
    study = description(
        **{
            "name": f"two-sets{evil}",
            "datasets": datasets,
            "goals": ["base", "new"],
            "ranges": ranges,
            "command": f"python tune/search.py --dataset dtd eurosat --study '{evil}{image}'",
            **asked,
        }
    )
    return write(
        folder,
        study,
        trials,
        lastround=again,
        finals=finals(best, entries),
        learned=learned(f"food101{evil}"),
    )


def poor_study(folder: Path) -> Path:
    """One trial, and nothing after it."""
    return write(folder, description(trials=1, seeds=[0]), [trial(0)])
