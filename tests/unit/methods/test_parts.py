"""Each part against a plain reference, and the identities of the axes."""

import numpy as np
import pytest
import torch
import torch.nn as nn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prometar.config.recipes import NAMES as METHODS
from prometar.config.settings import Config
from prometar.errors import UserError
from prometar.methods.augmentations import CutMix, FeatureMixup, InputMixup, Mix, NoAugmentation
from prometar.methods.averagers import Gaussian, Last
from prometar.methods.composition import build
from prometar.methods.modulators import Add, Constant, Gate, Projection
from prometar.methods.prompts import CoupledPrompts, IndependentPrompts
from prometar.methods.regularizers import (
    ImageDistance,
    LogitsDivergence,
    Regularizer,
    TextDistance,
    Views,
    cosine,
    l1,
    l2,
)
from prometar.step.sgd import sgd, warmup_cosine
from prometar.step.task_selection import one_class_out, task_rng
from tests.support.tiny import backbone


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_gate_is_two_linear_layers_a_sigmoid_and_a_repeat() -> None:
    prompts = {"text.0": torch.zeros(4, 6), "vision.1": torch.zeros(2, 8)}
    gate = Gate(reduction=4)
    leaves = gate.initialize(prompts, torch.Generator().manual_seed(0))
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
        Gate(reduction=5).initialize({"text.0": torch.zeros(4, 6)}, torch.Generator())


def test_constant_modulators() -> None:
    task, reg = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([10.0, -10.0])}
    assert Add()({}, task, reg)["a"].tolist() == [11.0, -8.0]
    assert Constant(value=0.5)({}, task, reg)["a"].tolist() == [6.0, -3.0]


@pytest.mark.parametrize("share", [1.0, 0.8, 0.0])
def test_projection_takes_out_what_conflicts_and_nothing_else(share: float) -> None:
    task = {"against": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "along": torch.tensor([1.0, 2.0]),
            "alone": torch.tensor([5.0])}  # fmt: skip
    reg = {"against": torch.tensor([[0.0, -3.0], [0.0, -4.0]]), "along": torch.tensor([0.0, 1.0]),
           "alone": torch.tensor([0.0])}  # fmt: skip
    for length in (1.0, 1e-3):
        found = Projection(share=share)({}, task, {name: length * g for name, g in reg.items()})
        left = torch.tensor(
            [[0.0, 2 - 0.6 * 4.4], [0.0, 4 - 0.8 * 4.4]]
        )  # (2, 4) less its part along (.6, .8)
        left = left * share + torch.tensor([[0.0, 2.0], [0.0, 4.0]]) * (1 - share)
        torch.testing.assert_close(found["against"], left + torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        assert torch.equal(found["along"], task["along"])
        assert torch.equal(found["alone"], task["alone"])


@pytest.mark.parametrize("kind", ["independent", "coupled", "conditional"])
def test_a_context_longer_than_its_words_starts_at_random_or_padded(kind: str) -> None:
    clip, words = backbone(torch.float64).clip, torch.tensor([320, 1125])
    embedded = clip.token_embedding[words]
    asked = Config().override({"prompts.kind": kind, "prompts.text_length": 5})
    padded, drawn = (
        build(asked.override({"prompts.init_padding": padding})).prompts.initialize(
            clip, words, torch.Generator()
        )
        for padding in ("zeros", "random")
    )
    assert torch.equal(padded["text.0"], torch.cat([torch.zeros_like(embedded[:1]).repeat(3, 1), embedded]))
    assert drawn["text.0"].count_nonzero() == drawn["text.0"].numel()
    one = IndependentPrompts(text_length=1, text_depth=1, vision_depth=0, init_padding="zeros")
    short = one.initialize(clip, words, torch.Generator())
    assert torch.equal(short["text.0"], embedded[:1])


def views(text: Tensor, frozen: Tensor, images: Tensor, frozen_images: Tensor) -> Views:
    weights = torch.tensor([0.5, 0.5, 0, 0, 0])
    return Views(text, frozen, images, frozen_images, weights, torch.tensor(10.0))


def normalised(generator: torch.Generator) -> Tensor:
    return nn.functional.normalize(torch.randn(5, 7, generator=generator), dim=-1)


DISTANCES = {"l1": l1, "l2": l2, "cosine": cosine}


@pytest.mark.parametrize("kind", DISTANCES)
def test_distances_are_zero_at_the_frozen_features_and_weighted(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = normalised(generator), normalised(generator)
    distance = DISTANCES[kind]
    part = Regularizer((TextDistance(distance), ImageDistance(distance)), (3.0, 2.0))
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


def test_divergence_of_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    text, frozen_text, images, frozen_images = (normalised(generator).double() for _ in range(4))
    found = LogitsDivergence()(views(text, frozen_text, images, frozen_images))
    ours, frozen = (10 * images @ text.T).softmax(1), (10 * frozen_images @ frozen_text.T).softmax(1)
    expected = (frozen * (frozen / ours).log())[:2].mean()
    assert float(found) == pytest.approx(float(expected))
    assert float(LogitsDivergence()(views(text, text, images, images))) == pytest.approx(0, abs=1e-12)


def test_coupled_tokens_are_linear_layers_of_the_texts() -> None:
    clip, words = backbone(torch.float64).clip, torch.tensor([5, 6])
    prompts = CoupledPrompts(text_length=2, text_depth=9)
    leaves = prompts.initialize(clip, words, torch.Generator().manual_seed(0))
    assert len(leaves) == 3 * 3  # the tiny towers have three layers
    assert torch.equal(leaves["text.0"], clip.token_embedding[words])
    tokens = prompts.tokens(leaves)
    for layer in range(3):
        linear = nn.Linear(16, 32, dtype=torch.float64)
        linear.load_state_dict({part: leaves[f"vision.{layer}.{part}"] for part in ("weight", "bias")})
        torch.testing.assert_close(tokens[f"vision.{layer}"], linear(leaves[f"text.{layer}"]))
        bound = 16**-0.5
        assert 0.8 * bound < float(leaves[f"vision.{layer}.weight"].abs().max()) <= bound
    with pytest.raises(UserError, match=r"prompts\.text_depth: Input should be greater than or equal to 1"):
        Config().override({"prompts.kind": "coupled", "prompts.text_depth": 0})


@pytest.mark.parametrize("epochs", [1, 2, 20])
def test_gaussian_average_of_all_epochs(epochs: int) -> None:
    """The sum that PromptSRC ends with: its mean 15 and deviation 1 of 20 epochs, in shares."""
    generator = torch.Generator().manual_seed(0)
    prompts = [{"a": torch.randn(3, dtype=torch.float64, generator=generator)} for _ in range(epochs)]
    average: dict[str, Tensor] = {}
    for epoch, leaves in enumerate(prompts):
        average = Gaussian(mean=0.75, std=0.05)(average, leaves, epoch, epochs)
        assert average["a"].data_ptr() != leaves["a"].data_ptr()
    t = torch.arange(1, epochs + 1, dtype=torch.float64)
    weights = (-0.5 * ((t - 0.75 * epochs) / (0.05 * epochs)) ** 2).exp()
    expected = sum(w * leaves["a"] for w, leaves in zip(weights / weights.sum(), prompts, strict=True))
    torch.testing.assert_close(average["a"], expected)


def test_averages_far_from_their_mean_and_none_at_all() -> None:
    prompts = [{"a": torch.tensor([float(t)])} for t in range(3)]
    average: dict[str, Tensor] = {}
    for epoch, leaves in enumerate(prompts):  # weights that would all be 0 as floats
        average = Gaussian(mean=100, std=1e-4)(average, leaves, epoch, 100)
    assert average["a"].tolist() == [2.0]
    assert Last()({}, prompts[0], 0, 1) == {}


def pictures(size: int, seed: int) -> Tensor:
    return torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_input_mixup_is_a_weighted_sum_of_pixels() -> None:
    query, partners = pictures(4, 0), pictures(4, 1)
    lam = torch.tensor([0.25, 1.0])
    mixed = InputMixup().mixed_images(query, partners, Mix(lam, torch.tensor([0, 0])))
    assert torch.equal(mixed[0], 0.25 * query[0] + 0.75 * partners[0])
    assert torch.equal(mixed[1], query[1])
    rates = {"mixup_alpha": 0.3, "mixup_beta": 0.7}
    drawn, other = (mix.draw(5, 3, rng(4)) for mix in (InputMixup(**rates), FeatureMixup(**rates)))
    assert torch.equal(drawn.lam, other.lam)
    assert torch.equal(drawn.partner, other.partner)


def test_cutmix_pastes_the_partners_box() -> None:
    query, partners = pictures(8, 0), pictures(8, 1)
    box = torch.tensor([[0.25, 0.75, 0.0, 0.5], [0, 0, 0, 0]])  # rows 2-5, columns 0-3; nothing
    mixed = CutMix().mixed_images(query, partners, Mix(torch.tensor([0.75, 1.0]), torch.tensor([0, 0]), box))
    expected = query.clone()
    expected[0, :, 2:6, 0:4] = partners[0, :, 2:6, 0:4]
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-15)


@given(seed=st.integers(0, 10**6), size=st.integers(1, 40))
def test_cutmix_labels_have_the_shares_of_the_pixels(seed: int, size: int) -> None:
    mix = CutMix().draw(6, 3, rng(seed))
    nothing, whole = torch.zeros(6, 3, size, size, dtype=torch.float64), torch.ones(6, 3, size, size).double()
    pasted = CutMix().mixed_images(nothing, whole, mix)
    assert 0 <= float(pasted.min()) <= float(pasted.max()) <= 1
    torch.testing.assert_close(pasted.mean(dim=(1, 2, 3)), 1 - mix.lam.double(), rtol=0, atol=1e-6)
    assert mix.box is not None
    assert set(mix.partner.tolist()) <= {0, 1, 2}


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


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_values(name: str) -> None:
    assert build(Config(method=name)) == build(Config(method=name))
