"""Properties of all methods, and each method against a plain implementation of its paper."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.features import frozen_text_features
from prometar.clip.openclip import TEMPLATES, tokenize
from prometar.clip.vision import embed_images
from prometar.config.recipes import METHODS
from prometar.config.settings import Config, configure
from prometar.data.datasets.dataset import classnames
from prometar.methods.composition import build
from prometar.methods.optimizers import SGD
from prometar.methods.regularizers import ImageDistance, TextDistance
from prometar.step.iteration import step
from prometar.step.meta_batch import embed_batch
from prometar.step.prompted_clip import build_model, prompt_texts
from prometar.step.state import State
from prometar.step.updates import Rates
from prometar.training.run import build_run
from prometar.training.scoring import make_logits_fn
from tests.contracts.step.test_step import CLASSES, RATES, batch_for, draw, make
from tests.support.plain import Plain, PlainConditional, PlainMeta
from tests.support.tiny import backbone

META = tuple(name for name in METHODS if name.startswith("prometar"))


@pytest.mark.parametrize("mix", ["feature_mixup", "input_mixup", "cutmix"])
def test_the_query_loss_of_a_mix_is_that_of_mixed_images_and_labels(mix: str) -> None:
    clip, method, model, state = make({"task.augmentation": mix, "inner.lr": 0.0}, "prometar")
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 1, 1, 2])
    task = draw(method)
    assert task.partners is not None
    mixing = task.partners.mix

    batch = embed_batch(clip.clip, method, images, labels, task)
    _, losses = step(model, method, state, *batch, Rates(0.0, 0.0))

    # The images 1 and 2 are query images. Each is mixed with one of the support images, 0 or 3.
    query = images[1:3]
    partners = images[[0, 3]][mixing.partner]
    lam = mixing.lam.double()

    def features(pixels: Tensor) -> Tensor:
        return model.image_features(state.leaves, embed_images(clip.clip, pixels))["vision"]

    if mix == "feature_mixup":
        mixed = lam[:, None] * features(query) + (1 - lam)[:, None] * features(partners)
    else:
        mixed = features(method.augmentation.mixed_images(query, partners, mixing))
    inputs = state.leaves
    logits = model.logits(inputs, model.features(inputs, model.text_features(inputs), {"vision": mixed}))
    labels_of_partners = labels[[0, 3]][mixing.partner]
    loss = lam * F.cross_entropy(logits, labels[1:3], reduction="none")
    loss = loss + (1 - lam) * F.cross_entropy(logits, labels_of_partners, reduction="none")
    assert float(losses["query_loss"]) == pytest.approx(float(loss.mean()), abs=1e-7)


def test_methods_without_learned_context_use_their_templates() -> None:
    clip = backbone(torch.float64).clip

    def expected(templates: Sequence[str]) -> Tensor:
        return frozen_text_features(clip, tokenize, CLASSES, templates)

    for name, templates in {
        "zero-shot": ["an image of {}."],
        "zero-shot-ensemble": TEMPLATES,
        "vpt": ["a photo of a {}."],
    }.items():
        method = build(Config(method=name))
        texts = prompt_texts(CLASSES, method.prompts, init="a photo of a", template="an image of {}.")
        model = build_model(clip, method, tokenize(texts))
        assert torch.equal(model.text_features({}), expected(templates))
    assert not torch.allclose(expected(TEMPLATES), expected(["a photo of a {}."]))


@pytest.mark.parametrize("name", ["coop", "vpt", "ivlp", "maple", "kgcoop", "prograd", "promptsrc"])
def test_a_method_takes_the_steps_of_a_plain_implementation(name: str) -> None:
    clip, method, model, state = make({}, name)
    assert model.frozen_text_CE is not None
    texts = prompt_texts(CLASSES, method.prompts, init="a photo of a", template="a photo of a {}.")
    reference = Plain(clip.clip, tokenize(texts), model.frozen_text_CE, coupled="maple" in name)
    reference.start(state.leaves, lr=0.05)
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0, 1, 1, 2])
    for _ in range(3):
        images = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=generator)
        reference.step(name, images, labels)
        batch = embed_batch(clip.clip, method, images, labels, None)
        state, _ = step(model, method, state, *batch, Rates(0.05, 0.0))
        torch.testing.assert_close(state.leaves, reference.leaves(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_cocoop_takes_the_steps_of_a_plain_implementation(batch_size: int) -> None:
    clip, method, model, state = make({}, "cocoop")
    texts = prompt_texts(CLASSES, method.prompts, init="a photo of a", template="{}")
    reference = PlainConditional(clip.clip, tokenize(texts))
    reference.start(state.leaves, lr=0.5)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        images = torch.randn(batch_size, 3, 16, 16, dtype=torch.float64, generator=generator)
        labels = torch.tensor([0, 1, 1, 2])[:batch_size]
        reference.step(images, labels)
        batch = embed_batch(clip.clip, method, images, labels, None)
        state, _ = step(model, method, state, *batch, Rates(0.5, 0.0))
        torch.testing.assert_close(state.leaves, reference.leaves(), rtol=0, atol=1e-9)

    # New images have the same logits, which depend on the image.
    pixels = torch.randint(256, (5, 16, 16, 3), dtype=torch.uint8, generator=generator)
    expected = reference.logits(clip.normalize(pixels)).detach()
    logits = make_logits_fn(clip, model, state.leaves)(pixels, 0)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    assert (expected.softmax(-1).std(dim=0) > 1e-6).all()


@pytest.mark.parametrize("name", META)
def test_prometar_takes_the_steps_of_a_plain_implementation_on_any_prompts(name: str) -> None:
    clip, method, model, state = make({}, name)
    assert model.frozen_text_CE is not None
    texts = prompt_texts(CLASSES, method.prompts, init="a photo of a", template="a photo of a {}.")
    weights = {type(term): weight for term, weight in method.regularizer.terms}
    reference = PlainMeta(
        clip.clip,
        tokenize(texts),
        model.frozen_text_CE,
        state.leaves,
        state.gate,
        text_weight=weights.get(TextDistance, 0.0),
        image_weight=weights.get(ImageDistance, 0.0),
        reduction=4,
        inner_lr=0.5,
        outer_weight=1.0,
        prompt_lr=0.1,
        gate_lr=0.5,
    )
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0, 1, 1, 2])
    for number in range(2):
        images = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=generator)
        task = draw(method, number)
        reference.train(images, labels, task)
        batch = embed_batch(clip.clip, method, images, labels, task)
        state, _ = step(model, method, state, *batch, RATES)
        torch.testing.assert_close(state.leaves, reference.prompts, rtol=0, atol=1e-9)
        torch.testing.assert_close(state.gate, reference.gate, rtol=0, atol=1e-9)


# Recipes and settings, by name of the case.
COMPOSED: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in META},
    "conditional prompts": ("prometar", {"prompts.kind": "conditional", "modulator.reduction": 1}),
    "cutmix": ("prometar", {"task.augmentation": "cutmix"}),
    "projection": ("prometar-maple", {"modulator.kind": "projection"}),
}


@pytest.mark.parametrize("case", COMPOSED)
def test_the_meta_gradient_is_the_finite_difference_of_the_query_loss(case: str) -> None:
    name, values = COMPOSED[case]
    _, method, model, start = make(values, name)
    method = replace(method, optimizer=SGD(momentum=0.0, weight_decay=0.0))
    no_rates = Rates(0.0, 0.0)
    batch = batch_for(model, method)

    def query_loss(leaf: str, change: Tensor) -> float:
        """Return the query loss after a leaf was changed."""
        tensors = dict(start.tensors())
        tensors[leaf] = tensors[leaf] + change
        changed_start = State.from_tensors(tensors, start.counters())
        _, losses = step(model, method, changed_start, *batch, no_rates)
        return float(losses["query_loss"])

    # Without learning rates and momentum, the momenta are the gradients.
    state, _ = step(model, method, start, *batch, no_rates)
    gradients = {key: tensor for key, tensor in state.tensors().items() if "momenta" in key}
    for key, gradient in gradients.items():
        leaf = key.replace("prompt_momenta", "prompts").replace("gate_momenta", "gate")
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(gradient.shape, dtype=gradient.dtype, generator=generator)
        numeric = (query_loss(leaf, 1e-5 * direction) - query_loss(leaf, -1e-5 * direction)) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-4, abs=1e-8), key


@pytest.mark.parametrize(
    ("teacher", "template"),
    [
        ("template", "{} texture."),
        ("photo", "a photo of a {}, a type of texture."),
        ("name_last", "a texture of {}."),
    ],
)
def test_the_frozen_text_features_of_a_run_use_the_template_of_their_teacher(
    teacher: str, template: str, small_dtd: Path
) -> None:
    settings = {"data.name": "dtd", "data.root": str(small_dtd), "regularizer.teacher": teacher}
    run = build_run(configure("kgcoop", settings), "final")
    expected = frozen_text_features(run.backbone.clip, tokenize, classnames(run.order.items), [template])
    assert run.model.frozen_text_CE is not None
    torch.testing.assert_close(run.model.frozen_text_CE, expected)
