"""Components of methods can be combined, or the combination is refused in one line before training.

Each combination of prompts, adapters, features, logits and meta phase takes a step. Modulators, averagers
and optimizers take turns. Some combinations train as complete runs, resume and are exported.
"""

import re
from collections.abc import Iterator
from itertools import combinations as pairs_of
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prometar
from prometar.clip.vision import embed_images
from prometar.config.settings import parse_assignments
from prometar.data.datasets.dataset import classnames
from prometar.errors import UserError
from prometar.methods.composition import Method
from prometar.run_folder import export_run, train_run
from prometar.step.iteration import step
from prometar.step.prompted_clip import PromptedClip
from prometar.training.checkpoint import load_checkpoint
from prometar.training.run import Run, initial_state
from prometar.training.scoring import make_logits_fn
from prometar.training.session import Session
from tests.contracts.step.test_step import RATES, batch_for, make
from tests.support.small import small_run

PROMPTS = ("none", "independent", "coupled", "conditional", "class_aware", "shared")
ADAPTERS = ("none", "parallel")
FEATURES = ("none", "bottleneck", "representation")
LOGITS = ("cosine", "fused", "linear_head")
META = ("none", "first", "second")
MODULATORS = ("gate", "projection", "add", "constant")
OPTIMIZERS = ("sgd", "adam", "adamw")
AVERAGERS = ("last", "gaussian")
SMALL: dict[str, dict[str, Any]] = {
    "class_aware": {"prompts.layer": 2, "prompts.reduction": 4},
    "shared": {"prompts.length": 2, "prompts.dim": 8, "prompts.layers": "2"},
}
"""Settings with which kinds of prompts fit the small backbone, by kind."""


def combinations() -> Iterator[dict[str, Any]]:
    """Yield each combination of the components that enter the step. Other components take turns."""
    # The cycles have 5, 7 and 11 elements. So each of their kinds meets each kind of the other components.
    modulators = cycle((*MODULATORS, "gate"))
    optimizers = cycle((*OPTIMIZERS, *OPTIMIZERS, "sgd"))
    averagers = cycle((*AVERAGERS * 5, "gaussian"))
    for prompts, adapters, features, logits, meta in product(PROMPTS, ADAPTERS, FEATURES, LOGITS, META):
        values: dict[str, Any] = {
            "prompts.kind": prompts,
            "adapters.kind": adapters,
            "features.kind": features,
            "logits.kind": logits,
            "modulator.kind": next(modulators),
            "optim.kind": next(optimizers),
            "averager.kind": next(averagers),
            **SMALL.get(prompts, {}),
        }
        if meta == "none":
            values["inner.kind"] = "none"
        else:
            values["inner.order"] = meta
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
    """Return whether a combination has anything to learn."""
    kinds = [values[f"{section}.kind"] for section in ("prompts", "adapters", "features")]
    return kinds != ["none", "none", "none"] or values["logits.kind"] == "linear_head"


def name_of(values: dict[str, Any]) -> str:
    """Return the name of a combination in test reports."""
    return "-".join(str(value) for value in values.values())


CASES = list(combinations())
REFUSED = [values for values in CASES if refusal_of(values)]
ACCEPTED = [values for values in CASES if not refusal_of(values)]
TRAINABLE = [values for values in ACCEPTED if learns(values)]
COMPLETE = TRAINABLE[::13]
"""Combinations that train as complete runs. They contain each kind of each component."""


@pytest.mark.parametrize("values", REFUSED, ids=name_of)
def test_a_combination_that_does_not_fit_is_refused_in_one_line(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=refusal_of(values)) as error:
        make(values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", ACCEPTED, ids=name_of)
def test_a_combination_that_fits_takes_a_step(values: dict[str, Any]) -> None:
    _, method, model, start = make(values)
    assert bool(start.leaves) == learns(values)
    if not start.leaves:
        return

    state, losses = step(model, method, start, *batch_for(model, method), RATES)

    assert ("query_loss" in losses) == (method.inner is not None)
    assert all(bool(loss.isfinite()) for loss in losses.values())
    assert all(bool(leaf.isfinite().all()) for leaf in state.leaves.values())
    assert any(not torch.equal(state.leaves[name], leaf) for name, leaf in start.leaves.items())


def test_complete_runs_have_every_kind_of_every_component() -> None:
    for key, kinds in (
        ("prompts.kind", PROMPTS),
        ("adapters.kind", ADAPTERS),
        ("features.kind", FEATURES),
        ("logits.kind", LOGITS),
        ("modulator.kind", MODULATORS),
        ("optim.kind", OPTIMIZERS),
        ("averager.kind", AVERAGERS),
    ):
        assert {values[key] for values in COMPLETE} == set(kinds)
    assert {values.get("inner.order", "none") for values in COMPLETE} == set(META)


@pytest.mark.parametrize("values", COMPLETE, ids=name_of)
def test_a_combination_resumes_bit_for_bit_and_predicts_the_same_after_export(
    values: dict[str, Any], tmp_path: Path
) -> None:
    run = run_with({"data.shots": 1, "train.epochs": 2, "optim.warmup_epochs": 0, **values})
    train_run(run.config, tmp_path / "whole")
    for _ in range(2):  # each epoch by another session, as after a kill
        parts = Session(run, tmp_path / "parts")
        parts.run_epoch()

    # The states are equal.
    whole = load_checkpoint(tmp_path / "whole" / "checkpoint.safetensors")
    assert whole is not None
    assert whole.state.counters() == parts.state.counters()
    for name, tensor in whole.state.tensors().items():
        assert torch.equal(tensor, parts.state.tensors()[name]), name

    # The exported classifier has the same logits.
    export_run(tmp_path / "whole", tmp_path / "prompts.safetensors")
    classifier = prometar.load(tmp_path / "prompts.safetensors", device="cpu")
    size = run.backbone.clip.image_size
    pixels = torch.randint(256, (3, size, size, 3), generator=torch.Generator().manual_seed(0)).byte()
    for evaluation in (run.evaluations["base"], run.evaluations["new"]):
        names = classnames(evaluation.order.items)
        expected = make_logits_fn(run.backbone, evaluation.model, parts.state.evaluation_leaves)
        found = make_logits_fn(classifier.backbone, classifier.model(names), classifier.leaves)
        torch.testing.assert_close(found(pixels, 0), expected(pixels, 0))

    # It can also have other classes.
    other = make_logits_fn(classifier.backbone, classifier.model(("one", "two")), classifier.leaves)
    assert other(pixels, 0).isfinite().all()


def run_with(settings: dict[str, Any]) -> Run:
    """Return a small run of the final test with settings by dotted key."""
    return small_run("prometar", "final", **{key.replace(".", "__"): each for key, each in settings.items()})


def documented_refusals() -> list[tuple[str, str]]:
    """Return settings and messages of the table of refused combinations in docs/methods.md."""
    text = Path("docs/methods.md").read_text("utf-8")
    _, _, section = text.partition("## Combinations that are refused")
    return re.findall(r"^\| `([^|]+)` \| (.+) \|$", section, flags=re.MULTILINE)


REFUSALS = documented_refusals()


def message_of_refusal(values: dict[str, Any]) -> str:
    """Return the message that refuses to start a run, or "" if it starts."""
    settings: dict[str, Any] = {}
    for kind in values.values():
        settings.update(SMALL.get(str(kind), {}))
    settings = {**settings, "modulator.reduction": 1, **values}
    try:
        initial_state(run_with(settings))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("settings", "message"), REFUSALS)
def test_the_guide_lists_refusals_as_they_are(settings: str, message: str) -> None:
    values = parse_assignments(settings.replace("--set", "").split())
    # The prompt of layer 0 has 2048 scalars in ViT-B/16, and 64 in the small backbone of the tests.
    assert message_of_refusal(values) == message.replace("2048", "64")


def test_the_guide_lists_the_refusals_of_all_pairs_of_settings() -> None:
    axes: dict[str, tuple[Any, ...]] = {
        "prompts.kind": PROMPTS,
        "adapters.kind": ADAPTERS,
        "features.kind": FEATURES,
        "logits.kind": LOGITS,
        "regularizer.draw": (True,),
        "augment.views": (2,),
        "inner.kind": ("none", "sgd"),
    }
    documented = {_without_kinds(message) for _, message in REFUSALS}
    assert len(REFUSALS) == len(documented) >= 5
    for key, other_key in pairs_of(axes, 2):
        for value, other_value in product(axes[key], axes[other_key]):
            message = message_of_refusal({key: value, other_key: other_value})
            assert not message or _without_kinds(message) in documented, message


def _without_kinds(message: str) -> str:
    """Return a message without the kinds of components, because the guide lists each message only once."""
    return re.sub(r"kind=\w+", "kind=", message)


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("prompts", ["independent", "coupled"])
def test_autograd_gives_the_steps_of_the_hand_written_derivatives(
    prompts: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the second derivatives of towers that only autograd can differentiate are right, too."""
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


@pytest.mark.parametrize("inner", [{"inner.kind": "none"}, {"inner.order": "second"}], ids=str)
@pytest.mark.parametrize(
    "values",
    [
        {**SMALL["shared"], "prompts.kind": "shared", "features.kind": "representation"},
        {"prompts.kind": "none", "adapters.kind": "parallel", "adapters.layers": "3", "adapters.dim": 3},
        {**SMALL["shared"], "prompts.kind": "shared", "adapters.kind": "parallel", "adapters.layers": "3"},
    ],
    ids=["inserted prompts", "adapters", "both"],
)
def test_frozen_blocks_that_are_computed_once_change_no_step(
    values: dict[str, Any], inner: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**values, **inner, "modulator.kind": "add"}

    def trained() -> dict[str, Tensor]:
        _, method, model, start = make(values)
        state, _ = step(model, method, start, *batch_for(model, method), RATES)
        return state.tensors()

    reused = trained()
    monkeypatch.setattr(Method, "first_block", lambda method, tower, num_blocks: 0)
    for name, tensor in trained().items():
        torch.testing.assert_close(reused[name], tensor, rtol=1e-9, atol=1e-11)


ADAPTERS_FROM_BLOCK_1 = {"adapters.kind": "parallel", "adapters.layers": "2-3"}


@pytest.mark.parametrize(
    ("values", "text_block", "vision_block"),
    [
        ({"prompts.kind": "none", **ADAPTERS_FROM_BLOCK_1}, 1, 1),
        ({"prompts.kind": "independent", **ADAPTERS_FROM_BLOCK_1}, 0, 0),
        ({"prompts.kind": "shared", "prompts.layers": "3", **ADAPTERS_FROM_BLOCK_1}, 1, 1),
        ({"prompts.kind": "shared", "prompts.layers": "3"}, 2, 2),
        ({"prompts.kind": "independent", "prompts.vision_depth": 0}, 0, 3),
        ({"prompts.kind": "class_aware", "prompts.layer": 3}, 0, 3),
    ],
    ids=["adapters", "prompts-and-adapters", "shared-and-adapters", "shared", "text-only", "class-aware"],
)
def test_the_first_block_that_learning_changes_is_known(
    values: dict[str, Any], text_block: int, vision_block: int
) -> None:
    """Blocks are counted from 0, and layers from 1. Block 3 is after the last one: nothing changes."""
    _, method, model, _ = make({**values, "modulator.kind": "add", "inner.kind": "none"})
    num_blocks = len(model.clip.text.blocks)
    assert method.first_block("text", num_blocks) == text_block
    assert method.first_block("vision", num_blocks) == vision_block


def logits(model: PromptedClip, leaves: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Return the logits (images, classes) of a model with learned leaves."""
    inputs = model.method.inputs(leaves)
    images = model.image_features(inputs, embed_images(model.clip, pixels))
    return model.logits(inputs, model.features(inputs, model.text_features(inputs), images))


def test_lora_of_the_examples_trains_and_is_the_frozen_model_at_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


LAYER_NORMS = """
import torch
import torch.nn.functional as F

from prometar.methods.adapters import Adapters
from prometar.methods.logits import Logits
from prometar.methods.prompts import sample_linear

NAMES = ("ln_1_weight", "ln_1_bias", "ln_2_weight", "ln_2_bias")


class LayerNorms(Adapters):
    def changes(self, tower):
        return True

    def initialize(self, clip, generator):
        return {
            f"{name}.{index}.{each}": torch.zeros_like(getattr(block, each), dtype=clip.working_dtype)
            for name, tower in (("text", clip.text), ("vision", clip.vision))
            for index, block in enumerate(tower.blocks)
            for each in NAMES
        }

    def block(self, place, block, inputs):
        changes = {each: inputs[f"{place.tower}.{place.index}.{each}"] for each in NAMES}
        return block._replace(**{each: getattr(block, each) + change for each, change in changes.items()})


class Classifier(Logits):
    def initialize(self, clip, num_classes, generator):
        shape = (num_classes, clip.embed_dim)
        return {"weight": sample_linear(shape, shape[1], like=clip.logit_scale, generator=generator)}

    def __call__(self, leaves, features, scale, *, new_classes):
        if new_classes:
            return scale * features.cosines_BC
        return scale * F.normalize(features.image_BE, dim=-1) @ leaves["weight"].T
"""


def test_a_method_of_a_user_consists_of_two_new_components(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It learns layer norms and a linear classifier. No other code knows of them (docs/architecture.md)."""
    (tmp_path / "normtuning.py").write_text(LAYER_NORMS)
    monkeypatch.syspath_prepend(tmp_path)
    values = {
        "prompts.kind": "none",
        "adapters.kind": "normtuning:LayerNorms",
        "logits.kind": "normtuning:Classifier",
        "modulator.kind": "add",
    }
    _, method, model, start = make(values)
    assert method.learning_sections == {"adapters", "logits"}

    state, _ = step(model, method, start, *batch_for(model, method), RATES)

    learned_from_images = [name for name in start.leaves if "text" not in name]
    assert len(learned_from_images) == 4 * len(model.clip.vision.blocks) + 1
    assert not any(torch.equal(state.leaves[name], start.leaves[name]) for name in learned_from_images)
