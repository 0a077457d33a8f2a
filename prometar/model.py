"""A frozen CLIP, a set of classes, and prompts: everything that is fixed while a method trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from prometar.backbone.teacher import Tokenize, readable
from prometar.backbone.text import TextInput, encode_text, text_input
from prometar.backbone.vision import encode_image
from prometar.backbone.weights import Clip
from prometar.parts.prompts import Prompts


@dataclass(frozen=True)
class Model:
    """Feature maps of the prompted CLIP for fixed classes, and the frozen text features they are held to."""

    clip: Clip
    prompts: Prompts
    text: TextInput
    frozen_text_CE: Tensor

    def text_features(self, leaves: Mapping[str, Tensor]) -> Tensor:
        """Normalised text features (C, E)."""
        return F.normalize(encode_text(self.clip, self.text, self.prompts.layers(leaves)[0]), dim=-1)

    def image_features(self, leaves: Mapping[str, Tensor], tokens_BTD: Tensor) -> Tensor:
        """Un-normalised image features (B, E) of embedded images (`backbone.vision.embed_images`)."""
        return encode_image(self.clip, tokens_BTD, self.prompts.layers(leaves)[1])

    def logits(self, image_BE: Tensor, text_CE: Tensor) -> Tensor:
        """s f . g_c of un-normalised image and normalised text features, (B, C)."""
        return self.clip.logit_scale * F.normalize(image_BE, dim=-1) @ text_CE.T


def prompt_texts(classnames: Sequence[str], init: str, num_context: int) -> list[str]:
    """ "<init> <name>." for every class.

    Where more context tokens are learned than `init` has words, the released code puts a placeholder word
    in the place of each.
    """
    prefix = init if num_context <= len(init.split()) else " ".join(["X"] * num_context)
    return [f"{prefix} {readable(name)}." for name in classnames]


def build_model(
    clip: Clip,
    tokenize: Tokenize,
    prompts: Prompts,
    classnames: Sequence[str],
    init: str,
    frozen_text_CE: Tensor,
) -> Model:
    """The model of `classnames`, with frozen text features (C, E), normalised."""
    tokens = tokenize(prompt_texts(classnames, init, prompts.num_context))
    return Model(clip, prompts, text_input(clip, tokens, num_context=_shared(prompts, init)), frozen_text_CE)


def _shared(prompts: Prompts, init: str) -> int:
    """How many tokens after SOS all classes share: the prompts' own, else the words of `init`."""
    return prompts.num_context or len(init.split())
