"""16-bit towers return features close to those of float32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prometar.clip.openclip import load_backbone, tokenize
from prometar.clip.text import encode_text, text_input
from prometar.clip.vision import embed_images, encode_image
from prometar.training.backbone import DTYPES
from prometar.training.session import Session
from tests.support import tiny
from tests.support.small import small_run, without_time

NAMES = ("banded", "polka-dotted", "sports_car")


def test_convolutions_use_float32_and_restore_the_callers_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """On GPUs, torch's default for convolutions is TF32, with 10 instead of 23 mantissa bits."""
    convolve = F.conv2d
    kept: list[str] = []

    def note(*args: Any, **kwargs: Any) -> Tensor:
        kept.append(torch.backends.cudnn.conv.fp32_precision)
        return convolve(*args, **kwargs)

    monkeypatch.setattr(F, "conv2d", note)
    whole = tiny.backbone().clip
    before = torch.backends.cudnn.conv.fp32_precision
    embed_images(whole, torch.zeros(1, 3, 16, 16))
    assert kept == ["ieee"]
    assert torch.backends.cudnn.conv.fp32_precision == before == "tf32"
    assert torch.backends.cudnn.allow_tf32, "the older setting can still be read"


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


@pytest.mark.parametrize(("precision", "expected"), [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")])
def test_only_tf32_computes_float32_products_in_tf32(precision: str, expected: str, tmp_path: Path) -> None:
    """In steps, scoring and drift. A CPU ignores the setting, so the test reads it."""
    seen: set[str] = set()

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if operator.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
                seen.add(torch.backends.cuda.matmul.fp32_precision)
            return operator(*args, **(kwargs or {}))

    for objective in ("drift", "base_val"):
        run = small_run(objective=objective, backbone__precision=precision, train__epochs=1)
        session = Session(run, tmp_path / objective)
        with Note():
            session.run_epoch()
        session.close()
    assert seen == {expected}
    assert torch.backends.cuda.matmul.fp32_precision == "none", "the caller's setting is restored"


def test_tf32_equals_float32_on_a_cpu(tmp_path: Path) -> None:
    scores = []
    for precision in ("fp32", "tf32"):
        session = Session(small_run(backbone__precision=precision, train__epochs=1), tmp_path / precision)
        scores.append(without_time([session.run_epoch()]))
        session.close()
    assert scores[0] == scores[1]
