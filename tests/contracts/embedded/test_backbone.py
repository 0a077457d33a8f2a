"""The embedded backbone: its weights fit open_clip, are the recorded ones, and recognize rendered images."""

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

from prometar.embedded import weights
from prometar.embedded.datasets import RENDERED
from prometar.embedded.rendered import RenderedSet, image_path

WEIGHTS = resources.files("prometar.embedded") / "mini.safetensors"
DIGEST = "f31d1fecf601e742663e6a3fb58acf84c45c3a22a511b58087c6f82c0da2a50e"


@pytest.fixture(scope="module")
def mini() -> Any:
    """The model in open_clip, with the embedded weights."""
    torch.set_num_threads(1)
    model = open_clip.CLIP(**weights.mini_config())
    model.load_state_dict(weights.load_mini(), strict=True)
    return model.eval()


def test_stored_weights_are_the_recorded_ones() -> None:
    data = WEIGHTS.read_bytes()
    assert hashlib.sha256(data).hexdigest() == DIGEST


def test_token_rows_that_were_not_trained_are_the_seeded_initial_ones() -> None:
    """So the file need not contain them."""
    data = WEIGHTS.read_bytes()
    table = weights.load_mini()[weights.TOKEN_TABLE]
    trained = set(safetensors.torch.load(data)[weights.ROW_IDS].tolist())
    untrained = next(row for row in range(len(table)) if row not in trained)
    rng = np.random.Generator(np.random.PCG64(0))
    start = rng.standard_normal(tuple(table.shape), dtype=np.float32) * 0.02
    assert np.array_equal(table[untrained].numpy(), start[untrained])


IMAGES_PER_CLASS = 5


@torch.no_grad()
def num_correct(mini: Any, rendered: RenderedSet[Any], names: Sequence[str]) -> int:
    """Return how many images of some classes of a rendered dataset are classified correctly, zero-shot."""
    images = []
    for name in names:
        for number in range(IMAGES_PER_CLASS):
            path = image_path(name, "val", number)
            images.append(rendered.render(*rendered.locate(path)))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    mean = torch.tensor(OPENAI_DATASET_MEAN)[:, None, None]
    std = torch.tensor(OPENAI_DATASET_STD)[:, None, None]
    image_features = mini.encode_image((pixels - mean) / std, normalize=True)

    texts = [rendered.template.format(name) for name in names]
    tokens = open_clip.get_tokenizer("ViT-B-16")(texts)
    text_features = mini.encode_text(tokens, normalize=True)

    predicted = (image_features @ text_features.T).argmax(1)
    labels = torch.arange(len(names)).repeat_interleave(IMAGES_PER_CLASS)
    return int((predicted == labels).sum())


@pytest.mark.parametrize("name", RENDERED)
def test_zero_shot_is_clearly_above_chance(mini: Any, name: str) -> None:
    """Base and new classes are classified separately, as in studies."""
    rendered = RENDERED[name]
    half = len(rendered.classnames) // 2
    base = rendered.classnames[:half]
    new = rendered.classnames[half:]

    total = num_correct(mini, rendered, base) + num_correct(mini, rendered, new)

    # By chance, one in `half` images of each group is correct, which are as many as a class has.
    expected = 2 * IMAGES_PER_CLASS
    standard_deviation = (2 * IMAGES_PER_CLASS * (1 - 1 / half)) ** 0.5
    assert total > expected + 3 * standard_deviation
