"""The frozen CLIP's own features, which the regularizers hold the prompted ones to."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.model import Clip
from prometar.clip.text import encode_text, text_input
from prometar.clip.vision import embed_images, encode_image
from prometar.clip.wording import filled

Tokenize = Callable[[Sequence[str]], Tensor]
"""Texts to token ids (N, context length)."""


def frozen_text(
    clip: Clip, tokenize: Tokenize, classnames: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """`mean_text` of each class in these templates, which hold one "{}" each.

    Source: the released code's teacher (60 ImageNet templates).
    """
    texts = [filled(template, name) for name in classnames for template in templates]
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


@dataclass(frozen=True)
class Seen:
    """What a process remembers of images that come again: the frozen CLIP's features, by batch.

    Runs of one plan share it, since equal plans give equal pixels. features: None where they are too many.
    """

    features: dict[int, Tensor] | None = None

    def suffices(self, clip: Clip, numbers: Iterable[int] = ()) -> bool:
        """Whether nobody need see these batches' images again; with none, whether that can be."""
        known = self.features
        return clip.embeds_features and known is not None and all(number in known for number in numbers)

    def embed(self, clip: Clip, number: int, images_B3HW: Tensor) -> Tensor:
        """`embed_images` of a batch, remembered where these are features."""
        if not clip.embeds_features:
            return embed_images(clip, images_B3HW)
        return self._once(number, lambda: embed_images(clip, images_B3HW))

    def frozen(self, clip: Clip, number: int, tokens_BTD: Tensor) -> Tensor:
        """`frozen_image` of a batch, remembered."""
        if clip.embeds_features:
            return frozen_image(clip, tokens_BTD)
        return self._once(number, lambda: frozen_image(clip, tokens_BTD))

    def _once(self, number: int, compute: Callable[[], Tensor]) -> Tensor:
        if self.features is None:
            return compute()
        if number not in self.features:
            self.features[number] = compute()
        return self.features[number]
