"""Frozen CLIP weights as plain values, from a state dict in OpenAI's names.

Shape suffixes in this package: B images, C classes, T tokens, P shared (prefix or prompt) tokens, D width,
H heads, K width of a head, E width of the joint embedding, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prometar.backbone.activations import ACTIVATIONS, QUICK
from prometar.errors import UserError


class Block(NamedTuple):
    """One residual attention block; every entry is a frozen tensor, or None where it changes nothing."""

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


_BLOCK_KEYS = (
    "ln_1.weight", "ln_1.bias", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight",
    "attn.out_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
    "mlp.c_proj.weight", "mlp.c_proj.bias",
)  # fmt: skip


@dataclass(frozen=True)
class Tower:
    """The blocks of one tower, its number of heads and its activation (a key of `ACTIVATIONS`).

    scale: what queries are multiplied by, 1 / sqrt(width of a head), or 1 where it is in their weights.
    """

    blocks: tuple[Block, ...]
    num_heads: int
    activation: str
    scale: float

    @property
    def width(self) -> int:
        return self.blocks[0].out_proj_bias.shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> Tower:
        """A copy with every tensor changed."""
        blocks = (
            Block._make(None if part is None else change(part) for part in block) for block in self.blocks
        )
        return replace(self, blocks=tuple(blocks))

    def folded(self) -> Tower:
        """The same tower with fewer operations: what can be is in the weights of its products.

        That is weight and bias of the two LayerNorms, the queries' scale, and SiLU stands for QuickGELU, as
        x sigmoid(a x) = silu(a x) / a.
        """
        quick = QUICK if self.activation == "quick_gelu" else 1.0
        if quick == self.scale == 1:
            return self
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
    return Block(
        ln_1_weight=None,
        ln_1_bias=None,
        in_proj_weight=in_proj_weight * query[:, None],
        in_proj_bias=in_proj_bias * query,
        out_proj_weight=block.out_proj_weight,
        out_proj_bias=block.out_proj_bias,
        ln_2_weight=None,
        ln_2_bias=None,
        c_fc_weight=c_fc_weight * quick,
        c_fc_bias=c_fc_bias * quick,
        c_proj_weight=block.c_proj_weight / quick,
        c_proj_bias=block.c_proj_bias,
    )


def _behind_norm(
    weight: Tensor, bias: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A product with the norm's weight and bias before it: W (n w + v) + b = (W w) n + (W v + b)."""
    if norm_weight is None or norm_bias is None:
        return weight, bias
    # In float64, since in float32 the last bit depends on where in memory a file's tensors lie.
    added = (weight.double() @ norm_bias.double()).to(bias.dtype)
    return weight * norm_weight, bias + added


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP: two towers and what stands before and after them.

    `patch_weight` is (D, 3, patch, patch), `token_embedding` (49408, D), the projections (D, E);
    `logit_scale` is exp of the learned log scale, a scalar tensor.
    """

    text: Tower
    vision: Tower
    token_embedding: Tensor
    text_positions: Tensor
    ln_final_weight: Tensor
    ln_final_bias: Tensor
    text_projection: Tensor
    patch_weight: Tensor
    class_embedding: Tensor
    vision_positions: Tensor
    ln_pre_weight: Tensor
    ln_pre_bias: Tensor
    ln_post_weight: Tensor
    ln_post_bias: Tensor
    vision_projection: Tensor
    logit_scale: Tensor

    @property
    def embed_dim(self) -> int:
        return self.text_projection.shape[1]

    @property
    def image_size(self) -> int:
        grid = round((self.vision_positions.shape[0] - 1) ** 0.5)
        return grid * self.patch_weight.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        return self.text_projection.dtype

    @property
    def working_dtype(self) -> torch.dtype:
        """The precision of prompts, gates and losses: that of the weights, and at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        return self.text_projection.device

    def folded(self) -> Clip:
        """The same CLIP, faster: see `Tower.folded`."""
        return replace(self, text=self.text.folded(), vision=self.vision.folded())

    def map(self, change: Callable[[Tensor], Tensor]) -> Clip:
        """A copy with every tensor changed."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            changed[field.name] = value.map(change) if isinstance(value, Tower) else change(value)
        return Clip(**changed)

    def to(self, *args: Any, **kwargs: Any) -> Clip:
        """A copy with every tensor moved as by `Tensor.to`; the logit scale stays in at least float32."""
        clip = self.map(lambda tensor: tensor.to(*args, **kwargs))
        # Losses are in the working precision, and the scale is a part of them.
        return replace(clip, logit_scale=self.logit_scale.to(device=clip.device, dtype=clip.working_dtype))


def from_state_dict(
    state: Mapping[str, Tensor], *, text_heads: int, vision_heads: int, activation: str = "quick_gelu"
) -> Clip:
    """A `Clip` from tensors under OpenAI's names (open_clip's CLIP class uses the same).

    Raises:
        UserError: a name is missing, or a width is not a multiple of its number of heads.
    """
    if activation not in ACTIVATIONS:
        raise UserError(f"unknown activation '{activation}': expected {' or '.join(ACTIVATIONS)}")

    def get(name: str) -> Tensor:
        if name not in state:
            raise UserError(
                f"the backbone's weights have no '{name}': not a CLIP with a ViT and a text transformer"
            )
        return state[name].detach()

    return Clip(
        text=_tower(get, state, "transformer", text_heads, activation),
        vision=_tower(get, state, "visual.transformer", vision_heads, activation),
        token_embedding=get("token_embedding.weight"),
        text_positions=get("positional_embedding"),
        ln_final_weight=get("ln_final.weight"),
        ln_final_bias=get("ln_final.bias"),
        text_projection=get("text_projection"),
        patch_weight=get("visual.conv1.weight"),
        class_embedding=get("visual.class_embedding"),
        vision_positions=get("visual.positional_embedding"),
        ln_pre_weight=get("visual.ln_pre.weight"),
        ln_pre_bias=get("visual.ln_pre.bias"),
        ln_post_weight=get("visual.ln_post.weight"),
        ln_post_bias=get("visual.ln_post.bias"),
        vision_projection=get("visual.proj"),
        logit_scale=get("logit_scale").exp().reshape(()),
    )


def _tower(
    get: Callable[[str], Tensor], state: Mapping[str, Tensor], prefix: str, num_heads: int, activation: str
) -> Tower:
    stem = f"{prefix}.resblocks."
    num_layers = 1 + max((int(k[len(stem) :].split(".")[0]) for k in state if k.startswith(stem)), default=-1)
    blocks = tuple(Block(*(get(f"{stem}{i}.{key}") for key in _BLOCK_KEYS)) for i in range(num_layers))
    if not blocks:
        raise UserError(
            f"the backbone's weights have no '{stem}0': not a CLIP with a ViT and a text transformer"
        )
    width = blocks[0].out_proj_bias.shape[0]
    if width % num_heads:
        raise UserError(f"the width {width} of {prefix} is not a multiple of its {num_heads} heads")
    return Tower(blocks, num_heads, activation, (width // num_heads) ** -0.5)
