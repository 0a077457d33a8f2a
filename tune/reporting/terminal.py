"""What a study says in the terminal at its end."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from prometar.data.splits.objective import LEAKS
from tune.optimizer.ask_tell import REFERENCE, Memory, score_of
from tune.results.writer import StudyFolder, num_ended
from tune.study_spec import StudySpec

_FIGURES = ("base", "new", "objective")


def print_summary(
    console: Console,
    folder: StudyFolder,
    spec: StudySpec,
    memory: Memory,
    lastround: dict[str, Any],
    finals: dict[str, Any],
    report: Path,
) -> None:
    """All comparisons, what they do not show, and where the files are."""
    ended = num_ended(memory)
    console.print(
        f"\nsearch: {ended['COMPLETE']} trials finished, {ended['PRUNED']} pruned, {ended['FAIL']} failed"
    )
    _search_table(console, spec, memory)
    _last_round_table(console, spec, lastround)
    for dataset, sides in finals["datasets"].items():
        _final_table(console, spec, dataset, sides, finals)
    for line in caveats(spec, finals, ended["COMPLETE"]):
        console.print(f"- {line}", markup=False)
    console.print(f"\nbest settings: {folder / 'best.yaml'} (prometar train --config FILE)\nreport: {report}")


def _score(spec: StudySpec) -> str:
    return "base" if spec.objective == "base_val" else "H"


def _where(spec: StudySpec) -> str:
    if spec.objective == "oracle_test":
        return "on the test images: LEAKING, no result"
    return "on the search's own images (validation, base classes)"


def _search_table(console: Console, spec: StudySpec, memory: Memory) -> None:
    best = memory.best()
    released = next(
        (t for t in memory.trials() if REFERENCE in t.user_attrs and score_of(t) is not None), None
    )
    assert best is not None
    table = _table(f"search, {_where(spec)}", (_score(spec),))
    if released is not None:
        table.add_row("released", f"{score_of(released):.2f}")
    table.add_row(f"best (trial {best.number})", f"{score_of(best):.2f}")
    console.print(table)


def _last_round_table(console: Console, spec: StudySpec, lastround: dict[str, Any]) -> None:
    if not lastround["rows"]:
        return
    seeds = ", ".join(map(str, lastround["seeds"]))
    table = _table(f"last round, the same images with fresh seeds {seeds}", ("search", _score(spec)))
    for row in lastround["rows"]:
        name = "released" if row["reference"] else f"trial {row['number']}"
        chosen = " (chosen)" if row["number"] == lastround["chosen"] else ""
        table.add_row(name + chosen, f"{row['search']:.2f}", _or_failed(row["mean"]))
    console.print(table)


def _or_failed(value: float | None) -> str:
    return "failed" if value is None else f"{value:.2f}"


def _final_table(
    console: Console, spec: StudySpec, dataset: str, sides: dict[str, Any], finals: dict[str, Any]
) -> None:
    if not finals["seeds"]:
        return
    seeds = ", ".join(map(str, finals["seeds"]))
    of = f"{dataset}, " if len(spec.names) > 1 else ""
    title = f"{of}on the test images, trained on all base classes, seeds {seeds}"
    table = _table(title, ("base", "new", "H"))
    for name in ("released",) if finals["same"] else ("released", "best"):
        runs = [run for run in sides[name] if "objective" in run]
        table.add_row(name, *(spread([run[key] for run in runs]) for key in _FIGURES))
    console.print(table)


def _table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, min_width=len(title) + 2)
    table.add_column("settings")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def spread(values: list[float]) -> str:
    """Mean and standard deviation of percentages.

    Example:
        >>> spread([60.0, 62.0])
        '61.00 ± 1.41'
    """
    if not values:
        return "failed"
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def caveats(spec: StudySpec, finals: dict[str, Any], num_complete: int) -> list[str]:
    """What the result does and does not show, in sentences."""
    lines = []
    if spec.objective == "oracle_test":
        lines.append(LEAKS)
    several = len(spec.names) > 1
    if finals["same"]:
        lines.append("no searched settings beat the released ones: they are the best found")
    elif finals["seeds"]:
        for dataset, sides in finals["datasets"].items():
            what = f"paired seeds, {dataset}" if several else "paired seeds"
            lines.append(_difference(sides["difference"], sides["shown"], what))
        if several:
            lines.append(_difference(finals["difference"], finals["shown"], "data sets"))
    lines.append(
        f"the search's best figure is the highest of {num_complete}, so it flatters: judge by the test images"
    )
    both = sorted({*spec.seeds} & {*spec.final_seeds})
    if both:
        seeds = ", ".join(map(str, both))
        lines.append(
            f"final seeds {seeds} are also the search's: settings were chosen on their training images"
        )
    if len(finals["tested"]) > 2:
        numbers = ", ".join(map(str, finals["tested"]))
        lines.append(
            f"settings of trials {numbers} have been tested: later choices may have been made knowing that"
        )
    if spec.config.backbone.name == "mini":
        lines.append("figures of the embedded backbone compare with each other only, not with published ones")
    for dataset, sides in finals["datasets"].items():
        if sides["published"] is not None:
            published = f"{sides['published']:.2f}"
            lines.append(f"published H of {spec.config.method} on {dataset}: {published} (cited)")
    return lines


def _difference(interval: dict[str, Any] | None, shown: bool, what: str) -> str:
    """One comparison, with what it shows.

    Example:
        >>> _difference({"mean": 1.0, "low": -0.5, "high": 2.5, "n": 3}, False, "paired seeds")[:57]
        'best - released in H: +1.00, 95 % interval -0.50 to +2.50'
    """
    if interval is None:
        if what == "data sets":
            return "no interval over data sets: at least two need one of their own"
        return "no interval: the final comparison needs at least two seeds that both settings finished"
    verdict = "no difference shown: the interval holds 0"
    if shown:
        worse = "the released settings are shown to be better"
        verdict = "a difference is shown" if interval["mean"] > 0 else worse
    return (
        f"best - released in H: {interval['mean']:+.2f}, 95 % interval {interval['low']:+.2f} to "
        f"{interval['high']:+.2f} over {interval['n']} {what}; {verdict}"
    )
