"""Runs in lockstep: the records and checkpoints of their own runs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prometar.errors import UserError
from prometar.step.cuda_graph import Graph
from prometar.step.vmapped import _split
from prometar.training import lockstep
from prometar.training.epoch import Diverged, prepare
from prometar.training.lockstep import Lockstep
from prometar.training.run import Run
from prometar.training.session import Session
from tests.contracts.training.test_session import local, small_run, train


def three() -> list[Run]:
    each: tuple[dict[str, float], ...] = (
        {},
        {"inner__lr": 0.02, "regularizer__text_weight": 5.0, "task__mixup_alpha": 2.0},
        {"optim__lr": 0.01, "optim__weight_decay": 0.0},
    )
    return [small_run(backbone__precision="fp64", train__epochs=2, **values) for values in each]


def sessions(runs: list[Run], folder: Path) -> list[Session]:
    return [Session(run, folder / str(k), local(run)) for k, run in enumerate(runs)]


def test_each_equals_its_own_run_also_when_interrupted(tmp_path: Path) -> None:
    runs = three()
    alone = sessions(runs, tmp_path / "alone")
    for session in alone:
        train(session)
    Lockstep(sessions(runs, tmp_path / "together")).epoch()
    rest = Lockstep(sessions(runs, tmp_path / "together"))  # from the checkpoints, as after a kill
    together = list(rest.sessions)
    while rest.sessions:
        rest.epoch()
    for one, other in zip(alone, together, strict=True):
        assert other.finished
        for ours, its in zip(other.history, one.history, strict=True):
            assert ours.keys() == its.keys()
            assert {k: v for k, v in ours.items() if k != "seconds"} == pytest.approx(
                {k: v for k, v in its.items() if k != "seconds"}
            )
        for name, tensor in one.state.tensors().items():
            torch.testing.assert_close(other.state.tensors()[name], tensor, rtol=0, atol=1e-8)


def test_what_all_see_is_one_object_and_nothing_of_it_is_stacked() -> None:
    runs = [small_run(task__mixup_alpha=alpha) for alpha in (0.5, 2.0)]
    batch = next(local(runs[0])(runs[0].plan, 0))
    one, other = prepare(runs, batch, 0, by_labels=True)
    assert one.task is not None
    assert other.task is not None
    assert one.images is other.images
    assert one.task.support is other.task.support
    assert one.task.query is not other.task.query
    shared, own, _ = _split([one, other])
    assert any(leaf is one.task.support.tokens for leaf in shared)
    assert {len(leaf) for leaf in own} == {2}


def test_one_that_diverges_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Graph] = []
    monkeypatch.setattr(lockstep, "Graph", lambda: made.append(Graph()) or made[-1])
    runs = [small_run(train__epochs=2), small_run(train__epochs=2, optim__lr=1e30, optim__warmup_epochs=0)]
    together = Lockstep(sessions(runs, tmp_path))
    survivor = together.sessions[0]
    outcomes = together.epoch()
    assert isinstance(outcomes[1], Diverged)
    assert together.sessions == [survivor]
    assert len(made) == 2, "what was recorded for two would hold a GPU's memory for two"
    together.epoch()
    assert survivor.finished
    assert not together.sessions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modulator__kind": "add"}, "not in their modulator"),
        ({"train__seed": 2}, "the same images and their order"),
        ({"prompts__init": "an image of a"}, "the same prompts.init"),
        ({"backbone__precision": "fp64"}, "the same backbone"),
    ],
)
def test_what_does_not_go_together_is_refused(
    values: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        Lockstep(sessions([small_run(), small_run(**values)], tmp_path))


def test_two_data_sets_with_equal_lists_are_not_trained_together(tmp_path: Path) -> None:
    run = small_run()
    other = replace(run, config=run.config.override({"data.root": "elsewhere"}))
    with pytest.raises(UserError, match="the same data set"):
        Lockstep([*sessions([run], tmp_path / "one"), *sessions([other], tmp_path / "other")])
