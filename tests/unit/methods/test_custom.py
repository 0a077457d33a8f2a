"""Custom components: loading, arguments, the check before training, and one-line errors."""

import hashlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
