"""The report, from study folders made up here."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from prometar.errors import UserError
from tune import plots
from tune.report import build_report, cost, ranking, read_records

SCRIPT = "<script>alert(1)</script>"
RANGES: dict[str, dict[str, Any]] = {
    "optim.lr": {"type": "float", "low": 0.001, "high": 1.0, "log": True},
    "prompts.text_depth": {"type": "int", "low": 0, "high": 12, "log": False},
    "prompts.init": {"type": "choice", "choices": ["a photo of a", SCRIPT]},
}
RELEASED = {"optim.lr": 0.01, "prompts.text_depth": 9, "prompts.init": "a photo of a"}


def record(number: int, objective: float | None, state: str = "COMPLETE", **changes: Any) -> dict[str, Any]:
    epochs = 1 if state == "PRUNED" else 2
    return {
        "number": number,
        "state": state,
        "reference": number == 0,
        "settings": dict(RELEASED),
        "objective": objective,
        "base": None if objective is None else objective + 4,
        "new": None if objective is None else objective - 4,
        "epoch": epochs,
        "epochs": [{"epoch": e + 1, "objective": objective} for e in range(epochs) if objective is not None],
        "seconds": 10.0,
        "reason": "",
        "started": f"2026-01-01T10:{number:02d}:00",
        "ended": f"2026-01-01T10:{number:02d}:30",
        **changes,
    }  # fmt: skip


def study(folder: Path, trials: list[dict[str, Any]], finals: dict | None = None, **asked: Any) -> Path:
    description = {
        "name": asked.pop("name", "a study"),
        "command": "python tune/search.py --trials 3",
        "asked": {
            "dataset": "dtd", "data_root": None, "backbone": "mini", "pretrained": None, "method": "prometar",
            "objective": "class_holdout", "trials": 3, "epochs": 2, "shots": 16, "seed": 1, "sampler": "TPE",
            "pruner": "median", "val_per_class": 20, "final_seeds": [1, 2, 3], **asked,
        },
        "space": {"name": "tiny", "ranges": RANGES},
        "config": {"optim": {"lr": 0.01}},
        "environment": {"python": "3.11", "cores": "2"},
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    for trial in trials:
        path = folder / "trials" / f"{trial['number']:04d}"
        path.mkdir(parents=True, exist_ok=True)
        (path / "record.json").write_text(json.dumps(trial))
    if finals:
        (folder / "finals.json").write_text(json.dumps(finals))
    return folder


def final_runs(mean: float) -> list[dict[str, Any]]:
    return [
        {"seed": s, "base": mean + 5, "new": mean - 5, "objective": mean + s, "seconds": 60.0}
        for s in (1, 2, 3)
    ]


def finals(**changes: Any) -> dict[str, Any]:
    return {
        "seeds": [1, 2, 3],
        "same": False,
        "best": {"number": 1, "settings": {**RELEASED, "optim.lr": 0.123}, "runs": final_runs(71.0)},
        "released": {"number": 0, "settings": RELEASED, "runs": final_runs(69.0)},
        "difference": {"mean": 2.0, "low": -0.5, "high": 4.5, "n": 3},
        "shown": False,
        "published": None,
        **changes,
    }


TRIALS = [
    record(0, 65.0),
    record(1, 70.0, settings={**RELEASED, "optim.lr": 0.123}),
    record(2, 50.0, "PRUNED"),
    record(3, None, "FAIL", reason="the loss is nan in epoch 1"),
]


@pytest.fixture
def _no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without plotly.js's own five megabytes."""
    monkeypatch.setattr(plots, "library", lambda: "/* plotly */")


def page(folder: Path) -> str:
    return build_report(folder).read_text("utf-8")


class Text(HTMLParser):
    """The visible words of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words, self.scripts, self.tags, self._inside = "", 0, [], ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        self.scripts += tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in {"script", "style"}:
            self.words = f"{self.words} {' '.join(data.split())}".strip()


@pytest.mark.usefixtures("_no_library")
def test_says_what_was_asked_and_found(tmp_path: Path) -> None:
    words = " ".join(Text(page(study(tmp_path, TRIALS, finals()))).words.split())
    for part in (
        "No difference shown: best − released +2.00 points of H, 95 % interval −0.50 to +4.50, 3 paired",
        "prometar on dtd with mini",
        "released settings (trial 0) 69.00 61.00 65.00",
        "best found (trial 1) 74.00 66.00 70.00",
        "released settings (trial 0) 74.00 ± 0.00 64.00 ± 0.00 71.00 ± 1.00 3",
        "best found (trial 1) 76.00 ± 0.00 66.00 ± 0.00 73.00 ± 1.00 3",
        "1 of 3 searched settings differ",
        "optim.lr 0.01 0.123 0.001 … 1, log",
        "highest of 2, so it is biased upwards",
        "not with published ones",
        "Too few finished trials to tell: 2, and it takes 8.",
        "the loss is nan in epoch 1",
        "search, pruned 1 10.0 s",
        "final test 6 6 min 0 s",
        "python tune/search.py --trials 3",
    ):
        assert part in words, part


@pytest.mark.usefixtures("_no_library")
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"difference": {"mean": 2.0, "low": 1.0, "high": 3.0, "n": 3}, "shown": True}, "test better than"),
        ({"difference": {"mean": -2.0, "low": -3.0, "high": -1.0, "n": 3}, "shown": True}, "test worse than"),
        ({"difference": None}, "The final test shows nothing"),
        ({"same": True, "difference": None}, "No searched settings beat the released ones"),
        ({"seeds": [], "difference": None}, "no final test was asked for"),
    ],
)
def test_verdicts(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    assert sentence in Text(page(study(tmp_path, TRIALS, finals(**changes)))).words


@pytest.mark.usefixtures("_no_library")
def test_published_figures_only_where_given(tmp_path: Path) -> None:
    words = Text(page(study(tmp_path, TRIALS, finals(published=72.31), backbone="ViT-B-16-quickgelu"))).words
    assert "published, cited – – 72.31" in words
    assert "published, cited" not in Text(page(study(tmp_path, TRIALS, finals()))).words


@pytest.mark.usefixtures("_no_library")
def test_a_failed_final_run_is_shown(tmp_path: Path) -> None:
    runs = [*final_runs(71.0)[:2], {"seed": 3, "failed": f"out of memory {SCRIPT}"}]
    html = page(study(tmp_path, TRIALS, finals(best={"number": 1, "settings": RELEASED, "runs": runs})))
    assert f"out of memory {SCRIPT}" in Text(html).words


@pytest.mark.usefixtures("_no_library")
def test_alignment_is_a_sentence_where_it_was_measured(tmp_path: Path) -> None:
    def words(name: str, *, same: bool = False) -> str:
        runs = {mean: [run | {"alignment": mean / 100} for run in final_runs(mean)] for mean in (69.0, 71.0)}
        released = {"number": 0, "settings": RELEASED, "runs": [*runs[69.0], {"seed": 4, "failed": "killed"}]}
        best = released if same else {"number": 1, "settings": RELEASED, "runs": runs[71.0]}
        tested = finals(best=best, released=released, same=same)
        return Text(page(study(tmp_path / name, TRIALS, tested))).words

    assert "the one that is left out: released +0.69, best +0.71. Above 0" in words("both")
    assert "the one that is left out: released +0.69. Above 0" in words("same", same=True)
    assert "Gradient alignment" not in Text(page(study(tmp_path / "none", TRIALS, finals()))).words


@pytest.mark.usefixtures("_no_library")
def test_hostile_text_is_escaped_everywhere(tmp_path: Path) -> None:
    hostile = {**RELEASED, "prompts.init": SCRIPT}
    trials = [
        record(0, 65.0),
        *(record(n, 60.0 + n, settings={**hostile, "optim.lr": 0.01 * n}) for n in range(1, 10)),
        record(10, None, "FAIL", settings=hostile, reason=f"class {SCRIPT} <img src=x onerror=alert(2)>"),
    ]
    html = page(study(tmp_path, trials, finals(), name=f"study {SCRIPT}", dataset=f"set {SCRIPT}"))
    assert SCRIPT not in html
    assert "<img" not in html
    text = Text(html)
    assert f"Study study {SCRIPT}" in text.words
    assert f"class {SCRIPT} <img src=x onerror=alert(2)>" in text.words
    # Plotly reads labels as HTML of its own: escaped for it before the script element's escapes.
    assert "prompts.init: &lt;script&gt;alert(1)" in html
    assert "\\u003cscript" not in html


@pytest.mark.usefixtures("_no_library")
def test_is_deterministic(tmp_path: Path) -> None:
    trials = [
        *TRIALS,
        *(record(n, 60.0 + n, settings={**RELEASED, "optim.lr": 0.01 * n}) for n in range(4, 14)),
    ]
    folder = study(tmp_path, trials, finals())
    assert page(folder) == page(folder)


@pytest.mark.usefixtures("_no_library")
def test_a_search_that_has_not_ended(tmp_path: Path) -> None:
    words = Text(page(study(tmp_path, TRIALS))).words
    assert "The search has not ended. So far trial 1 leads" in words
    assert "The final test has not been run yet" in words
    assert "seed by seed" not in words


@pytest.mark.usefixtures("_no_library")
def test_a_final_test_that_a_longer_search_has_overtaken(tmp_path: Path) -> None:
    words = Text(page(study(tmp_path, [*TRIALS, record(4, 75.0)], finals()))).words
    assert "The final test is out of date: trial 1 led when it was run, trial 4 does now" in words
    assert "out of date" not in Text(page(study(tmp_path / "other", TRIALS, finals()))).words


@pytest.mark.usefixtures("_no_library")
@pytest.mark.parametrize(
    "trials",
    [[], [record(0, 65.0)], [record(0, None, "FAIL")], [record(0, 0.0)], [record(0, None, "RUNNING")]],
    ids=["none", "one", "failed", "zero", "running"],
)  # fmt: skip
def test_few_trials(tmp_path: Path, trials: list[dict[str, Any]]) -> None:
    words = Text(page(study(tmp_path, trials))).words
    assert "What was asked" in words
    assert "To run it again" in words


@pytest.mark.usefixtures("_no_library")
def test_an_objective_without_new_classes(tmp_path: Path) -> None:
    words = Text(page(study(tmp_path, [record(0, 65.0, new=None)], objective="base_val"))).words
    assert "base accuracy" in words
    assert "the objective base_val scores one of them" in words


@pytest.mark.usefixtures("_no_library")
def test_a_leaking_objective_is_stamped(tmp_path: Path) -> None:
    assert "Leaking." in Text(page(study(tmp_path, TRIALS, objective="oracle_test"))).words


def test_one_file_without_network(tmp_path: Path) -> None:
    html = page(study(tmp_path, TRIALS, finals()))
    assert html.count(plots.library()) == 1
    tags = Text(html.replace(plots.library(), "")).tags
    assert not [t for t in tags if t[0] in {"link", "img", "iframe"} or "src" in t[1] or "href" in t[1]]
    assert len(re.findall(r"Plotly\.newPlot\(", html.replace(plots.library(), ""))) == 3


def test_importance_finds_the_setting_that_matters() -> None:
    rng = random.Random(1)
    trials = [
        record(n, 80.0 - abs(n % 13 - 6), settings={
            "optim.lr": rng.uniform(0.001, 1.0),
            "prompts.text_depth": n % 13,
            "prompts.init": "a photo of a",
        })
        for n in range(26)
    ]  # fmt: skip
    shares = plots.importances(trials, RANGES)
    assert max(shares, key=lambda key: shares[key]) == "prompts.text_depth"
    assert sum(shares.values()) == pytest.approx(1.0)
    assert plots.importances(trials[:7], RANGES) == dict.fromkeys(RANGES, 0.0)
    assert plots.importance(trials[:7], RANGES) is None


def test_equal_trials_have_no_importance() -> None:
    trials = [record(n, 50.0) for n in range(12)]
    assert not any(plots.importances(trials, RANGES).values())


def test_ranking_puts_finished_trials_first() -> None:
    trials = [record(4, 90.0, "PRUNED"), *TRIALS]
    assert [t["number"] for t in ranking(trials)] == [1, 0, 4, 2, 3]


def test_cost_counts_runs_once(tmp_path: Path) -> None:
    runs = final_runs(70.0)
    same = finals(same=True, best={"number": 0, "settings": RELEASED, "runs": runs})
    total = cost(read_records(study(tmp_path, TRIALS, same)))
    assert total["finals"] == (3, 180.0)
    assert total["search"] == 40.0
    assert total["span"] == 210.0


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no study: pass a folder OUT/STUDY"):
        build_report(tmp_path / "nothing")
    (tmp_path / "study.yaml").write_text("just text")
    with pytest.raises(UserError, match="describes no study"):
        build_report(tmp_path)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    folder = study(tmp_path, TRIALS)
    (folder / "trials" / "0002" / "record.json").write_text("{")
    with pytest.raises(UserError, match=r"0002/record\.json is damaged"):
        build_report(folder)
