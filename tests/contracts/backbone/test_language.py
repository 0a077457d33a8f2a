"""Text towers of `transformers` against open_clip's own wrapper of them: features, gradients, training."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip import factory

from prometar.backbone import feature_cache, openclip
from prometar.backbone.text import encode_text, text_input
from prometar.backbone.vision import embed_images, encode_image
from prometar.errors import UserError, WorkError
from tests.contracts.backbone.test_families import TEXTS, compare, images, loaded
from tests.support import families
from tests.support.families import Words
from tests.support.plain_towers import plain_language
from tests.unit.backbone.test_towers import random_prompts

pytest.importorskip("transformers")
NAMES = [*families.LANGUAGE, "tiny-coca-roberta"]


@pytest.fixture(autouse=True)
def _tiny_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    families.register_languages(monkeypatch, tmp_path)


@pytest.fixture(scope="module", autouse=True)
def _dropped() -> Iterator[None]:
    yield
    loaded.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_zero_shot_logits_are_open_clips(name: str) -> None:
    model, backbone = loaded(name)
    clip, ids = backbone.clip, backbone.tokenize(TEXTS)
    image = encode_image(clip, embed_images(clip, images(clip)))
    text = encode_text(clip, text_input(clip, ids))
    torch.testing.assert_close(text, model.encode_text(ids, normalize=False), rtol=1e-6, atol=1e-7)
    theirs = model.encode_image(images(clip), normalize=True) @ model.encode_text(ids, normalize=True).T
    ours = clip.logit_scale * F.normalize(image) @ F.normalize(text).T
    torch.testing.assert_close(ours, model.logit_scale.exp() * theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [{0}, {1}, {0, 1, 2}], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_prompts_and_their_gradients_are_those_of_the_wrapped_model(name: str, layers: set[int]) -> None:
    model, backbone = loaded(name)
    clip, ids = backbone.clip, backbone.tokenize(TEXTS)
    prompts = random_prompts(layers, 4, clip.text.width)
    ours = encode_text(clip, text_input(clip, ids, num_context=4), prompts)
    compare(ours, plain_language(model, ids, prompts, start=clip.form.num_start), prompts)


def test_what_is_cut_behind_the_texts_is_padding_alone() -> None:
    _, backbone = loaded("tiny-roberta")
    ids = backbone.tokenize(TEXTS)
    assert text_input(backbone.clip, ids).embedded_RTD.shape[:2] == (3, int((ids != 1).sum(dim=1).max()))


@pytest.mark.parametrize("name", NAMES)
def test_an_outline_has_the_shapes_of_the_weights(name: str) -> None:
    shapes: list[list[tuple[int, ...]]] = []
    for clip in (loaded(name)[1].clip, openclip.outline(name).folded()):
        found: list[tuple[int, ...]] = []
        clip.map(lambda tensor, found=found: found.append(tuple(tensor.shape)) or tensor)  # type: ignore[func-returns-value]
        shapes.append(found)
    assert shapes[0] == shapes[1]


def test_the_cache_of_features_tells_language_models_apart(tmp_path: Path) -> None:
    clips = [loaded(name)[1].clip for name in ("tiny-roberta", "tiny-mt5")]
    clips.append(replace(clips[0], text=clips[0].text.map(lambda tensor: tensor * 2)))
    digests = [feature_cache.text_digest(clip) for clip in clips]
    assert len(set(digests)) == 3
    again = openclip.load_clip("tiny-roberta", str(families.write_weights("tiny-roberta", tmp_path)))
    assert feature_cache.text_digest(again.folded()) == digests[0]


def test_a_file_that_lacks_a_tensor_says_which(tmp_path: Path) -> None:
    path = families.write_weights("tiny-nllb", tmp_path)
    state = torch.load(path)
    del state["text.transformer.layers.1.fc1.weight"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"has no 'text\.transformer\.layers\.1\.fc1\.weight'"):
        openclip.load_clip("tiny-nllb", str(path))


def described(name: str, **changes: Any) -> None:
    """Change the description of a tiny model's language model."""
    file = Path(factory._MODEL_CONFIGS[name]["text_cfg"]["hf_model_name"]) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("kind", ["roberta", "an-own-kind"])
def test_no_code_beside_a_description_runs(kind: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "tiny-roberta" / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    auto_map = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    described("tiny-roberta", model_type=kind, auto_map=auto_map)
    if kind == "roberta":
        openclip.outline("tiny-roberta")
    else:
        with pytest.raises(WorkError, match=r"cannot fetch the description of .*tiny-roberta"):
            openclip.outline("tiny-roberta")
    assert not (tmp_path / "ran").exists()


def test_other_language_models_are_refused() -> None:
    described("tiny-roberta", model_type="distilbert")
    with pytest.raises(UserError, match="its text tower is a distilbert, which open_clip does not know"):
        openclip.outline("tiny-roberta")


def test_a_description_that_is_nowhere_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network\nmore lines")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", refuse)
    with pytest.raises(
        WorkError, match=r"cannot fetch the description of roberta-base, .* \(no network\): run"
    ):
        openclip.outline("roberta-ViT-B-32")


def test_second_derivatives_are_finite_in_float16_where_norms_see_small_tokens() -> None:
    clip = loaded("tiny-nllb")[1].clip.to(torch.float16)
    text = text_input(clip, Words(families.LENGTH, [0], pad=1)(TEXTS), num_context=2)
    prompt = 0.02 * torch.randn(2, clip.text.width, generator=torch.Generator().manual_seed(0))
    prompt = prompt.requires_grad_()
    loss = F.normalize(encode_text(clip, text, {1: prompt.half()}).float(), dim=-1)[:, 0].sum()
    (first,) = torch.autograd.grad(loss, prompt, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), prompt)
    assert second.isfinite().all()
