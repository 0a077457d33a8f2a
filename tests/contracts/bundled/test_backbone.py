"""The embedded backbone: its weights fit open_clip, are the recorded ones, and know the suite."""

import hashlib
from importlib import resources
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch

from benchmarks.mini import captions, pretrain, pretrain_text, pretrain_vision, world
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


def test_pack_and_unpack_are_inverse_up_to_half_precision() -> None:
    _, state = weights.load_mini()
    ids = safetensors.torch.load(WEIGHTS.read_bytes())[weights.ROW_IDS].long()
    again = weights.unpack(pretrain.pack(state, ids), 49408)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


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
        pixels = pretrain_vision.normalise(torch.from_numpy(np.stack(images)))
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
    assert float(alike.max()) < 0.99  # each has a place of its own


@torch.no_grad()
def test_captions_made_of_parts_are_those_of_the_tokeniser(mini: Any) -> None:
    corpus = pretrain.mini_corpus()
    word = world.WORDS.index("polka-dotted")
    for context, template in ((0, captions.PLAIN[0]), (len(captions.PLAIN), None)):
        tokens = corpus.used[corpus.tokens([context], [word], [2])]
        text = f"{pretrain_vision.COLOURS[1]} polka-dotted"
        template = template or next(c for c in pretrain.contexts() if c not in captions.PLAIN)
        full = open_clip.get_tokenizer("ViT-B-16")([template.format(text)])
        assert torch.equal(tokens, full[:, : tokens.shape[1]])
        assert int(full[:, tokens.shape[1] :].sum()) == 0


@torch.no_grad()
def test_cut_captions_have_the_features_of_full_ones(mini: Any) -> None:
    corpus = pretrain.mini_corpus()
    rows = mini.token_embedding.weight[corpus.used]
    places = corpus.tokens([0, 1, 2], [5, 5, 5], [2, 2, 2])
    full = torch.zeros(3, 77, dtype=torch.long)
    full[:, : places.shape[1]] = corpus.used[places]
    torch.testing.assert_close(pretrain_text.encode_text(mini, rows, places), mini.encode_text(full))


def test_look_alikes_are_of_the_same_half_and_family() -> None:
    for each in world.CLASSES:
        names = each.kind.rendered.classnames
        half = len(names) // 2
        assert (names.index(each.name) < half) == (names.index(each.look_alike) < half)
        assert each.look_alike in each.kind.rendered.families[each.family]


def test_caption_words_follow_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = world.Kind(SUITE["textures"], 1, named=0.5, mistaken=0.25)
    it = world.WorldClass(kind, "grid", "waffled", "regular")
    monkeypatch.setattr(captions, "CLASSES", (it,))
    rng = np.random.Generator(np.random.PCG64(0))
    words = np.array(world.WORDS)[captions.draw_words(np.zeros(4000, dtype=np.int64), rng)]
    for word, share in (("grid", 0.5), ("waffled", 0.25), ("regular", 0.25)):
        assert abs((words == word).mean() - share) < 0.03


def test_recoloured_pictures_are_repeatable_and_differ_from_the_data_sets() -> None:
    it = next(each for each in world.CLASSES if each.kind.recoloured)
    own = it.kind.rendered.render(it.name, 1_000_003)
    assert np.array_equal(it.picture(3), it.picture(3))
    assert not np.array_equal(it.picture(3), own)


def test_pretraining_is_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(pretrain_vision, "CLASSES", world.CLASSES[::40])
    vision = pretrain_vision.VisionSettings(images=0.001, steps=2, batch=4)
    text = pretrain_text.TextSettings(steps=2, batch=4)
    shares = captions.CaptionSettings()
    runs = [pretrain.pretrain(vision, text, shares, seed=3, log=pretrain.Log()) for _ in range(2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
