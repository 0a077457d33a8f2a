"""A study survives its trials, its workers and its driver; on Ray, with trials that do not train."""

import json
import os
import shutil
import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError
from sqlalchemy.exc import OperationalError

from prometar.errors import UserError, WorkError
from tests.support.databases import open_study
from tests.support.driver import NAME, misbehave, records, run_fake, small_spec
from tests.support.fake_trial import curve
from tune.execution import runner
from tune.jobs.spec import Terms
from tune.optimizer.ask_tell import HOPELESS, Memory
from tune.optimizer.storage import drive_study
from tune.results.goals import parse_bounds
from tune.results.writer import StudyFolder


def steps(out: Path, number: int) -> list[int]:
    """Epochs that a trial really ran, in order."""
    return [int(line) for line in (out / NAME / f"trials/{number:04d}/steps.log").read_text().split()]


def states(out: Path) -> Counter[str]:
    """Trials by state, as the database has them."""
    study = open_study(f"sqlite:///{out / NAME / 'study.db'}", NAME)
    return Counter(t.state.name for t in study.trials)


@pytest.mark.usefixtures("ray_local")
def test_every_kind_of_trial_ends_with_a_record(tmp_path: Path) -> None:
    behaviour = {
        "1": "nan", "2": "missing", "3": "fail", "4": "crash", "5": "crash-always", "6": "hang", "13": "bad"
    }  # fmt: skip
    spec = small_spec(trials=14, pruner="median", final_seeds=(1, 2, 3))
    finals, text = run_fake(tmp_path, spec, behaviour=behaviour, trial_timeout=4.0)
    found = records(tmp_path)
    assert [r["number"] for r in found] == list(range(14))
    reasons = {r["number"]: r["reason"] for r in found if r["state"] == "FAIL"}
    assert sorted(reasons) == [1, 2, 3, 5, 6]
    assert reasons[1] == "the objective is nan in epoch 1"
    assert reasons[2] == "the trial reported no objective"
    assert reasons[3].startswith("the loss is nan in step 7, with {'regularizer.kind'")
    assert reasons[5]
    assert reasons[6].startswith("2 workers hung: no result within 4 s (--trial-timeout)")
    stacks = [file.read_text() for file in (tmp_path / NAME / "trials/0006").glob("hung-*.txt")]
    assert [("fake_trial.py" in stack) for stack in stacks if stack] == [True, True]
    assert steps(tmp_path, 6) == [1], "the second worker went on from the first one's state"
    assert found[0]["reference"]
    assert found[0]["state"] == "COMPLETE"
    assert found[4]["state"] == "COMPLETE", "a worker that died once is tried again"
    assert steps(tmp_path, 4) == [1, 2, 3], "and goes on from its own checkpoint"
    assert found[13]["state"] == "PRUNED"
    assert len(found[13]["epochs"]) < 3
    counts = states(tmp_path)
    assert counts["FAIL"] == 5
    assert counts["COMPLETE"] + counts["PRUNED"] == 9

    best = max((r for r in found if r["state"] == "COMPLETE"), key=lambda r: r["objective"])
    assert finals["best"]["number"] == best["number"]
    assert [run["seed"] for run in finals["datasets"]["textures"]["best"]] == [1, 2, 3]
    assert finals["shown"]
    assert finals["difference"]["low"] == pytest.approx(best["objective"] - found[0]["objective"])
    assert "5 failed" in text

    again, text = run_fake(tmp_path, spec, behaviour={"all": "raise"})
    assert again == finals, "nothing is run twice"
    assert records(tmp_path) == found


@pytest.mark.usefixtures("ray_local")
def test_more_trials_extend_a_study_and_other_settings_are_refused(tmp_path: Path) -> None:
    """Settings that are given come after the released ones, and once."""
    given = [{"regularizer.text_weight": 7.0}]
    run_fake(tmp_path, small_spec(trials=3), enqueued=given)
    first = records(tmp_path)
    finals, text = run_fake(tmp_path, small_spec(trials=5, final_seeds=(1,)), enqueued=given)
    found = records(tmp_path)
    assert found[:3] == first
    assert [r["origin"] for r in found] == ["released", "enqueued", "sampled", "sampled", "sampled"]
    assert found[1]["settings"]["regularizer.text_weight"] == 7.0
    assert len(found[1]["settings"]) == 3, "what was left open is drawn"
    assert states(tmp_path) == {"COMPLETE": 5}
    assert "going on: 3 trials are done, 0 were interrupted" in text
    assert finals["difference"] is None
    with pytest.raises(UserError, match=r"made with other settings \(.*train\.epochs: 3 then, 4 now"):
        run_fake(tmp_path, small_spec(trials=5, epochs=4))


@pytest.mark.usefixtures("ray_local")
def test_a_study_where_everything_fails_ends_early_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"its trials fail: the loss is nan in step 7"):
        run_fake(tmp_path, small_spec(trials=12), behaviour={"all": "fail"}, max_concurrent=2)
    failed = len(records(tmp_path))
    assert HOPELESS <= failed <= HOPELESS + 1  # one may have been running
    run_fake(tmp_path, small_spec(trials=12), behaviour={})
    assert states(tmp_path) == {"FAIL": failed, "COMPLETE": 12}, "what failed before is run again"


@pytest.mark.usefixtures("ray_local")
def test_out_of_memory_is_tried_again_with_a_larger_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's, as a trial says, and a machine's, for which Ray kills its worker."""
    told, epochs = RayActorManager._actor_task_resolved, list[int]()

    def kill_one(manager: RayActorManager, tracked_actor_task: Any, result: Any) -> None:
        epochs.append(result.get("epoch", 0) if isinstance(result, dict) else 0)
        if epochs[-1] != 2 or epochs.count(2) != 2:  # the second trial's
            told(manager, tracked_actor_task, result)
        else:
            error = OutOfMemoryError("Task was killed: low on memory.\nMore.")
            manager._actor_task_failed(tracked_actor_task=tracked_actor_task, exception=error)

    monkeypatch.setattr(RayActorManager, "_actor_task_resolved", kill_one)
    behaviour = {"2": "needs0.5", "3": "needs9"}
    run_fake(tmp_path, small_spec(trials=4), behaviour=behaviour, cpus=0.5)
    found = records(tmp_path)
    assert [r["state"] for r in found] == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]
    assert steps(tmp_path, 1) == [1, 2, 3]
    assert "CUDA out of memory" in found[3]["reason"]
    shares = [(tmp_path / NAME / f"trials/{n:04d}/shares.log").read_text().split() for n in (2, 3)]
    assert shares == [["0.25"], ["0.25", "0.5", "1"]]
    assert [r["cpus"] for r in found] == [0.5, 0.75, 0.75, 0.0]


@pytest.mark.usefixtures("ray_local")
def test_the_last_round_decides_by_fresh_seeds_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_spec(trials=5, top=2, top_seeds=2, final_seeds=(1, 2))
    misbehave(tmp_path, {"trial-0000-seed1000": "crash-always"})
    with monkeypatch.context() as patched:
        patched.setattr(runner, "MAX_FAILURES", 0)
        with pytest.raises(
            WorkError, match=r"a last round has ended without a result: .*same command goes on"
        ):
            run_fake(tmp_path, spec)
    assert not (tmp_path / NAME / "finals").exists(), (
        "a choice waits for a worker that died: nothing is tested"
    )
    finals, text = run_fake(tmp_path, spec, behaviour={})
    lastround = json.loads((tmp_path / NAME / "lastround.json").read_text())
    found = sorted(records(tmp_path), key=lambda r: -r["objective"])
    best = [r["number"] for r in found if not r["reference"]][:2]
    assert [row["number"] for row in lastround["rows"]] == [0, *best]
    assert lastround["seeds"] == [1000, 1001]
    for row in lastround["rows"]:
        assert [run["seed"] for run in row["runs"]] == [1000, 1001]
        assert row["mean"] == pytest.approx(sum(run["objective"] for run in row["runs"]) / 2)
    assert lastround["chosen"] == max(lastround["rows"], key=lambda row: row["mean"])["number"]
    assert finals["best"]["number"] == lastround["chosen"]
    assert finals["tested"] == [0, lastround["chosen"]]
    assert "last round" in text
    shutil.copytree(next((tmp_path / NAME / "finals").iterdir()), tmp_path / NAME / "finals/trial-old")
    again, text = run_fake(tmp_path, spec, behaviour={"all": "raise"})
    assert again == finals, "a folder of the user's own beside the final runs is none of them"
    assert "failed: " not in text, "no run is run twice"
    more, text = run_fake(tmp_path, replace(spec, final_seeds=(1, 2, 3)), behaviour={})
    assert more["looks"] == [[lastround["chosen"], 2]]
    assert "The same settings were looked at before, after 2 pairs" in text


def test_a_trial_has_a_run_for_each_data_set_and_seed() -> None:
    spec = small_spec(
        trials=2, datasets=("textures", "folder"), seeds_per_trial=2, final_seeds=(1, 2), top=1, top_seeds=1
    )
    assert [leg.name for leg in spec.search_job({}, (7,), "x", Terms()).legs] == [
        {"dataset": name, "seed": 7} for name in ("textures", "folder")
    ]
    assert len(spec.search_job({}, spec.seeds, "x", Terms()).legs) == 4


@pytest.mark.usefixtures("ray_local")
def test_a_study_of_several_goals_goes_on_where_its_store_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observe = Memory.observe

    def lose(memory: Memory, number: int, result: dict[str, Any]) -> bool:
        if number == 2:
            raise OperationalError("UPDATE trials", {}, Exception("database is locked"))
        return observe(memory, number, result)

    goals = ("base", "new")
    with monkeypatch.context() as patched:
        patched.setattr(Memory, "observe", lose)
        with pytest.raises(WorkError, match=r"has stopped: .*database is locked.*the same command") as caught:
            run_fake(tmp_path, small_spec(trials=3, goals=goals))
    assert "\n" not in str(caught.value)
    first = records(tmp_path)
    assert len(first) == 2
    run_fake(tmp_path, small_spec(trials=4, goals=goals))
    found = records(tmp_path)
    assert found[:2] == first
    assert states(tmp_path) == {"COMPLETE": 4}
    assert [r["state"] for r in found] == ["COMPLETE"] * 4
    assert [[e["epoch"] for e in r["epochs"]] for r in found] == [[1, 2, 3]] * 4
    study = open_study(f"sqlite:///{tmp_path / NAME / 'study.db'}", NAME)
    assert [t.values for t in study.trials] == [[r["base"], r["new"]] for r in found], "they make a front"


@pytest.mark.usefixtures("ray_local")
def test_where_nothing_keeps_a_bound_the_released_settings_are_kept(tmp_path: Path) -> None:
    spec = small_spec(trials=3, bounds=parse_bounds(["base=100"], []))
    finals, text = run_fake(tmp_path, spec)
    assert finals["same"]
    assert "No settings keep base at least 100, not even the released ones." in text
    assert "Keep the released settings" not in text
    assert "0 of 3 finished trials keep base at least 100; the released settings do not." in text
    with pytest.raises(UserError, match="bounds"):
        run_fake(tmp_path, small_spec(trials=4))


@pytest.mark.usefixtures("ray_local")
def test_time_for_searching_ends_a_search_and_not_the_comparison(tmp_path: Path) -> None:
    finals, text = run_fake(
        tmp_path,
        small_spec(trials=50, final_seeds=(1, 2)),
        behaviour={"all": "sleep0.2"},
        max_hours=4 / 3600,
    )
    assert "the time for searching is used up" in text
    assert 1 <= len(records(tmp_path)) < 50
    assert "objective" in finals["datasets"]["textures"]["best"][0]
    before = len(records(tmp_path))
    run_fake(tmp_path, small_spec(trials=50, final_seeds=(1, 2)), max_hours=4 / 3600)
    assert len(records(tmp_path)) == before, "what earlier commands have searched counts"


@pytest.mark.usefixtures("ray_local")
def test_a_study_learns_from_another_one_and_keeps_what_it_learned(tmp_path: Path) -> None:
    run_fake(tmp_path / "one", small_spec(trials=6))
    spec = small_spec(trials=7, objective="drift", top=2, top_seeds=1)
    _, text = run_fake(tmp_path, spec, warm_start=(tmp_path / "one" / NAME,))
    assert "learning from 6 trials on" in text
    assert [r["origin"] for r in records(tmp_path)] == ["released", *["warm start"] * 5, "sampled"]
    last = json.loads((tmp_path / NAME / "lastround.json").read_text())
    shutil.rmtree(tmp_path / "one")
    (tmp_path / NAME / "lastround.json").unlink()
    found = records(tmp_path)
    _, again = run_fake(tmp_path, spec)  # the other study is gone, and not named any more
    assert "learning from 6 trials on" in again
    assert records(tmp_path) == found, "what it promises is run once"
    assert json.loads((tmp_path / NAME / "lastround.json").read_text()) == last
    assert all(row["reference"] or row["expected"] is not None for row in last["rows"])
    _, fewer = run_fake(tmp_path, replace(spec, trials=3))
    assert "--trials 3 is less than what is done: nothing is searched, and all of it counts" in fewer
    assert records(tmp_path) == found


def test_a_second_driver_is_refused(tmp_path: Path) -> None:
    with StudyFolder(tmp_path, NAME).locked(), pytest.raises(WorkError, match=f"by process {os.getpid()}"):
        run_fake(tmp_path, small_spec())


@pytest.mark.usefixtures("ray_local")
def test_one_worker_serves_all_stages_and_a_result_of_other_settings_is_no_result(tmp_path: Path) -> None:
    spec = small_spec(trials=2, top=1, top_seeds=1, final_seeds=(1,))
    first, _ = run_fake(tmp_path, spec)
    found = list((tmp_path / NAME).rglob("pid"))
    assert len({path.relative_to(tmp_path / NAME).parts[0] for path in found}) == 3, "each stage has run jobs"
    assert len({path.read_text() for path in found}) == 1
    lastround = (tmp_path / NAME / "lastround.json").read_text()
    for path in (tmp_path / NAME / "lastround").glob("*/result.json"):  # as of `prometar train --out` there
        told = json.loads(path.read_text())
        told["result"]["objective"] += 7
        path.write_text(json.dumps({**told, "objective": "final"}))
    run_fake(tmp_path, spec)
    again = (tmp_path / NAME / "lastround.json").read_text()
    means = [[row["mean"] for row in json.loads(each)["rows"]] for each in (lastround, again)]
    assert means[0] == means[1], "a result on the test images is none of the last round's"
    for lost in ("study.db", "study.yaml"):
        (tmp_path / NAME / lost).unlink()
    shutil.rmtree(tmp_path / NAME / "trials")
    given = {"regularizer.text_weight": 5.0, "regularizer.image_weight": 2.0}
    second, _ = run_fake(tmp_path, spec, enqueued=[given])
    assert second["best"]["number"] == first["best"]["number"] == 1
    runs = [each["datasets"]["textures"]["best"][0]["objective"] for each in (first, second)]
    assert runs[1] == pytest.approx(curve(given, 3) + 0.25), "they were run, not what had this number before"
    assert runs[0] != runs[1]


@pytest.mark.usefixtures("ray_local")
def test_a_shared_storage_and_files_at_a_url_belong_to_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    place = {"storage": f"sqlite:///{tmp_path / 'shared.db'}", "files": f"file://{tmp_path}/store/{NAME}"}
    run_fake(one, small_spec(trials=1), **place)
    theirs = r"has its files in .*/one/fake on .*: go on with that --out"
    with pytest.raises(UserError, match=theirs):
        run_fake(two, small_spec(trials=1), storage=place["storage"])
    with pytest.raises(UserError, match=f"{place['files']} holds the files of another study"):
        run_fake(two, small_spec(trials=1), files=place["files"])
    assert not (two / NAME / "study.yaml").exists()
    monkeypatch.setattr(socket, "gethostname", lambda: "other")
    run_fake(one, small_spec(trials=2), **place)  # its disk has come to another machine
    assert [r["state"] for r in records(one)] == ["COMPLETE"] * 2
    one.rename(tmp_path / "away")
    with pytest.raises(UserError, match=theirs):  # which has a disk of its own, and folders of the same names
        run_fake(one, small_spec(trials=2), storage=place["storage"])


@pytest.mark.usefixtures("ray_local")
def test_a_shared_storage_does_not_mix_studies(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    drive_study(storage, NAME)[0].set_user_attr("identity", small_spec(epochs=9).identity)
    with pytest.raises(UserError, match=r"train\.epochs: 9 then, 3 now"):
        run_fake(tmp_path, small_spec(), storage=storage)
