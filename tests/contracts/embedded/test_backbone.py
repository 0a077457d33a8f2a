"""The embedded backbone: its weights fit open_clip, are the recorded ones, and know the suite."""

import hashlib
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
from prometar.embedded.rendered import image_path

WEIGHTS = resources.files("prometar.embedded") / "mini.safetensors"
DIGEST = "f31d1fecf601e742663e6a3fb58acf84c45c3a22a511b58087c6f82c0da2a50e"


@pytest.fixture(scope="module")
def mini() -> Any:
    torch.set_num_threads(1)
    model = open_clip.CLIP(**weights.mini_config())
    model.load_state_dict(weights.load_mini(), strict=True)
    return model.eval()


def test_stored_weights_are_the_recorded_ones() -> None:
    """Rows of the token table that were not trained are the seeded initial ones, the same everywhere."""
    data = WEIGHTS.read_bytes()
    assert hashlib.sha256(data).hexdigest() == DIGEST
    table = weights.load_mini()[weights.TOKEN_TABLE]
    trained = set(safetensors.torch.load(data)[weights.ROW_IDS].tolist())
    untrained = next(row for row in range(len(table)) if row not in trained)
    rng = np.random.Generator(np.random.PCG64(0))
    start = rng.standard_normal(tuple(table.shape), dtype=np.float32) * 0.02
    assert np.array_equal(table[untrained].numpy(), start[untrained])


@torch.no_grad()
@pytest.mark.parametrize("name", RENDERED)
def test_zero_shot_is_clearly_above_chance(mini: Any, name: str) -> None:
    rendered = RENDERED[name]
    per_class = 5
    classes = rendered.classnames
    half = len(rendered.classnames) // 2
    right = 0
    expected = 0.0
    for names in (classes[:half], classes[half:]):
        paths = [image_path(c, "val", k) for c in names for k in range(per_class)]
        images = [rendered.render(*rendered.locate(path)) for path in paths]
        tokens = open_clip.get_tokenizer("ViT-B-16")([rendered.template.format(c) for c in names])
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(each)[:, None, None] for each in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
        pixels = (pixels - mean) / std
        guess = (
            mini.encode_image(pixels, normalize=True) @ mini.encode_text(tokens, normalize=True).T
        ).argmax(1)
        right += int((guess == torch.arange(len(names)).repeat_interleave(per_class)).sum())
        expected += per_class  # one class's worth by chance
    deviation = (2 * per_class * (1 - 1 / half)) ** 0.5
    assert right > expected + 3 * deviation
