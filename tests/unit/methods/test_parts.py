"""Components of methods against plain references, and settings that disable them."""

import numpy as np
import pytest
import torch
import torch.nn as nn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prometar.config.settings import Config
from prometar.errors import UserError
from prometar.methods.averagers import Gaussian, Last
from prometar.methods.composition import build
from prometar.methods.modulators import Add, Constant, Gate, Projection
from prometar.methods.prompts import ClassAwarePrompts, IndependentPrompts
from prometar.methods.regularizers import RegularizerInputs
from prometar.methods.task_augmentations import CutMix, FeatureMixup, InputMixup, Mix, NoAugmentation
from prometar.step.meta_batch import leave_one_class_out
from prometar.step.prompted_clip import class_templates
from tests.support.tiny import backbone


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_gate_refuses_a_reduction_that_does_not_divide() -> None:
    with pytest.raises(UserError, match=r"modulator.reduction 5 does not divide 24, the size of text\.0"):
        Gate(reduction=5).initialize({"text.0": torch.zeros(4, 6)}, torch.Generator())


def test_constant_modulators_add_the_gradients_with_a_weight() -> None:
    task = {"a": torch.tensor([1.0, 2.0])}
    reg = {"a": torch.tensor([10.0, -10.0])}
    assert Add()({}, task, reg)["a"].tolist() == [11.0, -8.0]
    assert Constant(value=0.5)({}, task, reg)["a"].tolist() == [6.0, -3.0]


@pytest.mark.parametrize("share", [1.0, 0.8, 0.0])
def test_projection_removes_only_the_conflicting_component(share: float) -> None:
    task = {
        "against": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "along": torch.tensor([1.0, 2.0]),
        "alone": torch.tensor([5.0]),
    }
    reg = {
        "against": torch.tensor([[0.0, -3.0], [0.0, -4.0]]),
        "along": torch.tensor([0.0, 1.0]),
        "alone": torch.tensor([0.0]),
    }
    for length in (1.0, 1e-3):
        found = Projection(share=share)({}, task, {name: length * g for name, g in reg.items()})
        left = torch.tensor(
            [[0.0, 2 - 0.6 * 4.4], [0.0, 4 - 0.8 * 4.4]]
        )  # (2, 4) minus its component along (0.6, 0.8)
        left = left * share + torch.tensor([[0.0, 2.0], [0.0, 4.0]]) * (1 - share)
        torch.testing.assert_close(found["against"], left + torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        assert torch.equal(found["along"], task["along"])
        assert torch.equal(found["alone"], task["alone"])


@pytest.mark.parametrize("kind", ["independent", "coupled", "conditional"])
def test_a_context_longer_than_its_words_starts_at_random_or_padded(kind: str) -> None:
    clip = backbone(torch.float64).clip
    words = torch.tensor([320, 1125])
    embedded = clip.token_embedding[words]
    config = Config().override({"prompts.kind": kind, "prompts.text_length": 5})
    padded, drawn = (
        build(config.override({"prompts.init_padding": padding})).prompts.initialize(
            clip, words, torch.Generator()
        )
        for padding in ("zeros", "random")
    )
    assert torch.equal(padded["text.0"], torch.cat([torch.zeros_like(embedded[:1]).repeat(3, 1), embedded]))
    assert drawn["text.0"].count_nonzero() == drawn["text.0"].numel()
    one = IndependentPrompts(text_length=1, text_depth=1, vision_depth=0, init_padding="zeros")
    short = one.initialize(clip, words, torch.Generator())
    assert torch.equal(short["text.0"], embedded[:1])


@pytest.mark.parametrize(
    ("template", "length", "text"),
    [
        ("a photo of a {}, a type of texture.", 4, "a photo of a {}, a type of texture."),
        ("a photo of a {}, a type of texture.", 2, "a photo of a {}, a type of texture."),
        ("a photo of a {}, a type of texture.", 5, "X X X X X {}, a type of texture."),
        ("{} texture.", 1, "X {} texture."),
    ],
)
def test_class_aware_prompts_of_any_length_fit_a_template(template: str, length: int, text: str) -> None:
    for prompts, templates in (
        (ClassAwarePrompts(text_length=length), {"photo": template}),
        (ClassAwarePrompts(text_length=length, template=template), {}),
    ):
        assert class_templates(prompts, init="", templates=templates) == (text,)


@pytest.mark.parametrize("setting", [{"regularizer.draw": True}, {"regularizer.texts": "texts.json"}])
def test_class_aware_prompts_refuse_texts_that_differ_by_step(setting: dict[str, object]) -> None:
    config = Config(method="tcp").override(setting)
    with pytest.raises(UserError, match=r"do not fit prompts.kind=class_aware"):
        build(config)


DISTANCES = {
    "l1": nn.functional.l1_loss,
    "l2": nn.functional.mse_loss,
    "cosine": lambda a, b: 1 - nn.functional.cosine_similarity(a, b).mean(),
}


@pytest.mark.parametrize("kind", DISTANCES)
def test_distances_are_zero_at_the_frozen_features_and_weighted(kind: str) -> None:
    a, b = nn.functional.normalize(torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)), dim=-1)
    weighted = torch.tensor([0.5, 0.5, 0, 0, 0]), torch.tensor(10.0)
    values = {"regularizer.kind": kind, "regularizer.text_weight": 3, "regularizer.image_weight": 2}
    part = build(Config().override(values)).regularizer
    zero, _ = part(RegularizerInputs(a, a, b, b, *weighted))
    assert float(zero) == pytest.approx(0, abs=1e-6)  # type: ignore[arg-type]
    total, terms = part(RegularizerInputs(a, b, a, b, *weighted))
    expected = DISTANCES[kind](a, b), DISTANCES[kind](a[:2], b[:2])
    torch.testing.assert_close((terms["text"], terms["image"]), expected)
    torch.testing.assert_close(total, 3 * expected[0] + 2 * expected[1])


def test_weights_of_zero_are_the_identity() -> None:
    config = Config().override({"regularizer.text_weight": 0, "regularizer.image_weight": 0})
    assert build(config).regularizer.terms == ()


def test_averages_far_from_their_mean_and_none_at_all() -> None:
    prompts = [{"a": torch.tensor([float(t)])} for t in range(3)]
    average: dict[str, Tensor] = {}
    for epoch, leaves in enumerate(prompts):  # each weight alone would underflow to 0
        average = Gaussian(mean=100, std=1e-4)(average, leaves, epoch, 100)
    assert average["a"].tolist() == [2.0]
    assert Last()({}, prompts[0], 0, 1) == {}


def pictures(size: int, seed: int) -> Tensor:
    return torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_input_mixup_is_a_weighted_sum_of_pixels() -> None:
    query = pictures(4, 0)
    partners = pictures(4, 1)
    lam = torch.tensor([0.25, 1.0])
    mixed = InputMixup().mixed_images(query, partners, Mix(lam, torch.tensor([0, 0])))
    assert torch.equal(mixed[0], 0.25 * query[0] + 0.75 * partners[0])
    assert torch.equal(mixed[1], query[1])
    rates = {"mixup_alpha": 0.3, "mixup_beta": 0.7}
    drawn, other = (mix.draw(5, 3, rng(4)) for mix in (InputMixup(**rates), FeatureMixup(**rates)))
    assert torch.equal(drawn.lam, other.lam)
    assert torch.equal(drawn.partner, other.partner)


def test_cutmix_pastes_the_partners_box() -> None:
    query = pictures(8, 0)
    partners = pictures(8, 1)
    box = torch.tensor([[0.25, 0.75, 0.0, 0.5], [0, 0, 0, 0]])  # rows 2-5, columns 0-3; an empty box
    mixed = CutMix().mixed_images(query, partners, Mix(torch.tensor([0.75, 1.0]), torch.tensor([0, 0]), box))
    expected = query.clone()
    expected[0, :, 2:6, 0:4] = partners[0, :, 2:6, 0:4]
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-15)


@given(seed=st.integers(0, 10**6), size=st.integers(1, 40))
def test_cutmix_labels_have_the_shares_of_the_pixels(seed: int, size: int) -> None:
    mix = CutMix().draw(6, 3, rng(seed))
    nothing = torch.zeros(6, 3, size, size, dtype=torch.float64)
    whole = torch.ones(6, 3, size, size).double()
    pasted = CutMix().mixed_images(nothing, whole, mix)
    assert 0 <= float(pasted.min()) <= float(pasted.max()) <= 1
    torch.testing.assert_close(pasted.mean(dim=(1, 2, 3)), 1 - mix.lam.double(), rtol=0, atol=1e-6)
    assert mix.box is not None
    assert set(mix.partner.tolist()) <= {0, 1, 2}


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=8), seed=st.integers(0, 10**6))
def test_one_class_out_partitions_the_batch(labels: list[int], seed: int) -> None:
    task = leave_one_class_out(torch.tensor(labels), FeatureMixup(), rng(seed), dtype=torch.float32)
    if len(set(labels)) == 1:
        assert task is None
        return
    assert task is not None
    query = task.query_rows.tolist()
    support = task.support_rows.tolist()
    assert sorted(query + support) == list(range(len(labels)))
    assert all((label == labels[query[0]]) == (i in query) for i, label in enumerate(labels))
    assert task.partners is not None
    assert len(task.partners.query_share) == len(task.partners.batch_rows) == len(query)
    assert 0 <= float(task.partners.query_share.min()) <= float(task.partners.query_share.max()) <= 1
    assert set(task.partners.batch_rows.tolist()) <= set(support)


def test_the_query_class_is_drawn_uniformly_over_classes_not_images() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    draws = rng()
    tasks = [leave_one_class_out(labels, NoAugmentation(), draws, dtype=torch.float32) for _ in range(400)]
    share = np.mean([len(task.query_rows) == 1 for task in tasks if task])
    assert 0.4 < share < 0.6
