"""The step of every method, and of variants of ProMetaR, on a tiny backbone in float64."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.model import tensors_of
from prometar.clip.openclip import Backbone, tokenize
from prometar.config.recipes import METHODS
from prometar.config.settings import Config
from prometar.methods.composition import Method, build
from prometar.methods.optimizers import SGD
from prometar.step.iteration import Losses, step
from prometar.step.meta_batch import Embeddings, MetaTask, Selection, embed_batch, select
from prometar.step.prompted_clip import PromptedClip, build_model, prompt_texts
from prometar.step.state import State
from prometar.step.updates import Rates
from tests.support import tiny

CLASSES = ("banded", "polka-dotted", "woven")
RATES = Rates(lr=0.1, gate_lr=0.5)
LABELS = torch.tensor([0, 1, 1, 2])
"""Labels of a batch of four images, which are indices of `CLASSES`."""
IS_QUERY = torch.tensor([False, True, True, False])
"""Which images of the batch are query images of the meta task. No support image has their class, 1."""
SMALL: dict[str, Any] = {
    "prompts.text_length": 2,
    "prompts.vision_length": 3,
    "prompts.text_depth": 2,
    "prompts.vision_depth": 9,
    "prompts.reduction": 4,
    "modulator.reduction": 4,
    "inner.lr": 0.5,
    "inner.outer_weight": 1.0,
}
"""Settings that fit the tiny backbone, and a strong meta phase."""
VARIANTS: dict[str, dict[str, Any]] = {
    "first order": {"inner.order": "first"},
    "no gate": {"modulator.kind": "add"},
    "constant gate": {"modulator.kind": "constant", "modulator.value": 0.3},
    "projection": {"modulator.kind": "projection"},
    "no meta phase": {"inner.kind": "none"},
    "no mixup": {"task.augmentation": "none"},
    "no regularizer": {"regularizer.kind": "none"},
    "l2, images only": {"regularizer.kind": "l2", "regularizer.text_weight": 0},
    "cosine": {"regularizer.kind": "cosine"},
    "conditional prompts": {"prompts.kind": "conditional", "modulator.reduction": 1},
    "text prompts only": {"prompts.vision_depth": 0},
    "vision prompts only": {"prompts.text_depth": 0},
}
"""Settings of variants of ProMetaR."""
INIT = "a photo of a"
FEATURE_DIM = 24
"""Size of the tiny backbone's features."""


class Setup(NamedTuple):
    """A method on the tiny backbone, its model of `CLASSES`, and the state at step 0."""

    backbone: Backbone
    method: Method
    model: PromptedClip
    start: State


def make(values: Mapping[str, Any], method: str = "prometar", dtype: torch.dtype = torch.float64) -> Setup:
    """Build a method on the tiny backbone.

    Args:
        values: Settings. Other settings of the method have the value in `SMALL`, or else their default.
        method: Name of a recipe.
        dtype: Data type of the backbone.
    """
    config = Config(method=method).override(values)
    others = config.flat().keys() - values.keys()
    config = config.override({key: value for key, value in SMALL.items() if key in others})
    composition = build(config)
    backbone = tiny.backbone(dtype)
    clip = backbone.clip
    texts = prompt_texts(CLASSES, composition.prompts, init=INIT, template=f"{INIT} {{}}.")
    model = build_model(clip, composition, tokenize(texts), frozen_features(clip.working_dtype))
    # Token 0 is the start of text. Each word of INIT is one token.
    first_word = 1
    init_ids = tokenize([INIT])[0, first_word : first_word + len(INIT.split())]
    generator = torch.Generator().manual_seed(0)
    prompts = composition.initialize(clip, init_ids, len(CLASSES), generator)
    gate = composition.modulator.initialize(composition.inputs(prompts), generator)
    return Setup(backbone, composition, model, State.start(prompts, gate, composition.optimizer))


def frozen_features(dtype: torch.dtype) -> Tensor:
    """Return normalized features (classes, `FEATURE_DIM`) in place of those of the frozen text tower."""
    numbers = torch.linspace(-1, 1, len(CLASSES) * FEATURE_DIM, dtype=torch.float64)
    return F.normalize(numbers.view(len(CLASSES), FEATURE_DIM).sin(), dim=-1).to(dtype)


def draw(method: Method, seed: int = 0) -> Selection:
    """Return a meta task: query images as in `IS_QUERY`, and how they are mixed with support images."""
    augmentation = method.augmentation
    mix = augmentation.draw(2, 2, np.random.default_rng(seed))
    return select(IS_QUERY, mix, mixes_pixels=augmentation.mixes_pixels, dtype=torch.float64)


def batch_for(model: PromptedClip, method: Method) -> tuple[Embeddings, MetaTask | None]:
    """Return a batch of four random images, and its meta task if the method has a meta phase."""
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    task = draw(method) if method.inner is not None else None
    return embed_batch(model.clip, method, images, LABELS, task)


# Recipes and settings, by name of the case.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS},
    **{name: ("prometar", values) for name, values in VARIANTS.items()},
}


@dataclass(frozen=True)
class Iteration:
    """One step: the states before and after it, and its losses."""

    method: Method
    before: State
    after: State
    losses: Losses
    fixed: list[Tensor]
    """Tensors that the step must not change, after the step."""
    copies: list[Tensor]
    """Copies of these tensors, made before the step."""


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def iteration(request: pytest.FixtureRequest) -> Iteration:
    """A step of each case."""
    name, values = request.param
    _, method, model, start = make(values, name)
    fixed = [*tensors_of(model.clip), *start.leaves.values(), *start.gate.values()]
    fixed += [each for each in (model.text, model.frozen_text_CE) if isinstance(each, Tensor)]
    copies = [tensor.clone() for tensor in fixed]
    # Without weight decay, only gradients change a leaf.
    method = replace(method, optimizer=SGD(weight_decay=0.0))
    before = State.start(start.leaves, start.gate, method.optimizer)
    batch, task = batch_for(model, method)
    after, losses = step(model, method, before, batch, task, RATES)
    return Iteration(method, before, after, losses, fixed, copies)


def test_a_step_moves_every_leaf(iteration: Iteration) -> None:
    for name, leaf in iteration.before.leaves.items():
        assert not torch.equal(iteration.after.leaves[name], leaf), name


def test_a_meta_phase_moves_exactly_those_gate_tensors_that_receive_a_gradient(iteration: Iteration) -> None:
    """A step without a meta phase is not checked."""
    if iteration.method.inner is None:
        return
    for name, tensor in iteration.before.gate.items():
        moved = not torch.equal(iteration.after.gate[name], tensor)
        assert moved == has_regularizer_gradient(iteration.method, name), name


def test_a_step_changes_neither_frozen_tensors_nor_its_inputs(iteration: Iteration) -> None:
    for copy, tensor in zip(iteration.copies, iteration.fixed, strict=True):
        assert torch.equal(copy, tensor)


def test_losses_and_tensors_after_a_step_are_finite(iteration: Iteration) -> None:
    assert all(loss.isfinite() for loss in iteration.losses.values())
    assert all(tensor.isfinite().all() for tensor in iteration.after.tensors().values())


def test_no_tensor_requires_a_gradient_after_a_step(iteration: Iteration) -> None:
    assert not any(tensor.requires_grad for tensor in iteration.fixed)
    assert not any(tensor.requires_grad for tensor in iteration.after.tensors().values())


def test_a_step_is_counted(iteration: Iteration) -> None:
    assert iteration.after.step == 1


def has_regularizer_gradient(method: Method, gate_leaf: str) -> bool:
    """Return True if the regularizer uses the tower of a gate's tensor. Otherwise, its gradient is 0."""
    if gate_leaf.startswith("vision"):
        return method.regularizer.uses_images
    return method.regularizer.uses_text
