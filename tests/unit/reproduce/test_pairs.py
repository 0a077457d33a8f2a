"""A grid's methods in pairs: which figures meet, and what is written of them."""

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from prometar.comparison.paired import Comparison
from prometar.comparison.render import print_comparison
from prometar.errors import UserError
from prometar.metrics import harmonic_mean
from prometar.reproduce.figures import build_table, pair_methods
from prometar.reproduce.grid import Asked, Entry
from prometar.reproduce.render import write_tables
from tests.support.reproductions import ask, fill

METHODS = ("zero-shot", "coop", "prometar")
GAIN = {"zero-shot": -5.0, "coop": 0.0, "prometar": 4.0}


def value(entry: Entry, name: str) -> float:
    """A hard data set takes 20 points from all, and the second seed gives all of them one."""
    config = entry.config
    return 60.0 + GAIN[config.method] - 20 * ("dtd" in (config.data.name, name)) + (config.train.seed == 2)


def pairs_of(asked: Asked) -> Comparison:
    return pair_methods(asked, fill(asked, value), title="the title")


def write(asked: Asked, folder: Path) -> list[Path]:
    """The files of pairs among those that are written."""
    table = build_table(asked, fill(asked, value))
    paths = write_tables(table, pairs_of(asked), folder / "base-to-new")
    return [path for path in paths if path.stem == "pairs"]


def printed(found: Comparison, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False, soft_wrap=True, markup=False)
    print_comparison(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_methods_are_paired_by_data_set_and_seed() -> None:
    found = pairs_of(ask("base-to-new", METHODS, seeds=(1, 2), datasets=("dtd", "eurosat")))
    assert (found.reference, [c.name for c in found.columns]) == ("prometar", ["base", "new", "H"])
    base, _, h = found.columns
    assert base.differences["coop"].by_dataset == {"dtd": (-4.0, -4.0), "eurosat": (-4.0, -4.0)}
    by_seed = [harmonic_mean({"base": b, "new": b}) for b in (40.0, 41.0)]
    assert h.differences["coop"].by_dataset["dtd"] == pytest.approx(
        [ours - theirs for ours, theirs in zip(by_seed, (44.0, 45.0), strict=True)]
    )
    assert base.differences["zero-shot"].by_dataset["dtd"] == (-9.0, -10.0), "one run, for every seed"
    assert base.differences["coop"].wins_ties_losses == (0, 0, 2)
    assert base.ranks == {"zero-shot": 3.0, "coop": 2.0, "prometar": 1.0}
    assert not found.remarks


def test_the_source_is_no_part_of_it_and_shots_are_columns() -> None:
    found = pairs_of(ask("cross-dataset", METHODS, seeds=(1,), datasets=("dtd", "eurosat")))
    (column,) = found.columns
    assert list(column.differences["coop"].by_dataset) == ["dtd", "eurosat"]
    found = pairs_of(ask("few-shot", METHODS, seeds=(1, 2), datasets=("dtd",), shots=(1, 4)))
    assert [c.name for c in found.columns] == ["1 shot", "4 shots"]
    assert found.columns[1].differences["zero-shot"].singles == (-9.0, -10.0)
    assert "95 % t-interval over seeds where there is one data set" in printed(found)
    assert "p: none, the signed-rank test is over data sets" in printed(found)


def test_who_the_reference_is() -> None:
    assert pairs_of(ask("base-to-new", ("zero-shot", "coop"), datasets=("dtd",))).reference == "zero-shot"
    asked = ask("base-to-new", METHODS, datasets=("dtd",))
    chosen = Asked(**{**vars(asked), "compared_to": "coop"})
    assert pairs_of(chosen).columns[0].differences.keys() == {"zero-shot", "prometar"}
    with pytest.raises(UserError, match="--compare-to ivlp is none of --methods: zero-shot, coop, prometar"):
        Asked(**{**vars(asked), "compared_to": "ivlp"})


def test_what_has_failed_is_said() -> None:
    asked = ask("base-to-new", METHODS, seeds=(1, 2), datasets=("dtd", "eurosat"))
    records = [r for r in fill(asked, value) if r.entry.name != "final-dtd-16shots-coop-seed2"]
    found = pair_methods(asked, records)
    assert found.columns[0].differences["coop"].by_dataset == {"dtd": (-4.0,), "eurosat": (-4.0, -4.0)}
    assert "- not paired, for want of runs of coop: dtd seed 2" in printed(found).splitlines()


def test_the_terminal_shows_every_figure_whole() -> None:
    found = pairs_of(ask("base-to-new", METHODS, seeds=(1, 2), datasets=("dtd", "eurosat")))
    for width in (80, 200):
        text = printed(found, width)
        assert "…" not in text
        lines = [line.split() for line in text.splitlines()]
        coop = ["coop", "-4.00", "[-4.00,", "-4.00]", "2", "data", "sets", "0.500", "1.000", "0–0–2", "2.00"]
        assert lines.count(coop) == 3
        assert ["prometar", "reference", "1.00"] in lines
        assert "p cannot be below 0.5 with 2 data sets whose difference is not 0" in text
    long = Comparison(found.title, "prometar", found.methods, found.columns, ())
    assert max(map(len, printed(long, 80).split("\n- ")[0].splitlines())) <= 80


class Page(HTMLParser):
    """A page's tags and what it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [str(v) for key, v in attrs if key in {"src", "href", "xlink:href"}]


def test_files_are_written(tmp_path: Path) -> None:
    table, html = write(ask("base-to-new", METHODS, seeds=(1, 2), datasets=("dtd", "eurosat")), tmp_path)
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert len(rows) == 3 * (1 + 2 * (1 + 2)), "columns x (reference + others x (all + each data set))"
    (row,) = [r for r in rows if (r["column"], r["method"], r["dataset"]) == ("base", "coop", "")]
    assert row == {
        "column": "base", "method": "coop", "reference": "prometar", "dataset": "", "over": "data sets",
        "n": "2", "difference": "-4.0000", "low": "-4.0000", "high": "-4.0000", "wins": "0", "ties": "0",
        "losses": "2", "p": "0.500000", "p_holm": "1.000000", "average_rank": "2.0000",
        "ranked_datasets": "2",
    }  # fmt: skip
    (row,) = [r for r in rows if (r["column"], r["method"], r["dataset"]) == ("base", "zero-shot", "dtd")]
    assert (row["over"], row["n"], row["difference"], row["p"]) == ("seeds", "2", "-9.5000", "")
    page = Page(text := html.read_text())
    assert page.tags.count("svg") == 3, "a plot of ranks a column"
    assert "script" not in page.tags
    assert not page.loads, "it is self-contained"
    assert len(re.findall("<circle", text)) == 9
    assert '<td class="n">-4.00 [-4.00, -4.00]</td>' in text


def test_pairs_of_an_earlier_request_go_where_nothing_is_paired(tmp_path: Path) -> None:
    assert len(write(ask("base-to-new", METHODS, seeds=(1, 2), datasets=("dtd", "eurosat")), tmp_path)) == 2
    assert write(ask("base-to-new", ("coop",), seeds=(1,), datasets=("dtd",)), tmp_path) == []
    assert not list(tmp_path.glob("*/pairs.*"))
