"""Every recorded trajectory of ProMetaR's published code, replayed by our step.

In float64, losses, prompts and gate agree within 1e-8 after each step. In float32, losses and prompts agree
after the first step within 1e-4 max(1, largest magnitude of the tensor). This is about a thousand rounding
errors of float32, which are 1e-7 each.
"""

from pathlib import Path

import pytest
import torch

from prometar.clip.vision import embed_images
from prometar.step.iteration import Losses, step
from prometar.step.meta_batch import embed_batch

from .golden import Golden, golden_files, load

FILES = golden_files("prometar_*.npz")
LOSSES = (
    "direct_ce",
    "direct_text",
    "direct_image",
    "support_ce",
    "support_text",
    "support_image",
    "query_loss",
)
"""All recorded losses. Those of support and query are missing in steps without a meta task."""


def test_there_are_recorded_trajectories() -> None:
    assert len(FILES) >= 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_float64_trajectory(path: Path) -> None:
    golden = load(path, torch.float64)
    tolerance = 1e-8
    state = golden.start
    for index, images, labels, selection in golden.steps():
        batch, meta_task = embed_batch(golden.model.clip, golden.method, images, labels, selection)
        state, losses = step(golden.model, golden.method, state, batch, meta_task, golden.rates)
        assert_losses_close(golden, index, losses, tolerance)
        for name, recorded in golden.prompts(index).items():
            torch.testing.assert_close(state.leaves[name], recorded, rtol=0, atol=tolerance)
        # The gate is recorded in some steps only. Of the others, `golden.gate` is empty.
        for name, recorded in golden.gate(index).items():
            torch.testing.assert_close(state.gate[name], recorded, rtol=0, atol=tolerance)
    assert state.step == golden.meta["steps"]
    assert golden.gate(state.step), "the gate must be recorded in the last step"
    logits = evaluation_logits(golden, state.leaves)
    torch.testing.assert_close(logits, golden.tensor("eval/logits"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_float32_first_step(path: Path) -> None:
    golden = load(path, torch.float32)
    tolerance = 1e-4
    index, images, labels, selection = next(golden.steps())
    batch, meta_task = embed_batch(golden.model.clip, golden.method, images, labels, selection)
    state, losses = step(golden.model, golden.method, golden.start, batch, meta_task, golden.rates)
    assert_losses_close(golden, index, losses, tolerance)
    for name, recorded in golden.prompts(index).items():
        scale = max(1.0, float(recorded.abs().max()))
        torch.testing.assert_close(state.leaves[name], recorded, rtol=0, atol=tolerance * scale)


def assert_losses_close(golden: Golden, index: int, losses: Losses, tolerance: float) -> None:
    """Check the names and values of a step's losses.

    In float32, the tolerance is relative for losses above 1.
    """
    for name in LOSSES:
        key = f"step{index}/{name}"
        assert (key in golden.arrays) == (name in losses), name
        if name in losses:
            recorded = golden.tensor(key)
            scale = 1.0
            if golden.dtype == torch.float32:
                scale = max(1.0, abs(float(recorded)))
            # The default of `loss_name` keeps the name of this iteration.
            torch.testing.assert_close(
                losses[name],
                recorded,
                rtol=0,
                atol=tolerance * scale,
                msg=lambda message, loss_name=name: f"{loss_name}: {message}",
            )


@torch.no_grad()
def evaluation_logits(golden: Golden, prompts: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return our logits (B, C) of the evaluated images."""
    model = golden.model
    tokens = embed_images(model.clip, golden.tensor("eval/images"))
    images = model.image_features(prompts, tokens)
    return model.logits(prompts, model.features(prompts, model.text_features(prompts), images))
