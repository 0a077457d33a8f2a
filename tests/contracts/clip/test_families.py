"""Supported model families: equal to open_clip's modules, and usable from training to export."""

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
    """Register a tiny model of each family in open_clip."""
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
    """Return two random images, the same for each call."""
    size = clip.image_size
    return torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", families.CONFIGS)
def test_features_and_logits_are_those_of_open_clip(name: str) -> None:
    model, backbone = loaded(name)
    clip = backbone.clip
    pixels = images(clip)
    ids = backbone.tokenize(TEXTS)

    image = encode_image(clip, embed_images(clip, pixels))
    text = encode_text(clip, text_input(clip, ids))

    torch.testing.assert_close(image, model.encode_image(pixels, normalize=False), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(text, model.encode_text(ids, normalize=False), rtol=1e-9, atol=1e-10)
    # SigLIP's logit bias is omitted, because it is the same for all classes.
    expected_cosines = model.encode_image(pixels, normalize=True) @ model.encode_text(ids, normalize=True).T
    logits = clip.logit_scale * nn.functional.normalize(image) @ nn.functional.normalize(text).T
    torch.testing.assert_close(logits, model.logit_scale.exp() * expected_cosines, rtol=1e-8, atol=1e-10)


SIGLIP_FAMILIES = [name for name in families.CONFIGS if "siglip" in name]


@pytest.mark.parametrize("layers", [set(), {0}, {1}, {0, 1, 2}, {2}], ids=str)
@pytest.mark.parametrize("name", SIGLIP_FAMILIES)
def test_text_prompts_and_their_gradients_are_those_of_open_clips_modules(
    name: str, layers: set[int]
) -> None:
    model, backbone = loaded(name)
    clip = backbone.clip
    ids = backbone.tokenize(TEXTS)
    prompts = random_prompts(layers, 4, clip.text.width)
    features = encode_text(clip, text_input(clip, ids, num_context=4), prompts)
    compare(features, plain_text(model, ids, prompts, clip.num_start), prompts, rtol=1e-8)


@pytest.mark.parametrize("layers", [set(), {0}, {1}, {0, 1, 2}, {2}], ids=str)
@pytest.mark.parametrize("name", SIGLIP_FAMILIES)
def test_image_prompts_and_their_gradients_are_those_of_open_clips_modules(
    name: str, layers: set[int]
) -> None:
    model, backbone = loaded(name)
    clip = backbone.clip
    pixels = images(clip)
    prompts = random_prompts(layers, 3, clip.vision.width)
    features = encode_image(clip, embed_images(clip, pixels), prompts)
    compare(features, plain_image(model, pixels, prompts), prompts, rtol=1e-8)


@pytest.mark.parametrize("layers", [{0, 1, 2}, {1}, {2}], ids=str)
@pytest.mark.parametrize("name", families.CONFIGS)
def test_first_and_second_derivatives_are_those_of_the_forward_pass(name: str, layers: set[int]) -> None:
    _, backbone = loaded(name)
    clip = backbone.clip

    text = text_input(clip, backbone.tokenize(TEXTS), num_context=2)
    text_prompts = constant_prompts(layers, 2, clip.text.width)
    require_derivatives(lambda prompts: text_pass(clip, text, prompts), text_prompts)

    tokens = embed_images(clip, images(clip))
    image_prompts = constant_prompts(layers, 3, clip.vision.width)
    require_derivatives(lambda prompts: image_pass(clip, tokens, prompts), image_prompts)


def constant_prompts(layers: set[int], length: int, width: int) -> dict[int, Tensor]:
    """Return random prompts by layer, which require no gradient."""
    return {layer: prompt.detach() for layer, prompt in random_prompts(layers, length, width).items()}


@pytest.mark.parametrize("name", families.CONFIGS)
def test_a_clip_without_weights_has_their_shapes(name: str, tmp_path: Path) -> None:
    clip = load_clip(name, str(families.write_weights(name, tmp_path)))
    shapes = [tensor.shape for tensor in tensors_of(clip)]
    assert [tensor.shape for tensor in tensors_of(clip_without_weights(name))] == shapes


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


@pytest.mark.parametrize(
    ("name", "pretrained", "mean"),
    [
        ("ViT-B-16", "openai", OPENAI_MEAN),
        ("ViT-B-16", None, OPENAI_MEAN),
        ("ViT-L-14", "laion400m_e32", OPENAI_MEAN),
        ("ViT-L-14", "a.safetensors", OPENAI_MEAN),
        ("ViT-L-14", "laion2b_s32b_b82k", (0.5, 0.5, 0.5)),
    ],
)
def test_images_are_normalized_as_in_the_training_of_the_weights(
    name: str, pretrained: str | None, mean: tuple[float, float, float]
) -> None:
    clip = clip_without_weights("ViT-M-32")  # a small one: only name and weights matter
    assert build_backbone(name, pretrained, clip).mean == mean


def test_the_query_of_the_attention_pool_is_the_same_to_the_last_bit_on_every_cpu(tmp_path: Path) -> None:
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
    half = load_file(path)
    single = load_file(path)
    for key, tensor in half.items():
        if tensor.is_floating_point():
            half[key] = tensor.half()
            single[key] = half[key].float()

    save_file(half, path)
    digest_of_half = weights_digest(load_clip(name, str(path)))
    save_file(single, path)
    digest_of_single = weights_digest(load_clip(name, str(path)))
    assert digest_of_single == digest_of_half


@pytest.mark.parametrize(
    ("name", "method"), [("tiny-siglip", "prometar"), ("tiny-siglip", "cocoop"), ("tiny-siglip2", "maple")]
)
def test_exported_prompts_classify(name: str, method: str, small_dtd: Path, tmp_path: Path) -> None:
    settings = [
        f"backbone.name={name}",
        "backbone.pretrained=random",
        "train.epochs=1",
        "data.shots=1",
        "train.batch_size=6",
    ]
    run = tmp_path / "run"
    file = tmp_path / "prompts.safetensors"
    args = ["--method", method, "--out", str(run), "--dataset", "dtd", "--data-root", str(small_dtd)]
    for setting in settings:
        args += ["--set", setting]
    assert main(["train", *args]) == 0
    assert len(json.loads((run / "result.json").read_text())["history"]) == 1

    assert main(["export", str(run), "--to", str(file)]) == 0
    classifier = prometar.load(file, device="cpu")
    size = classifier.backbone.clip.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    np.testing.assert_allclose(classifier.predict(list(pixels)).probabilities.sum(axis=1), 1, rtol=1e-5)


def test_features_that_read_image_prompts_are_refused_with_an_attention_pool() -> None:
    _, backbone = loaded("tiny-siglip")
    clip = backbone.clip
    with pytest.raises(UserError, match=r"^features.kind=representation reads .* attention pool"):
        check_components(Config(method="mmrl"), clip)
    require_fitting_tower(Config(method="maple"), build(Config(method="maple")), clip)
