"""Towers in 16 bits: near float32's features, trained and resumed like any others."""

from dataclasses import replace
from pathlib import Path
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
from prometar.training.session import Session
from tests.support import tiny
from tests.support.small import small_run, train

LOW = ["bf16", "fp16"]
NAMES = ("banded", "polka-dotted", "sports_car")


def session(folder: Path, precision: str) -> Session:
    small = {"train.epochs": 2, "data.shots": 1, "inner.lr": 0.01, "inner.outer_weight": 0.1}
    return Session(small_run("prometar", "drift", backbone__precision=precision, **small), folder)


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


@pytest.mark.parametrize("precision", LOW)
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


@pytest.mark.parametrize("precision", LOW)
def test_a_resumed_run_equals_an_uninterrupted_one_and_learns_in_float32(
    precision: str, tmp_path: Path
) -> None:
    whole = session(tmp_path / "whole", precision)
    train(whole)
    for _ in range(2):
        parts = session(tmp_path / "parts", precision)
        parts.epoch()
    assert parts.finished
    assert whole.run.backbone.clip.dtype == DTYPES[precision]
    assert whole.run.backbone.clip.logit_scale.dtype == torch.float32
    start = session(tmp_path / "start", precision).state.tensors()
    for name, tensor in whole.state.tensors().items():
        assert torch.equal(tensor, parts.state.tensors()[name]), name
        assert tensor.dtype == torch.float32
        assert not name.startswith("prompts") or (tensor != start[name]).any()
