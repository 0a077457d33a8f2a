"""QuickGELU, and what else goes into the weights, folded."""

import torch
import torch.nn.functional as F

from prometar.clip.activations import QUICK, quick_gelu
from prometar.clip.text import encode_text, text_input
from prometar.clip.vision import embed_images, encode_image
from tests.support.tiny import backbone


def test_silu_stands_for_quick_gelu() -> None:
    x = torch.linspace(-9, 9, 37, dtype=torch.float64)
    torch.testing.assert_close(F.silu(QUICK * x) / QUICK, quick_gelu(x), rtol=0, atol=1e-14)


def test_a_folded_clip_is_the_same_clip() -> None:
    clip = backbone(torch.float64).clip
    folded = clip.folded()
    assert (clip.vision.activation, folded.vision.activation) == ("quick_gelu", "silu")
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = [encode_image(c, embed_images(c, images)) for c in (clip, folded)]
    torch.testing.assert_close(*features, rtol=0, atol=1e-12)
    tokens = torch.tensor([[49406, 320, 1125, 49407, 0], [49406, 320, 49407, 0, 0]])
    texts = [encode_text(c, text_input(c, tokens)) for c in (clip, folded)]
    torch.testing.assert_close(*texts, rtol=0, atol=1e-12)
