"""Tables as text: nothing is cut off, and no name breaks them."""

import csv
import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from prometar.reproduce.figures import Figure, Row, Table, build_table, pair_methods
from prometar.reproduce.protocols import PROTOCOLS
from prometar.reproduce.render import as_csv, as_latex, as_markdown, print_table, write_tables
from tests.support.reproductions import ask, fill

METHODS = ("zero-shot", "coop", "promptsrc", "prometar-maple")
HOSTILE = "a|b & 100% #1_{x} \\end{tabular} $y$ ~^ <script>[c](d)*e*`f`"


def table_of(protocol: str, *, notes: tuple[str, ...] = ()) -> Table:
    asked = ask(protocol, METHODS)
    return build_table(asked, fill(asked, lambda e, name: 50.0 + 7 * e.config.train.seed), notes=notes)


def printed(table: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, soft_wrap=True, markup=False)
    print_table(table, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [40, 80, 120, 250])
@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_every_figure_is_printed_whole(protocol: str, width: int) -> None:
    table = table_of(protocol)
    text = printed(table, width)
    assert "…" not in text
    figures = [f for r in table.rows for f in r.figures.values()]
    for pattern, count in (
        (r"\d\d\.\d\d ± \d\.\d\d", sum(f.sd is not None for f in figures)),
        (r"\[\d\d\.\d\d, \d\d\.\d\d\]", sum(f.low is not None for f in figures)),
        (r"\d\d\.\d\d \([+-]\d+\.\d\d\)", sum(f.published is not None for f in figures)),
    ):
        assert len(re.findall(pattern, text)) == count, pattern
    body = text.split("\n- ")[0].splitlines()[1:]
    assert max(map(len, body)) <= max(width, 40)
    for name in (*table.columns, *METHODS, *(r.dataset for r in table.rows)):
        assert name in text


def test_csv_holds_every_figure() -> None:
    table = table_of("base-to-new")
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert len(rows) == len(table.rows) * len(table.columns)
    (found,) = [r for r in rows if (r["dataset"], r["method"], r["column"]) == ("dtd", "coop", "base")]
    assert (found["n"], found["mean"], found["sd"]) == ("3", "64.0000", "7.0000")
    assert float(found["difference"]) == pytest.approx(64 - float(found["published"]), abs=1e-4)
    (empty,) = [r for r in rows if (r["dataset"], r["method"], r["column"]) == ("dtd", "prometar-maple", "H")]
    assert empty["published"] == ""


def hostile() -> Table:
    rows = (Row(HOSTILE, "coop", {"accuracy": Figure(2, 50.0, 1.0, 49.0, 51.0)}), Row("dtd", HOSTILE, {}))
    return Table("few-shot", HOSTILE, ("accuracy",), rows, (f"left out: class {HOSTILE}\n\\input{{x}}",))


def test_markdown_keeps_its_cells() -> None:
    text = as_markdown(hostile())
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5}
    for raw in ("<script>", "[c]", "*e*", "`f`", "\n\\input"):
        assert re.search(rf"(?<!\\){re.escape(raw)}", text) is None, raw


def test_latex_keeps_its_cells() -> None:
    text = as_latex(hostile())
    code = [line for line in text.splitlines() if not line.startswith("%")]
    assert code.count("\\end{tabular}") == 1
    assert "\\input" not in "".join(code)
    cells = [line for line in code if line.endswith("\\\\")]
    assert len(cells) == 3
    assert {len(re.findall(r"(?<!\\)&", line)) for line in cells} == {3}
    for raw in ("%", "#", "$y", "_", "~", "^"):
        assert not any(re.search(rf"(?<!\\){re.escape(raw)}", line) for line in cells), raw


def test_files_are_written(tmp_path: Path) -> None:
    asked = ask("few-shot", METHODS)
    pairs = pair_methods(asked, fill(asked, lambda e, name: 50.0))
    paths = write_tables(table_of("few-shot"), pairs, tmp_path / "few-shot")
    assert [p.name for p in paths] == ["table.csv", "table.md", "table.tex", "pairs.csv"]
    assert all(path.stat().st_size for path in paths)


def test_a_terminal_shows_names_and_does_not_obey_them() -> None:
    text = printed(Table("few-shot", "t", ("accuracy",), (), ("class [red]x[/red] {y}",)), 80)
    assert "class [red]x[/red] {y}" in text
