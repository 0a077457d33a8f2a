"""Plain transcriptions of TCP, MMA, MMRL, DePT and CoPrompt must match the recordings of the official code.

Our losses and gradients must match those of the transcriptions, in float64. So `benchmarks/step.py`, which
measures the speed of both, compares two implementations of the same formulas.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prometar.clip.features import frozen_image_features
from prometar.clip.openclip import tokenize
from prometar.clip.vision import embed_images
from prometar.methods.optimizers import SGD
from prometar.step.iteration import step
from prometar.step.meta_batch import embed_batch
from prometar.step.prompted_clip import prompt_texts
from prometar.step.state import State
from prometar.step.updates import Rates
from tests.support.transcriptions import TRANSCRIPTIONS, Transcription

from .newer import Newer, load_newer, newer_files
from .test_newer import assert_close, assert_leaves_close, minimized_loss

every_recording = pytest.mark.parametrize("path", newer_files(), ids=lambda path: path.name)


def transcription_of(run: Newer) -> Transcription:
    """Return the transcription of the run's method, with the initial leaves of the run."""
    texts = prompt_texts(
        run.meta["classnames"],
        run.method.prompts,
        init=run.config.prompts.init,
        template=run.meta["templates"]["student"],
    )
    transcription_class = TRANSCRIPTIONS[run.config.method]
    leaves = run.leaves("step0/prompt/")
    frozen_text = run.frozen_text("classnames")
    return transcription_class(run.raw_clip, run.config, tokenize(texts), leaves, frozen_text)


def frozen_inputs(run: Newer, index: int) -> dict[str, Any]:
    """Return CoPrompt's inputs of the frozen CLIP in a step, and {} for the methods that have none.

    `second_view` contains other augmentations of the images. `draw` is the number (from 0) of the text that
    represents each class.
    """
    if not run.has(f"step{index}/images2"):
        return {}
    return {
        "second_view": run.tensor(f"step{index}/images2"),
        "draw": int(run.arrays[f"step{index}/draw"]),
    }


@every_recording
def test_the_transcription_follows_the_official_trajectory(path: Path) -> None:
    run = load_newer(path)
    transcription = transcription_of(run)
    for index, images, labels in run.steps():
        rates = [float(run.tensor(f"step{index}/lr"))]
        if run.has(f"step{index}/lr_groups"):  # DePT: prompts, linear head
            rates = run.tensor(f"step{index}/lr_groups").tolist()
        for group, lr in zip(transcription.optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        loss = transcription.step(images, labels, **frozen_inputs(run, index))
        assert_close(loss, run.tensor(f"step{index}/loss"))
    leaves = {name: leaf.detach() for name, leaf in transcription.leaves.items()}
    assert_leaves_close(leaves, run.leaves("final/prompt/"))


@every_recording
def test_the_transcription_has_our_loss_and_gradients(path: Path) -> None:
    run = load_newer(path)
    transcription = transcription_of(run)
    first_step, images, labels = next(run.steps())
    loss = transcription.loss(images, labels, **frozen_inputs(run, first_step))
    loss.backward()

    our_gradient, our_loss = our_gradient_and_loss(run)
    assert_close(our_loss, loss.detach())
    assert our_gradient.keys() == transcription.leaves.keys()
    for name, leaf in transcription.leaves.items():
        assert leaf.grad is not None
        torch.testing.assert_close(our_gradient[name], leaf.grad, rtol=1e-8, atol=1e-8)


def our_gradient_and_loss(run: Newer) -> tuple[dict[str, Tensor], Tensor]:
    """Return the gradient of each leaf and the loss in our first step.

    Plain SGD with learning rate 1 subtracts the gradient, so the change of the leaves reveals it.
    """
    first_step, images, labels = next(run.steps())
    method = replace(run.method, optimizer=SGD(momentum=0.0, weight_decay=0.0))
    model = run.model("classnames")
    state = State.start(run.leaves("step0/prompt/"), {}, method.optimizer)
    batch, _ = embed_batch(model.clip, method, images, labels, None)
    frozen = frozen_inputs(run, first_step)
    if frozen:
        assert model.frozen_text_CE is not None
        second_view = embed_images(model.clip, frozen["second_view"])
        batch = batch._replace(frozen=frozen_image_features(model.clip, second_view, None, 0))
        model = replace(model, frozen_text_CE=model.frozen_text_CE[frozen["draw"]])
    after, losses = step(model, method, state, batch, None, Rates(lr=1.0, gate_lr=0.0))
    gradient = {name: leaf - after.leaves[name] for name, leaf in state.leaves.items()}
    return gradient, minimized_loss(run, losses)
