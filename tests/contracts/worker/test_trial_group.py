"""Jobs that one worker trains together: told like jobs alone, also when some end early, fail or lag."""

import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prometar.config.settings import Config, parse
from prometar.data.streaming.stream import stream_local
from prometar.distributed.placement import ResourcePlan
from prometar.errors import StorageError, WorkError
from prometar.training.run import Run, code_of, contents_of
from tests.support.small import BACKBONE
from tune.jobs.files import JobFiles
from tune.jobs.spec import Job, Leg, Terms
from tune.worker import training_run
from tune.worker.training_run import LegRun
from tune.worker.trial_group import Crew

BASE: dict[str, Any] = {**BACKBONE, "train.epochs": 3, "data.shots": 2, "optim.warmup_epochs": 0}
GENTLE: dict[str, Any] = {"regularizer.text_weight": 5.0, "inner.lr": 0.01}
OTHER: dict[str, Any] = {"regularizer.kind": "cosine"}


@pytest.fixture(autouse=True)
def _local_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    def local(run: Run, options: object) -> Any:
        return lambda plan, step: stream_local(plan, run.dataset.source, start_step=step)

    monkeypatch.setattr(training_run, "ray_stream", local)


def jobs(folder: Path, *settings: dict[str, Any]) -> list[Job]:
    return [
        Job(
            str(folder / f"{k:04d}"),
            (Leg(Config().override({**BASE, **each}).model_dump(mode="json")),),
            "drift",
            each,
            val_per_class=2,
        )
        for k, each in enumerate(settings)
    ]


def finish(worker: Crew) -> list[dict[str, Any]]:
    told = []
    while not worker.over:
        told += worker.advance()
    return told


def figures(results: list[dict[str, Any]], member: int) -> list[dict[str, Any]]:
    """What a member told, without what differs between a job alone and one of several."""
    kept = ("epoch", "objective", "base", "new", "loss", "finished", "failed")
    return [{key: r[key] for key in kept if key in r} for r in results if r["member"] == member]


Alone = Callable[..., list[list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """What jobs of these settings tell alone; each is trained once for all tests."""
    told: dict[str, list[dict[str, Any]]] = {}

    def of(*settings: dict[str, Any]) -> list[list[dict[str, Any]]]:
        for each in settings:
            if str(each) not in told:
                told[str(each)] = figures(finish(Crew(jobs(tmp_path_factory.mktemp("alone"), each))), 0)
        return [told[str(each)] for each in settings]

    return of


def assert_same(ours: list[dict[str, Any]], its: list[dict[str, Any]]) -> None:
    """Equal within float32's rounding, which may move an image or two of 32 to another class."""
    assert [[r[key] for key in ("epoch", "finished", "failed")] for r in ours] == [
        [r[key] for key in ("epoch", "finished", "failed")] for r in its
    ]
    for key, tolerance in (("loss", 1e-4), ("base", 7.0), ("new", 7.0)):
        assert [r[key] for r in ours] == pytest.approx([r[key] for r in its], abs=tolerance)


def test_each_tells_what_it_tells_alone(tmp_path: Path, alone: Alone) -> None:
    settings = ({}, GENTLE, OTHER)
    told = finish(Crew(jobs(tmp_path / "crew", *settings)))
    assert [r["member"] for r in told] == 3 * [0, 1, 2]
    assert [r["finished"] for r in told] == 6 * [False] + 3 * [True]
    for k, its in enumerate(alone(*settings)):
        assert_same(figures(told, k), its)
        assert (tmp_path / "crew" / f"{k:04d}" / "result.json").exists()


def test_seconds_are_shares_of_what_took_place_together(tmp_path: Path) -> None:
    together = finish(Crew(jobs(tmp_path / "crew", {}, GENTLE)))
    last = [r["seconds"] for r in together if r["finished"]]
    assert max(last) < 1.5 * min(last)


def test_a_gpu_s_memory_is_given_back_when_jobs_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the largest of its trials would be a worker's for good, and other workers on the GPU have less."""
    left = list[int]()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: left.append(sum(each() is not None for each in held))
    )
    worker = Crew(jobs(tmp_path / "crew", {}, GENTLE))
    worker.advance()
    (together,) = worker._together.values()
    held = [weakref.ref(each) for each in (together, together._graph, *together.sessions)]
    del together
    worker.close()
    assert left == [0]


def test_a_stopped_job_is_left_out_and_the_others_go_on(tmp_path: Path, alone: Alone) -> None:
    mine = jobs(tmp_path / "crew", {}, GENTLE)
    worker = Crew(mine)
    first = worker.advance()
    JobFiles(mine[0]).stop()  # it led: the images came through its stream
    rest = worker.advance()
    assert not worker._together, "what a GPU recorded for both is given up"
    rest += finish(worker)
    assert [r["member"] for r in rest] == [1, 1]
    (its,) = alone(GENTLE)
    assert_same(figures(first + rest, 1), its)


def test_one_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    told = finish(Crew(jobs(tmp_path / "crew", {}, {"optim.lr": 1e30}, {"data.name": "nowhere"})))
    (diverged,), (unknown,) = figures(told, 1), figures(told, 2)
    assert diverged["finished"]
    assert "optim.lr" in diverged["failed"]
    assert unknown["finished"]
    assert "nowhere" in unknown["failed"]
    assert [r["epoch"] for r in figures(told, 0)] == [1, 2, 3]


def test_those_behind_catch_up_and_go_on_together(tmp_path: Path, alone: Alone) -> None:
    mine = jobs(tmp_path / "crew", {}, GENTLE)
    ahead = Crew(mine[:1])
    first = ahead.advance()
    ahead.close()
    worker = Crew(mine)
    told = finish(worker)
    assert figures(told[:1], 0) == figures(first, 0)  # told again: perhaps nobody has heard of it
    assert [(r["member"], r["epoch"]) for r in told[1:]] == [(1, 1), (0, 2), (1, 2), (0, 3), (1, 3)]
    for k, its in enumerate(alone({}, GENTLE)):
        assert_same(figures(told, k), its)


def test_one_that_caught_up_leads_when_the_leader_is_stopped(tmp_path: Path, alone: Alone) -> None:
    mine = jobs(tmp_path / "crew", {}, GENTLE)
    ahead = Crew(mine[:1])
    ahead.advance()
    ahead.close()
    worker = Crew(mine)
    told = worker.advance() + worker.advance() + worker.advance()  # told again, caught up, together
    assert [(r["member"], r["epoch"]) for r in told] == [(0, 1), (1, 1), (0, 2), (1, 2)]
    JobFiles(mine[0]).stop()
    told += finish(worker)
    (its,) = alone(GENTLE)
    assert_same(figures(told, 1), its)


def test_a_restarted_crew_leaves_out_who_has_ended(tmp_path: Path) -> None:
    mine = jobs(tmp_path / "crew", {}, GENTLE)
    JobFiles(mine[0]).stop()
    assert {r["member"] for r in finish(Crew(mine))} == {1}
    JobFiles(mine[0]).allow()
    assert {r["member"] for r in finish(Crew(mine))} == {0, 1}


def test_images_that_cannot_be_read_fail_all_who_need_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(run: Run, options: object) -> Any:
        def stream(plan: object, step: int) -> Any:
            raise WorkError("broken image a.jpg")

        return stream

    monkeypatch.setattr(training_run, "ray_stream", broken)
    told = finish(Crew(jobs(tmp_path / "crew", {}, GENTLE)))
    assert [(r["member"], r["failed"], r["finished"]) for r in told] == [
        (0, "broken image a.jpg", True),
        (1, "broken image a.jpg", True),
    ]


def test_a_worker_gets_what_its_driver_has_handed_out(tmp_path: Path) -> None:
    mine = [*jobs(tmp_path, {}, GENTLE), of_runs(tmp_path, {"train.seed": 5})]
    assert pickle.loads(pickle.dumps({"jobs": mine})) == {"jobs": mine}


def of_runs(folder: Path, *changes: dict[str, Any]) -> Job:
    """A job of several runs."""
    legs = tuple(
        Leg(Config().override({**BASE, **each}).model_dump(mode="json"), f"run{k}")
        for k, each in enumerate(changes)
    )
    return Job(str(folder / "several"), legs, "drift", {}, 2, Terms(ResourcePlan(1, 2.0, 0.5), 60.0))


def test_figures_of_several_runs_are_their_means(tmp_path: Path) -> None:
    seeds: tuple[dict[str, Any], ...] = ({"train.seed": 0}, {"train.seed": 1})
    job = of_runs(tmp_path, *seeds)
    told = finish(Crew([job]))
    assert [r["epoch"] for r in told] == [1, 2, 3]
    assert [r["finished"] for r in told] == [False, False, True]
    one, other = (finish(Crew([j])) for j in jobs(tmp_path / "alone", *seeds))
    for mine, a, b in zip(told, one, other, strict=True):
        for key in ("objective", "base", "new", "loss"):
            assert mine[key] == pytest.approx((a[key] + b[key]) / 2, abs=1e-9)
        assert [(r["dataset"], r["seed"]) for r in mine["runs"]] == [
            ("textures", 0), ("textures", 1)
        ]  # fmt: skip
        assert [r["objective"] for r in mine["runs"]] == [a["objective"], b["objective"]]
    assert all((tmp_path / "several" / f"run{k}" / "result.json").exists() for k in (0, 1))


def test_runs_whose_state_is_ahead_wait_for_the_others(tmp_path: Path) -> None:
    job = of_runs(tmp_path, {"train.seed": 0}, {"train.seed": 1})
    whole = finish(Crew([of_runs(tmp_path / "whole", {"train.seed": 0}, {"train.seed": 1})]))
    ahead = LegRun(job, job.legs[0])
    ahead.session.epoch()
    ahead.session.close()
    told = finish(Crew([job]))
    assert figures(told, 0) == figures(whole, 0)


def test_a_machine_that_is_not_like_the_drivers_is_to_blame_and_no_trial(tmp_path: Path) -> None:
    (job,) = jobs(tmp_path, GENTLE)
    config = parse(job.legs[0].config, where="it")
    (tmp_path / "study.yaml").touch()
    right = contents_of(config) | code_of("tune")

    def begin(contents: dict[str, str], root: Path = tmp_path, **data: Any) -> None:
        leg = Leg(config.override(data).model_dump(mode="json"))
        Crew([replace(job, legs=(leg,), terms=replace(job.terms, root=str(root), contents=contents))]).close()

    begin(right)
    assert len(right) == 4
    for name in right:
        with pytest.raises(StorageError, match=f"the machine .* has other {name} than this command began"):
            begin({**right, name: "0" * 64})
    begin({**right, "weights of mini  in bf16": "0" * 64})  # which this run does not use
    with pytest.raises(StorageError, match="elsewhere: share it between the machines, or pass"):
        begin(right, tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="lacks what the driver has checked: "):
        begin(right, **{"data.name": "folder", "data.root": str(tmp_path / "nowhere")})


@pytest.mark.parametrize("damage", ["short", "empty", "foreign"])
def test_a_damaged_checkpoint_is_set_aside_and_the_run_starts_over(
    tmp_path: Path, damage: str, alone: Alone
) -> None:
    (job,) = jobs(tmp_path, GENTLE)
    (other,) = jobs(tmp_path / "other", OTHER)
    first = Crew([job])
    first.advance()
    first.close()
    path = Path(job.run_dir) / "checkpoint.safetensors"
    if damage == "foreign":
        Crew([other]).advance()
        content = (Path(other.run_dir) / "checkpoint.safetensors").read_bytes()
    else:
        content = path.read_bytes()[: 100 if damage == "short" else 0]
    path.write_bytes(content)
    told = finish(Crew([job]))
    (its,) = alone(GENTLE)
    assert figures(told, 0) == its, "the same as if it had never been damaged"
    assert "started over: " in told[-1]["notes"][0]
    assert (Path(job.run_dir) / "checkpoint.set-aside.safetensors").read_bytes() == content
