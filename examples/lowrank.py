"""Custom prompts: deep text prompts that are linear combinations of a few learned vectors.

PYTHONPATH=examples prometar train --set prompts.kind=lowrank:LowRank --set prompts.args.rank=2
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from prometar.clip.model import Clip
from prometar.methods.prompts import Leaves, Tensors


@dataclass(frozen=True)
class LowRank:
    """Tokens of each text layer l < `depth`: mix.l (length, rank) @ basis (rank, width of the text tower)."""

    length: int = 4
    depth: int = 3
    rank: int = 2
    templates = ()  # unused, because a context is learned. No annotation, so it is not a setting.
    conditional = False  # text prompts do not depend on the image
    enters_images = False  # no prompts in the image tower, so each image is encoded only once

    @property
    def num_context(self) -> int:
        return self.length

    def initialize(self, clip: Clip, init_ids: Tensor, generator: torch.Generator) -> Leaves:
        shapes = {f"mix.{layer}": (self.length, self.rank) for layer in range(self.depth)}
        shapes["basis"] = (self.rank, clip.text.width)
        samples = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
        return {name: 0.1 * sample.to(clip.device, clip.working_dtype) for name, sample in samples.items()}

    def tokens(self, leaves: Leaves) -> Tensors:
        return {f"text.{layer}": leaves[f"mix.{layer}"] @ leaves["basis"] for layer in range(self.depth)}

    def condition_tokens(self, tokens: Tensors, frozen_BE: Tensor) -> Tensors:
        return tokens
