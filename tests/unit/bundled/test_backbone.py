"""The embedded backbone: its weights fit open_clip, are the recorded ones, and know the textures."""

from __future__ import annotations

import hashlib
from importlib import resources
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch

from prometar.bundled import captions, pretrain, pretrain_text, pretrain_vision, textures, weights

WEIGHTS = resources.files("prometar.bundled") / "mini.safetensors"
DIGEST = "fc444115f0227048534e1a5a23bef43d86ccc11143d6b464690eb753f05a799a"


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


def test_pack_and_unpack_are_inverse_up_to_half_precision() -> None:
    _, state = weights.load_mini()
    ids = safetensors.torch.load(WEIGHTS.read_bytes())[weights.ROW_IDS].long()
    again = weights.unpack(weights.pack(state, ids), 49408)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


@torch.no_grad()
def test_zero_shot_on_base_is_far_above_chance(mini: Any) -> None:
    base = textures.CLASSNAMES[:16]
    images = [
        textures.render_path(textures.item_path(name, "val", index)) for name in base for index in range(5)
    ]
    tokens = open_clip.get_tokenizer("ViT-B-16")([f"a photo of a {name}." for name in base])
    image = mini.encode_image(pretrain_vision.normalise(torch.from_numpy(np.stack(images))), normalize=True)
    guess = (image @ mini.encode_text(tokens, normalize=True).T).argmax(1)
    accuracy = float((guess == torch.arange(16).repeat_interleave(5)).float().mean())
    assert accuracy > 0.35  # chance is 0.06


@torch.no_grad()
def test_cut_captions_have_the_features_of_full_ones(mini: Any) -> None:
    corpus = pretrain.mini_corpus()
    rows = mini.token_embedding.weight[corpus.used]
    places = corpus.tokens[:3, 5, 2]
    full = torch.zeros(3, 77, dtype=torch.long)
    full[:, : places.shape[1]] = corpus.used[places]
    torch.testing.assert_close(pretrain_text.encode_text(mini, rows, places), mini.encode_text(full))


def test_families_hold_every_class_once_with_look_alikes() -> None:
    members = [name for family in captions.FAMILIES.values() for name in family]
    assert sorted(members) == list(textures.CLASSNAMES)
    assert all(captions.look_alike(name) != name for name in textures.CLASSNAMES)
    assert not set(captions.FAMILIES) & set(textures.CLASSNAMES)


def test_caption_words_follow_the_shares() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    labels = np.full(4000, textures.CLASSNAMES.index("grid"))
    shares = captions.CaptionSettings(name=0.5, look_alike=0.25)
    words = np.array(captions.WORDS)[captions.draw_words(labels, shares, rng)]
    for word, share in (("grid", 0.5), (captions.look_alike("grid"), 0.25), ("regular", 0.25)):
        assert abs((words == word).mean() - share) < 0.03


def test_pretraining_is_repeatable() -> None:
    torch.set_num_threads(1)
    vision = pretrain_vision.VisionSettings(images=2, steps=2, batch=8)
    text = pretrain_text.TextSettings(steps=2, batch=8)
    shares = captions.CaptionSettings()
    runs = [pretrain.pretrain(vision, text, shares, seed=3, log=pretrain.Log()) for _ in range(2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert len(runs[0][weights.ROW_IDS]) < 300
