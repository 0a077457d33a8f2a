"""A study's report: one self-contained HTML file, a pure function of the records in the study's folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prometar.checkpoint import write_atomically
from prometar.errors import UserError
from tune import plots
from tune.folder import read_study
from tune.summary import spread

STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}


@dataclass(frozen=True)
class Records:
    """What a study's folder holds: study.yaml, trials/NNNN/record.json by number, finals.json."""

    study: dict[str, Any]
    trials: tuple[dict[str, Any], ...]
    finals: dict[str, Any] | None

    @property
    def complete(self) -> list[dict[str, Any]]:
        return [t for t in self.trials if t["state"] == "COMPLETE" and t["objective"] is not None]

    @property
    def best(self) -> dict[str, Any] | None:
        """The finished trial with the highest objective; the earliest of equals."""
        return max(self.complete, key=lambda t: (t["objective"], -t["number"]), default=None)

    @property
    def released(self) -> dict[str, Any] | None:
        return next((t for t in self.trials if t["reference"]), None)

    @property
    def score(self) -> str:
        """What the objective is called."""
        return "base accuracy" if self.study["asked"]["objective"] == "base_val" else "H"


def build_report(study_dir: Path) -> Path:
    """Write study_dir/report.html from the records alone. Returns its path.

    Raises:
        UserError: the folder holds no study, or a damaged record.
    """
    path = study_dir / "report.html"
    write_atomically(path, render(read_records(study_dir)).encode("utf-8"))
    return path


def read_records(study_dir: Path) -> Records:
    """The records of a study's folder; see `build_report`."""
    study = read_study(study_dir)
    trials = [_json(path) for path in study_dir.glob("trials/*/record.json")]
    finals = study_dir / "finals.json"
    return Records(
        study, tuple(sorted(trials, key=lambda t: t["number"])), _json(finals) if finals.exists() else None
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise UserError(f"the record {path} is damaged: remove it, and run search.py again") from None


def render(records: Records) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("tune", "templates"),
        autoescape=True,  # names and reasons come from data sets and exceptions
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "num": number, "signed": signed, "setting": setting, "duration": duration, "spread": spread
    }  # fmt: skip
    return environment.get_template("report.html.jinja").render(
        study=records.study,
        asked=records.study["asked"],
        trials=records.trials,
        finals=records.finals,
        best=records.best,
        released=records.released,
        score=records.score,
        verdict=verdict(records),
        alignment=alignment(records),
        caveats=caveats(records),
        rows=settings_rows(records),
        ranking=ranking(records.trials),
        states=STATES,
        cost=cost(records),
        config=yaml.safe_dump(records.study["config"], sort_keys=False),
        min_complete=plots.MIN_COMPLETE,
        plots={name: Markup(plot) if plot else None for name, plot in _plots(records).items()},
        plotly=Markup(plots.library()),
    )


def _plots(records: Records) -> dict[str, str | None]:
    trials, best = records.trials, records.best
    return {
        "history": plots.history(trials, score=records.score) if trials else None,
        "importance": plots.importance(trials, records.study["space"]["ranges"]),
        "trade_off": plots.trade_off(trials, best),
        "curves": plots.curves(trials, best, score=records.score),
    }


def verdict(records: Records) -> str:
    """What was found, in a sentence or two."""
    best, finals = records.best, records.finals
    if best is None:
        return "No trial has finished yet."
    if finals is None:
        return (
            f"The search has not ended. So far trial {best['number']} leads on the search's own images, "
            f"{records.score} {best['objective']:.2f}; nothing has been tested yet."
        )
    if finals["same"]:
        return "No searched settings beat the released ones on the search's own images."
    if not finals["seeds"]:
        return f"Trial {best['number']} leads on the search's own images; no final test was asked for."
    difference = finals["difference"]
    if difference is None:
        return "The final test shows nothing: fewer than two seeds were finished by both settings."
    measured = (
        f"best − released {signed(difference['mean'])} points of H, 95 % interval "
        f"{signed(difference['low'])} to {signed(difference['high'])}, {difference['n']} paired seeds"
    )
    if not finals["shown"]:
        return f"No difference shown: {measured}, which holds 0."
    word = "better" if difference["mean"] > 0 else "worse"
    return f"The best settings found test {word} than the released ones: {measured}."


def alignment(records: Records) -> str:
    """What the final runs' gradients did, in a sentence; empty where it was not measured."""
    finals = records.finals or {}
    sides = {} if not finals else {"released": finals["released"], "best": finals["best"]}
    if finals.get("same"):
        del sides["best"]
    found = {name: [r["alignment"] for r in side["runs"] if "alignment" in r] for name, side in sides.items()}
    means = [f"{name} {signed(mean(cosines))}" for name, cosines in found.items() if cosines]
    if not means:
        return ""
    return (
        "Gradient alignment, the mean cosine of the gradient on a batch's other classes and on the one that "
        f"is left out: {', '.join(means)}. Above 0, a step on some classes also lowers the loss on others."
    )


def caveats(records: Records) -> list[str]:
    """What the figures do not show."""
    asked, finals = records.study["asked"], records.finals
    lines = [
        f"The search's best figure is the highest of {len(records.complete)}, so it is biased upwards, and "
        "not comparable with a test figure. The final test is not: it is read once, after the search."
    ]
    if asked["objective"] == "oracle_test":
        lines.insert(0, "This objective reads the test images: the search leaks, its figures are no results.")
    if finals and records.best and finals["best"]["number"] != records.best["number"]:
        lines.insert(
            0,
            f"The final test is out of date: trial {finals['best']['number']} led when it was run, trial "
            f"{records.best['number']} does now. The same command tests it.",
        )
    if finals and finals["difference"]:
        n = finals["difference"]["n"]
        lines.append(
            f"The interval is about other training seeds ({n} were run) on these classes and images. It "
            "says nothing about another data set, backbone, or number of shots, nor about what a second "
            "search would have picked."
        )
    if asked["backbone"] == "mini":
        lines.append(
            "Backbone mini is the embedded test bed: its figures compare with each other only, "
            "not with published ones."
        )
    elif finals and finals.get("published") is not None:
        lines.append("The published figure is cited, not run here: its seeds, images and epochs may differ.")
    else:
        lines.append("No published figure stands beside these: none is known for this very setting.")
    pruned = sum(t["state"] == "PRUNED" for t in records.trials)
    if pruned:
        lines.append(f"Pruned trials ({pruned}) were judged early: some might have recovered.")
    return lines


def settings_rows(records: Records) -> list[dict[str, Any]]:
    """A row a searched setting: range, released value, best value."""
    released = (records.released or {}).get("settings", {})
    best = (records.best or {}).get("settings", {})
    return [
        {
            "key": key,
            "range": _range(entry),
            "released": released.get(key),
            "best": best.get(key),
            "changed": key in best and key in released and best[key] != released[key],
        }
        for key, entry in records.study["space"]["ranges"].items()
    ]


def _range(entry: Mapping[str, Any]) -> str:
    if entry["type"] == "choice":
        return " | ".join(map(str, entry["choices"]))
    return f"{setting(entry['low'])} … {setting(entry['high'])}{', log' if entry.get('log') else ''}"


def ranking(trials: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Finished trials by objective, then those that got farthest."""
    order = list(STATES)
    return sorted(
        trials,
        key=lambda t: (
            order.index(t["state"]),
            -t["epoch"] if t["state"] != "COMPLETE" else 0,
            -t["objective"] if t["objective"] is not None else 0.0,
            t["number"],
        ),
    )


def cost(records: Records) -> dict[str, Any]:
    """Training seconds by state and of the final runs, and the time from the first start to the last end."""
    trials, finals = records.trials, records.finals or {}
    runs = [run for side in ("released", "best") for run in finals.get(side, {}).get("runs", [])]
    if finals.get("same"):
        runs = finals["best"]["runs"]  # the same runs, listed twice
    groups = {state: [t["seconds"] for t in trials if t["state"] == state] for state in STATES}
    moments = [datetime.fromisoformat(t[key]) for t in trials for key in ("started", "ended") if t[key]]
    return {
        "states": {state: (len(group), sum(group)) for state, group in groups.items() if group},
        "search": sum(map(sum, groups.values())),
        "finals": (len(runs), sum(run.get("seconds", 0.0) for run in runs)),
        "span": (max(moments) - min(moments)).total_seconds() if moments else None,
    }


def number(value: float | None) -> str:
    """Two decimals; a dash for none."""
    return "–" if value is None else f"{value:.2f}"


def signed(value: float) -> str:
    """Two decimals with a sign; the minus is the typographic one."""
    return f"{value:+.2f}".replace("-", "−")


def setting(value: Any) -> str:
    """A setting's value, short."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float | None) -> str:
    """
    Example:
        >>> duration(75), duration(3725), duration(4.2)
        ('1 min 15 s', '1 h 2 min', '4.2 s')
    """
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
