"""The frozen CLIP's own features, which the regularizers hold the prompted ones to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.backbone.clip import Clip
from prometar.backbone.text import encode_text, text_input
from prometar.backbone.vision import encode_image

Tokenize = Callable[[Sequence[str]], Tensor]
"""Texts to token ids (N, context length)."""


def readable(classname: str) -> str:
    """The class name as it stands in a prompt: underscores become spaces."""
    return classname.replace("_", " ")


def frozen_text(
    clip: Clip, tokenize: Tokenize, classnames: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """`mean_text` of each class in these templates, which hold one "{}" each.

    Source: the released code's teacher (60 ImageNet templates).
    """
    texts = [template.format(readable(name)) for name in classnames for template in templates]
    return mean_text(clip, tokenize(texts), len(templates))


@torch.no_grad()
def mean_text(clip: Clip, tokens_NT: Tensor, num_templates: int, *, batch_size: int = 256) -> Tensor:
    """The mean of un-normalised frozen text features over a class's texts, then normalised: (C, E).

    Texts of a class stand one after the other. They are encoded in the order of their tokens, so that a batch
    holds those that share most: a template's words before the class name run once for all its classes.
    """
    order = torch.from_numpy(np.lexsort(tokens_NT.cpu().numpy().T[::-1]))
    features = torch.empty(len(tokens_NT), clip.embed_dim, dtype=clip.working_dtype, device=clip.device)
    for rows in order.split(batch_size):
        text = text_input(clip, tokens_NT[rows])
        features[rows.to(clip.device)] = encode_text(clip, text).to(features.dtype)
    return F.normalize(features.unflatten(0, (-1, num_templates)).mean(dim=1), dim=-1)


@torch.no_grad()
def frozen_image(clip: Clip, tokens_BTD: Tensor) -> Tensor:
    """Normalised frozen image features (B, E) of embedded images."""
    return F.normalize(encode_image(clip, tokens_BTD).to(clip.working_dtype), dim=-1)
