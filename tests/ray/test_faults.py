"""A study survives its trials and its storage; on Ray, with trials that do not train."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from prometar.errors import StorageError, UserError, WorkError
from tests.support.databases import open_study
from tests.support.driver import NAME, records, run_fake
from tests.support.fake_trial import curve
from tune.records.folder import StudyFolder
from tune.store.trial_store import HOPELESS, TrialStore

pytestmark = pytest.mark.usefixtures("ray_local")


def steps(out: Path, number: int) -> list[int]:
    """Epochs that a trial really ran, in order."""
    return [int(line) for line in (out / NAME / f"trials/{number:04d}/steps.log").read_text().split()]


def states(out: Path) -> Counter[str]:
    """Trials by state, as the database has them."""
    study = open_study(f"sqlite:///{out / NAME / 'study.db'}", NAME)
    return Counter(t.state.name for t in study.trials)


def test_every_kind_of_trial_ends_with_a_record(tmp_path: Path) -> None:
    behaviour = {
        "1": "nan", "2": "missing", "3": "fail", "4": "crash", "5": "crash-always", "6": "hang", "13": "bad"
    }  # fmt: skip
    options: dict[str, Any] = {
        "trials": 14, "pruner": "median", "final_seeds": (1, 2, 3),
        "settings": {"resources.trial_timeout": 4.0},
    }  # fmt: skip
    finals, text = run_fake(tmp_path, behaviour=behaviour, **options)
    found = records(tmp_path)
    assert [r["number"] for r in found] == list(range(14))
    reasons = {r["number"]: r["reason"] for r in found if r["state"] == "FAIL"}
    assert sorted(reasons) == [1, 2, 3, 5, 6]
    assert "objective" in reasons[1]
    assert "nan" in reasons[1]
    assert "objective" in reasons[2]
    assert reasons[3] == "loss is nan in step 7"
    assert reasons[5]
    assert reasons[6].startswith("2 workers hung: no result within 4 s.")
    assert found[0]["baseline"]
    assert found[4]["state"] == "COMPLETE", "a worker that died once is replaced"
    assert steps(tmp_path, 4) == [1, 2, 3], "and resumes from its own checkpoint"
    assert found[13]["state"] == "PRUNED"
    assert len(found[13]["epochs"]) < 3
    counts = states(tmp_path)
    assert counts["FAIL"] == 5
    assert counts["COMPLETE"] + counts["PRUNED"] == 9

    best = max((r for r in found if r["state"] == "COMPLETE"), key=lambda r: r["objective"])
    assert finals["selected"]["number"] == best["number"]
    assert [run["seed"] for run in finals["datasets"]["textures"]["selected"]] == [1, 2, 3]
    assert finals["verdict"] == "selected"
    assert finals["difference"]["low"] == pytest.approx(best["objective"] - found[0]["objective"])
    assert "5 failed" in text

    again, text = run_fake(tmp_path, behaviour={"all": "raise"}, **options)
    assert again == finals, "nothing is run twice"
    assert records(tmp_path) == found


def test_more_trials_extend_a_study_and_other_settings_are_refused(tmp_path: Path) -> None:
    """Settings that are given come after the default ones, and once."""
    given = tmp_path / "given.yaml"
    given.write_text("regularizer.text_weight: 7.0\n")
    run_fake(tmp_path, trials=3, enqueue=given)
    first = records(tmp_path)
    finals, text = run_fake(tmp_path, trials=5, enqueue=given)
    found = records(tmp_path)
    assert found[:3] == first
    assert [r["origin"] for r in found] == ["baseline", "enqueued", "sampled", "sampled", "sampled"]
    assert found[1]["settings"]["regularizer.text_weight"] == 7.0
    assert len(found[1]["settings"]) == 3, "what is left open is sampled"
    assert states(tmp_path) == {"COMPLETE": 5}
    assert "Resuming: 3 trials finished, 0 interrupted" in text
    assert finals["difference"] is None
    with pytest.raises(UserError, match=r"started with other settings \(.*train\.epochs"):
        run_fake(tmp_path, trials=5, epochs=4)


def test_a_study_where_everything_fails_ends_early_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"loss is nan in step 7"):
        run_fake(tmp_path, trials=12, behaviour={"all": "fail"})
    failed = len(records(tmp_path))
    assert failed == HOPELESS
    run_fake(tmp_path, trials=12, behaviour={})
    assert states(tmp_path)["FAIL"] == failed
    assert [r["state"] for r in records(tmp_path) if r["baseline"]] == ["FAIL", "COMPLETE"]


def test_the_confirmation_selects_by_fresh_seeds_and_resumes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"trials": 5, "top": 2, "final_seeds": (1, 2)}
    finals, _ = run_fake(tmp_path, behaviour={}, **options)
    confirmation = json.loads((tmp_path / NAME / "confirmation.json").read_text())
    found = sorted(records(tmp_path), key=lambda r: -r["objective"])
    best = [r["number"] for r in found if not r["baseline"]][:2]
    assert [row["number"] for row in confirmation["candidates"]] == [0, *best]
    assert confirmation["seeds"] == [1000, 1001]
    for row in confirmation["candidates"]:
        assert [run["seed"] for run in row["runs"]] == [3, 1000, 1001]

    def mean(row: dict[str, Any]) -> float:
        return sum(run["objective"] for run in row["runs"]) / 3

    assert confirmation["selected"] == max(confirmation["candidates"], key=mean)["number"]
    assert finals["selected"]["number"] == confirmation["selected"]
    shutil.copytree(next((tmp_path / NAME / "finals").iterdir()), tmp_path / NAME / "finals/trial-old")
    again, text = run_fake(tmp_path, behaviour={"all": "raise"}, **options)
    assert again == finals, "a folder of the user's own beside the final runs is none of them"
    assert "failed: " not in text, "no run is run twice"
    for path in (tmp_path / NAME / "confirmation").glob(
        "*/result.json"
    ):  # as of `prometar train --out` there
        told = json.loads(path.read_text())
        told["result"]["objective"] += 7
        path.write_text(json.dumps({**told, "objective": "final"}))
    run_fake(tmp_path, behaviour={}, **options)
    repeated = json.loads((tmp_path / NAME / "confirmation.json").read_text())
    assert list(map(mean, repeated["candidates"])) == list(map(mean, confirmation["candidates"]))


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
        with pytest.raises(StorageError, match=r"Stopped: .*database is locked.*Rerun") as caught:
            run_fake(tmp_path, trials=3, goals=goals)
    assert "\n" not in str(caught.value)
    first = records(tmp_path)
    assert len(first) == 2
    run_fake(tmp_path, trials=4, goals=goals)
    found = records(tmp_path)
    assert found[:2] == first
    assert states(tmp_path) == {"COMPLETE": 4}
    assert [[e["epoch"] for e in r["epochs"]] for r in found] == [[1, 2, 3]] * 4
    study = open_study(f"sqlite:///{tmp_path / NAME / 'study.db'}", NAME)
    assert [t.values for t in study.trials] == [[r["base"], r["seconds"]] for r in found]


def test_time_for_searching_ends_the_search_and_not_the_final_test(tmp_path: Path) -> None:
    options: dict[str, Any] = {"trials": 50, "max_hours": 4 / 3600}
    finals, text = run_fake(tmp_path, behaviour={"all": "sleep0.2"}, **options)
    assert "Time limit reached (--max-hours)" in text
    assert 1 <= len(records(tmp_path)) < 50
    assert "objective" in finals["datasets"]["textures"]["selected"][0]
    before = len(records(tmp_path))
    run_fake(tmp_path, **options)
    assert len(records(tmp_path)) == before, "what earlier commands have searched counts"


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    with StudyFolder(tmp_path / NAME).lock(), pytest.raises(WorkError, match="process"):
        run_fake(tmp_path)


def test_a_lost_study_starts_again(tmp_path: Path) -> None:
    first, _ = run_fake(tmp_path, trials=2, final_seeds=(1,))
    for lost in ("study.db", "study.yaml", "best.yaml"):
        (tmp_path / NAME / lost).unlink()
    shutil.rmtree(tmp_path / NAME / "trials")
    given = tmp_path / "given.yaml"
    given.write_text("regularizer.text_weight: 5.0\nregularizer.image_weight: 2.0\n")
    second, _ = run_fake(tmp_path, trials=2, final_seeds=(1,), enqueue=given)
    assert second["selected"]["number"] == first["selected"]["number"] == 1
    runs = [each["datasets"]["textures"]["selected"][0]["objective"] for each in (first, second)]
    assert runs[1] == pytest.approx(curve(5.0, 2.0, 3) + 0.25), (
        "they were run, not what had this number before"
    )
    assert runs[0] != runs[1]


def test_a_shared_storage_belongs_to_one_folder(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    run_fake(one, trials=1, storage=storage)
    with pytest.raises(UserError, match=r"belongs to .*/one/fake.*--study NAME"):
        run_fake(two, trials=1, storage=storage)
    assert not (two / NAME / "study.yaml").exists()
    with pytest.raises(UserError, match=r"train\.epochs"):
        run_fake(two, trials=1, epochs=9, storage=storage)
