"""The step of every method, and of variants of ProMetaR, on a tiny backbone in float64."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

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
from prometar.step.iteration import step
from prometar.step.meta_batch import Embeddings, MetaTask, Selection, embed_batch, select
from prometar.step.prompted_clip import PromptedClip, build_model, prompt_texts
from prometar.step.state import State
from prometar.step.updates import Rates
from tests.support.tiny import backbone

CLASSES = ("banded", "polka-dotted", "woven")
RATES = Rates(lr=0.1, gate_lr=0.5)
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


def make(
    values: Mapping[str, Any], method: str = "prometar", dtype: torch.dtype = torch.float64
) -> tuple[Backbone, Method, PromptedClip, State]:
    config = Config(method=method).override(values)
    known = config.flat().keys() - values.keys()
    config = config.override({key: value for key, value in SMALL.items() if key in known})
    part = build(config)
    clip = backbone(dtype)
    frozen = F.normalize(torch.linspace(-1, 1, 3 * 24, dtype=torch.float64).view(3, 24).sin(), dim=-1)
    frozen = frozen.to(clip.clip.working_dtype)
    texts = prompt_texts(CLASSES, part.prompts, init="a photo of a", template="a photo of a {}.")
    model = build_model(clip.clip, part, tokenize(texts), frozen)
    words = tokenize(["a photo of a"])[0, 1:5]
    generator = torch.Generator().manual_seed(0)
    prompts = part.initialize(clip.clip, words, len(CLASSES), generator)
    gate = part.modulator.initialize(part.inputs(prompts), generator)
    return clip, part, model, State.start(prompts, gate, part.optimizer)


IS_QUERY = torch.tensor([False, True, True, False])


def draw(method: Method, seed: int = 0) -> Selection:
    augmentation = method.augmentation
    mix = augmentation.draw(2, 2, np.random.default_rng(seed))
    return select(IS_QUERY, mix, mixes_pixels=augmentation.mixes_pixels, dtype=torch.float64)


def batch_for(model: PromptedClip, method: Method) -> tuple[Embeddings, MetaTask | None]:
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    task = draw(method) if method.inner is not None else None
    return embed_batch(model.clip, method, images, torch.tensor([0, 1, 1, 2]), task)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS},
    **{name: ("prometar", values) for name, values in VARIANTS.items()},
}


@pytest.mark.parametrize(("name", "values"), CASES.values(), ids=CASES)
def test_a_step_moves_all_leaves_and_nothing_else(name: str, values: dict[str, Any]) -> None:
    _, method, model, start = make(values, name)
    fixed = [*tensors_of(model.clip), *start.leaves.values(), *start.gate.values()]
    fixed += [each for each in (model.text, model.frozen_text_CE) if isinstance(each, Tensor)]
    copies = [tensor.clone() for tensor in fixed]
    # Without weight decay, only gradients change a leaf.
    method = replace(method, optimizer=SGD(weight_decay=0.0))
    start = State.start(start.leaves, start.gate, method.optimizer)
    state, scalars = step(model, method, start, *batch_for(model, method), RATES)
    assert all(value.isfinite() for value in [*scalars.values(), *map(torch.sum, state.tensors().values())])
    assert not any(tensor.requires_grad for tensor in (*fixed, *state.tensors().values()))
    assert all(torch.equal(*pair) for pair in zip(copies, fixed, strict=True))
    for before, after in ((start.leaves, state.leaves), (start.gate, state.gate)):
        for leaf, tensor in before.items():
            if method.inner is not None or before is start.leaves:
                moved = not torch.equal(after[leaf], tensor)
                learns = before is start.leaves or has_regularizer_gradient(method, leaf)
                assert moved == learns, leaf
    assert state.step == 1


def has_regularizer_gradient(method: Method, gate_leaf: str) -> bool:
    """Return True if the regularizer uses the tower of a gate's tensor. Otherwise, its gradient is 0."""
    regularizer = method.regularizer
    return regularizer.uses_images if gate_leaf.startswith("vision") else regularizer.uses_text
