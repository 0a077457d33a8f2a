"""One choice of attention backends, whatever torch prefers on a card."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import prometar
from prometar.clip.attention import fused_attention
from prometar.clip.openclip import tokenize
from prometar.clip.text import encode_text, text_input
from prometar.clip.vision import embed_images, encode_image
from tests.support.tiny import backbone

Enabled = dict[str, bool]


def enabled_backends() -> Enabled:
    cuda = torch.backends.cuda
    return {
        "cudnn": cuda.cudnn_sdp_enabled(),
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Enabled]:
    """Return a list that receives the enabled backends of each call of torch's fused attention."""
    found: list[Enabled] = []
    original = F.scaled_dot_product_attention

    def record(*args: Any, **kwargs: Any) -> Tensor:
        found.append(enabled_backends())
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    return found


WITHOUT_CUDNN = {"cudnn": False, "flash": True, "efficient": True, "math": True}
ONLY_PLAIN_OPERATIONS = {"cudnn": False, "flash": False, "efficient": False, "math": True}


def test_both_towers_apply_the_choice_and_restore_torchs_settings(calls: list[Enabled]) -> None:
    before = enabled_backends()
    assert before["cudnn"], "the test needs a setting that the choice changes"
    clip = backbone().clip
    with torch.no_grad():
        encode_text(clip, text_input(clip, tokenize(["a cat", "a dog"])))
        encode_image(clip, embed_images(clip, torch.zeros(1, 3, 16, 16)))
    assert calls == [WITHOUT_CUDNN] * (len(clip.text.blocks) + len(clip.vision.blocks))
    assert enabled_backends() == before


def test_gradients_on_a_cpu_use_the_fused_kernel(calls: list[Enabled]) -> None:
    q = torch.randn(1, 2, 4, 8, requires_grad=True)
    fused_attention(q, q, q, mask=None, scale=0.3).sum().backward()
    assert calls == [WITHOUT_CUDNN]


def test_gradients_on_an_accelerator_use_plain_operations(calls: list[Enabled]) -> None:
    # The device "meta" stands for any device but the CPU.
    q = torch.empty(1, 2, 4, 8, requires_grad=True, device="meta")
    fused_attention(q, q, q, mask=None, scale=0.3)
    assert calls == [ONLY_PLAIN_OPERATIONS]
    with torch.no_grad():
        fused_attention(q, q, q, mask=None, scale=0.3)
    assert calls[1:] == [WITHOUT_CUDNN]


def test_no_other_code_calls_torchs_attention() -> None:
    folder = Path(prometar.__file__).parent
    callers = [path for path in folder.rglob("*.py") if "scaled_dot_product" in path.read_text("utf-8")]
    assert callers == [folder / "clip" / "attention.py"]
