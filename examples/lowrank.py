"""Custom prompts: deep text prompts that are linear combinations of a few learned vectors.

# Train one run with two vectors, on the default dataset.
PYTHONPATH=examples prometar train --set prompts.kind=lowrank:LowRank --set prompts.args.rank=2
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from prometar.clip.model import Clip
from prometar.methods.prompts import Leaves, Tensors


@dataclass(frozen=True)
class LowRank:
    """Prompts of the first `depth` text layers. Those of layer l are mix.l @ basis.

    The learned tensors are mix.l (length, rank) of each layer, and basis (rank, width of the text tower),
    which all layers share.

    Args:
        length: Number of prompt tokens per layer.
        depth: Number of text layers with prompts.
        rank: Number of learned vectors.
    """

    length: int = 4
    depth: int = 3
    rank: int = 2
    # These three have no annotation, so they are not settings.
    templates = ()  # unused, because a context is learned
    conditional = False  # text prompts do not depend on the image
    enters_images = False  # no prompts in the image tower, so each image is encoded only once

    @property
    def num_context(self) -> int:
        return self.length

    def initialize(self, clip: Clip, init_ids: Tensor, generator: torch.Generator) -> Leaves:
        shapes = {f"mix.{layer}": (self.length, self.rank) for layer in range(self.depth)}
        shapes["basis"] = (self.rank, clip.text.width)
        leaves: Leaves = {}
        for name, shape in shapes.items():
            sample = torch.randn(*shape, generator=generator)
            leaves[name] = 0.1 * sample.to(clip.device, clip.working_dtype)
        return leaves

    def tokens(self, leaves: Leaves) -> Tensors:
        return {f"text.{layer}": leaves[f"mix.{layer}"] @ leaves["basis"] for layer in range(self.depth)}

    def condition_tokens(self, tokens: Tensors, frozen_BE: Tensor) -> Tensors:
        return tokens  # not called, because `conditional` is False
