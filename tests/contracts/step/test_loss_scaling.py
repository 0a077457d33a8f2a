"""Loss scaling changes nothing in float64, and keeps float16 gradients of both orders accurate."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.openclip import load_backbone, tokenize
from prometar.config.recipes import METHODS
from prometar.config.settings import Config
from prometar.methods.composition import build
from prometar.methods.optimizers import SGD
from prometar.step import iteration
from prometar.step.iteration import step
from prometar.step.loss_scaling import scale_factor
from prometar.step.meta_batch import embed_batch, leave_one_class_out
from prometar.step.prompted_clip import build_model, prompt_texts
from prometar.step.state import State
from prometar.step.updates import Rates
from tests.contracts.step.test_step import RATES, batch_for, make

LEARNING = [name for name in METHODS if not name.startswith("zero-shot")]
NAMES = [f"class number {number}" for number in range(6)]


@pytest.mark.parametrize("name", LEARNING)
def test_in_float64_scaling_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, method, model, start = make({}, name)
    plain = start
    scaled = start
    batch = batch_for(model, method)

    for _ in range(2):
        plain, _ = step(model, method, plain, *batch, RATES)
    monkeypatch.setattr(iteration, "scale_factor", lambda _, *numbers: scale_factor(torch.float16, *numbers))
    for _ in range(2):
        scaled, _ = step(model, method, scaled, *batch, RATES)

    for key, value in plain.tensors().items():
        torch.testing.assert_close(scaled.tensors()[key], value, rtol=1e-11, atol=1e-13)


def momenta(dtype: torch.dtype, settings: dict[str, Any], momentum: float) -> dict[str, Tensor]:
    """Return the momenta of the prompts and of the gate after the first step, as one vector each.

    They consist of gradients. Those of the prompts contain the gradients of both phases. Without momentum,
    they contain only the gradient of the meta phase.

    Args:
        dtype: Data type of the backbone.
        settings: Settings of ProMetaR by dotted key.
        momentum: Momentum of SGD.
    """
    clip = load_backbone("mini", None, dtype=dtype).clip
    method = build(Config().override(settings))
    generator = torch.Generator().manual_seed(0)
    tokens = tokenize(prompt_texts(NAMES, method.prompts, init="a photo of a", template="{}"))
    teacher = F.normalize(torch.randn(len(NAMES), clip.embed_dim, generator=generator), dim=-1)
    prompts = method.prompts.initialize(clip, tokens[0, 1:5], generator)
    state = State.start(prompts, method.modulator.initialize(prompts, generator))
    images = torch.randn(4, 3, 64, 64, generator=generator).to(dtype)
    labels = torch.tensor([0, 1, 2, 2])
    rng = np.random.default_rng(0)
    task = leave_one_class_out(labels, method.augmentation, rng, dtype=clip.working_dtype)
    model = build_model(clip, method, tokens, teacher)
    batch = embed_batch(clip, method, images, labels, task)
    method = replace(method, optimizer=SGD(momentum=momentum, weight_decay=0.0))
    after, _ = step(model, method, state, *batch, Rates(1e-3, 1e-3))
    groups = {"prompts": after.optimizer.slots["momenta"], "gate": after.gate_optimizer.slots["momenta"]}
    return {name: torch.cat([x.flatten() for x in group.values()]) for name, group in groups.items()}


def errors(settings: dict[str, Any], momentum: float = 0.9) -> dict[str, float]:
    """Return the relative errors of float16 gradients of the prompts and of the gate."""
    # Not the default l1, whose gradient is a sign, which the last bit of a feature can change.
    smooth = {"regularizer.kind": "l2", **settings}
    exact = momenta(torch.float32, smooth, momentum)
    rounded = momenta(torch.float16, smooth, momentum)
    return {name: float((rounded[name] - exact[name]).norm() / exact[name].norm()) for name in exact}


WEAK = {"inner.lr": 1e-5, "inner.outer_weight": 1e-5}


@pytest.mark.parametrize(
    ("settings", "momentum"),
    [
        ({}, 0.9),
        ({"inner.lr": 1.0, "inner.outer_weight": 1.0}, 0.9),
        (WEAK, 0.9),
        ({"inner.lr": 1.0, "inner.outer_weight": 1e-5}, 0.0),
    ],
    ids=["default", "strong meta phase", "weak meta phase", "second order with a small outer weight"],
)
def test_float16_gradients_are_near_those_of_float32(settings: dict[str, Any], momentum: float) -> None:
    assert max(errors(settings, momentum).values()) < 0.02


def test_float16_gradients_are_wrong_without_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iteration, "scale_factor", lambda dtype, *numbers: 1.0)
    assert errors(WEAK)["gate"] > 0.1
