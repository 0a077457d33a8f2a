"""Tables as text: nothing is cut off, and no name breaks them."""

import csv
import io
import re

import pytest
from rich.console import Console

from prometar.reproduce.figures import Figure, Row, Table, build_table
from prometar.reproduce.protocols import PROTOCOLS
from prometar.reproduce.render import as_csv, as_markdown, print_table
from tests.support.reproductions import ask, fill

METHODS = ("zero-shot", "coop", "promptsrc", "prometar-maple")
HOSTILE = "a|b & 100% #1_{x} <script>[c](d)*e*`f`"


def table_of(protocol: str) -> Table:
    grid = ask(protocol, METHODS)
    return build_table(grid, fill(grid, lambda run, name: 50.0 + 7 * run.config.train.seed), uncited={})


def printed(table: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, soft_wrap=True, markup=False)
    print_table(table, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_every_figure_is_printed_whole(protocol: str) -> None:
    table = table_of(protocol)
    text = printed(table, 120)
    assert "…" not in text
    figures = [f for r in table.rows for f in r.figures.values()]
    for pattern, count in (
        (r"\d\d\.\d\d ± \d\.\d\d", sum(f.sd is not None for f in figures)),
        (r"\[\d\d\.\d\d, \d\d\.\d\d\]", sum(f.low is not None for f in figures)),
        (r"\d\d\.\d\d \([+-]\d+\.\d\d\)", sum(f.published is not None for f in figures)),
    ):
        assert len(re.findall(pattern, text)) == count, pattern
    for name in (*table.columns, *METHODS, *(r.dataset for r in table.rows)):
        assert name in text


def test_csv_contains_every_figure() -> None:
    table = table_of("base-to-new")
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert len(rows) == len(table.rows) * len(table.columns)
    (found,) = [r for r in rows if (r["dataset"], r["method"], r["column"]) == ("dtd", "coop", "base")]
    assert (found["n"], found["mean"], found["sd"]) == ("3", "64.0000", "7.0000")
    assert float(found["difference"]) == pytest.approx(64 - float(found["published"]), abs=1e-4)


def test_no_name_breaks_a_table() -> None:
    rows = (Row(HOSTILE, "coop", {"accuracy": Figure(2, 50.0, 1.0, 49.0, 51.0)}), Row("dtd", HOSTILE, {}))
    table = Table("few-shot", HOSTILE, ("accuracy",), rows, (f"left out: class {HOSTILE}\n[red]x",))
    text = as_markdown(table)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}
    for raw in ("<script>", "[c]", "*e*", "`f`"):
        assert re.search(rf"(?<!\\){re.escape(raw)}", text) is None, raw
    assert "[red]x" in printed(table, 120)
