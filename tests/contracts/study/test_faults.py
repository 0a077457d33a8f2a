"""A study survives its trials, storage, folder and clock. Its trials do not train, and Ray is not started."""

import errno
import json
import os
import random
import re
import shutil
from collections import Counter
from itertools import cycle
from pathlib import Path
from typing import Any

import optuna.storages._rdb.storage as rdb
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from prometar.config.settings import load_config
from prometar.errors import InfrastructureError, PrometarError, UserError, WorkError
from tests.support.databases import open_study
from tests.support.driver import NAME, Back, fail_one_in_fifty, misbehave, records, run_fake
from tests.support.fake_trial import curve
from tune.store.trial_store import MAX_FAILURES, TrialStore

WHOLE: dict[str, Any] = {"trials": 3, "epochs": 2, "top": 1, "settings": {"confirm.seeds": 1}}
WRITTEN = [
    "study.yaml",
    "trials/0000/record.json",
    "trials/0001/record.json",
    "trials/0002/record.json",
    "confirmation.json",
    "selected.yaml",
    "default.yaml",
    "finals.json",
    "best.yaml",
    "report.html",
]
MOST_COMMANDS = 60


def states(out: Path) -> Counter[str]:
    """Trials by state, as the database has them."""
    study = open_study(f"sqlite:///{out / NAME / 'study.db'}", NAME)
    return Counter(t.state.name for t in study.trials)


def told(out: Path) -> list[dict[str, Any]]:
    """Records without what the clock says."""
    kept = ("number", "state", "settings", "objective", "epochs")
    return [{key: record[key] for key in kept} for record in records(out)]


def test_every_kind_of_trial_ends_with_a_record(tmp_path: Path) -> None:
    behaviour = {"1": "fail", "2": "missing", "3": "fail", "13": "bad"}
    options: dict[str, Any] = {"trials": 14, "pruner": "median", "final_seeds": (1, 2, 3)}
    finals, text = run_fake(tmp_path, behaviour=behaviour, **options)
    found = records(tmp_path)
    assert [r["number"] for r in found] == list(range(14))
    reasons = {r["number"]: r["reason"] for r in found if r["state"] == "FAIL"}
    assert sorted(reasons) == [1, 2, 3]
    assert "objective" in reasons[2]
    assert reasons[3] == "loss is nan in step 7"
    assert found[0]["origin"] == "baseline"
    assert found[13]["state"] == "PRUNED"
    assert len(found[13]["epochs"]) < 3
    counts = states(tmp_path)
    assert counts["FAIL"] == 3
    assert counts["COMPLETE"] + counts["PRUNED"] == 11
    best = max((r for r in found if r["state"] == "COMPLETE"), key=lambda r: r["objective"])
    assert finals["selected"]["number"] == best["number"]
    assert [run["seed"] for run in finals["datasets"]["textures"]["selected"]] == [1, 2, 3]
    assert finals["verdict"] == "selected"
    assert finals["difference"]["low"] == pytest.approx(best["objective"] - found[0]["objective"])
    assert "3 failed" in text

    again, text = run_fake(tmp_path, behaviour={"all": "raise"}, **options)
    assert again == finals, "nothing is run twice"
    assert records(tmp_path) == found


def test_more_trials_extend_a_study_and_other_settings_are_refused(tmp_path: Path) -> None:
    run_fake(tmp_path, trials=3)
    first = records(tmp_path)
    finals, text = run_fake(tmp_path, trials=5)
    assert records(tmp_path)[:3] == first
    assert states(tmp_path) == {"COMPLETE": 5}
    assert "Resuming: 3 done, 0 interrupted" in text
    assert finals["difference"] is None
    with pytest.raises(UserError, match=r"started with other settings \(.*train\.epochs"):
        run_fake(tmp_path, trials=5, epochs=4)


def test_a_study_where_everything_fails_ends_early_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"loss is nan in step 7"):
        run_fake(tmp_path, trials=12, behaviour={"all": "fail"})
    assert len(records(tmp_path)) == MAX_FAILURES
    run_fake(tmp_path, trials=12, behaviour={})
    assert [r["state"] for r in records(tmp_path) if r["origin"] == "baseline"] == ["FAIL", "COMPLETE"]


def test_the_confirmation_selects_and_resumes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"trials": 5, "top": 2, "final_seeds": (1, 2)}
    finals, _ = run_fake(tmp_path, behaviour={}, **options)
    confirmation = json.loads((tmp_path / NAME / "confirmation.json").read_text())
    assert [len(row["runs"]) for row in confirmation["candidates"]] == [3, 3, 3], "a trial's and two more"
    assert finals["selected"]["number"] == confirmation["selected"]
    shutil.copytree(next((tmp_path / NAME / "finals").iterdir()), tmp_path / NAME / "finals/trial-old")
    again, text = run_fake(tmp_path, behaviour={"all": "raise"}, **options)
    assert again == finals, "a folder of the user's own beside the final runs is none of them"
    assert "failed: " not in text, "no run is run twice"


def test_later_stages_have_their_own_concurrency(tmp_path: Path) -> None:
    _, text = run_fake(tmp_path, trials=2, top=1, max_concurrent=None)
    assert "1 concurrent trial (a fifth of 2, so that the search learns from results)" in text
    assert "Confirmation: 2 concurrent runs (all that fit), each with 1 CPU" in text
    assert "Final test: " in text


def test_a_study_of_several_goals_resumes_after_its_storage_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = TrialStore.report

    def lose(store: TrialStore, number: int, *given: Any) -> bool:
        if number == 2:
            raise OperationalError("UPDATE trials", {}, Exception("database is locked"))
        return report(store, number, *given)

    goals = ("base", "seconds")
    with monkeypatch.context() as patched:
        patched.setattr(TrialStore, "report", lose)
        with pytest.raises(
            InfrastructureError, match=r"database is locked.*rerun the same command to resume"
        ) as caught:
            run_fake(tmp_path, trials=3, goals=goals)
    assert "\n" not in str(caught.value)
    first = records(tmp_path)
    assert len(first) == 2
    run_fake(tmp_path, trials=4, goals=goals)
    found = records(tmp_path)
    assert found[:2] == first
    assert states(tmp_path) == {"COMPLETE": 4}
    assert [list(r["epochs"]) for r in found] == [["1", "2", "3"]] * 4
    study = open_study(f"sqlite:///{tmp_path / NAME / 'study.db'}", NAME)
    assert [t.values for t in study.trials] == [[r["base"], r["seconds"]] for r in found]


@pytest.mark.parametrize(
    ("weight", "seeds", "verdict", "recommended"),
    [
        (5.0, (1, 2, 3, 4), "selected", "selected.yaml"),
        (199.0, (1, 2, 3, 4), "baseline", "default.yaml"),
        (5.0, (1,), "either", "selected.yaml"),
        (199.0, (1,), "either", "default.yaml"),
    ],
)
def test_best_yaml_holds_what_the_verdict_recommends(
    weight: float, seeds: tuple[int, ...], verdict: str, recommended: str, tmp_path: Path
) -> None:
    given = tmp_path / "given.yaml"
    given.write_text(f"regularizer.text_weight: {weight}\nregularizer.image_weight: 2.0\n")
    # With --top 0, the best trial is selected. Trial 0 fails in the search, so a worse one can be selected.
    misbehave(tmp_path, {"0": "fail"})
    finals, _ = run_fake(tmp_path, trials=2, enqueue=given, final_seeds=seeds)
    assert finals["verdict"] == verdict
    best = tmp_path / NAME / "best.yaml"
    assert load_config(best) == load_config(tmp_path / NAME / recommended)
    comments = {"selected": "Use the selected", "either": "Use either", "baseline": "Keep the default"}
    assert best.read_text().startswith(f"# {comments[verdict]}")


def test_a_dataset_with_other_published_settings_has_its_own_files(tmp_path: Path) -> None:
    given = tmp_path / "mine.yaml"
    given.write_text("settings: {}\nby: [{dataset: cells, settings: {optim: {momentum: 0.5}}}]\n")
    run_fake(tmp_path, trials=2, dataset=["textures", "cells"], method=str(given), final_seeds=(1, 2))
    folder = tmp_path / NAME
    for number, kind in ((0, "default"), (1, "selected")):
        for dataset, suffix, momentum in (("textures", "", 0.9), ("cells", "-cells", 0.5)):
            found = load_config(folder / f"{kind}{suffix}.yaml")
            assert found.flat()["optim.momentum"] == momentum
            assert found == load_config(folder / f"finals/trial-{number:04d}-{dataset}-seed1/config.yaml")
    assert load_config(folder / "best-cells.yaml").data.name == "cells"


def test_a_lost_study_starts_again(tmp_path: Path) -> None:
    first, _ = run_fake(tmp_path, trials=2)
    for lost in ("study.db", "study.yaml", "best.yaml"):
        (tmp_path / NAME / lost).unlink()
    shutil.rmtree(tmp_path / NAME / "trials")
    given = tmp_path / "given.yaml"
    given.write_text("regularizer.text_weight: 5.0\nregularizer.image_weight: 2.0\n")
    second, _ = run_fake(tmp_path, trials=2, enqueue=given)
    assert second["selected"]["number"] == first["selected"]["number"] == 1
    runs = [each["datasets"]["textures"]["selected"][0]["objective"] for each in (first, second)]
    assert runs[1] == pytest.approx(curve(5.0, 2.0, 3) + 0.25), "not what had this number before"
    assert runs[0] != runs[1]


Found = tuple[dict[str, Any], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What the study finds when nothing fails: its final test and its records."""
    out = tmp_path_factory.mktemp("whole")
    return run_fake(out, **WHOLE)[0]["selected"], told(out)


def failing(out: Path) -> str | None:
    """Run the study. Return the line with which it stopped, None if it finished. No record may change."""
    before = records(out)
    line = None
    try:
        run_fake(out, **WHOLE)
    except PrometarError as error:
        line = str(error)
    assert "\n" not in (line or "")
    assert [record for record in records(out) if record in before] == before, "a record was lost"
    return line


def test_a_storage_that_fails_one_call_in_fifty(tmp_path: Path, whole: Found) -> None:
    lines: list[str] = []
    fail = fail_one_in_fifty(random.Random(5))
    try:
        while (line := failing(tmp_path)) is not None:
            assert re.fullmatch(r".*disk I/O error.*(re)?run (the same|this) command.*", line)
            lines.append(line)
            assert len(lines) < MOST_COMMANDS
    finally:
        event.remove(Engine, "before_cursor_execute", fail)
    assert lines
    assert (run_fake(tmp_path, **WHOLE)[0]["selected"], told(tmp_path)) == whole
    assert states(tmp_path) == {"COMPLETE": 3}, "none is left running"


def test_a_clock_set_back_by_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Found) -> None:
    """Only a trial's moments are the clock's: all that is measured in seconds is not."""
    monkeypatch.setattr(rdb, "datetime", Back)
    monkeypatch.setattr(Back, "num_uses", 0)
    found, text = run_fake(tmp_path, **WHOLE, max_hours=0.5)
    assert (found["selected"], told(tmp_path)) == whole
    assert not re.search(r"\[-|-\d+:", text), "no negative times"
    moments = [(record["started"], record["ended"]) for record in records(tmp_path)]
    assert any(ended < started for started, ended in moments), "it was set back"


def test_every_file_is_refused_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Found) -> None:
    """Permissions do not bind root, so the refusals are made up. tests/studies/test_disk.py has real ones."""
    reasons = cycle((errno.EACCES, errno.EROFS, errno.ENOSPC))
    opened = Path.open
    refused: list[str] = []
    num_commands = 1

    def refusing(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode == "wb" and path.is_relative_to(tmp_path / NAME):
            hidden = path.name.startswith(".")
            final = path.name.removeprefix(".").rpartition(".")[0] if hidden else path.name
            name = str(path.with_name(final).relative_to(tmp_path / NAME))
            # Each command is refused the next file. It may try to write the live report.html several times.
            if [name] == WRITTEN[num_commands - 1 : num_commands]:
                refused.append(name)
                reason = next(reasons)
                raise OSError(reason, os.strerror(reason), str(path))
        return opened(path, mode, *args, **options)

    # Pages of a running study are optional, and no failure to write one ends the study.
    monkeypatch.setattr("tune.report.live_page.LivePage._write", lambda page, progress: None)
    monkeypatch.setattr(Path, "open", refusing)
    while (line := failing(tmp_path)) is not None:
        assert f"cannot write {tmp_path / NAME / refused[-1]}: " in line
        num_commands += 1
    assert list(dict.fromkeys(refused)) == WRITTEN
    assert (run_fake(tmp_path, **WHOLE)[0]["selected"], told(tmp_path)) == whole
    assert not list(tmp_path.rglob(".*")), "half a file was left"
