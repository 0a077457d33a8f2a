"""Features of packed texts equal those of texts encoded one by one."""

from collections.abc import Iterator

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


@pytest.fixture(params=[9, 96], ids=["rows of 9", "rows of 96"])
def row_length(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(text_module, "ROW_LENGTH", request.param)
    return request.param


@pytest.mark.parametrize("layers", [set(), {0}, {0, 1}, {1}, {0, 1, 2}])
def test_rows_of_any_length_equal_the_plain_tower(row_length: int, layers: set[int]) -> None:
    model = open_clip_model()
    clip = towers(model)
    ids = tokenize(TEXTS)
    prompts = random_prompts(layers, 4, 16)
    text = text_input(clip, ids, num_context=4)
    assert (len(text.embedded_RTD) == 1) == (row_length == 96)
    compare(encode_text(clip, text, prompts), plain_text(model, ids, prompts, 1), prompts)
    with torch.no_grad():
        torch.testing.assert_close(
            encode_text(clip, text, prompts), plain_text(model, ids, prompts, 1), **EXACT
        )


def test_a_context_that_leaves_no_room_for_names_is_refused() -> None:
    clip = towers(open_clip_model())
    ids = tokenize(TEXTS)
    with pytest.raises(UserError, match=r"prompts.text_length \d+ leaves no room for class names"):
        text_input(clip, ids, num_context=ids.shape[1] - 2)


@pytest.mark.parametrize("batch_size", [7, 256])
def test_frozen_features_equal_the_plain_ones_text_by_text(row_length: int, batch_size: int) -> None:
    model = open_clip_model()
    templates = (*TEMPLATES[::6], "{} texture.", "{}")
    ids = tokenize([each.format(name) for name in NAMES for each in templates])
    plain = model.encode_text(ids).unflatten(0, (len(NAMES), -1)).mean(dim=1)
    ours = mean_text_features(towers(model), ids, len(templates), batch_size=batch_size)
    torch.testing.assert_close(ours, F.normalize(plain, dim=-1), **EXACT)
    torch.testing.assert_close(frozen_text_features(towers(model), tokenize, NAMES, templates), ours, **EXACT)


def test_a_text_that_would_be_cut_is_refused() -> None:
    longest = " ".join(["cat"] * 75)  # with start and end, 77 tokens
    assert (tokenize([longest]) > 0).all()
    with pytest.raises(UserError, match=r"accepts 77 tokens per text, but .* and 1 more would be cut"):
        tokenize(["cat", f"{longest} dog", f"{longest} cat"])


def test_braces_of_a_template_are_text() -> None:
    assert fill_template("{:>9} {0.__class__} {} {", "a_{}") == "{:>9} {0.__class__} a {} {"
    for template in ("a photo.", "{} {}", "{:>100000000}"):
        with pytest.raises(UserError, match=r"must contain \{\}, for the class name, exactly once"):
            fill_template(template, "a")
