"""Custom adapters: LoRA, low-rank changes of the frozen attention weights, as in CLIP-LoRA (CVPRW 2024).

# Train one run of the method in lora.yaml, which uses these adapters.
PYTHONPATH=examples prometar train --method examples/lora.yaml --dataset cells
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from prometar.clip.model import Block, Clip
from prometar.methods.adapters import Place
from prometar.methods.prompts import Leaves, Tensors, sample_linear


@dataclass(frozen=True)
class Lora:
    """Weights W + scale B A of the queries, keys and values of each block.

    W (3D, D) is frozen, B (3D, rank) and A (rank, D) are learned in towers of width D.
    A starts like torch.nn.Linear, and B as 0, so training starts from the frozen CLIP.

    In the code of CLIP-LoRA, queries, keys and values have their own A, and their inputs have dropout. Here,
    they share A, and there is no dropout.
    """

    rank: Annotated[int, Field(ge=1)] = 2
    scale: float = 1.0

    def changes(self, tower: str) -> bool:
        return True  # both towers

    def initialize(self, clip: Clip, generator: torch.Generator) -> Leaves:
        leaves: Leaves = {}
        like = clip.logit_scale  # has the data type and the device of learned tensors
        for name, tower in (("text", clip.text), ("vision", clip.vision)):
            width = tower.width
            shape = (self.rank, width)
            for index in range(len(tower.blocks)):
                leaves[f"{name}.{index}.a"] = sample_linear(shape, width, like=like, generator=generator)
                leaves[f"{name}.{index}.b"] = like.new_zeros(3 * width, self.rank)
        return leaves

    def inputs(self, leaves: Leaves) -> Tensors:
        return leaves  # the blocks use the learned tensors as they are

    def block(self, place: Place, block: Block, inputs: Tensors) -> Block:
        name = f"{place.tower}.{place.index}"
        change = inputs[f"{name}.b"] @ inputs[f"{name}.a"]
        weight = block.in_proj_weight
        return block._replace(in_proj_weight=weight + self.scale * change.to(weight.dtype))

    def parallel(self, place: Place, normed: Tensor, inputs: Tensors) -> None:
        return None  # nothing beside the blocks
