"""Each part against a plain reference, and the identities of the axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn as nn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prometar.config import Config
from prometar.errors import UserError
from prometar.methods import METHODS, build
from prometar.optim import sgd, warmup_cosine
from prometar.parts.modulators import Constant, Gate
from prometar.parts.regularizers import DISTANCES, ImageDistance, Regularizer, TextDistance, Views
from prometar.parts.tasks import FeatureMixup, NoAugmentation, one_class_out, task_rng


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_gate_is_two_linear_layers_a_sigmoid_and_a_repeat() -> None:
    prompts = {"text.0": torch.zeros(4, 6), "vision.1": torch.zeros(2, 8)}
    gate = Gate(reduction=4)
    leaves = gate.init(prompts, torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1)
    task, reg = ({k: torch.randn(p.shape, generator=draw) for k, p in prompts.items()} for _ in range(2))
    modulated = gate(leaves, task, reg)
    for name, prompt in prompts.items():
        size = prompt.numel()
        net = nn.Sequential(
            nn.Linear(2 * size, size // 4, bias=False),
            nn.Linear(size // 4, size // 4, bias=False),
            nn.Sigmoid(),
        )
        net.load_state_dict({"0.weight": leaves[f"{name}.in"], "1.weight": leaves[f"{name}.out"]})
        strength = net(torch.cat([task[name].flatten(), reg[name].flatten()]))
        expected = task[name].flatten() + strength.repeat_interleave(4) * reg[name].flatten()
        torch.testing.assert_close(modulated[name].flatten(), expected)


def test_gate_refuses_a_reduction_that_does_not_divide() -> None:
    with pytest.raises(UserError, match=r"modulator.reduction 5 does not divide the 24 scalars of text\.0"):
        Gate(reduction=5).init({"text.0": torch.zeros(4, 6)}, torch.Generator())


def test_constant_modulators() -> None:
    task, reg = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([10.0, -10.0])}
    assert Constant()({}, task, reg)["a"].tolist() == [11.0, -8.0]
    assert Constant(0.5)({}, task, reg)["a"].tolist() == [6.0, -3.0]


def views(text: Tensor, frozen: Tensor, images: Tensor, frozen_images: Tensor) -> Views:
    weights = torch.tensor([0.5, 0.5, 0, 0, 0])
    return Views(text, frozen, images, frozen_images, weights, torch.tensor(10.0))


def normalised(generator: torch.Generator) -> Tensor:
    return nn.functional.normalize(torch.randn(5, 7, generator=generator), dim=-1)


@pytest.mark.parametrize("kind", DISTANCES)
def test_distances_are_zero_at_the_frozen_features_and_weighted(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = normalised(generator), normalised(generator)
    part = Regularizer((TextDistance(kind), ImageDistance(kind)), (3.0, 2.0))
    assert part.uses_text
    assert part.uses_images
    zero, _ = part(views(a, a, b, b))
    assert zero is not None
    assert float(zero) == pytest.approx(0, abs=1e-6)
    total, terms = part(views(a, b, a, b))
    assert float(terms["text"]) == pytest.approx(float(reference_distance(kind, a, b)))
    assert float(terms["image"]) == pytest.approx(float(reference_distance(kind, a[:2], b[:2])))
    assert total is not None
    assert float(total) == pytest.approx(3 * float(terms["text"]) + 2 * float(terms["image"]))


def reference_distance(kind: str, a: Tensor, b: Tensor) -> Tensor:
    if kind == "l1":
        return nn.functional.l1_loss(a, b)
    if kind == "l2":
        return nn.functional.mse_loss(a, b)
    return 1 - nn.functional.cosine_similarity(a, b).mean()


def test_weights_of_zero_are_the_identity() -> None:
    config = Config().override({"regularizer.text_weight": 0, "regularizer.image_weight": 0})
    assert build(config).regularizer == Regularizer()


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=8), seed=st.integers(0, 10**6))
def test_one_class_out_partitions_the_batch(labels: list[int], seed: int) -> None:
    task = one_class_out(torch.tensor(labels), FeatureMixup(), rng(seed))
    if len(set(labels)) == 1:
        assert task is None
        return
    assert task is not None
    query = task.is_query.nonzero()[:, 0].tolist()
    assert 0 < len(query) < len(labels)
    assert all((label == labels[query[0]]) == (i in query) for i, label in enumerate(labels))
    assert task.mix is not None
    assert len(task.mix.lam) == len(task.mix.partner) == len(query)
    assert 0 <= float(task.mix.lam.min()) <= float(task.mix.lam.max()) <= 1
    assert set(task.mix.partner.tolist()) <= set(range(len(labels) - len(query)))


def test_the_query_class_is_drawn_uniformly_over_classes_not_images() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    generator = rng()
    tasks = [one_class_out(labels, NoAugmentation(), generator) for _ in range(400)]
    share = np.mean([int(task.is_query.sum()) == 1 for task in tasks if task])
    assert 0.4 < share < 0.6


def test_task_draws_depend_on_seed_and_step_alone() -> None:
    assert task_rng(1, 5).random(3).tolist() == task_rng(1, 5).random(3).tolist()
    assert task_rng(1, 5).random() != task_rng(1, 6).random()
    assert task_rng(1, 5).random() != task_rng(2, 5).random()


def test_sgd_equals_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(5, generator=generator)
    theirs = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.01)
    ours, momenta = {"a": start}, {"a": torch.zeros(5)}
    for _ in range(4):
        gradient = torch.randn(5, generator=generator)
        theirs.grad = gradient.clone()
        optimizer.step()
        ours, momenta = sgd(ours, momenta, {"a": gradient}, lr=0.1, momentum=0.9, weight_decay=0.01)
        torch.testing.assert_close(ours["a"], theirs.detach())


def test_schedule_is_a_constant_epoch_then_a_cosine_of_the_whole_run() -> None:
    def rate(epoch: int) -> float:
        return warmup_cosine(epoch, epochs=10, lr=0.0025, warmup_lr=1e-5, warmup_epochs=1)

    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0025)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    assert rate(0) == 1e-5
    for epoch in range(1, 10):
        assert rate(epoch) == pytest.approx(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()


def test_a_method_is_known_by_its_name() -> None:
    with pytest.raises(UserError, match="unknown method 'maple2': choose one of zero-shot, "):
        build(Config(method="maple2"))


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_values(name: str) -> None:
    assert build(Config(method=name)) == build(Config(method=name))
