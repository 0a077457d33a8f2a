"""Every recorded trajectory of the published code, replayed.

In float64, losses, prompts and gate agree within 1e-8 after each step. In float32, they agree after the first
step within 1e-4 max(1, largest magnitude of the tensor), which is about a thousand roundings of 1e-7.
"""

from pathlib import Path

import pytest
import torch

from prometar.clip.vision import embed_images
from prometar.step.iteration import step
from prometar.step.meta_batch import embed_batch

from .golden import Golden, golden_files, load

FILES = golden_files("prometar_*.npz")
SCALARS = (
    "direct_ce",
    "direct_text",
    "direct_image",
    "support_ce",
    "support_text",
    "support_image",
    "query_loss",
)


def test_there_are_recorded_trajectories() -> None:
    assert len(FILES) >= 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_float64_trajectory(path: Path) -> None:
    golden = load(path, torch.float64)
    tolerance = 1e-8
    state = golden.start
    for index, images, labels, draw in golden.steps():
        batch = embed_batch(golden.model.clip, golden.method, images, labels, draw)
        state, scalars = step(golden.model, golden.method, state, *batch, golden.rates)
        assert_scalars(golden, index, scalars, tolerance)
        for recorded, ours in ((golden.prompts(index), state.leaves), (golden.gate(index), state.gate)):
            for name, value in recorded.items():
                torch.testing.assert_close(ours[name], value, rtol=0, atol=tolerance)
    assert state.step == golden.meta["steps"]
    assert golden.gate(state.step), "the last step records the gate"
    torch.testing.assert_close(
        eval_logits(golden, state.leaves), golden.tensor("eval/logits"), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_float32_first_step(path: Path) -> None:
    golden = load(path, torch.float32)
    tolerance = 1e-4
    index, *drawn = next(iter(golden.steps()))
    batch = embed_batch(golden.model.clip, golden.method, *drawn)
    state, scalars = step(golden.model, golden.method, golden.start, *batch, golden.rates)
    assert_scalars(golden, index, scalars, tolerance)
    for name, value in golden.prompts(index).items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(state.leaves[name], value, rtol=0, atol=tolerance * scale)


def assert_scalars(golden: Golden, index: int, scalars: dict[str, torch.Tensor], tolerance: float) -> None:
    for name in SCALARS:
        key = f"step{index}/{name}"
        assert (key in golden.arrays) == (name in scalars), name
        if name in scalars:
            value = golden.tensor(key)
            scale = max(1.0, abs(float(value))) if golden.dtype == torch.float32 else 1.0
            torch.testing.assert_close(
                scalars[name], value, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
            )


@torch.no_grad()
def eval_logits(golden: Golden, prompts: dict[str, torch.Tensor]) -> torch.Tensor:
    model = golden.model
    tokens = embed_images(model.clip, golden.tensor("eval/images"))
    images = model.image_features(prompts, tokens)
    return model.logits(prompts, model.features(prompts, model.text_features(prompts), images))
