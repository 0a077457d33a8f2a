"""What a study says in the terminal at its end."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from tune.folder import StudyFolder, num_ended
from tune.memory import REFERENCE, Memory
from tune.request import Request


def print_summary(
    console: Console,
    folder: StudyFolder,
    request: Request,
    memory: Memory,
    finals: dict[str, Any],
    report: Path,
) -> None:
    """Both comparisons, what they do not show, and where the files are."""
    ended = num_ended(memory)
    console.print(
        f"\nsearch: {ended['COMPLETE']} trials finished, {ended['PRUNED']} pruned, {ended['FAIL']} failed"
    )
    _search_table(console, request, memory)
    _final_table(console, finals)
    for line in caveats(request, finals, ended["COMPLETE"]):
        console.print(f"- {line}", markup=False)
    console.print(f"\nbest settings: {folder / 'best.yaml'} (prometar train --config FILE)\nreport: {report}")


def _search_table(console: Console, request: Request, memory: Memory) -> None:
    best = memory.best()
    released = next((t for t in memory.trials() if REFERENCE in t.user_attrs and t.value is not None), None)
    assert best is not None
    score = "H" if request.objective == "class_holdout" else "base"
    table = _table("on the search's own images (validation, base classes)", (score,))
    if released is not None and released.value is not None:
        table.add_row("released", f"{released.value:.2f}")
    table.add_row(f"best (trial {best.number})", f"{best.value:.2f}")
    console.print(table)


def _final_table(console: Console, finals: dict[str, Any]) -> None:
    if not finals["seeds"]:
        return
    seeds = ", ".join(map(str, finals["seeds"]))
    table = _table(f"on the test images, trained on all base classes, seeds {seeds}", ("base", "new", "H"))
    for name in ("released",) if finals["same"] else ("released", "best"):
        runs = [run for run in finals[name]["runs"] if "objective" in run]
        table.add_row(name, *(spread([run[key] for run in runs]) for key in ("base", "new", "objective")))
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


def caveats(request: Request, finals: dict[str, Any], num_complete: int) -> list[str]:
    """What the result does and does not show, in sentences."""
    lines = []
    difference = finals["difference"]
    if finals["same"]:
        lines.append("no searched settings beat the released ones: they are the best found")
    elif difference is None:
        lines.append("no interval: the final comparison needs at least two seeds that both settings finished")
    else:
        shown = (
            "a difference is shown"
            if difference["mean"] > 0
            else "the released settings are shown to be better"
        )
        verdict = shown if finals["shown"] else "no difference shown: the interval holds 0"
        lines.append(
            f"best - released in H: {difference['mean']:+.2f}, 95 % interval {difference['low']:+.2f} to "
            f"{difference['high']:+.2f} over {difference['n']} paired seeds; {verdict}"
        )
    lines.append(
        f"the search's best figure is the highest of {num_complete}, so it flatters: judge by the test images"
    )
    if request.config.train.seed in request.final_seeds:
        seed = request.config.train.seed
        lines.append(f"final seed {seed} is also the search's: settings were chosen on its training images")
    if request.config.backbone.name == "mini":
        lines.append("figures of the embedded backbone compare with each other only, not with published ones")
    if finals["published"] is not None:
        lines.append(
            f"published H of {request.config.method} on {request.config.data.name}: "
            f"{finals['published']:.2f} (cited)"
        )
    return lines
