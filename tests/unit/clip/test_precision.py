"""Towers in 16 bits give features near those of float32."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.openclip import load_backbone, tokenize
from prometar.clip.text import encode_text, text_input
from prometar.clip.vision import embed_images, encode_image
from prometar.training.run import DTYPES
from tests.support import tiny

NAMES = ("banded", "polka-dotted", "sports_car")


def test_convolutions_are_in_float32_as_such_and_the_caller_s_choice_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU torch takes 10 bits of 23 for them, unless it is told."""
    convolve, kept = F.conv2d, list[str]()

    def note(*args: Any, **kwargs: Any) -> Tensor:
        kept.append(torch.backends.cudnn.conv.fp32_precision)
        return convolve(*args, **kwargs)

    monkeypatch.setattr(F, "conv2d", note)
    whole = tiny.backbone().clip
    before = torch.backends.cudnn.conv.fp32_precision
    for clip in (whole, replace(whole, image_prompts=False)):
        embed_images(clip, torch.zeros(1, 3, 16, 16))
    assert kept == ["ieee"] * 2
    assert torch.backends.cudnn.conv.fp32_precision == before == "tf32"
    assert torch.backends.cudnn.allow_tf32, "what asks in the older way gets its answer"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_features_are_near_those_of_float32(precision: str) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8))
    features = {}
    for name in ("fp32", precision):
        backbone = load_backbone("mini", None, dtype=DTYPES[name])
        clip = backbone.clip
        tokens = tokenize([f"a photo of a {each}." for each in NAMES])
        with torch.no_grad():
            images = encode_image(clip, embed_images(clip, backbone.normalize(pixels)))
            texts = encode_text(clip, text_input(clip, tokens))
        assert images.dtype == texts.dtype == DTYPES[name]
        features[name] = [F.normalize(x.float(), dim=-1) for x in (images, texts)]
    for exact, near in zip(features["fp32"], features[precision], strict=True):
        assert (exact * near).sum(dim=-1).min() > 0.999
        assert not torch.equal(exact, near)
