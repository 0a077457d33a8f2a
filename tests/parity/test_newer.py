"""Every recorded trajectory of TCP, MMA, MMRL, DePT and CoPrompt, replayed by our composition of the method.

In float64, these results agree within 1e-8: loss and parameters of every step, frozen text features, and the
logits of base and of new classes after training. Learning rates agree within a relative error of 1e-12.
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


def test_there_is_a_recording_of_each_method() -> None:
    methods = {load_newer(path).meta["method"] for path in FILES}
    assert methods >= {"tcp", "mma", "mmrl", "dept", "dept_kgcoop", "dept_maple", "coprompt"}


@every_recording
def test_the_trajectory_is_the_official_one(path: Path) -> None:
    run = load_newer(path)
    method = run.method
    model = run.model("classnames")
    state = State.start(run.leaves("step0/prompt/"), {}, run.config.optim.component())
    for index, images, labels in run.steps():
        key = f"step{index}"
        epoch = (index - 1) // run.meta["steps_per_epoch"]
        rates = rates_of(run.config, epoch)
        assert rates.of_leaf("text.0") == pytest.approx(float(run.tensor(f"{key}/lr")), rel=1e-12)
        if run.has(f"{key}/lr_groups"):
            # DePT: the learning rates of the prompts and of the linear head.
            head_lr = float(run.tensor(f"{key}/lr_groups")[1])
            assert rates.of_leaf("logits.weight") == pytest.approx(head_lr, rel=1e-12)
        batch, _ = embed_batch(model.clip, method, images, labels, None)
        step_model = model
        if run.has(f"{key}/images2"):
            # CoPrompt: a second view of the images, and one drawn text per class, enter the frozen CLIP.
            second_view = embed_images(model.clip, run.tensor(f"{key}/images2"))
            batch = batch._replace(frozen=frozen_image_features(model.clip, second_view, None, 0))
            assert model.frozen_text_CE is not None
            drawn_text_CE = model.frozen_text_CE[int(run.arrays[f"{key}/draw"])]
            step_model = replace(model, frozen_text_CE=drawn_text_CE)
        state, losses = step(step_model, method, state, batch, None, rates)
        assert_close(minimized_loss(run, losses), run.tensor(f"{key}/loss"))
        assert_leaves_close(state.leaves, run.leaves(f"{key}/prompt/"))
    assert state.step == run.meta["steps"]
    assert_leaves_close(state.leaves, run.leaves("final/prompt/"))
    assert_close(logits(run, "classnames", state.leaves), run.tensor("eval/logits"))
    assert_close(logits(run, "new_classnames", state.leaves), run.tensor("eval/new_logits"))


def minimized_loss(run: Newer, losses: Losses) -> Tensor:
    """Return the sum of the cross-entropy and the weighted regularizers, given the unweighted losses."""
    terms = [losses["direct_ce"]]
    for term, weight in run.method.regularizer.terms:
        terms.append(weight * losses[f"direct_{term.name}"])
    return torch.stack(terms).sum()


@torch.no_grad()
def logits(run: Newer, entry: str, leaves: Leaves) -> Tensor:
    """Return our logits (B, C) of the evaluated images, for the classes in `run.meta[entry]`."""
    model = run.model(entry)
    inputs = run.method.inputs(leaves)
    images = model.image_features(inputs, embed_images(model.clip, run.tensor("eval/images")))
    return model.logits(inputs, model.features(inputs, model.text_features(inputs), images))


@every_recording
def test_initial_values_have_the_official_shapes(path: Path) -> None:
    run = load_newer(path)
    official = run.leaves("step0/prompt/")
    num_classes = len(run.meta["classnames"])
    ours = run.method.initialize(run.clip, run.init_ids, num_classes, torch.Generator().manual_seed(0))
    our_shapes = {name: leaf.shape for name, leaf in ours.items()}
    official_shapes = {name: leaf.shape for name, leaf in official.items()}
    assert our_shapes == official_shapes
    assert equal_pairs(ours) == equal_pairs(official)


def equal_pairs(leaves: Leaves) -> set[tuple[str, str]]:
    """Return the pairs of leaves with equal initial values."""
    pairs = combinations(sorted(leaves), 2)
    return {(a, b) for a, b in pairs if torch.equal(leaves[a], leaves[b])}


@every_recording
def test_frozen_text_features_are_the_official_ones(path: Path) -> None:
    run = load_newer(path)
    for entry, key in (("classnames", "teacher_text"), ("new_classnames", "new_teacher_text")):
        if run.has(key):
            ours = run.frozen_text(entry)
            assert ours is not None
            assert_close(ours, torch.nn.functional.normalize(run.tensor(key), dim=-1))
    if run.has("teacher_texts"):  # CoPrompt: several texts per class, recorded after normalization
        ours = run.frozen_text("classnames")
        assert ours is not None
        assert_close(ours, run.tensor("teacher_texts"))


def assert_close(ours: Tensor, recorded: Tensor) -> None:
    torch.testing.assert_close(ours, recorded, rtol=0, atol=TOLERANCE)


def assert_leaves_close(ours: Leaves, recorded: Leaves) -> None:
    assert ours.keys() == recorded.keys()
    for name, leaf in recorded.items():
        # The default of `leaf_name` keeps the name of this iteration.
        torch.testing.assert_close(
            ours[name],
            leaf,
            rtol=0,
            atol=TOLERANCE,
            msg=lambda message, leaf_name=name: f"{leaf_name}: {message}",
        )
