"""Paired comparison of a grid's methods."""

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from prometar.comparison.paired import Comparison, Difference
from prometar.comparison.render import print_comparison
from prometar.metrics import harmonic_mean
from prometar.reproduce.figures import build_table, pair_methods
from prometar.reproduce.grid import Grid, GridRun
from prometar.reproduce.render import write_tables
from tests.support.reproductions import ask, fill

METHODS = ("zero-shot", "coop", "prometar")
GAIN = {"zero-shot": -5.0, "coop": 0.0, "prometar": 4.0}


def value(run: GridRun, name: str) -> float:
    """DTD takes 20 points from all methods, and the second seed gives all of them one."""
    config = run.config
    return 60.0 + GAIN[config.method] - 20 * ("dtd" in (config.data.name, name)) + (config.train.seed == 2)


def pairs_of(grid: Grid) -> Comparison:
    return pair_methods(grid, fill(grid, value))


def by_column(comparison: Comparison, method: str) -> dict[str, Difference]:
    return {each.column: each for each in comparison.differences if each.method == method}


def test_methods_are_paired_by_dataset_and_seed() -> None:
    found = pairs_of(ask("base-to-new", METHODS, seeds=(1, 2), datasets=("dtd", "eurosat")))
    coop, zero_shot = by_column(found, "coop"), by_column(found, "zero-shot")
    assert (found.reference, list(coop), found.notes) == ("prometar", ["base", "new", "H"], ())
    assert coop["base"].by_dataset == {"dtd": (-4.0, -4.0), "eurosat": (-4.0, -4.0)}
    by_seed = [harmonic_mean({"base": b, "new": b}) for b in (40.0, 41.0)]
    assert coop["H"].by_dataset["dtd"] == pytest.approx(
        [ours - theirs for ours, theirs in zip(by_seed, (44.0, 45.0), strict=True)]
    )
    assert zero_shot["base"].by_dataset["dtd"] == (-9.0, -10.0), "one run, for every seed"


def test_the_source_is_left_out_and_shots_are_columns() -> None:
    found = pairs_of(ask("cross-dataset", METHODS, seeds=(1,), datasets=("dtd", "eurosat")))
    assert list(by_column(found, "coop")["accuracy"].by_dataset) == ["dtd", "eurosat"]
    found = pairs_of(ask("few-shot", METHODS, seeds=(1, 2), datasets=("dtd",), shots=(1, 4)))
    assert list(by_column(found, "coop")) == ["1 shot", "4 shots"]
    assert by_column(found, "zero-shot")["4 shots"].values == (-9.0, -10.0)


def test_the_reference_is_chosen() -> None:
    assert pairs_of(ask("base-to-new", ("zero-shot", "coop"), datasets=("dtd",))).reference == "zero-shot"
    assert pairs_of(ask("base-to-new", METHODS, compared_to="coop")).reference == "coop"


@pytest.mark.parametrize("width", [80, 200])
def test_the_terminal_shows_every_figure(width: int) -> None:
    found = pairs_of(ask("base-to-new", METHODS, seeds=(1, 2), datasets=("dtd", "eurosat")))
    console = Console(file=io.StringIO(), width=width, highlight=False, soft_wrap=True, markup=False)
    print_comparison(found, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    row = "base coop -4.00 [-4.00, -4.00] 2 datasets 0.500 1.000 0–0–2"
    assert row.split() in [line.split() for line in text.splitlines()]
    assert max(map(len, text.split("\n- ")[0].splitlines())) <= 80


def test_files_are_written(tmp_path: Path) -> None:
    grid = ask("base-to-new", METHODS, seeds=(1, 2), datasets=("dtd", "eurosat"))
    table = build_table(grid, fill(grid, value), uncited={})
    paths = write_tables(table, pairs_of(grid), tmp_path)
    assert [path.name for path in paths] == ["table.csv", "table.md", "pairs.csv"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "pairs.csv").read_text())))
    assert len(rows) == 3 * 2 * (1 + 2), "columns x methods x (all + each dataset)"
