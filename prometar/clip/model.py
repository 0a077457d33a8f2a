"""A frozen CLIP or SigLIP as plain values.

Shape suffixes in this package: B images, C classes, T tokens, P shared (prefix or prompt) tokens, D width,
H heads, K width of a head, E width of the joint embedding, L layers.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass, tree_leaves, tree_map_only

from prometar.clip.activations import QUICK
from prometar.clip.part import EPS


class Block(NamedTuple):
    """The frozen tensors of one residual attention block. LayerNorms may have none."""

    ln_1_weight: Tensor | None
    ln_1_bias: Tensor | None
    in_proj_weight: Tensor
    in_proj_bias: Tensor
    out_proj_weight: Tensor
    out_proj_bias: Tensor
    ln_2_weight: Tensor | None
    ln_2_bias: Tensor | None
    c_fc_weight: Tensor
    c_fc_bias: Tensor
    c_proj_weight: Tensor
    c_proj_bias: Tensor


@dataclass(frozen=True)
class Tower:
    """The blocks of one tower, its number of heads and its activation (a key of `ACTIVATIONS`).

    scale: Factor of the queries, 1 / sqrt(width of a head), or 1 if it is folded into their weights.
    eps: Epsilon of the LayerNorms.
    residual: If true, the output of attention is added to its input.
    """

    blocks: tuple[Block, ...]
    num_heads: int
    activation: str
    scale: float
    eps: float = EPS
    residual: bool = True

    @property
    def width(self) -> int:
        return self.blocks[0].out_proj_bias.shape[0]

    def folded(self) -> "Tower":
        """Return the same tower with fewer operations.

        Weight and bias of the two LayerNorms and the queries' scale are folded into the weights of the linear
        layers. SiLU replaces QuickGELU, as x sigmoid(a x) = silu(a x) / a.
        """
        quick = QUICK if self.activation == "quick_gelu" else 1.0
        activation = "silu" if self.activation == "quick_gelu" else self.activation
        blocks = tuple(_folded(block, self.scale, quick) for block in self.blocks)
        return replace(self, blocks=blocks, activation=activation, scale=1.0)


def _folded(block: Block, scale: float, quick: float) -> Block:
    in_proj_weight, in_proj_bias = _behind_norm(
        block.in_proj_weight, block.in_proj_bias, block.ln_1_weight, block.ln_1_bias
    )
    query = torch.ones_like(in_proj_bias)
    query[: len(query) // 3] = scale
    c_fc_weight, c_fc_bias = _behind_norm(
        block.c_fc_weight, block.c_fc_bias, block.ln_2_weight, block.ln_2_bias
    )
    return block._replace(
        ln_1_weight=None,
        ln_1_bias=None,
        in_proj_weight=in_proj_weight * query[:, None],
        in_proj_bias=in_proj_bias * query,
        ln_2_weight=None,
        ln_2_bias=None,
        c_fc_weight=c_fc_weight * quick,
        c_fc_bias=c_fc_bias * quick,
        c_proj_weight=block.c_proj_weight / quick,
    )


def _behind_norm(
    weight: Tensor, bias: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Fold a norm into the linear layer after it: W (n w + v) + b = (W w) n + (W v + b)."""
    if norm_weight is None or norm_bias is None:
        return weight, bias
    # In float64, since in float32 the last bit depends on where in memory a file's tensors lie.
    added = (weight.double() @ norm_bias.double()).to(bias.dtype)
    return weight * norm_weight, bias + added


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP: two towers and the tensors before and after them.

    `patch_weight` is (D, 3, patch, patch), `token_embedding` (49408, D), the projections (D, E);
    `logit_scale` is exp of the learned log scale, a scalar tensor. SigLIP has no class embedding, no first
    LayerNorm and no projection of images, and its text projection may be missing.

    pool: SigLIP's attention pool with the last LayerNorm, as a block that makes a feature of all tokens.
    causal: As in `prometar.clip.architecture.Architecture`.
    num_start: Tokens that the tokenizer puts before a text.
    image_prompts: If false, no prompt enters the image tower, and an image is embedded as its feature.
    """

    text: Tower
    vision: Tower
    token_embedding: Tensor
    text_positions: Tensor
    ln_final_weight: Tensor
    ln_final_bias: Tensor
    text_projection: Tensor | None
    patch_weight: Tensor
    class_embedding: Tensor | None
    vision_positions: Tensor
    ln_pre_weight: Tensor | None
    ln_pre_bias: Tensor | None
    ln_post_weight: Tensor | None
    ln_post_bias: Tensor | None
    vision_projection: Tensor | None
    logit_scale: Tensor
    text_projection_bias: Tensor | None = None
    pool: Tower | None = None
    causal: bool = True
    num_start: int = 1
    image_size: int = 224
    image_prompts: bool = True

    @property
    def embed_dim(self) -> int:
        return self.text.width if self.text_projection is None else self.text_projection.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.token_embedding.dtype

    @property
    def working_dtype(self) -> torch.dtype:
        """The precision of prompts, gates and losses: that of the weights, but at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        return self.token_embedding.device

    def folded(self) -> "Clip":
        """Return the same CLIP with folded towers, as `Tower.folded`."""
        pool = None if self.pool is None else self.pool.folded()
        return replace(self, text=self.text.folded(), vision=self.vision.folded(), pool=pool)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Clip":
        """Return a copy with every tensor moved as by `Tensor.to`. The logit scale stays wide."""
        clip: Clip = tree_map_only(Tensor, lambda tensor: tensor.to(device=device, dtype=dtype), self)
        # Losses are in the working precision, and the scale is a part of them.
        return replace(clip, logit_scale=self.logit_scale.to(device=clip.device, dtype=clip.working_dtype))


register_dataclass(Tower)
register_dataclass(Clip)


def tensors_of(value: object) -> list[Tensor]:
    """Return the tensors of a CLIP, or of one of its fields, in the order of the fields."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
