"""What a study's files say: rounds, costs, the front, and what damaged ones are told."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from prometar.errors import UserError
from tests.support.report_study import compared, description, finals, last_round, record, trial, write
from tune.results.costs import costs, span
from tune.results.reader import dataset_means, paired, pareto, ranking, read_records
from tune.results.schema import VERSION, Run


def runs(*figures: float | None, seconds: float = 3600.0) -> list[dict[str, Any]]:
    return [
        {"dataset": "dtd", "seed": seed, "failed": "killed"}
        if figure is None
        else {
            "dataset": "dtd",
            "seed": seed,
            "base": figure,
            "new": figure,
            "objective": figure,
            "seconds": seconds,
            "cpus": 2.0,
            "gpus": 0.25,
        }
        for seed, figure in enumerate(figures, start=1)
    ]


def test_the_earliest_of_the_best_leads(tmp_path: Path) -> None:
    trials = [trial(n, objective=value) for n, value in enumerate([60.0, 70.0, 70.0])]
    trials.append(trial(3, "PRUNED", objective=90.0))
    records = read_records(write(tmp_path, description(), trials))
    assert records.best is not None
    assert records.best.number == 1
    assert records.chosen == records.best
    assert [t.number for t in records.complete] == [0, 1, 2]


def test_the_last_round_chooses(tmp_path: Path) -> None:
    trials = [trial(n, objective=60.0 + n) for n in range(5)]
    again = last_round(trials) | {"chosen": 3}
    records = read_records(write(tmp_path, description(), trials, lastround=again))
    assert records.best is not None
    assert records.chosen is not None
    assert (records.best.number, records.chosen.number) == (4, 3)


def test_a_last_round_that_was_not_asked_for_chooses_nothing(tmp_path: Path) -> None:
    """Its file then holds what led when it was written."""
    trials = [trial(n, objective=60.0 + n) for n in range(5)]
    stale = {"version": VERSION, "seeds": [], "chosen": 2, "rows": [], "among": 0}
    records = read_records(write(tmp_path, description(), trials, lastround=stale))
    assert records.lastround is None
    assert records.chosen is not None
    assert records.chosen.number == 4


@pytest.mark.parametrize("state", ["FAIL", "PRUNED"])
def test_nothing_has_finished(tmp_path: Path, state: str) -> None:
    records = read_records(write(tmp_path, description(), [trial(0, state)]))
    assert records.best is None
    assert records.chosen is None


def test_costs_add_up_what_was_held(tmp_path: Path) -> None:
    trials = [trial(n, seconds=3600.0, cpus=2.0, gpus=0.25) for n in range(3)]
    trials.append(trial(3, "FAIL", seconds=1800.0, cpus=4.0, gpus=0.5))
    again = last_round(trials)
    for row in again["rows"]:
        row["runs"] = runs(70.0, None)
    entry = compared(runs(72.0, 73.0, None), runs(70.0, 70.0, 70.0))
    tested = finals(trials[1], {"dtd": entry})
    folder = write(tmp_path, description(), trials, lastround=again, finals=tested)
    rows = {row.name: row for row in costs(read_records(folder))}
    assert list(rows) == ["search, finished", "search, failed", "last round", "final test", "all"]
    assert rows["search, finished"].cpu_hours == 6.0
    assert rows["search, finished"].gpu_hours == 0.75
    assert rows["search, failed"].cpu_hours == 2.0
    assert rows["last round"].count == 6
    assert rows["last round"].cpu_hours == 6.0, "3 runs of an hour that finished"
    assert rows["final test"].count == 6
    assert rows["final test"].cpu_hours == 10.0
    assert rows["all"].seconds == 3 * 3600 + 1800 + 3 * 3600 + 5 * 3600
    assert rows["all"].cpu_hours == 24.0


def test_each_run_costs_what_it_held(tmp_path: Path) -> None:
    """A later command may run its own with another share."""
    trials = [trial(0, seconds=3600.0, cpus=2.0, gpus=0.0), trial(1, cpus=2.0, gpus=0.0)]
    entry = compared(runs(72.0, 73.0), runs(70.0, 70.0))
    for run, cpus in zip((*entry["best"], *entry["released"]), (1.0, 4.0, 8.0, 2.0), strict=True):
        run |= {"cpus": cpus, "gpus": cpus / 4}
    tested = finals(trials[1], {"dtd": entry})
    rows = {
        row.name: row for row in costs(read_records(write(tmp_path, description(), trials, finals=tested)))
    }
    assert rows["final test"].cpu_hours == 1 + 4 + 8 + 2
    assert rows["final test"].gpu_hours == 15 / 4
    tested["datasets"]["dtd"]["best"][0] |= {"cpus": None, "gpus": None}
    unknown = costs(read_records(write(tmp_path, description(), trials, finals=tested)))
    assert {row.name: row.cpu_hours for row in unknown if row.cpu_hours is None} == {
        "final test": None, "all": None
    }  # fmt: skip


def test_runs_that_are_both_sides_cost_once(tmp_path: Path) -> None:
    both = runs(70.0, 71.0)
    tested = finals(trial(0), {"dtd": compared(both, both)}, same=True)
    rows = {r.name: r for r in costs(read_records(write(tmp_path, description(), [trial(0)], finals=tested)))}
    assert rows["final test"].count == 2


def test_span_is_from_the_first_start_to_the_last_end(tmp_path: Path) -> None:
    assert span(read_records(write(tmp_path / "some", description(), [trial(0), trial(1)]))) == 7 * 60 + 55
    assert span(read_records(write(tmp_path / "none", description(), []))) is None


def test_ranking_puts_finished_trials_first() -> None:
    trials = [
        trial(0, objective=65.0), trial(1, objective=70.0), trial(2, "PRUNED", objective=95.0, epoch=1),
        trial(3, "FAIL"), trial(4, "PRUNED", objective=90.0, epoch=2),
    ]  # fmt: skip
    assert [t.number for t in ranking(map(record, trials))] == [1, 0, 4, 2, 3]


def front_of(points: list[tuple[float | None, float]], goals: list[str]) -> list[int]:
    trials = [trial(n, **dict(zip(goals, point, strict=True))) for n, point in enumerate(points)]
    return [t.number for t in pareto(map(record, trials), goals)]


def test_the_front_holds_what_nothing_beats() -> None:
    points: list[tuple[float | None, float]] = [(70, 60), (75, 55), (69, 59), (80, 40), (75, 50), (None, 99)]
    assert front_of(points, ["base", "new"]) == [3, 1, 0]


def test_seconds_are_the_better_the_fewer() -> None:
    assert front_of([(70, 600), (75, 900), (75, 800), (60, 700)], ["objective", "seconds"]) == [2, 0]


def test_of_equal_trials_the_earliest_is_on_the_front() -> None:
    assert front_of([(70, 60), (70, 60)], ["base", "new"]) == [0]


def test_the_front_is_of_finished_trials() -> None:
    assert pareto([record(trial(0, "PRUNED")), record(trial(1, "FAIL"))], ["base", "new"]) == []


def test_pairs_are_by_seed_not_by_place() -> None:
    ours = [Run("dtd", seed, objective=value) for seed, value in ((2, 70.0), (1, 60.0), (3, 1.0))]
    theirs = [Run("dtd", 1, objective=50.0), Run("dtd", 2, objective=65.0), Run("dtd", 3, failed="nan")]
    assert paired(ours, theirs) == {2: 5.0, 1: 10.0}


def test_means_by_data_set() -> None:
    several = trial(1, datasets=["dtd", "eurosat"])
    means = dataset_means(record(several))
    assert list(means) == ["dtd", "eurosat"]
    assert sum(means.values()) / 2 == pytest.approx(several["objective"])
    assert dataset_means(record(trial(0, "FAIL"))) == {}


def test_a_folder_without_a_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no study: pass a folder OUT/STUDY"):
        read_records(tmp_path / "nothing")
    (tmp_path / "study.yaml").write_text("just text")
    with pytest.raises(UserError, match=r"study\.yaml is damaged"):
        read_records(tmp_path)


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    write(tmp_path, {**description(), "asked": "nothing"}, [])
    with pytest.raises(UserError, match=r"study\.yaml is damaged"):
        read_records(tmp_path)


@pytest.mark.parametrize("name", ["trials/0001/record.json", "finals.json", "lastround.json", "learned.json"])
@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps("x")])
def test_a_damaged_record_is_named(tmp_path: Path, name: str, text: str) -> None:
    folder = write(tmp_path, description(), [trial(0), trial(1)])
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name} (is damaged|has no version)"):
        read_records(folder)


def test_a_record_in_anothers_folder_is_no_second_trial(tmp_path: Path) -> None:
    """A copy that somebody has kept would count twice."""
    write(tmp_path, description(), [trial(0), trial(1)])
    shutil.copytree(tmp_path / "trials/0001", tmp_path / "trials/0001-copy")
    with pytest.raises(UserError, match=r"0001-copy/record\.json is the record of trial 1: move it out"):
        read_records(tmp_path)


@pytest.mark.parametrize("name", ["trials", "trials/0001"])
def test_a_folder_that_cannot_be_read_is_no_missing_trial(tmp_path: Path, name: str) -> None:
    """As of another user; here a link to itself, which not even root can follow."""
    folder = write(tmp_path, description(), [trial(0), trial(1)]) / name
    shutil.rmtree(folder)
    folder.symlink_to(folder)
    with pytest.raises(UserError, match=f"cannot read {folder}.*: Too many levels of symbolic links"):
        read_records(tmp_path)


def test_records_that_contradict_each_other(tmp_path: Path) -> None:
    trials = [trial(number) for number in range(4)]
    again = last_round(trials)
    tested = finals(trials[1], {"dtd": compared(runs(70.0, 71.0), runs(69.0, 70.0))})

    def said(**files: Any) -> str:
        write(tmp_path, description(), trials, **{"lastround": again, "finals": tested, **files})
        with pytest.raises(UserError) as caught:
            read_records(tmp_path)
        return str(caught.value)

    assert "trial 77 is chosen, and not among its rows" in said(lastround={**again, "chosen": 77})
    assert "rows: one stands there twice" in said(lastround={**again, "rows": again["rows"][:1] * 2})
    doubled = {"dtd": {**tested["datasets"]["dtd"], "best": runs(70.0) * 2}}
    assert "finals.json is damaged, datasets.dtd.best: one stands there twice" in said(
        finals={**tested, "datasets": doubled}
    )
    trials[0]["runs"] += trials[0]["runs"][:1]
    assert "0000/record.json is damaged, runs: one stands there twice" in said()


@pytest.mark.parametrize("name", ["finals.json", "lastround.json", "trials/0000/record.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_record_that_is_no_file_is_not_waited_for(tmp_path: Path, name: str, kind: str) -> None:
    path = write(tmp_path, description(), [trial(0)]) / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"cannot read .*: it is no plain file"):
        read_records(tmp_path)
