"""The fast towers against plain open_clip: whole sequences, every token in every layer."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.model import CLIP
from torch import Tensor

from prometar.clip.openclip import tokenize
from prometar.clip.text import encode_text, text_input
from prometar.clip.vision import embed_images, encode_image
from tests.support.tiny import open_clip_model, towers

LAYERS = 3
TEXTS = ["a photo of a cat.", "a photo of a polka-dotted annual crop land.", "a photo of a woven."]
EXACT = {"rtol": 0, "atol": 1e-10}


def plain_text(model: CLIP, tokens: Tensor, prompts: Mapping[int, Tensor]) -> Tensor:
    """All 77 positions through open_clip's own blocks; prompts overwrite the positions after SOS."""
    x = model.token_embedding(tokens)
    if 0 in prompts:
        x = overwrite(x, prompts[0])
    x = x + model.positional_embedding
    for layer, block in enumerate(model.transformer.resblocks):
        if layer and layer in prompts:
            x = overwrite(x, prompts[layer])
        x = block(x, attn_mask=model.attn_mask)
    x = model.ln_final(x)[torch.arange(len(tokens)), tokens.argmax(-1)]
    return x @ model.text_projection


def overwrite(x: Tensor, prompt: Tensor) -> Tensor:
    return torch.cat([x[:, :1], prompt.expand(len(x), -1, -1), x[:, 1 + len(prompt) :]], dim=1)


def plain_image(model: CLIP, images: Tensor, prompts: Mapping[int, Tensor]) -> Tensor:
    """All tokens through open_clip's own blocks; prompts are appended, and replaced at their layers."""
    visual = model.visual
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    num_own = x.shape[1]
    if 0 in prompts:
        x = torch.cat([x, prompts[0].expand(len(x), -1, -1)], dim=1)
    x = visual.ln_pre(x)
    for layer, block in enumerate(visual.transformer.resblocks):
        if layer and layer in prompts:
            x = torch.cat([x[:, :num_own], prompts[layer].expand(len(x), -1, -1)], dim=1)
        x = block(x)
    return visual.ln_post(x[:, 0]) @ visual.proj


def random_prompts(layers: set[int], length: int, width: int) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return {
        layer: torch.randn(length, width, dtype=torch.float64, generator=generator).requires_grad_()
        for layer in sorted(layers)
    }


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_unprompted_towers_equal_open_clip(quick_gelu: bool) -> None:
    model = open_clip_model(quick_gelu=quick_gelu)
    clip, tokens = towers(model, quick_gelu=quick_gelu), tokenize(TEXTS)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for num_context in (0, 2, 4):
        ours = encode_text(clip, text_input(clip, tokens, num_context=num_context))
        torch.testing.assert_close(ours, model.encode_text(tokens), **EXACT)
    torch.testing.assert_close(
        encode_image(clip, embed_images(clip, images)), model.encode_image(images), **EXACT
    )


layers = st.sets(st.integers(0, LAYERS - 1), max_size=LAYERS)


@settings(max_examples=25, deadline=None)
@given(layers=layers, length=st.integers(1, 4))
def test_text_prompts_at_any_layers_value_and_gradients(layers: set[int], length: int) -> None:
    model = open_clip_model()
    clip, tokens = towers(model), tokenize(TEXTS)
    prompts = random_prompts(layers, length, 16)
    fast = encode_text(clip, text_input(clip, tokens, num_context=length), prompts)
    compare(fast, plain_text(model, tokens, prompts), prompts)


@settings(max_examples=25, deadline=None)
@given(layers=layers, length=st.integers(1, 5))
def test_vision_prompts_at_any_layers_value_and_gradients(layers: set[int], length: int) -> None:
    model = open_clip_model()
    clip = towers(model)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    prompts = random_prompts(layers, length, 32)
    compare(
        encode_image(clip, embed_images(clip, images), prompts), plain_image(model, images, prompts), prompts
    )


def compare(fast: Tensor, plain: Tensor, prompts: Mapping[int, Tensor]) -> None:
    torch.testing.assert_close(fast, plain, **EXACT)
    if not prompts:
        return
    leaves = list(prompts.values())
    weights = torch.linspace(-1, 1, fast.numel(), dtype=fast.dtype).view_as(fast)
    ours, theirs = (
        torch.autograd.grad((F.normalize(x, dim=-1) * weights).sum(), leaves) for x in (fast, plain)
    )
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_the_second_derivative_is_that_of_the_values() -> None:
    clip = towers(open_clip_model())
    tokens = text_input(clip, tokenize(TEXTS), num_context=2)
    (prompt,) = random_prompts({0}, 2, 16).values()

    def features(p: Tensor) -> Tensor:
        return encode_text(clip, tokens, {0: p}).tanh().sum()

    assert torch.autograd.gradgradcheck(features, prompt)


def test_without_gradients_the_fused_kernel_gives_the_same() -> None:
    model = open_clip_model()
    clip, tokens = towers(model), tokenize(TEXTS)
    prompts = random_prompts({0, 1}, 3, 16)
    text = text_input(clip, tokens, num_context=3)
    with torch.no_grad():
        fused = encode_text(clip, text, prompts)
    torch.testing.assert_close(fused, encode_text(clip, text, prompts), **EXACT)
