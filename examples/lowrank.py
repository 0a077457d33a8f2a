"""Custom prompts: deep text prompts of low rank. All layers share one basis, and each layer mixes it.

PYTHONPATH=examples prometar train --set prompts.kind=lowrank:LowRank --set prompts.args.rank=2
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from prometar.clip.model import Clip
from prometar.methods.prompts import Leaves


@dataclass(frozen=True)
class LowRank:
    """text.l = mix_l (P, R) basis (R, D) in each of the first `depth` layers."""

    length: int = 4
    depth: int = 3
    rank: int = 2
    templates: tuple[str, ...] = ()
    conditional: bool = False

    @property
    def num_context(self) -> int:
        return self.length

    def initialize(self, clip: Clip, init_tokens: Tensor, generator: torch.Generator) -> Leaves:
        shapes = {f"mix.{layer}": (self.length, self.rank) for layer in range(self.depth)}
        shapes["basis"] = (self.rank, clip.text.width)
        draws = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
        return {name: 0.1 * draw.to(clip.device, clip.working_dtype) for name, draw in draws.items()}

    def tokens(self, leaves: Leaves) -> Leaves:
        return {f"text.{layer}": leaves[f"mix.{layer}"] @ leaves["basis"] for layer in range(self.depth)}

    def seeing(self, tokens: Leaves, frozen_BE: Tensor) -> Leaves:
        return tokens  # the same for every image
