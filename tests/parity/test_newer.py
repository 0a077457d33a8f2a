"""Every recorded trajectory of TCP, MMA, MMRL, DePT and CoPrompt, replayed by our composition of the method.

In float64, these agree within 1e-8: loss, learning rates and parameters of every step, frozen text features,
and the logits of base and of new classes after training.
"""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prometar.clip.features import frozen_image_features
from prometar.clip.vision import embed_images
from prometar.methods.prompts import Leaves
from prometar.step.iteration import Losses, step
from prometar.step.meta_batch import embed_batch
from prometar.step.state import State
from prometar.training.epoch import rates_of

from .newer import Newer, load_newer, newer_files

FILES = newer_files()
TOLERANCE = 1e-8
every_recording = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def test_there_is_a_recording_of_each_trainer() -> None:
    methods = {load_newer(path).meta["method"] for path in FILES}
    assert methods >= {"tcp", "mma", "mmrl", "dept", "dept_kgcoop", "dept_maple", "coprompt"}


@every_recording
def test_the_trajectory_is_the_official_one(path: Path) -> None:
    run = load_newer(path)
    method = run.method
    model = run.model("classnames")
    state = State.start(run.leaves("step0/prompt/"), {}, run.config.optim.component())
    for index, images, labels in run.steps():
        rates = rates_of(run.config, (index - 1) // run.meta["steps_per_epoch"])
        assert rates.of_leaf("text.0") == pytest.approx(float(run.tensor(f"step{index}/lr")), rel=1e-12)
        if run.has(f"step{index}/lr_groups"):
            head_lr = float(run.tensor(f"step{index}/lr_groups")[1])
            assert rates.of_leaf("logits.weight") == pytest.approx(head_lr, rel=1e-12)
        whole, meta_task = embed_batch(model.clip, method, images, labels, None)
        if run.has(f"step{index}/images2"):
            second = embed_images(model.clip, run.tensor(f"step{index}/images2"))
            whole = whole._replace(frozen=frozen_image_features(model.clip, second, None, 0))
        step_model = model
        if run.has(f"step{index}/draw"):
            assert model.frozen_text_CE is not None
            drawn = model.frozen_text_CE[int(run.arrays[f"step{index}/draw"])]
            step_model = replace(model, frozen_text_CE=drawn)
        state, scalars = step(step_model, method, state, whole, meta_task, rates)
        close(total(run, scalars), run.tensor(f"step{index}/loss"))
        close_leaves(state.leaves, run.leaves(f"step{index}/prompt/"))
    assert state.step == run.meta["steps"]
    close_leaves(state.leaves, run.leaves("final/prompt/"))
    close(logits(run, "classnames", state.leaves), run.tensor("eval/logits"))
    # A head of the training classes is not built for new classes.
    close(logits(run, "new_classnames", state.leaves), run.tensor("eval/new_logits"))


def total(run: Newer, scalars: Losses) -> Tensor:
    """Return the minimized loss, computed from the logged scalars."""
    weighted = [w * scalars[f"direct_{term.name}"] for term, w in run.method.regularizer.terms]
    return torch.stack([scalars["direct_ce"], *weighted]).sum()


@torch.no_grad()
def logits(run: Newer, names: str, leaves: Leaves) -> Tensor:
    model = run.model(names)
    inputs = run.method.inputs(leaves)
    images = model.image_features(inputs, embed_images(model.clip, run.tensor("eval/images")))
    return model.logits(inputs, model.features(inputs, model.text_features(inputs), images))


@every_recording
def test_initial_values_have_the_official_shapes(path: Path) -> None:
    run = load_newer(path)
    official = run.leaves("step0/prompt/")
    num_classes = len(run.meta["classnames"])
    ours = run.method.initialize(run.clip, run.init_ids, num_classes, torch.Generator().manual_seed(0))
    assert {name: leaf.shape for name, leaf in ours.items()} == {
        n: leaf.shape for n, leaf in official.items()
    }
    assert equal_pairs(ours) == equal_pairs(official)


def equal_pairs(leaves: Leaves) -> set[tuple[str, str]]:
    """Return the pairs of leaves with equal initial values."""
    pairs = combinations(sorted(leaves), 2)
    return {(a, b) for a, b in pairs if torch.equal(leaves[a], leaves[b])}


@every_recording
def test_frozen_text_features_are_the_official_ones(path: Path) -> None:
    run = load_newer(path)
    for names, key in (("classnames", "teacher_text"), ("new_classnames", "new_teacher_text")):
        if run.has(key):
            teacher = run.teacher(names)
            assert teacher is not None
            close(teacher, torch.nn.functional.normalize(run.tensor(key), dim=-1))
    if run.has("teacher_texts"):
        teacher = run.teacher("classnames")
        assert teacher is not None
        close(teacher, run.tensor("teacher_texts"))


def close(ours: Tensor, recorded: Tensor) -> None:
    torch.testing.assert_close(ours, recorded, rtol=0, atol=TOLERANCE)


def close_leaves(ours: Leaves, recorded: Leaves) -> None:
    assert ours.keys() == recorded.keys()
    for name, leaf in recorded.items():
        torch.testing.assert_close(ours[name], leaf, rtol=0, atol=TOLERANCE, msg=lambda m, n=name: n + m)
