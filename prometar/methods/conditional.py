"""Conditional prompts: the text's tokens depend on the image that is classified."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prometar.backbone.clip import Clip
from prometar.methods.initial import linear
from prometar.methods.prompts import IndependentPrompts, Leaves


@dataclass(frozen=True)
class ConditionalPrompts:
    """t(x) = t + W_out relu(W_in f0(x) + b_in) + b_out for every token t of the context, in the first layer.

    f0(x) are the frozen CLIP's normalised features of the image; the hidden layer has E / `reduction` units.
    Leaves: `text.0`, and `shift.in` and `shift.out` with `.weight` and `.bias`. The context starts as that of
    `IndependentPrompts`, the net as two torch.nn.Linear.

    Source: "Conditional Prompt Learning for Vision-Language Models" (CoCoOp), CVPR 2022 (released: 4 tokens,
    reduction 16).
    """

    length: int = 4
    std: float = 0.02
    reduction: int = 16
    templates: tuple[str, ...] = ()
    conditional: bool = True
    enters_images: bool = False

    @property
    def num_context(self) -> int:
        return self.length

    def init(self, clip: Clip, init_tokens: Tensor, generator: torch.Generator) -> Leaves:
        text = IndependentPrompts(self.length, 1, vision_depth=0, std=self.std)
        leaves = text.init(clip, init_tokens, generator)
        widths = (clip.embed_dim, max(1, clip.embed_dim // self.reduction), clip.text.width)
        for name, num_in, num_out in zip(("in", "out"), widths, widths[1:], strict=False):
            for kind, shape in (("weight", (num_out, num_in)), ("bias", (num_out,))):
                leaf = linear(shape, num_in, like=leaves["text.0"], generator=generator)
                leaves[f"shift.{name}.{kind}"] = leaf
        return leaves

    def tokens(self, leaves: Leaves) -> Leaves:
        return leaves

    def seeing(self, tokens: Leaves, frozen_BE: Tensor) -> Leaves:
        hidden = (frozen_BE @ tokens["shift.in.weight"].T + tokens["shift.in.bias"]).relu()
        shift_BD = hidden @ tokens["shift.out.weight"].T + tokens["shift.out.bias"]
        return {"text.0": tokens["text.0"] + shift_BD[:, None]}
