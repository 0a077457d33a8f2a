"""Jobs that one worker trains together: told like jobs alone, also when some end early, fail or lag."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prometar.config.settings import Config
from prometar.data.streaming.stream import stream_local
from prometar.distributed.placement import ResourcePlan
from prometar.training.run import Run
from tests.support.small import BACKBONE
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
