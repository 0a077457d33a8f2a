"""Our towers against open_clip, which encodes whole sequences."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from prometar.clip.vision import embed_images, encode_image
from tests.support.plain_towers import plain_image
from tests.support.tiny import open_clip_model, towers

TEXTS = ["a photo of a cat.", "a photo of a polka-dotted annual crop land.", "a photo of a woven."]
EXACT = {"rtol": 0, "atol": 1e-10}


def random_prompts(layers: set[int], length: int, width: int) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(length)
    return {
        layer: torch.randn(length, width, dtype=torch.float64, generator=generator).requires_grad_()
        for layer in sorted(layers)
    }


def random_images(number: int) -> Tensor:
    return torch.randn(number, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def compare(fast: Tensor, plain: Tensor, prompts: Mapping[int, Tensor], *, rtol: float = 0) -> None:
    """Compare features, and gradients of the prompts."""
    torch.testing.assert_close(fast, plain, rtol=rtol, atol=1e-10)
    if prompts:
        scale = torch.linspace(-1, 1, fast.numel(), dtype=fast.dtype)
        leaves = list(prompts.values())
        ours, theirs = (torch.autograd.grad((x.flatten().sin() * scale).sum(), leaves) for x in (fast, plain))
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-10)


@pytest.mark.parametrize("layers", [{0}, {1}, {0, 2}, {0, 1, 2}], ids=str)
@pytest.mark.parametrize("length", [1, 4])
def test_prompts_of_images_and_their_gradients_equal_open_clip(layers: set[int], length: int) -> None:
    model = open_clip_model()
    images = random_images(2)
    prompts = random_prompts(layers, length, 32)
    clip = towers(model)
    fast = encode_image(clip, embed_images(clip, images), prompts)
    compare(fast, plain_image(model, images, prompts), prompts)
