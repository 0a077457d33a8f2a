"""Custom components: loading, arguments, the check before training, and one-line errors."""

import hashlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

from prometar.clip.model import Clip
from prometar.clip.openclip import load_backbone
from prometar.config.settings import Config, configure, dump_config, load_config, parse_assignments
from prometar.errors import UserError
from prometar.io.custom import load_component, source_digest
from prometar.methods.component_check import check_components
from prometar.methods.composition import build
from prometar.methods.regularizers import ImageDistance, LogitsDivergence, TextDistance
from tests.support.own import write_parts


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_backbone("mini", None).clip


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the path of an importable module mine.py."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write_parts(tmp_path, "mine")
    sys.modules.pop("mine", None)


def test_a_function_is_a_distance_in_both_towers(mine: Path, clip: Clip) -> None:
    method = check_components(configure("promptsrc", {"regularizer.kind": "mine:huber"}), clip)
    huber = importlib.import_module("mine").huber
    terms = (TextDistance(huber), 25.0), (ImageDistance(huber), 10.0), (LogitsDivergence(), 1.0)
    assert method.regularizer.terms == terms


def test_args_are_typed_by_the_fields_and_completed_by_their_defaults(mine: Path, tmp_path: Path) -> None:
    values = parse_assignments(["regularizer.kind=mine:Huber"])
    assert configure("prometar", values).flat()["regularizer.args.delta"] == 1.0
    config = configure("prometar", values | parse_assignments(["regularizer.args.delta=2"]))
    assert config.flat()["regularizer.args.delta"] == 2.0
    assert build(config).regularizer.terms[0][0].distance.delta == 2.0  # type: ignore[attr-defined]
    path = tmp_path / "best.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_another_kind_drops_the_args_of_the_one_before(mine: Path) -> None:
    config = configure("prometar", {"regularizer.kind": "mine:Huber", "regularizer.args.delta": 2})
    assert config.override({"regularizer.kind": "l1"}) == Config()
    assert config.override({"regularizer.kind": "mine:Huber"}) == config
    assert "args" not in dump_config(Config())


def test_a_term_has_its_own_weight(mine: Path, clip: Clip) -> None:
    values = {"regularizer.kind": "mine:Spread", "regularizer.args.weight": 3}
    regularizer = check_components(configure("prometar", values), clip).regularizer
    assert [(term.name, term.weight) for term, _ in regularizer.terms] == [("spread", 3.0)]  # type: ignore[attr-defined]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"regularizer.kind": "mine:hubber"}, "mine.py does not define 'hubber'"),
    ({"regularizer.kind": "nothere:huber"}, "no module named 'nothere'. Add its folder to PYTHONPATH"),
    ({"regularizer.kind": "l3"}, "l3"),
    ({"regularizer.kind": "mine:total"}, "mine:total"),
    ({"regularizer.kind": "mine:broken"}, "mine:broken"),
    ({"regularizer.kind": "mine:Mute"}, "mine:Mute"),
    ({"regularizer.kind": "mine:Spread"}, "mine:Spread: weight: a value is required"),
    ({"regularizer.args.delta": 1}, "args"),
    ({"regularizer.kind": "mine:huber", "regularizer.args.delta": 1}, "delta: unknown setting"),
    ({"regularizer.kind": "mine:Huber", "regularizer.args.delta": "x"}, "delta must be a valid"),
    ({"regularizer.kind": "mine:Huber", "regularizer.args.delta": float("nan")}, "finite number"),
    ({"modulator.kind": "mine:Mute"}, "mine:Mute fails: AttributeError"),
    ({"task.augmentation": "mine:Mute"}, "mine:Mute fails: AttributeError"),
    ({"prompts.kind": "mine:Wide"}, "mine:Wide must return a tensor of shape (2, "),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=lambda v: str(v)[:40])
def test_a_mistake_is_one_line(mine: Path, clip: Clip, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_components(configure("prometar", values), clip)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


IN_PLACE = {
    "both inputs": ("a -= b\n    return a.abs().mean(-1)", "must not change its inputs in place"),
    "the frozen input": (
        "b.neg_()\n    return (a + b).abs().mean(-1)",
        "must not change its inputs in place",
    ),
    "what the backward pass needs": (
        "d = a.exp()\n    e = d.square()\n    d.zero_()\n    return e.mean(-1)",
        "fails: RuntimeError: one of the variables needed for gradient computation has been modified",
    ),
}


@pytest.mark.parametrize(("body", "message"), IN_PLACE.values(), ids=IN_PLACE.keys())
def test_a_distance_that_changes_tensors_in_place_is_one_line(
    mine: Path, clip: Clip, body: str, message: str
) -> None:
    """It would fail in the first training step, or change cached features of the frozen CLIP."""
    mine.write_text(f"def distance(a, b):\n    {body}\n")
    with pytest.raises(UserError, match=rf"^mine:distance {message}") as caught:
        check_components(configure("prometar", {"regularizer.kind": "mine:distance"}), clip)
    assert "\n" not in str(caught.value)


PROMPTS_IN_PLACE = """
import torch
from prometar.methods.prompts import Prompts


class Doubled(Prompts):
    def initialize(self, clip, init_ids, generator):
        return {"vision.0": torch.ones(2, clip.vision.width)}

    def tokens(self, leaves):
        return {name: leaf.mul_(2) for name, leaf in leaves.items()}
"""


def test_prompts_that_change_their_leaves_in_place_are_one_line(mine: Path, clip: Clip) -> None:
    mine.write_text(PROMPTS_IN_PLACE)
    with pytest.raises(UserError, match=r"^mine:Doubled must not change its inputs in place") as caught:
        check_components(configure("prometar", {"prompts.kind": "mine:Doubled"}), clip)
    assert "\n" not in str(caught.value)


# Setting that selects the component, and a module that defines it as `Part`.
OTHER_IN_PLACE = {
    "adapters, weights": (
        "adapters.kind",
        """
        from prometar.methods.adapters import Adapters

        class Part(Adapters):
            def changes(self, tower):
                return tower == "text"

            def block(self, place, block, inputs):
                block.c_fc_weight.mul_(1.01)
                return block
        """,
    ),
    "adapters, last block": (
        "adapters.kind",
        """
        from prometar.methods.adapters import Adapters

        class Part(Adapters):
            def changes(self, tower):
                return tower == "vision"

            def parallel(self, place, normed, inputs):
                return normed.mul_(2) if place.index == place.num_blocks - 1 else None
        """,
    ),
    "features": (
        "features.kind",
        """
        from prometar.methods.features import FeatureFunction

        class Part(FeatureFunction):
            def __call__(self, leaves, features):
                features.image_BE.add_(1)
                return features
        """,
    ),
    "logits": (
        "logits.kind",
        """
        from prometar.methods.logits import Logits

        class Part(Logits):
            def __call__(self, leaves, features, scale, *, new_classes):
                features.text_CE.div_(features.text_CE.norm(dim=-1, keepdim=True))
                return scale * features.image_BE @ features.text_CE.T
        """,
    ),
    "modulator": (
        "modulator.kind",
        """
        from prometar.methods.modulators import Modulator

        class Part(Modulator):
            def __call__(self, gate, g_task, g_reg):
                return {name: g.add_(g_reg[name]) for name, g in g_task.items()}
        """,
    ),
    "inner loop": (
        "inner.kind",
        """
        class Part:
            lr = 0.1
            outer_weight = 0.1
            second_order = True

            def component(self):
                return self

            def __call__(self, prompts, gradient):
                return {name: leaf.sub_(self.lr * gradient[name]) for name, leaf in prompts.items()}
        """,
    ),
    "averager": (
        "averager.kind",
        """
        def Part(average, prompts, epoch, epochs):
            if not average:
                return prompts
            return {name: old.lerp_(prompts[name], 0.5) for name, old in average.items()}
        """,
    ),
    "optimizer, leaves": (
        "optim.kind",
        """
        class Part:
            def initialize(self, leaves):
                return {}

            def __call__(self, leaves, gradient, slots, *, lr, num_updates):
                return {name: leaf.sub_(lr * gradient[name]) for name, leaf in leaves.items()}, {}
        """,
    ),
    "optimizer, slots that start at zero": (
        "optim.kind",
        """
        class Part:
            def initialize(self, leaves):
                return {"momenta": {name: leaf * 0 for name, leaf in leaves.items()}}

            def __call__(self, leaves, gradient, slots, *, lr, num_updates):
                momenta = {name: b.mul_(0.9) for name, b in slots["momenta"].items()}
                new = {name: leaf - lr * gradient[name] for name, leaf in leaves.items()}
                return new, {"momenta": momenta}
        """,
    ),
}


@pytest.mark.parametrize(("kind", "source"), OTHER_IN_PLACE.values(), ids=OTHER_IN_PLACE.keys())
def test_a_component_that_changes_its_inputs_in_place_is_one_line(
    mine: Path, clip: Clip, kind: str, source: str
) -> None:
    """Training would fail later, or compute something else than the component returns."""
    mine.write_text(dedent(source))
    with pytest.raises(UserError, match=r"^mine:Part must not change its inputs in place") as caught:
        check_components(configure("prometar", {kind: "mine:Part"}), clip)
    assert "\n" not in str(caught.value)


BACKWARD = """
from prometar.methods.logits import Logits


class Part(Logits):
    def __call__(self, leaves, features, scale, *, new_classes):
        similarity = (scale * features.cosines_BC).exp()
        logits = similarity.square()
        similarity.zero_()
        return logits
"""


def test_a_component_whose_backward_pass_fails_is_one_line(mine: Path, clip: Clip) -> None:
    mine.write_text(BACKWARD)
    message = r"^mine:Part fails: RuntimeError: one of the variables needed for gradient computation"
    with pytest.raises(UserError, match=message) as caught:
        check_components(configure("prometar", {"logits.kind": "mine:Part"}), clip)
    assert "\n" not in str(caught.value)


def test_results_that_are_not_tensors_by_name_are_one_line(mine: Path, clip: Clip) -> None:
    mine.write_text("""
from prometar.methods.features import FeatureFunction


class Part(FeatureFunction):
    def initialize(self, clip, generator):
        return [clip.logit_scale]
""")
    message = r"^mine:Part: initialize must return a dictionary of tensors\.$"
    with pytest.raises(UserError, match=message):
        check_components(configure("prometar", {"features.kind": "mine:Part"}), clip)


DEPENDENT_PROMPTS = """
from prometar.methods.prompts import {base}


class Part({base}):
    def initialize(self, clip, init_ids, generator):
        return {base}(kind="{kind}").initialize(clip, init_ids, generator)

    def condition_tokens(self, tokens, frozen_NE):
        return {result}


Part = Part(kind="{kind}")
"""


@pytest.mark.parametrize(
    ("base", "kind"), [("ConditionalPrompts", "conditional"), ("ClassAwarePrompts", "class_aware")]
)
def test_prompts_that_depend_on_images_or_classes_may_have_other_tensors_than_tokens(
    mine: Path, clip: Clip, base: str, kind: str
) -> None:
    result = "super().condition_tokens(tokens, frozen_NE)"
    mine.write_text(DEPENDENT_PROMPTS.format(base=base, kind=kind, result=result))
    check_components(configure("prometar", {"prompts.kind": "mine:Part"}), clip)


@pytest.mark.parametrize(
    ("base", "kind"), [("ConditionalPrompts", "conditional"), ("ClassAwarePrompts", "class_aware")]
)
def test_condition_tokens_may_also_return_the_tensors_that_it_receives(
    mine: Path, clip: Clip, base: str, kind: str
) -> None:
    """The step uses only the text tokens of the result."""
    result = "{**tokens, **super().condition_tokens(tokens, frozen_NE)}"
    mine.write_text(DEPENDENT_PROMPTS.format(base=base, kind=kind, result=result))
    check_components(configure("prometar", {"prompts.kind": "mine:Part"}), clip)


@pytest.mark.parametrize(
    ("base", "kind", "result", "message"),
    [
        (
            "ConditionalPrompts",
            "conditional",
            "{'text.0': tokens['text.0']}",
            r"must return a tensor of shape \(2, 4, \d+\) for text\.0, got a tensor of shape \(4, \d+\)",
        ),
        (
            "ClassAwarePrompts",
            "class_aware",
            "{'text.0': tokens['text.0'].expand(3, -1, -1)}",
            r"must return a tensor of shape \(4, 4, \d+\) for text\.0, got a tensor of shape \(3, 4, \d+\)",
        ),
        (
            "ConditionalPrompts",
            "conditional",
            "{'text.0': frozen_NE.mul_(2)}",
            "must not change its inputs in place",
        ),
        (
            "ConditionalPrompts",
            "conditional",
            "tokens['text.0']",
            "condition_tokens must return a dictionary of tensors",
        ),
    ],
)
def test_wrong_results_of_condition_tokens_are_one_line(
    mine: Path, clip: Clip, base: str, kind: str, result: str, message: str
) -> None:
    mine.write_text(DEPENDENT_PROMPTS.format(base=base, kind=kind, result=result))
    with pytest.raises(UserError, match=rf"^mine:Part:? {message}") as caught:
        check_components(configure("prometar", {"prompts.kind": "mine:Part"}), clip)
    assert "\n" not in str(caught.value)


def test_the_check_leaves_the_global_random_generator_alone(mine: Path, clip: Clip) -> None:
    state = torch.random.get_rng_state()
    check_components(configure("prometar", {"regularizer.kind": "mine:huber"}), clip)
    assert torch.equal(torch.random.get_rng_state(), state)


TEXT_PROMPTS = """
import torch


class TextOnly:
    {declaration}
    num_context = 2
    conditional = False
    templates = ()

    def initialize(self, clip, init_ids, generator):
        return {{"text.0": torch.ones(2, clip.text.width)}}

    def tokens(self, leaves):
        return leaves
"""


@pytest.mark.parametrize("declaration", ["enters_images = True", ""], ids=["wrongly declared", "undeclared"])
def test_prompts_without_image_tokens_are_refused_if_features_read_them(
    mine: Path, clip: Clip, declaration: str
) -> None:
    """The mean of the outputs at no prompts would be NaN."""
    mine.write_text(TEXT_PROMPTS.format(declaration=declaration))
    config = configure("mmrl", {"prompts.kind": "mine:TextOnly"})
    with pytest.raises(UserError, match=r"^features.kind=representation reads .*kind=mine:TextOnly has none"):
        check_components(config, clip)


@pytest.mark.parametrize("line", ["raise RuntimeError('no luck')", "raise SystemExit('no luck')"])
def test_a_module_that_fails_is_reported_with_the_line(mine: Path, line: str) -> None:
    mine.write_text(f"import torch\n\n{line}\n")
    with pytest.raises(UserError, match=r"mine:f fails: \w+: no luck \(mine\.py, line 3\)"):
        load_component("mine:f")


def test_errors_of_a_gpu_are_raised(mine: Path, clip: Clip) -> None:
    """A retry with more memory may succeed."""
    error = "torch.OutOfMemoryError('CUDA out of memory.')"
    mine.write_text(f"import torch\n\ndef full(a, b):\n    raise {error}\n")
    with pytest.raises(RuntimeError, match="CUDA"):
        check_components(configure("prometar", {"regularizer.kind": "mine:full"}), clip)


def test_reading_a_configuration_imports_nothing(mine: Path) -> None:
    mine.write_text("raise SystemExit('imported')\n")
    config = Config.model_validate({"regularizer": {"kind": "mine:huber", "args": {"delta": 1}}})
    assert config.custom_components == {"regularizer": "mine:huber"}
    assert "mine" not in sys.modules
    with pytest.raises(UserError, match=r"a file uses custom components \(mine:huber\)"):
        config.require_trusted("a file")
    assert config.require_trusted("a file", trusted=True) is config
    assert Config().require_trusted("a file") == Config()


def test_the_digest_is_that_of_the_source_file(mine: Path) -> None:
    assert source_digest("mine:huber") == hashlib.sha256(mine.read_bytes()).hexdigest()
