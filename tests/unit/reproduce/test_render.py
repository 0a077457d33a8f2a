"""Tables as text: nothing is cut off, and no name breaks them."""

import csv
import io
import re
from random import Random

import pytest
from rich.console import Console

from prometar.comparison.render import as_csv as pairs_as_csv
from prometar.comparison.render import print_comparison
from prometar.metrics import t_interval
from tests.support.reproductions import fill, make_grid
from tune.reproduce.grid import PROTOCOLS, Grid
from tune.reproduce.render import as_csv, as_markdown, print_table
from tune.reproduce.results import AccuracySummary, Row, build_table, collect, compare_methods

METHODS = ("zero-shot", "coop", "promptsrc", "prometar-maple")
HOSTILE = "a|b & 100% #1_{x} <script>[c](d)*e*`f`"


def console(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False, soft_wrap=True, markup=False)


def printed(grid: Grid, rows: list[Row], notes: list[str], width: int = 120) -> str:
    terminal = console(width)
    print_table(grid, rows, notes, terminal)
    return terminal.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_every_accuracy_is_shown_and_written(protocol: str) -> None:
    grid = make_grid(protocol, METHODS, seeds=(1, 2), shots=PROTOCOLS[protocol].shots[::4])
    results = collect(grid, fill(grid, lambda config, name: Random(f"{config}{name}").uniform(69, 71)))
    rows, notes = build_table(grid, results, incomparable={})
    text = printed(grid, rows, notes)
    page = as_markdown(grid, rows, notes).replace("\\", "")
    assert "…" not in text
    summaries = [summary for _, _, found in rows for summary in found.values()]
    for pattern, count in (
        (r"\d\d\.\d\d ± \d\.\d\d", sum(f.sd is not None for f in summaries)),
        (r"\[\d\d\.\d\d, \d\d\.\d\d\]", sum(f.interval is not None for f in summaries)),
        (r"\d\d\.\d\d \([+-]\d+\.\d\d\)", sum(f.published is not None for f in summaries)),
    ):
        assert len(re.findall(pattern, text)) == len(re.findall(pattern, page)) == count, pattern
    narrow = printed(grid, rows, notes, 80)
    for name in (*grid.columns, *METHODS, *grid.all_datasets):
        assert (name in text, name in narrow) == (True, True), name
    lines = list(csv.DictReader(io.StringIO(as_csv(grid, rows))))
    assert len(lines) == len(summaries)
    for each in lines:
        if each["published"]:
            difference = float(each["mean"]) - float(each["published"])
            assert float(each["difference"]) == pytest.approx(difference, abs=1e-3)
    pairs, _ = compare_methods(grid, results)
    lines = list(csv.DictReader(io.StringIO(pairs_as_csv(pairs))))
    assert len(lines) == len(grid.columns) * 3 * (1 + len(grid.datasets)), "all, and each dataset"


def test_a_comparison_fits_a_terminal() -> None:
    grid = make_grid("base-to-new", ("coop", "prometar"), seeds=(1, 2), datasets=("dtd", "eurosat"))
    runs = fill(grid, lambda config, _: 50.0 + 4 * (config.method == "coop"))
    found, notes = compare_methods(grid, collect(grid, runs))
    terminal = console(80)
    print_comparison(found, notes, terminal)
    text = terminal.file.getvalue()  # type: ignore[attr-defined]
    row = "base coop +4.00 [+4.00, +4.00] 2 datasets 0.500 0.500"
    assert row.split() in [line.split() for line in text.splitlines()]
    assert max(map(len, text.split("\n- ")[0].splitlines())) <= 80


def test_no_name_breaks_a_table() -> None:
    summary = AccuracySummary(2, 50.0, 1.0, t_interval([49.0, 51.0]))
    grid = make_grid("cross-dataset")
    rows: list[Row] = [(HOSTILE, "coop", {"accuracy": summary}), ("dtd", HOSTILE, {})]
    notes = [f"left out: class {HOSTILE}\n[red]x"]
    text = as_markdown(grid, rows, notes)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}
    for raw in ("<script>", "[c]", "*e*", "`f`"):
        assert re.search(rf"(?<!\\){re.escape(raw)}", text) is None, raw
    assert "[red]x" in printed(grid, rows, notes)
