"""Components of methods can be combined, or the combination is refused in one line before training."""

from collections.abc import Iterator
from itertools import cycle, product
from typing import Any

import pytest
import torch
from torch import Tensor

from prometar.clip.vision import embed_images
from prometar.errors import UserError
from prometar.step.iteration import step
from prometar.step.prompted_clip import PromptedClip
from tests.contracts.step.test_step import RATES, batch_for, make

PROMPTS = ("none", "independent", "coupled", "conditional", "class_aware", "shared")
ADAPTERS = ("none", "parallel")
FEATURES = ("none", "bottleneck", "representation")
LOGITS = ("cosine", "fused", "linear_head")
META = ("none", "first", "second")
SMALL: dict[str, dict[str, Any]] = {
    "class_aware": {"prompts.layer": 2, "prompts.reduction": 4},
    "shared": {"prompts.length": 2, "prompts.dim": 8, "prompts.layers": "2"},
}


def combinations() -> Iterator[dict[str, Any]]:
    """Every combination of what enters the step. Other components take turns."""
    modulators = cycle(("gate", "projection", "add"))
    optimizers = cycle(("sgd", "adam", "adamw", "sgd", "adam"))
    for prompts, adapters, features, logits, meta in product(PROMPTS, ADAPTERS, FEATURES, LOGITS, META):
        values: dict[str, Any] = {
            "prompts.kind": prompts,
            "adapters.kind": adapters,
            "features.kind": features,
            "logits.kind": logits,
            "modulator.kind": next(modulators),
            "optim.kind": next(optimizers),
            **SMALL.get(prompts, {}),
        }
        values |= {"inner.kind": "none"} if meta == "none" else {"inner.order": meta}
        if values["modulator.kind"] == "gate":
            values["modulator.reduction"] = 1
        if adapters == "parallel":
            values |= {"adapters.layers": "1-2", "adapters.dim": 3, "adapters.scale": 0.1}
        yield values


def refusal_of(values: dict[str, Any]) -> str:
    """Return a part of the message that refuses a combination, or "" for those that train."""
    image_prompts = values["prompts.kind"] in ("independent", "coupled", "shared")
    if values["features.kind"] == "representation" and not image_prompts:
        return "Choose prompts that enter the image tower"
    if values["logits.kind"] == "fused" and values["features.kind"] != "representation":
        return "Set features.kind=representation, or logits.kind=cosine"
    return ""


def learns(values: dict[str, Any]) -> bool:
    kinds = (values[f"{section}.kind"] for section in ("prompts", "adapters", "features"))
    return any(kind != "none" for kind in kinds) or values["logits.kind"] == "linear_head"


CASES = list(combinations())


@pytest.mark.parametrize("values", CASES, ids=lambda v: "-".join(str(each) for each in v.values()))
def test_a_combination_trains_or_is_refused(values: dict[str, Any]) -> None:
    if refusal := refusal_of(values):
        with pytest.raises(UserError, match=refusal) as error:
            make(values)
        assert "\n" not in str(error.value)
        return
    _, method, model, start = make(values)
    assert bool(start.leaves) == learns(values)
    if not start.leaves:
        return
    state, losses = step(model, method, start, *batch_for(model, method), RATES)
    assert ("query_loss" in losses) == (method.inner is not None)
    assert all(bool(loss.isfinite()) for loss in losses.values())
    assert all(bool(leaf.isfinite().all()) for leaf in state.leaves.values())
    assert any(not torch.equal(state.leaves[name], leaf) for name, leaf in start.leaves.items())


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("prompts", ["independent", "coupled"])
def test_autograd_gives_the_steps_of_the_hand_written_derivatives(
    prompts: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So second derivatives of towers that only autograd can differentiate are right, too."""
    values = {"prompts.kind": prompts, "inner.order": order}
    _, method, model, start = make(values)
    batch = batch_for(model, method)
    by_hand, losses = step(model, method, start, *batch, RATES)
    for name in ("_text_needs_autodiff", "_vision_needs_autodiff"):
        monkeypatch.setattr(PromptedClip, name, property(lambda model: True))
    by_autograd, same_losses = step(model, method, start, *batch, RATES)
    for name, tensor in by_hand.tensors().items():
        torch.testing.assert_close(by_autograd.tensors()[name], tensor, rtol=1e-9, atol=1e-11)
    for name, loss in losses.items():
        torch.testing.assert_close(same_losses[name], loss, rtol=1e-9, atol=1e-11)


def logits(model: PromptedClip, leaves: dict[str, Tensor], pixels: Tensor) -> Tensor:
    inputs = model.method.inputs(leaves)
    images = model.image_features(inputs, embed_images(model.clip, pixels))
    return model.logits(inputs, model.features(inputs, model.text_features(inputs), images))


def test_lora_of_the_examples_trains_and_equals_merged_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("examples")
    values = {"prompts.kind": "none", "prompts.frozen_text": "init", "adapters.kind": "lora:Lora"}
    _, method, model, state = make({**values, "modulator.kind": "add"})
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    frozen = logits(model, state.leaves, pixels)
    batch = batch_for(model, method)
    for _ in range(3):
        state, _ = step(model, method, state, *batch, RATES)
    trained = logits(model, state.leaves, pixels)
    assert not torch.allclose(trained, frozen)
    zeros = {name: torch.zeros_like(leaf) for name, leaf in state.leaves.items()}
    torch.testing.assert_close(logits(model, zeros, pixels), frozen)
