"""The report's page, from study folders made up here."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from prometar.errors import UserError
from tests.support.report_study import (
    IMAGE,
    RELEASED,
    SCRIPT,
    compared,
    description,
    finals,
    last_round,
    poor_study,
    rich_study,
    trial,
    write,
)
from tune.reporting.html import TOP, build_report
from tune.reporting.plots import style
from tune.reporting.tables import summary_tables
from tune.results.reader import read_records

FASTER = {**RELEASED, "optim.lr": 0.0123}


def runs(*figures: float | None) -> list[dict[str, Any]]:
    """Final runs with seeds from 1 on; None for one that failed."""
    return [
        {"dataset": "dtd", "seed": seed, "failed": "out of memory"}
        if figure is None
        else {
            "dataset": "dtd",
            "seed": seed,
            "base": figure + 5,
            "new": figure - 5,
            "objective": figure,
            "seconds": 60.0,
            "cpus": 2.0,
            "gpus": 0.5,
        }
        for seed, figure in enumerate(figures, start=1)
    ]


UP, EVEN = compared(runs(72, 73, 74), runs(70, 71, 72.1)), compared(runs(72, 70, 74), runs(70, 73, 72))
DOWN, NOTHING = compared(runs(62, 63, 64), runs(70, 71, 72.1)), compared(runs(72, None), runs(None, 70))
TIED = compared(runs(72, 70, 74), runs(72, 70, 74))
TRIALS = [
    trial(0, objective=65.0, base=69.0, new=61.0),
    trial(1, objective=70.0, base=74.0, new=66.0, settings=FASTER),
    trial(2, "PRUNED", objective=50.0),
    trial(3, "FAIL", reason="the loss is nan in epoch 1"),
]


@pytest.fixture
def _no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without plotly.js's own five megabytes."""
    monkeypatch.setattr(style, "library", lambda: "/* plotly */")


class Text(HTMLParser):
    """The visible words of a page, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words, self.tags, self._inside = "", [], ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in {"script", "style"}:
            self.words = f"{self.words} {' '.join(data.split())}".strip()


def page(folder: Path) -> str:
    return build_report(folder).read_text("utf-8")


def words(
    folder: Path, trials: list[dict[str, Any]] = TRIALS, tested: dict[str, Any] | None = None, **asked: Any
) -> str:
    again = asked.pop("again", None)
    html = page(write(folder, description(**asked), trials, finals=tested, lastround=again))
    return " ".join(Text(html).words.split())


def final_of(entry: dict[str, Any] = UP, **changes: Any) -> dict[str, Any]:
    return finals(TRIALS[1], {"dtd": entry}, **changes)


@pytest.mark.usefixtures("_no_library")
def test_says_what_was_asked_and_found(tmp_path: Path) -> None:
    found = words(tmp_path, tested=final_of(), max_hours=2.5)
    for part in (
        "The best settings found test better than the released ones: best − released +1.97 points of H, "
        "95 % interval +1.82 to +2.11, n = 3 paired seeds.",
        "Use trial 1's settings, in best.yaml.",
        "prometar on dtd with ViT-B-16-quickgelu",
        "at most 2.5 hours",
        "1 data set × 2 seeds",
        "top 3, seeds 1001, 1002",
        "4 trials: 2 finished, 1 pruned, 1 failed; 60 asked",
        "released settings (trial 0) 69.00 61.00 65.00",
        "best found (trial 1) 74.00 66.00 70.00",
        "released settings (trial 0) 76.03 ± 1.05 66.03 ± 1.05 71.03 ± 1.05 3 of 3",
        "best found (trial 1) 78.00 ± 1.00 68.00 ± 1.00 73.00 ± 1.00 3 of 3",
        "1 of 7 searched settings differ",
        "optim.lr 0.0025 0.0123 0.0001 … 0.1, log",
        "0.5 … 200, log; only where regularizer.kind is l1 or l2",
        "highest of 2, so it is biased upwards",
        "Too few finished trials to tell: 2, and it takes 8.",
        "the loss is nan in epoch 1",
        "final test 6 6 min 0 s 0.2 0.05",
        "python tune/search.py --dataset dtd --trials 60",
        "torch 2.9.0",
    ):
        assert part in found, part


@pytest.mark.usefixtures("_no_library")
@pytest.mark.parametrize(
    ("entry", "changes", "sentences"),
    [
        (UP, {}, ["test better than", "Use trial 1's settings", "best is better"]),
        (DOWN, {}, ["test worse than", "Keep the released settings.", "released is better"]),
        (
            EVEN,
            {},
            [
                "No difference shown:",
                "the interval holds 0",
                "are not shown to be better than the released ones",
            ],
        ),
        (TIED, {}, ["The best settings found and the released ones test equal in every pair."]),
        (NOTHING, {}, ["The final test shows nothing", "not shown to be better", "no interval"]),
        (UP, {"seeds": []}, ["no final test was asked for"]),
        (
            UP,
            {"same": True, "difference": None},
            ["Keep the released settings: no others beat them on the search's own images."],
        ),
    ],
)
def test_verdicts(
    tmp_path: Path, entry: dict[str, Any], changes: dict[str, Any], sentences: list[str]
) -> None:
    found = words(tmp_path, tested=final_of(entry, **changes))
    for sentence in sentences:
        assert sentence in found, sentence


@pytest.mark.usefixtures("_no_library")
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"objective": "base_val"}, "The search went by base accuracy, and the final test is of H."),
        ({}, "The search ended after 4 of the 60 trials that were asked for."),
    ],
)
def test_what_the_search_went_by_is_said(tmp_path: Path, asked: dict[str, Any], said: str) -> None:
    assert said in words(tmp_path, tested=final_of(), **asked)
    whole = write(tmp_path / "whole", description(trials=len(TRIALS)), TRIALS, finals=final_of())
    assert said not in page(whole)


@pytest.mark.usefixtures("_no_library")
def test_several_data_sets_are_judged_over_them_and_one_by_one(tmp_path: Path) -> None:
    entries = {"dtd": UP, "eurosat": DOWN, "ucf101": {**UP, "published": 79.3}, "pets": NOTHING}
    found = words(tmp_path, tested=finals(TRIALS[1], entries), datasets=list(entries))
    assert "No difference shown: best − released −1.37 points of H" in found
    assert "n = 3 data sets; the interval holds 0" in found
    assert (
        "Data sets one by one: best is better on 2, released is better on 1, no interval on 1 of 4." in found
    )
    assert "dtd 71.03 ± 1.05 73.00 ± 1.00 +1.97 (+1.82 to +2.11)" in found
    assert "released is better –" in found
    assert "best is better 79.30" in found
    assert "with so few it is rough" in found
    only = finals(TRIALS[1], {"dtd": UP, "pets": NOTHING})
    assert "fewer than two of them can be compared" in words(tmp_path / "only", tested=only)


@pytest.mark.usefixtures("_no_library")
def test_the_last_round_is_a_table(tmp_path: Path) -> None:
    again = last_round(TRIALS) | {"chosen": 0}
    ours, released = again["rows"]
    ours |= {
        "mean": 66.5,
        "runs": [
            {"dataset": "dtd", "seed": 1001, "objective": 66.5},
            {"dataset": "dtd", "seed": 1002, "failed": "killed"},
        ],
    }
    released |= {
        "mean": 67.0,
        "runs": [{"dataset": "dtd", "seed": s, "objective": 67.0} for s in (1001, 1002)],
    }
    found = words(tmp_path, again=again)
    assert "0 chosen released – 65.00 67.00 ± 0.00 2 of 2 +2.00" in found
    assert "1 optim.lr 0.0123 70.00 66.50 1 of 2 −3.50 failed: killed" in found
    assert "The released settings are the best found so far" in found
    assert "The highest mean is chosen." in found
    assert "Last round" not in words(tmp_path / "without")


@pytest.mark.usefixtures("_no_library")
def test_what_the_last_round_expects_stands_beside_what_it_measured(tmp_path: Path) -> None:
    again = last_round(TRIALS) | {"chosen": 1, "keep_unless": 0.8}
    ours, _ = again["rows"]
    ours |= {"expected": 1.25, "probability": 0.91}
    found = words(tmp_path, again=again)
    assert "expected gain P(better)" in found
    assert re.search(r"1 chosen optim\.lr 0\.0123 .* \+1\.25 0\.91", found)
    assert "if there is one with a probability of 0.8 or more" in found
    assert "The highest mean is chosen." not in found
    (table,) = (t for t in summary_tables(read_records(tmp_path)) if t.title.startswith("last round"))
    assert table.columns[-2:] == ("expected gain", "P(better)")
    assert ("+1.25", "0.91") in [row[-2:] for row in table.rows]
    search, *_ = summary_tables(read_records(tmp_path))
    assert search.rows == (("released", "65.00"), ("best (trial 1)", "70.00"))


@pytest.mark.usefixtures("_no_library")
def test_the_last_round_spreads_over_seeds_not_over_data_sets(tmp_path: Path) -> None:
    again = last_round(TRIALS)
    figures = {("dtd", 1001): 60.0, ("pets", 1001): 80.0, ("dtd", 1002): 62.0, ("pets", 1002): 82.0}
    runs = [{"dataset": name, "seed": seed, "objective": value} for (name, seed), value in figures.items()]
    again["rows"][0] |= {"mean": 71.0, "runs": [*runs, {"dataset": "dtd", "seed": 1003, "objective": 1.0}]}
    assert "71.00 ± 1.41 5 of 5" in words(tmp_path, again=again)


@pytest.mark.usefixtures("_no_library")
def test_released_settings_that_failed_at_first_are_those_that_finished_later(tmp_path: Path) -> None:
    failed = {**trial(0), "state": "FAIL", "objective": None, "reason": "the worker died", "epochs": []}
    later = [failed, *TRIALS[1:], {**TRIALS[0], "number": 9, "objective": 99.0}]
    found = words(tmp_path, later, finals(TRIALS[0], {"dtd": UP}))
    released = read_records(tmp_path).released
    assert released is not None
    assert (released.number, released.state) == (9, "COMPLETE")
    assert "final test is out of date" not in found


@pytest.mark.usefixtures("_no_library")
def test_released_settings_that_failed_are_missed(tmp_path: Path) -> None:
    failed = "The released settings have failed (trial 0): the search has no figure to set beside its best."
    first = {**trial(0), "state": "FAIL", "objective": None, "reason": "the worker died", "epochs": []}
    assert failed in words(tmp_path / "failed", [first, *TRIALS[1:]])
    assert failed not in words(tmp_path / "again", [first, *TRIALS[1:], {**TRIALS[0], "number": 9}])


def test_a_last_round_without_figures(tmp_path: Path) -> None:
    again = last_round(TRIALS)
    for row in again["rows"]:
        row |= {"mean": None, "runs": [{"dataset": "dtd", "seed": 1001, "failed": "killed"}]}
    assert "70.00 – 0 of 1 –" in words(tmp_path, again={**again, "chosen": None})


@pytest.mark.usefixtures("_no_library")
def test_rounds_that_a_longer_search_has_overtaken(tmp_path: Path) -> None:
    longer = [*TRIALS, *(trial(n, objective=70.0 + n) for n in (4, 5, 6, 7))]
    found = words(tmp_path, longer, final_of())
    assert "The final test is out of date: trial 1 led when it was run, trial 7 does now." in found
    found = words(tmp_path / "round", longer, final_of(), again=last_round(TRIALS) | {"chosen": 1})
    assert "The last round is out of date: trial 7 leads the search now" in found
    assert "final test is out of date" not in found
    assert "out of date" not in words(tmp_path / "fresh", tested=final_of())
    again = last_round(longer)  # in which others were expected to gain more than the best-scored
    again |= {"rows": [row for row in again["rows"] if row["number"] != 7], "chosen": 6}
    assert "out of date" not in words(tmp_path / "judged", longer, again=again)


@pytest.mark.usefixtures("_no_library")
def test_published_figures_only_where_given(tmp_path: Path) -> None:
    found = words(tmp_path, tested=final_of({**UP, "published": 72.31}))
    assert "published, cited – – 72.31" in found
    assert "Published figures are cited" in found
    assert "published, cited" not in words(tmp_path / "none", tested=final_of())


@pytest.mark.usefixtures("_no_library")
def test_seeds_that_served_twice_are_named(tmp_path: Path) -> None:
    assert "Final seed 1 also served the search" in words(tmp_path, tested=final_of())
    assert "also served" not in words(tmp_path / "other", tested=final_of(), seeds=[7])


@pytest.mark.usefixtures("_no_library")
def test_alignment_is_a_sentence_where_it_was_measured(tmp_path: Path) -> None:
    def measured(entry: list[dict[str, Any]], value: float) -> list[dict[str, Any]]:
        return [{**run, "alignment": value} for run in entry]

    both = compared(
        measured(UP["best"], 0.71),
        [*measured(UP["released"], 0.69), {"dataset": "dtd", "seed": 4, "failed": "x"}][:3],
    )
    found = words(tmp_path, tested=final_of(both))
    assert "the one that is left out: released +0.69, best +0.71. Above 0" in found
    same = words(tmp_path / "same", tested=final_of(both, same=True, difference=None))
    assert "the one that is left out: released +0.69. Above 0" in same
    assert "Gradient alignment" not in words(tmp_path / "none", tested=final_of())


@pytest.mark.usefixtures("_no_library")
@pytest.mark.parametrize("objective", ["oracle_test", "drift"])
def test_a_leaking_objective_is_stamped_wherever_its_figures_are(tmp_path: Path, objective: str) -> None:
    folder = rich_study(tmp_path, objective=objective)
    html = page(folder)
    leaking = objective == "oracle_test"
    text = " ".join(Text(html).words.split())
    assert ("Study two-sets leaking" in text) == leaking
    assert ("Leaking. The objective oracle_test reads the test images" in text) == leaking
    assert ("Leaking: the search read the test images." in text) == leaking
    assert ("Use none of this" in text) == leaking
    for title in ("Last round", "Final test, data set by data set", "Leaderboard", "Optimisation history"):
        assert (f"{title} leaking" in text) == leaking, title
    assert ("search (test images) leaking base new leaking H" in text) == leaking
    assert ("trial state leaking H" in text) == leaking
    assert ('"text":"leaking base classes (%)"' in html) == leaking
    assert ('"text":"leaking H (%)"' in html) == leaking


@pytest.mark.usefixtures("_no_library")
def test_two_goals_have_a_front(tmp_path: Path) -> None:
    html = page(rich_study(tmp_path))
    assert "Front of the two goals" in html
    assert 'id="plot-front"' in html
    assert 'id="plot-trade-off"' not in html, "the front shows base against new"
    html = page(rich_study(tmp_path, goals=["objective", "seconds"]))
    assert "seconds: the fewer the better" in html
    assert 'id="plot-trade-off"' in html
    assert "Front of the two goals" not in page(rich_study(tmp_path, goals=["objective"]))
    three = page(rich_study(tmp_path, goals=["base", "new", "seconds"]))
    assert "Front of the three goals" in three, "as a table: no picture shows three"
    assert 'id="plot-front"' not in three


@pytest.mark.usefixtures("_no_library")
def test_the_leaderboard_shows_the_best_and_folds_the_others(tmp_path: Path) -> None:
    many = [trial(n, objective=50.0 + n) for n in range(TOP + 5)]
    many[3]["notes"] = ["out of memory: batch halved"]
    html = page(write(tmp_path / "many", description(), many))
    text = " ".join(Text(html).words.split())
    assert f"The {TOP} leading trials are shown, 5 more are not: show all {TOP + 5}" in text
    shown, folded = re.split(r"<details><summary>The \d+ leading", html.split("<h2>Leaderboard")[1])
    rows = [int(number) for number in re.findall(r'<tr class="\w*"><td class="n">(\d+)</td>', shown)]
    assert rows == list(range(TOP + 4, 4, -1))
    assert "batch halved" not in shown
    assert "batch halved" in folded
    assert "leading trials are shown" not in words(tmp_path / "few")


@pytest.mark.usefixtures("_no_library")
def test_origins_and_data_sets_stand_on_the_leaderboard(tmp_path: Path) -> None:
    trials = [trial(n, datasets=["dtd", "eurosat"]) for n in range(3)]
    found = words(tmp_path, trials, datasets=["dtd", "eurosat"])
    assert "new H, dtd H, eurosat" in found
    for origin in ("released", "enqueued", "sampled"):
        assert re.search(rf"5 \d+ min \d+ s {origin}", found), origin


@pytest.mark.usefixtures("_no_library")
def test_a_data_sets_column_is_of_what_the_search_went_by(tmp_path: Path) -> None:
    trials = [trial(n, datasets=["dtd", "eurosat"]) for n in range(3)]
    found = words(tmp_path, trials, datasets=["dtd", "eurosat"], objective="base_val")
    assert "new base accuracy, dtd base accuracy, eurosat" in found


@pytest.mark.usefixtures("_no_library")
def test_conditional_settings_are_named_where_they_are_left_out(tmp_path: Path) -> None:
    unset = {k: v for k, v in RELEASED.items() if k != "regularizer.text_weight"} | {
        "regularizer.kind": "none"
    }
    few = [trial(n, settings=unset) for n in range(1, 9)]
    assert "condition): regularizer.text_weight." in words(tmp_path / "few", [trial(0), *few])
    html = page(rich_study(tmp_path))
    assert "under a condition)" not in html
    assert 'id="plot-contour"' in html
    assert len(re.findall(r'id="plot-slice-\d"', html)) == 7


@pytest.mark.usefixtures("_no_library")
def test_hostile_text_is_escaped_everywhere(tmp_path: Path) -> None:
    html = page(rich_study(tmp_path, hostile=True))
    assert SCRIPT not in html
    assert "<img" not in html
    text = Text(html).words
    assert f"Study two-sets{SCRIPT}" in text
    assert f"class 'zig{SCRIPT}' {IMAGE}" in text
    assert f"batch halved {SCRIPT}" in text


@pytest.mark.usefixtures("_no_library")
def test_is_deterministic(tmp_path: Path) -> None:
    folder = rich_study(tmp_path)
    assert page(folder) == page(folder)


@pytest.mark.usefixtures("_no_library")
def test_a_study_that_has_not_ended(tmp_path: Path) -> None:
    found = words(tmp_path)
    assert "The study has not ended. So far trial 1 leads on the search's own images, H 70.00" in found
    assert "Until the final test has been run, the released settings are the ones to use." in found
    assert "The final test has not been run yet" in found
    assert "seed by seed" not in found.lower()


@pytest.mark.usefixtures("_no_library")
@pytest.mark.parametrize(
    "trials",
    [
        [], [trial(0)], [trial(0, "FAIL")], [trial(0, objective=0.0, base=0.0, new=0.0)],
        [trial(n, "FAIL") for n in range(12)], [trial(0, "PRUNED")],
        [trial(n, objective=50.0, settings=RELEASED) for n in range(12)],
    ],
    ids=["none", "one", "failed", "zero", "all failed", "pruned", "equal"],
)  # fmt: skip
@pytest.mark.parametrize("goals", [["objective"], ["objective", "seconds"], ["base", "new"]])
def test_few_trials(tmp_path: Path, trials: list[dict[str, Any]], goals: list[str]) -> None:
    found = words(tmp_path, trials, goals=goals)
    assert "What was asked" in found
    assert "To run it again" in found


@pytest.mark.usefixtures("_no_library")
@pytest.mark.parametrize(("seeds", "shown"), [([1, 2], "final seeds 1, 2 sampler"), ([], "final seeds none")])
def test_which_seeds_the_final_test_takes(tmp_path: Path, seeds: list[int], shown: str) -> None:
    assert shown in " ".join(words(tmp_path, final_seeds=seeds).split())


@pytest.mark.usefixtures("_no_library")
def test_an_objective_without_new_classes(tmp_path: Path) -> None:
    found = words(tmp_path, [trial(0, new=None)], objective="base_val")
    assert "base accuracy" in found
    assert "the objective base_val scores one of them" in found


def test_one_file_without_network(tmp_path: Path) -> None:
    html = page(poor_study(tmp_path))
    assert html.count(style.library()) == 1
    tags = Text(html.replace(style.library(), "")).tags
    assert not [t for t in tags if t[0] in {"link", "img", "iframe"} or "src" in t[1] or "href" in t[1]]
    assert len(re.findall(r"Plotly\.newPlot\(", html.replace(style.library(), ""))) == 3


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no study: pass a folder OUT/STUDY"):
        build_report(tmp_path / "nothing")


def test_records_are_read_without_torch() -> None:
    code = "import sys, tune.reporting.html; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.usefixtures("_no_library")
def test_what_keeps_the_bounds_is_said(tmp_path: Path) -> None:
    bounds = [{"figure": "base", "limit": 99.0, "least": True}]
    text = " ".join(Text(page(rich_study(tmp_path, bounds=bounds))).words.split())
    assert re.search(r"0 of \d+ finished trials keep base at least 99; the released settings do not\.", text)
    assert "In the final test the chosen settings break base at least 99: " in text
    assert "bounds base at least 99" in text
    bounds[0]["limit"] = 1.0
    text = " ".join(Text(page(rich_study(tmp_path, bounds=bounds))).words.split())
    assert re.search(r"(\d+) of \1 finished trials keep base at least 1; the released settings do\.", text)
    assert "settings break" not in text


@pytest.mark.usefixtures("_no_library")
@pytest.mark.parametrize("entry", [UP, DOWN, EVEN, NOTHING])
def test_settings_that_break_a_bound_are_not_advised(tmp_path: Path, entry: dict[str, Any]) -> None:
    """However they test: trial 1 has 74 on base classes in the search, the released settings 69."""
    bounds = [{"figure": "base", "limit": 70.0, "least": True}]
    text = words(tmp_path, tested=final_of(entry), bounds=bounds)
    advised = "Use trial 1's settings, in best.yaml: the released settings do not keep base at least 70."
    assert advised in text
    assert "Keep the released settings" not in text
    assert "Use either" not in text
    assert "biased upwards" not in text, "one trial alone keeps it: it is not the highest of many"
    failed = [trial(0, "FAIL", reason="killed"), *TRIALS[1:]]
    assert advised not in words(tmp_path / "failed", failed, tested=final_of(entry), bounds=bounds)
    bounds[0]["limit"] = 60.0
    assert advised not in words(tmp_path / "kept", tested=final_of(entry), bounds=bounds)
    again = last_round(TRIALS) | {"chosen": 1}
    for row in again["rows"]:
        if row["reference"]:
            row |= {"mean": None, "runs": [{"dataset": "dtd", "seed": 1001, "failed": "killed"}]}
    found = words(tmp_path / "again", tested=final_of(entry), bounds=bounds, again=again)
    assert advised not in found, "they have no figure that could break it"


@pytest.mark.usefixtures("_no_library")
def test_trials_that_were_too_slow_could_not_have_recovered(tmp_path: Path) -> None:
    least = {"figure": "seconds", "limit": 5000.0, "least": True}
    assert "did not keep seconds" not in words(tmp_path / "least", TRIALS, bounds=[least])
    slow = [*TRIALS, trial(4, "PRUNED", seconds=9000.0), trial(5, "PRUNED", seconds=8000.0)]
    text = words(tmp_path, slow, bounds=[{"figure": "seconds", "limit": 5000.0, "least": False}])
    assert "Pruned trials (1) were judged early: some might have recovered." in text
    assert (
        "Pruned trials (2) did not keep seconds at most 5000: they were stopped when they broke it." in text
    )


@pytest.mark.usefixtures("_no_library")
def test_released_settings_that_failed_have_no_figure(tmp_path: Path) -> None:
    """Their last epoch's is no score."""
    failed = trial(0, "FAIL", objective=45.75, base=47.75, new=43.75, reason="killed")
    folder = write(tmp_path / "failed", description(), [failed, *TRIALS[1:]])
    text = " ".join(Text(page(folder)).words.split())
    assert "released –" in text
    assert "released settings (trial 0) 47.75" not in text


LOOKED = (
    "The same settings were looked at before, after 3 and 6 pairs: an interval that is looked at until it"
)


@pytest.mark.usefixtures("_no_library")
def test_a_test_that_was_looked_at_before_says_so(tmp_path: Path) -> None:
    looks = [[1, 3], [2, 5], [1, 6]]
    assert LOOKED in words(tmp_path / "again", tested=final_of(looks=looks))
    assert "looked at before" not in words(tmp_path / "others", tested=final_of(looks=[[2, 5]]))


@pytest.mark.usefixtures("_no_library")
def test_a_test_of_an_earlier_choice_speaks_for_no_other(tmp_path: Path) -> None:
    """best.yaml holds the new choice by then."""
    longer = [*TRIALS, trial(4, objective=90.0)]
    again = last_round(longer) | {"chosen": 4}
    again["rows"] = [{**row, "expected": 3.0, "probability": 0.9} for row in again["rows"]]
    found = words(tmp_path, longer, final_of(), again=again)
    assert "its final test is of an earlier choice, trial 1; now it is trial 4. The same command" in found
    assert (
        "Expected of trial 4 before the test: +3.00 points of H, better with a probability of 0.90." in found
    )
    assert "Until the final test has been run, the released settings are the ones to use." in found
    assert "Use trial" not in found


@pytest.mark.usefixtures("_no_library")
@pytest.mark.parametrize(
    ("detectable", "says"),
    [
        (2.5, "With 3 pairs, a true difference of about 2.50 would have been shown in four of five tests."),
        (238.2, "With 3 pairs, no difference that accuracies can have would have been shown in four of five"),
    ],
)
def test_what_a_test_could_have_shown(tmp_path: Path, detectable: float, says: str) -> None:
    assert says in words(tmp_path, tested=final_of(EVEN, detectable=detectable))


@pytest.mark.usefixtures("_no_library")
def test_the_interval_over_data_sets_has_a_level_of_its_own(tmp_path: Path) -> None:
    tested = finals(TRIALS[1], {"dtd": UP, "pets": UP}, alpha=0.005, alpha_over_sets=0.05)
    found = words(tmp_path, tested=tested)
    assert "points of H, 95 % interval" in found
    assert "over data sets (95 % interval)" in found
    assert "difference (99.5 % interval)" in found
    assert "of 200 such, one misses by chance" in found
    why = "one of 1 points of H was excluded, or no seeds were left: 3 were run."
    assert why not in found
    added = finals(TRIALS[1], {"dtd": UP, "pets": UP}, alpha=0.005, alpha_over_sets=0.05, matters=1.0)
    found = words(tmp_path, tested=added)
    assert why in found
    assert "of 20 such, up to one misses by chance" in found, "any of all looks may"


@pytest.mark.usefixtures("_no_library")
def test_an_interval_after_one_of_several_looks_is_not_as_sure_as_it_would_be_alone(tmp_path: Path) -> None:
    says = "The interval's 99.5 % are those of one look alone: of 20 such studies, up to one ends with"
    assert says in words(tmp_path, tested=final_of(alpha=0.005, matters=1.0))
    assert "look alone" not in words(tmp_path, tested=final_of(alpha=0.005)), "there was no other"
    kept = final_of(same=True, difference=None, matters=1.0)
    assert "look alone" not in words(tmp_path, tested=kept), "nothing was compared"


@pytest.mark.usefixtures("_no_library")
def test_pairs_that_differ_are_not_called_equal_where_their_means_are(tmp_path: Path) -> None:
    """On each data set one seed gains what the other loses."""
    even = compared(runs(72, 70), runs(70, 72))
    found = words(tmp_path, tested=finals(TRIALS[1], {"dtd": even, "pets": even}))
    assert "No difference shown: best − released +0.00 points of H" in found
    assert "equal in every pair" not in found
    assert "equal in every pair" in words(tmp_path, tested=finals(TRIALS[1], {"dtd": TIED, "pets": TIED}))


@pytest.mark.usefixtures("_no_library")
def test_only_what_the_search_has_not_read_is_no_pick_of_it(tmp_path: Path) -> None:
    says = "The final test's figures are no such picks: no choice goes by them."
    assert says in words(tmp_path, tested=final_of(matters=1.0))
    found = words(tmp_path, tested=final_of(), objective="oracle_test")
    assert "biased upwards" in found
    assert "The final test" not in found
