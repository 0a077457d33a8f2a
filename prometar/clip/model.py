"""Frozen CLIP or SigLIP as dataclasses of tensors.

Shape suffixes in this package: B images, C classes, N texts or features, R rows, T tokens, P prompt tokens,
S keys, D width, K cotangents or tangents, E width of the joint embedding, H and W height and width of images.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass, tree_leaves, tree_map_only

from prometar.clip.activations import QUICK_GELU_FACTOR
from prometar.clip.function import EPS


class Block(NamedTuple):
    """Frozen tensors of a residual attention block. After `Tower.folded`, the LayerNorm tensors are None."""

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
    """Transformer blocks of the text or image tower, or SigLIP's attention pool (see `Clip`).

    activation: Key of `ACTIVATIONS`.
    scale: Factor of the queries: 1 / sqrt(head width), or 1 if the projection weights already include it.
    residual: True if attention has a residual connection. False for the attention pool.
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
        """Return an equivalent tower with fewer operations.

        Linear layers absorb the LayerNorms' weights and biases, the queries' scale and QuickGELU's factor a.
        SiLU replaces QuickGELU, because x sigmoid(a x) = silu(a x) / a.
        """
        activation = self.activation
        gelu_factor = 1.0
        if activation == "quick_gelu":
            activation = "silu"
            gelu_factor = QUICK_GELU_FACTOR
        blocks = tuple(_fold_block(block, self.scale, gelu_factor) for block in self.blocks)
        return replace(self, blocks=blocks, activation=activation, scale=1.0)


def _fold_block(block: Block, scale: float, gelu_factor: float) -> Block:
    in_proj_weight, in_proj_bias = _fold_norm(
        block.in_proj_weight, block.in_proj_bias, block.ln_1_weight, block.ln_1_bias
    )
    row_factors = torch.ones_like(in_proj_bias)
    row_factors[: len(row_factors) // 3] = scale  # rows of the queries
    fc_weight, fc_bias = _fold_norm(block.c_fc_weight, block.c_fc_bias, block.ln_2_weight, block.ln_2_bias)
    return block._replace(
        ln_1_weight=None,
        ln_1_bias=None,
        in_proj_weight=in_proj_weight * row_factors[:, None],
        in_proj_bias=in_proj_bias * row_factors,
        ln_2_weight=None,
        ln_2_bias=None,
        c_fc_weight=fc_weight * gelu_factor,
        c_fc_bias=fc_bias * gelu_factor,
        c_proj_weight=block.c_proj_weight / gelu_factor,
    )


def _fold_norm(
    weight: Tensor, bias: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Fold a LayerNorm's weight w and bias v into the next linear layer (W, b).

    For a normalized input n, W (n w + v) + b = (W w) n + (W v + b).
    """
    if norm_weight is None or norm_bias is None:
        return weight, bias
    # Computed in float64, because the last bit of float32 products depends on the memory alignment.
    added = (weight.double() @ norm_bias.double()).to(bias.dtype)
    return weight * norm_weight, bias + added


@dataclass(frozen=True)
class Clip:
    """Frozen CLIP or SigLIP: two towers and the tensors before and after them.

    Shapes: `patch_weight` (D, 3, patch, patch), `token_embedding` (vocabulary, D), projections (D, E).
    `logit_scale` is the exponential of the learned scalar. SigLIP has no class embedding, `ln_pre` or image
    projection, and some SigLIP models have no text projection.

    pool: SigLIP's attention pool: a block with one output token, and the LayerNorm before it. CLIP: None.
    causal: True for CLIP. Its text tokens attend to earlier ones, and the end token (EOT) gives the feature.
        False for SigLIP. Its text tokens attend to all others, and the last token gives the feature.
    num_start: Number of tokens that the tokenizer puts before a text.
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

    @property
    def embed_dim(self) -> int:
        return self.text.width if self.text_projection is None else self.text_projection.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.token_embedding.dtype

    @property
    def working_dtype(self) -> torch.dtype:
        """Data type of learned tensors and losses: that of the frozen weights, but at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        return self.token_embedding.device

    def folded(self) -> "Clip":
        """Return an equivalent CLIP with folded towers (`Tower.folded`)."""
        pool = None if self.pool is None else self.pool.folded()
        return replace(self, text=self.text.folded(), vision=self.vision.folded(), pool=pool)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Clip":
        """Return a copy converted by `Tensor.to`, except that `logit_scale` has the `working_dtype`."""
        clip: Clip = tree_map_only(Tensor, lambda tensor: tensor.to(device=device, dtype=dtype), self)
        return replace(clip, logit_scale=self.logit_scale.to(device=clip.device, dtype=clip.working_dtype))


register_dataclass(Tower)  # so that pytree functions find the tensors
register_dataclass(Clip)


def tensors_of(value: object) -> list[Tensor]:
    """Return the tensors of a CLIP, or of one of its fields, in field order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
