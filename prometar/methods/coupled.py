"""Coupled prompts: the vision tower's tokens are linear maps of the text tower's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prometar.backbone.clip import Clip
from prometar.errors import UserError
from prometar.methods.initial import linear
from prometar.methods.prompts import IndependentPrompts, Leaves


@dataclass(frozen=True)
class CoupledPrompts:
    """v_l = t_l W_l^T + b_l in each of the first `depth` layers: leaves `text.l`, `vision.l.weight`
    (D_vision, D_text) and `vision.l.bias`.

    The text's tokens start as those of `IndependentPrompts`; the maps as a torch.nn.Linear, the first layer's
    as one and all deeper ones' as copies of another. The depth stops at the shallower tower's last layer.

    Raises:
        UserError: depth 0.

    Source: "MaPLe", CVPR 2023 (released: 2 tokens, depth 9).
    """

    length: int = 2
    depth: int = 9
    std: float = 0.02
    templates: tuple[str, ...] = ()
    conditional: bool = False

    def __post_init__(self) -> None:
        if self.depth == 0:
            raise UserError("prompts.text_depth is 0: coupled prompts start in the text tower")

    @property
    def num_context(self) -> int:
        return self.length

    def init(self, clip: Clip, init_tokens: Tensor, generator: torch.Generator) -> Leaves:
        clip.require_open()
        depth = min(self.depth, len(clip.text.blocks), len(clip.vision.blocks))
        text = IndependentPrompts(self.length, depth, vision_depth=0, std=self.std)
        leaves = text.init(clip, init_tokens, generator)
        width, like = clip.text.width, leaves["text.0"]
        shapes = {"weight": (clip.vision.width, width), "bias": (clip.vision.width,)}
        for layer in range(depth):
            for name, shape in shapes.items():
                leaf = f"vision.{layer}.{name}"
                if layer < 2:
                    leaves[leaf] = linear(shape, width, like=like, generator=generator)
                else:
                    leaves[leaf] = leaves[f"vision.1.{name}"].clone()
        return leaves

    def seeing(self, tokens: Leaves, frozen_BE: Tensor) -> Leaves:
        return tokens

    def tokens(self, leaves: Leaves) -> Leaves:
        tokens = {name: leaf for name, leaf in leaves.items() if name.startswith("text.")}
        for name, token in list(tokens.items()):
            layer = f"vision.{name.removeprefix('text.')}"
            tokens[layer] = token @ leaves[f"{layer}.weight"].T + leaves[f"{layer}.bias"]
        return tokens
