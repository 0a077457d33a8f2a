"""Plain transcriptions equal the official code's recordings, and our losses and gradients, in float64.

So `benchmarks/step.py` compares two implementations of the same formulas.
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
from .test_newer import close, close_leaves, total

every_recording = pytest.mark.parametrize("path", newer_files(), ids=lambda path: path.name)


def transcribed(run: Newer) -> Transcription:
    texts = prompt_texts(
        run.meta["classnames"],
        run.method.prompts,
        init=run.config.prompts.init,
        template=run.meta["templates"]["student"],
    )
    transcription = TRANSCRIPTIONS[run.config.method]
    leaves = run.leaves("step0/prompt/")
    return transcription(run.raw_clip, run.config, tokenize(texts), leaves, run.teacher("classnames"))


def second_of(run: Newer, index: int) -> dict[str, Any]:
    """Return the second view and the number of the drawn text of a step, if the method uses them."""
    if not run.has(f"step{index}/images2"):
        return {}
    return {
        "second_view": run.tensor(f"step{index}/images2"),
        "draw": int(run.arrays[f"step{index}/draw"]),
    }


@every_recording
def test_the_transcription_follows_the_official_trajectory(path: Path) -> None:
    run = load_newer(path)
    transcription = transcribed(run)
    for index, images, labels in run.steps():
        rates = [float(run.tensor(f"step{index}/lr"))]
        if run.has(f"step{index}/lr_groups"):
            rates = run.tensor(f"step{index}/lr_groups").tolist()
        for group, lr in zip(transcription.optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        loss = transcription.step(images, labels, **second_of(run, index))
        close(loss, run.tensor(f"step{index}/loss"))
    leaves = {name: leaf.detach() for name, leaf in transcription.leaves.items()}
    close_leaves(leaves, run.leaves("final/prompt/"))


@every_recording
def test_the_transcription_has_our_loss_and_gradients(path: Path) -> None:
    run = load_newer(path)
    transcription = transcribed(run)
    [_, images, labels] = next(run.steps())
    loss = transcription.loss(images, labels, **second_of(run, 1))
    loss.backward()

    gradients, our_loss = our_gradients(run, images, labels)
    close(our_loss, loss.detach())
    assert gradients.keys() == transcription.leaves.keys()
    for name, leaf in transcription.leaves.items():
        assert leaf.grad is not None
        torch.testing.assert_close(gradients[name], leaf.grad, rtol=1e-8, atol=1e-8)


def our_gradients(run: Newer, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return the gradients and the loss of our first step, from an update by plain SGD with lr 1."""
    method = replace(run.method, optimizer=SGD(momentum=0.0, weight_decay=0.0))
    model = run.model("classnames")
    state = State.start(run.leaves("step0/prompt/"), {}, method.optimizer)
    batch, _ = embed_batch(model.clip, method, images, labels, None)
    second = second_of(run, 1)
    if second:
        assert model.frozen_text_CE is not None
        embedded = embed_images(model.clip, second["second_view"])
        batch = batch._replace(frozen=frozen_image_features(model.clip, embedded, None, 0))
        model = replace(model, frozen_text_CE=model.frozen_text_CE[second["draw"]])
    after, scalars = step(model, method, state, batch, None, Rates(1.0, 0.0))
    gradients = {name: leaf - after.leaves[name] for name, leaf in state.leaves.items()}
    return gradients, total(run, scalars)
