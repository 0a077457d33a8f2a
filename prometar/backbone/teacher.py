"""The frozen CLIP's own features, which the regularizers hold the prompted ones to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.backbone.text import encode_text, text_input
from prometar.backbone.vision import encode_image
from prometar.backbone.weights import Clip

Tokenize = Callable[[Sequence[str]], Tensor]
"""Texts to token ids (N, context length)."""


def readable(classname: str) -> str:
    """The class name as it stands in a prompt: underscores become spaces."""
    return classname.replace("_", " ")


@torch.no_grad()
def frozen_text(
    clip: Clip,
    tokenize: Tokenize,
    classnames: Sequence[str],
    templates: Sequence[str],
    *,
    batch_size: int = 256,
) -> Tensor:
    """The mean over templates of un-normalised frozen text features, then normalised: (C, E).

    `templates` hold one "{}" each. Source: the released code's teacher (60 ImageNet templates), with the
    texts sorted by length so that a batch is cut to its own longest.
    """
    texts = [template.format(readable(name)) for name in classnames for template in templates]
    tokens_NT = tokenize(texts)
    order = tokens_NT.argmax(dim=-1).argsort(stable=True)
    features = torch.empty(len(texts), clip.embed_dim, dtype=clip.dtype, device=clip.device)
    for rows in order.split(batch_size):
        features[rows.to(clip.device)] = encode_text(clip, text_input(clip, tokens_NT[rows]))
    mean_CE = features.unflatten(0, (len(classnames), len(templates))).mean(dim=1)
    return F.normalize(mean_CE, dim=-1)


@torch.no_grad()
def frozen_image(clip: Clip, tokens_BTD: Tensor) -> Tensor:
    """Normalised frozen image features (B, E) of embedded images."""
    return F.normalize(encode_image(clip, tokens_BTD).to(clip.working_dtype), dim=-1)
