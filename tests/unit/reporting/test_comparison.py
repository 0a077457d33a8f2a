"""Two studies side by side."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from prometar.cli.app import main
from prometar.errors import UserError
from tests.support.report_study import (
    IMAGE,
    RELEASED,
    SCRIPT,
    compared,
    description,
    finals,
    last_round,
    rich_study,
    trial,
    write,
)
from tests.unit.reporting.test_html import UP, Text, runs
from tune.reporting.comparison import build_comparison, compare, print_comparison
from tune.reporting.plots import style

TRIALS = [trial(0), trial(1, objective=90.0, settings={**RELEASED, "optim.lr": 0.0123})]


@pytest.fixture(autouse=True)
def _no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without plotly.js's own five megabytes."""
    monkeypatch.setattr(style, "library", lambda: "/* plotly */")


def study(folder: Path, best: dict[str, list[dict[str, Any]]] | None, **asked: Any) -> Path:
    """A study whose best settings had these final runs by data set."""
    entries = {name: compared(found, found) for name, found in (best or {}).items()}
    tested = finals(TRIALS[1], entries) if best is not None else None
    datasets = list(best) if best else ["dtd"]
    return write(folder, description(datasets=datasets, **asked), TRIALS, finals=tested)


def test_best_minus_best_is_paired_by_seed(tmp_path: Path) -> None:
    a = study(tmp_path / "a", {"dtd": runs(73.0, 70.0, 75.0)})
    b = study(tmp_path / "b", {"dtd": list(reversed(runs(71.0, 69.0, 72.0)))})
    found = compare(a, b)
    (pair,) = found.pairs
    assert sorted(pair.singles) == [1.0, 2.0, 3.0]
    assert found.overall == pair.difference
    assert found.overall is not None
    assert found.overall.mean == pytest.approx(2.0)
    assert found.overall.low == pytest.approx(-0.484, abs=1e-3)
    assert found.verdict.startswith("No difference shown: best of a − best of b, H on test images, +2.00")
    back = compare(b, a).overall
    assert back is not None
    assert back.mean == pytest.approx(-2.0)


def test_a_difference_that_is_shown_names_the_better(tmp_path: Path) -> None:
    a = study(tmp_path / "a", {"dtd": runs(73.0, 72.0, 75.0)})
    b = study(tmp_path / "b", {"dtd": runs(71.0, 69.9, 73.1)})
    assert compare(a, b).verdict.startswith("The best of a is better: ")
    assert compare(b, a).verdict.startswith("The best of a is better: best of b − best of a")


def test_equal_runs_are_said_to_be_equal(tmp_path: Path) -> None:
    a, b = (study(tmp_path / name, {"dtd": runs(73.0, 72.0, 75.0)}) for name in "ab")
    assert compare(a, b).verdict == "The best of a and the best of b are equal in every paired run."


def test_a_search_that_read_the_test_images_is_named(tmp_path: Path) -> None:
    a = study(tmp_path / "a", {"dtd": runs(73, 72, 75)}, objective="oracle_test")
    found = compare(a, study(tmp_path / "b", {"dtd": runs(71, 72, 73)}))
    assert found.verdict.startswith("Leaking: the search of a read the test images. ")


def test_over_data_sets_the_interval_is_of_their_means(tmp_path: Path) -> None:
    a = study(tmp_path / "a", {"dtd": runs(73, 74), "eurosat": runs(80, 81), "pets": runs(90, 91)})
    b = study(tmp_path / "b", {"eurosat": runs(79, 80), "dtd": runs(71, 72), "cars": runs(60, 61)})
    found = compare(a, b)
    assert [(pair.dataset, pair.singles) for pair in found.pairs] == [("dtd", (2, 2)), ("eurosat", (1, 1))]
    assert found.overall is not None
    assert (found.overall.mean, found.overall.n) == (1.5, 2)
    assert "n = 2 data sets" in found.verdict


def test_one_data_set_of_two_has_an_interval(tmp_path: Path) -> None:
    a = study(tmp_path / "a", {"dtd": runs(73, 74), "pets": runs(90, None)})
    b = study(tmp_path / "b", {"dtd": runs(71, 71), "pets": runs(90, 91)})
    found = compare(a, b)
    assert [pair.reason for pair in found.pairs] == ["", "fewer than two seeds were finished by both"]
    assert "only one data set has an interval: dtd +2.50" in found.verdict


SHIFTED = [{**run, "seed": run["seed"] + 10} for run in runs(71, 72, 73)]


@pytest.mark.parametrize(
    ("name", "split", "root", "reason"),
    [
        ("dtd", "other", "/A", "their splits of dtd differ"),
        ("dtd", None, "/B", ""),
        ("folder", "this", "/B", "their folder lies in /A and /B"),
    ],
)
def test_one_name_for_other_images_is_not_paired(
    tmp_path: Path, name: str, split: str | None, root: str, reason: str
) -> None:
    folders = [study(tmp_path / k, {name: runs(73, 72, 75)}) for k in ("a", "b")]
    for folder, its_split, its_root in zip(folders, ("this", split), ("/A", root), strict=True):
        tree = yaml.safe_load((folder / "study.yaml").read_text())
        tree["identity"] = {f"split of {name}": its_split}
        tree["config"].setdefault("data", {})["root"] = its_root
        (folder / "study.yaml").write_text(yaml.safe_dump(tree))
    found = compare(*folders)
    assert (found.overall is None) == bool(reason)
    assert not reason or found.verdict == f"The two can't be compared on test images: {reason}."


@pytest.mark.parametrize(
    ("best", "asked", "reason"),
    [
        (None, {}, "b has no final test"),
        ({"pets": runs(71, 72)}, {}, "one was tested on dtd, the other on pets"),
        ({"dtd": SHIFTED}, {}, "their final seeds differ: 1, 2 and 3, and 11, 12 and 13"),
        ({"dtd": runs(71, None, None)}, {}, "fewer than two seeds were finished by both"),
        ({"dtd": runs(71, 72, 73)}, {"shots": 4}, "their shots differ, so a seed is not the same"),
    ],
)
def test_what_cannot_be_compared_says_why(
    tmp_path: Path, best: dict | None, asked: dict[str, Any], reason: str
) -> None:
    found = compare(study(tmp_path / "a", {"dtd": runs(73, 72, 75)}), study(tmp_path / "b", best, **asked))
    assert found.overall is None
    assert found.verdict.startswith(f"The two can't be compared on test images: {reason}")


def test_says_what_was_asked_differently(tmp_path: Path) -> None:
    a = study(tmp_path / "a", None)
    b = study(tmp_path / "b", None, sampler="random", seeds=[0], goals=["base", "new"])
    found = compare(a, b)
    differing = {line.name: (line.a, line.b) for line in found.asked if line.differs}
    assert differing == {
        "seeds": ("0, 1", "0"), "goals": ("objective", "base, new"), "sampler": ("tpe", "random"),
    }  # fmt: skip
    assert found.search_differs == ["seeds"]
    assert "no final test" in found.reason
    assert compare(a, study(tmp_path / "c", None)).search_differs == []


def test_other_ranges_and_released_settings_are_differences(tmp_path: Path) -> None:
    a = study(tmp_path / "a", None)
    other = description(ranges={"optim.lr": {"type": "float", "low": 0.1, "high": 1.0, "log": True}})
    other["config"]["train"] = {"epochs": 9}
    found = compare(a, write(tmp_path / "b", other, TRIALS))
    differing = {line.name: (line.a, line.b) for line in found.asked if line.differs}
    assert differing["range of optim.lr"] == ("0.0001 … 0.1, log", "0.1 … 1, log")
    assert differing["range of inner.order"] == ("second | first", "–")
    assert differing["released train.epochs"] == ("–", "9")


def test_the_page_holds_all_parts(tmp_path: Path) -> None:
    a, b = study(tmp_path / "a", {"dtd": runs(73, 74)}), study(tmp_path / "b", {"dtd": runs(71, 71)}, seed=8)
    again = last_round(TRIALS) | {"chosen": 1}
    (b / "lastround.json").write_text(
        (write(tmp_path / "x", description(), TRIALS, lastround=again) / "lastround.json").read_text()
    )
    build_comparison(a, b, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    text = " ".join(Text(html).words.split())
    for part in (
        "a and b", "No difference shown", "dtd 73.50 ± 0.71 71.00 ± 0.00 +2.50", "seed 7 8",
        "optim.lr 0.0123 0.0123", "released, fresh seeds –", "CPU hours", "Two studies side by side",
    ):  # fmt: skip
        assert part in text, part
    assert 'id="plot-forest"' in html


def test_hostile_names_are_text_in_both_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = rich_study(tmp_path / "a", hostile=True), rich_study(tmp_path / "b", hostile=True, seed=8)
    found = build_comparison(a, b, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert SCRIPT not in html
    assert "<img" not in html
    assert IMAGE in Text(html).words
    print_comparison(Console(width=200), found)
    assert SCRIPT in capsys.readouterr().out


def test_markup_in_names_is_text_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (
        study(tmp_path / "a", {"[red]x[/]": runs(73, 74)}),
        study(tmp_path / "b", {"[red]x[/]": runs(70, 70)}),
    )
    print_comparison(Console(width=200), compare(a, b))
    assert "[red]x[/]" in capsys.readouterr().out


def test_studies_of_one_name_are_told_apart(tmp_path: Path) -> None:
    found = compare(study(tmp_path / "one" / "dtd", None), study(tmp_path / "two" / "dtd", None))
    assert found.names == ("one/dtd", "two/dtd")
    assert found.reason == "one/dtd and two/dtd have no final test"


def test_a_study_is_not_compared_with_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="both are"):
        compare(study(tmp_path / "a", None), tmp_path / "b" / ".." / "a")


def test_the_command_writes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = study(tmp_path / "a", {"dtd": runs(73, 74)}), study(tmp_path / "b", {"dtd": runs(71, 71)})
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "No difference shown" in out
    assert "written: compare.html" in out
    assert "Two studies" in (tmp_path / "compare.html").read_text()
    assert main(["report", "--compare", str(a), str(b), "--to", "other.html"]) == 0
    assert (tmp_path / "other.html").exists()


@pytest.mark.parametrize(
    "file",
    ["best.yaml", "finals.json", "study.yaml", "study.db", "report.html", "trials/0000/record.json", "link"],
)
def test_a_comparison_replaces_comparisons_alone(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else one wrong word on the command line costs a study's results."""
    a, b = study(tmp_path / "a", {"dtd": runs(73, 74)}), study(tmp_path / "b", {"dtd": runs(71, 71)})
    assert main(["report", str(a)]) == 0
    for name in ("best.yaml", "study.db"):
        (a / name).write_text("kept")
    (a / "link").symlink_to("best.yaml")
    command, kept = ["report", "--compare", str(a), str(b), "--to"], (a / file).read_bytes()
    capsys.readouterr()
    assert main([*command, str(a / file)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"--to {a / file} is there already, and no page of `prometar report --compare`" in line
    assert (a / file).read_bytes() == kept
    for _ in range(2):  # an earlier comparison is replaced
        assert main([*command, str(tmp_path / "compare.html")]) == 0


def test_the_command_still_rebuilds_one_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = study(tmp_path / "a", None)
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").exists()
    assert f"written: {folder / 'report.html'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "report takes a study's folder, or --compare with two of them"),
        (["A", "--compare", "A", "B"], "report takes a study's folder, or --compare with two of them"),
        (["A", "--to", "x.html"], "--to belongs to --compare"),
        (["--compare", "A", "nothing"], "nothing holds no study"),
        (["--compare", "A", "A"], "--compare takes two studies, and both are A"),
        (["--compare", "A"], "requires 2 arguments"),
        (["--compare", "A", "B", "--to", "A"], "--to A is a folder"),
    ],
)
def test_wrong_usage_is_one_line(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    study(tmp_path / "A", None)
    study(tmp_path / "B", None)
    monkeypatch.chdir(tmp_path)
    assert main(["report", *args]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_test_of_an_earlier_choice_is_not_compared(tmp_path: Path) -> None:
    a, b = (study(tmp_path / name, {"dtd": runs(73, 74)}) for name in "ab")
    write(b, description(), [*TRIALS, trial(2, objective=95.0)], finals=finals(TRIALS[1], {"dtd": UP}))
    assert compare(a, b).verdict.startswith("The two can't be compared on test images: the final test of ")
    assert "is of an earlier choice" in compare(a, b).verdict
