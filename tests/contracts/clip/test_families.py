"""Supported model families against open_clip's modules, and from training to an exported classifier."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import prometar
from prometar.cli.app import main
from prometar.clip.model import Clip, tensors_of
from prometar.clip.openclip import OPENAI_MEAN, Backbone, build_backbone, clip_without_weights, load_clip
from prometar.clip.text import encode_text, text_input, text_pass
from prometar.clip.vision import embed_images, encode_image, image_pass
from prometar.clip.weights import weights_digest
from prometar.config.settings import Config
from prometar.errors import UserError
from prometar.methods.component_check import check_components, require_fitting_tower
from prometar.methods.composition import build
from tests.support import families
from tests.support.plain_towers import plain_image, plain_text
from tests.unit.clip.test_derivatives import require_derivatives
from tests.unit.clip.test_towers import compare, random_prompts

TEXTS = ["a photo of a cat .", "a photo of a woven polka dotted thing .", "a photo of a cat and dog ."]


@pytest.fixture(autouse=True)
def _tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    families.register(monkeypatch)


@cache
def loaded(name: str) -> tuple[Any, Backbone]:
    """Return open_clip's model, and our backbone with the same weights, both in float64."""
    with TemporaryDirectory() as folder:
        path = str(families.write_weights(name, Path(folder)))
        clip = load_clip(name, path)
        assert clip.dtype == torch.float64
        return families.model_of(name), build_backbone(name, path, clip.folded())


def images(clip: Clip) -> Tensor:
    size = clip.image_size
    return torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", families.CONFIGS)
def test_features_and_logits_are_open_clips(name: str) -> None:
    model, backbone = loaded(name)
    clip = backbone.clip
    ids = backbone.tokenize(TEXTS)
    image = encode_image(clip, embed_images(clip, images(clip)))
    text = encode_text(clip, text_input(clip, ids))
    torch.testing.assert_close(
        image, model.encode_image(images(clip), normalize=False), rtol=1e-9, atol=1e-10
    )
    torch.testing.assert_close(text, model.encode_text(ids, normalize=False), rtol=1e-9, atol=1e-10)
    # SigLIP's logit bias is omitted, because it is the same for all classes.
    theirs = model.encode_image(images(clip), normalize=True) @ model.encode_text(ids, normalize=True).T
    ours = clip.logit_scale * nn.functional.normalize(image) @ nn.functional.normalize(text).T
    torch.testing.assert_close(ours, model.logit_scale.exp() * theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("layers", [set(), {0}, {1}, {0, 1, 2}, {2}], ids=str)
@pytest.mark.parametrize("name", [name for name in families.CONFIGS if "siglip" in name])
def test_prompts_and_their_gradients_are_those_of_open_clips_modules(name: str, layers: set[int]) -> None:
    model, backbone = loaded(name)
    clip = backbone.clip
    ids = backbone.tokenize(TEXTS)
    text = random_prompts(layers, 4, clip.text.width)
    compare(
        encode_text(clip, text_input(clip, ids, num_context=4), text),
        plain_text(model, ids, text, clip.num_start),
        text,
        rtol=1e-8,
    )
    vision = random_prompts(layers, 3, clip.vision.width)
    pixels = images(clip)
    ours = encode_image(clip, embed_images(clip, pixels), vision)
    compare(ours, plain_image(model, pixels, vision), vision, rtol=1e-8)


@pytest.mark.parametrize("layers", [{0, 1, 2}, {1}, {2}], ids=str)
@pytest.mark.parametrize("name", families.CONFIGS)
def test_the_derivatives_are_those_of_the_forward_pass(name: str, layers: set[int]) -> None:
    """First and second derivatives, as in `test_derivatives`."""
    _, backbone = loaded(name)
    clip = backbone.clip
    text = text_input(clip, backbone.tokenize(TEXTS), num_context=2)
    require_derivatives(lambda prompts: text_pass(clip, text, prompts), drawn(layers, 2, clip.text.width))
    tokens = embed_images(clip, images(clip))
    require_derivatives(lambda p: image_pass(clip, tokens, p), drawn(layers, 3, clip.vision.width))


def drawn(layers: set[int], length: int, width: int) -> dict[int, Tensor]:
    return {layer: prompt.detach() for layer, prompt in random_prompts(layers, length, width).items()}


@pytest.mark.parametrize("name", families.CONFIGS)
def test_a_clip_without_weights_has_their_shapes(name: str, tmp_path: Path) -> None:
    whole = load_clip(name, str(families.write_weights(name, tmp_path)))
    assert [x.shape for x in tensors_of(clip_without_weights(name))] == [x.shape for x in tensors_of(whole)]


@pytest.mark.parametrize(
    "name",
    [
        "RN50",
        "convnext_tiny",
        "coca_ViT-B-32",
        "roberta-ViT-B-32",
        "nllb-clip-base-siglip",
        "EVA01-g-14",
        "ViT-L-14-CLIPA",
        "ViT-H-14-worldwide",
        "ViT-M-16-alt",
        "MobileCLIP-B",
    ],
)
def test_other_families_are_rejected_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=f"^Backbone {name} is not supported. .* such as ViT-B-16-quickgelu"):
        clip_without_weights(name)


def test_images_are_normalised_as_the_weights_tag_says() -> None:
    clip = clip_without_weights("ViT-M-32")
    assert build_backbone("ViT-B-16", "openai", clip).mean == OPENAI_MEAN
    assert build_backbone("ViT-B-16", None, clip).mean == OPENAI_MEAN
    assert build_backbone("ViT-L-14", "laion400m_e32", clip).mean == OPENAI_MEAN
    assert build_backbone("ViT-L-14", "a.safetensors", clip).mean == OPENAI_MEAN
    assert build_backbone("ViT-L-14", "laion2b_s32b_b82k", clip).mean == (0.5, 0.5, 0.5)


def test_the_pools_query_is_the_same_to_the_last_bit_on_every_cpu(tmp_path: Path) -> None:
    """CPUs sum products in different orders. Rolled tensors simulate this."""
    name = "tiny-siglip"
    parts = ("visual.trunk.attn_pool.latent", "visual.trunk.attn_pool.q.weight")
    path = families.write_weights(name, tmp_path)
    state = {key: tensor.float() for key, tensor in load_file(path).items()}
    biases = set()
    for shift in range(5):
        save_file(state | {part: state[part].roll(shift, -1) for part in parts}, path)
        pool = load_clip(name, str(path)).pool
        assert pool is not None
        biases.add(pool.blocks[0].in_proj_bias.numpy().tobytes())
    assert len(biases) == 1


@pytest.mark.parametrize("name", families.CONFIGS)
def test_a_file_in_float16_is_the_backbone_of_the_same_numbers_in_float32(name: str, tmp_path: Path) -> None:
    path = families.write_weights(name, tmp_path)
    half = {key: t.half() if t.is_floating_point() else t for key, t in load_file(path).items()}
    single = {key: t.float() if t.is_floating_point() else t for key, t in half.items()}
    save_file(half, path)
    digest_of_half = weights_digest(load_clip(name, str(path)))
    save_file(single, path)
    assert weights_digest(load_clip(name, str(path))) == digest_of_half


@pytest.mark.parametrize(
    ("name", "method"), [("tiny-siglip", "prometar"), ("tiny-siglip", "cocoop"), ("tiny-siglip2", "maple")]
)
def test_exported_prompts_classify(name: str, method: str, small_dtd: Path, tmp_path: Path) -> None:
    settings = {
        "backbone.name": name,
        "backbone.pretrained": "random",
        "train.epochs": 1,
        "data.shots": 1,
        "train.batch_size": 6,
    }
    assigned = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    run = tmp_path / "run"
    file = tmp_path / "prompts.safetensors"
    data = ["--dataset", "dtd", "--data-root", str(small_dtd)]
    assert main(["train", "--method", method, "--out", str(run), *data, *assigned]) == 0
    assert len(json.loads((run / "result.json").read_text())["history"]) == 1
    assert main(["export", str(run), "--to", str(file)]) == 0
    classifier = prometar.load(file, device="cpu")
    size = classifier.backbone.clip.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    np.testing.assert_allclose(classifier.predict(list(pixels)).probabilities.sum(axis=1), 1, rtol=1e-5)


def test_features_that_read_image_prompts_are_refused_with_an_attention_pool() -> None:
    clip = loaded("tiny-siglip")[1].clip
    with pytest.raises(UserError, match=r"^features.kind=representation reads .* attention pool"):
        check_components(Config(method="mmrl"), clip)
    require_fitting_tower(Config(method="maple"), build(Config(method="maple")), clip)
