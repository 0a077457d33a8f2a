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
    drawn = task.partners.mix
    batch = embed_batch(clip.clip, method, images, labels, task)
    _, scalars = step(model, method, state, *batch, Rates(0.0, 0.0))
    query = images[1:3]
    partners = images[[0, 3]][drawn.partner]
    lam = drawn.lam.double()

    def features(pixels: Tensor) -> Tensor:
        return model.image_features(state.leaves, embed_images(clip.clip, pixels))["vision"]

    if mix == "feature_mixup":
        mixed = lam[:, None] * features(query) + (1 - lam)[:, None] * features(partners)
    else:
        mixed = features(method.augmentation.mixed_images(query, partners, drawn))
    inputs = state.leaves
    logits = model.logits(inputs, model.features(inputs, model.text_features(inputs), {"vision": mixed}))
    other = labels[[0, 3]][drawn.partner]
    per_image = lam * F.cross_entropy(logits, labels[1:3], reduction="none")
    per_image = per_image + (1 - lam) * F.cross_entropy(logits, other, reduction="none")
    assert float(scalars["query_loss"]) == pytest.approx(float(per_image.mean()), abs=1e-7)


def test_where_no_context_is_learned_the_templates_decide() -> None:
    clip = backbone(torch.float64).clip

    def text(templates: Sequence[str]) -> Tensor:
        return frozen_text_features(clip, tokenize, CLASSES, templates)

    for name, templates in {
        "zero-shot": ["an image of {}."],
        "zero-shot-ensemble": TEMPLATES,
        "vpt": ["a photo of a {}."],
    }.items():
        method = build(Config(method=name))
        texts = prompt_texts(CLASSES, method.prompts, init="a photo of a", template="an image of {}.")
        model = build_model(clip, method, tokenize(texts))
        assert torch.equal(model.text_features({}), text(templates))
    assert not torch.allclose(text(TEMPLATES), text(["a photo of a {}."]))


@pytest.mark.parametrize("name", ["coop", "vpt", "ivlp", "maple", "kgcoop", "prograd", "promptsrc"])
def test_a_method_is_what_its_paper_does(name: str) -> None:
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
def test_cocoop_is_what_its_paper_does(batch_size: int) -> None:
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
    pixels = torch.randint(256, (5, 16, 16, 3), dtype=torch.uint8, generator=generator)
    expected = reference.logits(clip.normalize(pixels)).detach()
    torch.testing.assert_close(
        make_logits_fn(clip, model, state.leaves)(pixels, 0), expected, rtol=0, atol=1e-9
    )
    assert (expected.softmax(-1).std(dim=0) > 1e-6).all()


@pytest.mark.parametrize("name", META)
def test_prometars_step_on_any_prompts_is_the_plain_one(name: str) -> None:
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
        state, _ = step(model, method, state, *embed_batch(clip.clip, method, images, labels, task), RATES)
        for ours, theirs in ((state.leaves, reference.prompts), (state.gate, reference.gate)):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


CONDITIONAL = {"prompts.kind": "conditional", "modulator.reduction": 1}
COMPOSED: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in META},
    "conditional prompts": ("prometar", CONDITIONAL),
    "cutmix": ("prometar", {"task.augmentation": "cutmix"}),
    "projection": ("prometar-maple", {"modulator.kind": "projection"}),
}


@pytest.mark.parametrize("case", COMPOSED)
def test_the_meta_gradient_is_the_finite_difference_of_the_query_loss(case: str) -> None:
    name, values = COMPOSED[case]
    _, method, model, start = make(values, name)
    method = replace(method, optimizer=SGD(momentum=0.0, weight_decay=0.0))
    still = Rates(0.0, 0.0)
    batch = batch_for(model, method)
    state, _ = step(model, method, start, *batch, still)  # with lr and momentum 0, these are gradients
    gradient = {key: g for key, g in state.tensors().items() if "momenta" in key}
    for key, g in gradient.items():
        leaf = key.replace("prompt_momenta", "prompts").replace("gate_momenta", "gate")
        direction = torch.randn(g.shape, dtype=g.dtype, generator=torch.Generator().manual_seed(0))

        def loss(moved: float, leaf: str = leaf, direction: Tensor = direction) -> float:
            tensors = dict(start.tensors())
            tensors[leaf] = tensors[leaf] + moved * direction
            moved_start = State.from_tensors(tensors, start.counters())
            return float(step(model, method, moved_start, *batch, still)[1]["query_loss"])

        numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
        assert float((g * direction).sum()) == pytest.approx(numeric, rel=1e-4, abs=1e-8), key


@pytest.mark.parametrize(
    ("teacher", "template"),
    [
        ("template", "{} texture."),
        ("photo", "a photo of a {}, a type of texture."),
        ("name_last", "a texture of {}."),
    ],
)
def test_a_run_holds_the_text_to_the_data_sets_wording(teacher: str, template: str, small_dtd: Path) -> None:
    settings = {"data.name": "dtd", "data.root": str(small_dtd), "regularizer.teacher": teacher}
    run = build_run(configure("kgcoop", settings), "final")
    expected = frozen_text_features(run.backbone.clip, tokenize, classnames(run.order.items), [template])
    assert run.model.frozen_text_CE is not None
    torch.testing.assert_close(run.model.frozen_text_CE, expected)
