"""Text tower on packed texts, frozen text features, and refused texts and templates."""

import pytest
import torch
import torch.nn.functional as F

from prometar.clip import text as text_module
from prometar.clip.features import frozen_text_features, mean_text_features
from prometar.clip.openclip import TEMPLATES, tokenize
from prometar.clip.text import encode_text, text_input
from prometar.clip.wording import fill_template
from prometar.errors import UserError
from tests.support.plain_towers import plain_text
from tests.support.tiny import open_clip_model, towers
from tests.unit.clip.test_towers import EXACT, compare, random_prompts

NAMES = [
    "banded",
    "polka-dotted",
    "sports car",
    "sports car",
    "American black bear",
    "American bullfrog",
    "a very long name of a class that says all that can be said of it",
    "tench",
    "737-200",
    "737-300",
]
TEXTS = [f"a photo of a {name}." for name in NAMES]
MANY_TEMPLATES = (*TEMPLATES[::6], "{} texture.", "{}")


@pytest.fixture(params=[9, 96], ids=["rows of 9", "rows of 96"])
def row_length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of tokens per row: short rows, so that texts are packed into several, or one long row."""
    monkeypatch.setattr(text_module, "ROW_LENGTH", request.param)
    length: int = request.param
    return length


def test_short_rows_hold_the_texts_in_several_rows_and_a_long_row_holds_all(row_length: int) -> None:
    text = text_input(towers(open_clip_model()), tokenize(TEXTS), num_context=4)
    num_rows = len(text.embedded_RTD)
    if row_length == 96:
        assert num_rows == 1
    else:
        assert num_rows > 1


LAYERS = pytest.mark.parametrize("layers", [set(), {0}, {0, 1}, {1}, {0, 1, 2}])


@LAYERS
def test_features_and_gradients_of_packed_texts_equal_those_of_open_clip(
    row_length: int, layers: set[int]
) -> None:
    model = open_clip_model()
    clip = towers(model)
    ids = tokenize(TEXTS)
    prompts = random_prompts(layers, length=4, width=16)
    text = text_input(clip, ids, num_context=4)
    compare(encode_text(clip, text, prompts), plain_text(model, ids, prompts, start=1), prompts)


@LAYERS
def test_features_without_autograd_equal_those_of_open_clip(row_length: int, layers: set[int]) -> None:
    model = open_clip_model()
    clip = towers(model)
    ids = tokenize(TEXTS)
    prompts = random_prompts(layers, length=4, width=16)
    text = text_input(clip, ids, num_context=4)
    with torch.no_grad():
        ours = encode_text(clip, text, prompts)
        plain = plain_text(model, ids, prompts, start=1)
    torch.testing.assert_close(ours, plain, **EXACT)


def test_a_context_that_leaves_no_room_for_names_is_refused() -> None:
    clip = towers(open_clip_model())
    ids = tokenize(TEXTS)
    with pytest.raises(UserError, match=r"prompts.text_length \d+ leaves no room for class names"):
        text_input(clip, ids, num_context=ids.shape[1] - 2)


@pytest.mark.parametrize("batch_size", [7, 256])
def test_mean_features_over_templates_equal_those_of_open_clip(row_length: int, batch_size: int) -> None:
    model = open_clip_model()
    ids = tokenize([template.format(name) for name in NAMES for template in MANY_TEMPLATES])
    plain = model.encode_text(ids).unflatten(0, (len(NAMES), -1)).mean(dim=1)
    ours = mean_text_features(towers(model), ids, len(MANY_TEMPLATES), batch_size=batch_size)
    torch.testing.assert_close(ours, F.normalize(plain, dim=-1), **EXACT)


def test_frozen_text_features_are_the_means_over_the_filled_templates() -> None:
    clip = towers(open_clip_model())
    ids = tokenize([template.format(name) for name in NAMES for template in MANY_TEMPLATES])
    expected = mean_text_features(clip, ids, len(MANY_TEMPLATES))
    ours = frozen_text_features(clip, tokenize, NAMES, MANY_TEMPLATES)
    torch.testing.assert_close(ours, expected, **EXACT)


def test_a_text_that_would_be_cut_is_refused() -> None:
    longest = " ".join(["cat"] * 75)
    assert (tokenize([longest]) > 0).all()  # no padding: with start and end, the text has all 77 tokens
    with pytest.raises(UserError, match=r"accepts 77 tokens per text, but .* and 1 more would be cut"):
        tokenize(["cat", f"{longest} dog", f"{longest} cat"])


def test_other_braces_of_a_template_and_of_a_class_name_are_kept() -> None:
    assert fill_template("{:>9} {0.__class__} {} {", "a {}") == "{:>9} {0.__class__} a {} {"


def test_underscores_of_a_class_name_become_spaces() -> None:
    assert fill_template("a photo of a {}.", "polka_dotted") == "a photo of a polka dotted."


@pytest.mark.parametrize("template", ["a photo.", "{} {}", "{:>100000000}"])
def test_a_template_without_exactly_one_place_for_the_class_name_is_refused(template: str) -> None:
    with pytest.raises(UserError, match=r"must contain \{\}, for the class name, exactly once"):
        fill_template(template, "a")
