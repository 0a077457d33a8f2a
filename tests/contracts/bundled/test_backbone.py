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

from prometar.bundled import weights
from prometar.bundled.dataset import item_path
from prometar.bundled.suite import SUITE
from prometar.bundled.weights import MINI_VOCABULARY

WEIGHTS = resources.files("prometar.bundled") / "mini.safetensors"
DIGEST = "f31d1fecf601e742663e6a3fb58acf84c45c3a22a511b58087c6f82c0da2a50e"


@pytest.fixture(scope="module")
def mini() -> Any:
    torch.set_num_threads(1)
    config, state = weights.load_mini()
    model = open_clip.CLIP(**config)
    model.load_state_dict(state, strict=True)
    return model.eval()


def test_stored_weights_are_small_half_precision_and_the_recorded_ones() -> None:
    data = WEIGHTS.read_bytes()
    assert len(data) <= 8_000_000
    assert hashlib.sha256(data).hexdigest() == DIGEST
    stored = safetensors.torch.load(data)
    kinds = {name: value.dtype for name, value in stored.items()}
    assert kinds.pop(weights.ROW_IDS) == torch.int32
    assert set(kinds.values()) == {torch.float16}


def test_untrained_token_rows_are_the_seeded_initial_ones() -> None:
    config, state = weights.load_mini()
    table = state[weights.TOKEN_TABLE]
    trained = set(safetensors.torch.load(WEIGHTS.read_bytes())[weights.ROW_IDS].tolist())
    untrained = next(row for row in range(len(table)) if row not in trained)
    start = (
        np.random.Generator(np.random.PCG64(0)).standard_normal(tuple(table.shape), dtype=np.float32) * 0.02
    )
    assert tuple(table.shape) == (49408, config["text_cfg"]["width"])
    assert np.array_equal(table[untrained].numpy(), start[untrained])
    assert all(value.dtype == torch.float32 for value in state.values())


def test_a_process_makes_the_tensors_once() -> None:
    one, other = (weights.load_mini()[1] for _ in range(2))
    assert all(other[name] is tensor for name, tensor in one.items())
    del one[weights.TOKEN_TABLE]
    assert weights.TOKEN_TABLE in weights.load_mini()[1], "who leaves some out leaves them out alone"


@torch.no_grad()
@pytest.mark.parametrize("name", SUITE)
def test_zero_shot_is_clearly_above_chance(mini: Any, name: str) -> None:
    rendered, per_class = SUITE[name], 10
    classes, half = rendered.classnames, len(rendered.classnames) // 2
    right, expected = 0, 0.0
    for names in (classes[:half], classes[half:]):
        paths = [item_path(c, "val", k) for c in names for k in range(per_class)]
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


def test_every_foreign_word_has_trained_token_rows(mini: Any) -> None:
    trained = set(safetensors.torch.load(WEIGHTS.read_bytes())[weights.ROW_IDS].tolist())
    tokens = open_clip.get_tokenizer("ViT-B-16")(list(MINI_VOCABULARY))
    assert set(tokens.unique().tolist()) <= trained | {0}
    with torch.no_grad():
        text = mini.encode_text(tokens, normalize=True)
    alike = text @ text.T - torch.eye(len(MINI_VOCABULARY))
    assert float(alike.max()) < 0.99, "features of different words differ"
