"""Frozen CLIP weights as plain values, from a state dict in OpenAI's names.

Shape suffixes in this package: B images, C classes, T tokens, P shared (prefix or prompt) tokens, D width,
H heads, K width of a head, E width of the joint embedding, L layers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.activations import QUICK
from prometar.clip.architecture import OPENAI, Architecture, Form
from prometar.clip.frozen import Closed, Frozen
from prometar.clip.norm import EPS
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
    eps: of its LayerNorms. residual: whether what attention finds is added to the token that asked.
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

    def map(self, change: Callable[[Tensor], Tensor]) -> "Tower":
        """A copy with every tensor changed."""
        blocks = (
            Block._make(None if part is None else change(part) for part in block) for block in self.blocks
        )
        return replace(self, blocks=tuple(blocks))

    def folded(self) -> "Tower":
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
    `logit_scale` is exp of the learned log scale, a scalar tensor. None is what a family has not. `pool`: one
    block that makes an image's feature of all its tokens, the last LayerNorm included. `closed`: an image
    tower that no prompt can enter; then `vision` has no block. `image_prompts`: False where none will.
    """

    text: Tower
    vision: Tower
    token_embedding: Tensor
    text_positions: Tensor | None
    ln_final_weight: Tensor | None
    ln_final_bias: Tensor | None
    text_projection: Tensor | None
    patch_weight: Tensor | None
    class_embedding: Tensor | None
    vision_positions: Tensor | None
    ln_pre_weight: Tensor | None
    ln_pre_bias: Tensor | None
    ln_post_weight: Tensor | None
    ln_post_bias: Tensor | None
    vision_projection: Tensor | None
    logit_scale: Tensor
    text_projection_bias: Tensor | None = None
    vision_projection_bias: Tensor | None = None
    pool: Tower | None = None
    closed: Closed | None = None
    image_prompts: bool = True
    form: Form = OPENAI

    @property
    def embeds_features(self) -> bool:
        """Whether an image is embedded as its feature, since no prompt enters the image tower."""
        return self.closed is not None or not self.image_prompts

    @property
    def embed_dim(self) -> int:
        return self.text.width if self.text_projection is None else self.text_projection.shape[1]

    @property
    def image_size(self) -> int:
        if self.form.image_size is not None:
            return self.form.image_size
        assert self.vision_positions is not None
        assert self.patch_weight is not None
        grid = round((len(self.vision_positions) - self.num_class_tokens) ** 0.5)
        return grid * self.patch_weight.shape[-1]

    def require_open(self) -> None:
        """Raises a UserError where no prompt can enter the image tower."""
        if self.closed is not None:
            raise UserError(
                "the method has prompts in the image tower, and the backbone's takes none "
                f"({self.closed.why}): take one of text prompts alone (coop, cocoop, kgcoop, prograd)"
            )

    @property
    def num_class_tokens(self) -> int:
        return 0 if self.class_embedding is None else 1

    @property
    def dtype(self) -> torch.dtype:
        return self.token_embedding.dtype

    @property
    def working_dtype(self) -> torch.dtype:
        """The precision of prompts, gates and losses: that of the weights, and at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        return self.token_embedding.device

    def tensors(self) -> list[Tensor]:
        """All of its numbers."""
        found = list[Tensor]()
        self.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return found

    @property
    def num_bytes(self) -> int:
        """Of all of its numbers."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def folded(self) -> "Clip":
        """The same CLIP, faster: see `Tower.folded`."""
        pool = None if self.pool is None else self.pool.folded()
        return replace(self, text=self.text.folded(), vision=self.vision.folded(), pool=pool)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Clip":
        """A copy with every tensor changed."""
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tower | Frozen):
                value = value.map(change)
            changed[field.name] = change(value) if isinstance(value, Tensor) else value
        return Clip(**changed)

    def to(self, *args: Any, **kwargs: Any) -> "Clip":
        """A copy with every tensor moved as by `Tensor.to`; the logit scale stays in at least float32."""
        clip = self.map(lambda tensor: tensor.to(*args, **kwargs))
        # Losses are in the working precision, and the scale is a part of them.
        return replace(clip, logit_scale=self.logit_scale.to(device=clip.device, dtype=clip.working_dtype))


def from_state_dict(
    state: Mapping[str, Tensor],
    arch: Architecture,
    *,
    closed: Closed | None = None,
) -> Clip:
    """A `Clip` from tensors under OpenAI's names (open_clip's CLIP class uses the same).

    Others have less or more: no `visual.class_embedding` or `visual.ln_pre`, a `ls_1.gamma` in the blocks, a
    bias of the patches or of a projection, an attention pool. What is there is used.

    Args:
        state: All that the model has: see `prometar.clip.expected_tensors.require_tensors`.
        arch: Read for what tensors do not tell: heads, activations, eps and form.
        closed: The image tower, where it is none of blocks.
    """
    state = {name: tensor.detach() for name, tensor in state.items()}
    text = _Reader(state, arch.text_heads, arch.text_activation or arch.activation, arch.text_eps)
    vision = _Reader(state, arch.vision_heads, arch.activation, arch.vision_eps)
    get, pooled = state.get, "visual.attn_pool.latent" in state
    positions, pool = get("visual.positional_embedding"), None
    if (patch_bias := get("visual.conv1.bias")) is not None and positions is not None:
        num_patches = len(positions) - ("visual.class_embedding" in state)
        # A constant of every patch, as its position is.
        positions = torch.cat([positions[:-num_patches], positions[-num_patches:] + patch_bias])
    if pooled:
        pool = vision.attention_pool("visual.attn_pool", "visual.ln_post")
    return Clip(
        text=text.tower("transformer"),
        vision=vision.tower("visual.transformer") if closed is None else Tower((), 1, arch.activation, 1.0),
        token_embedding=state["token_embedding.weight"],
        text_positions=get("positional_embedding"),
        ln_final_weight=get("ln_final.weight"),
        ln_final_bias=get("ln_final.bias"),
        text_projection=get("text_projection"),
        patch_weight=get("visual.conv1.weight"),
        class_embedding=get("visual.class_embedding"),
        vision_positions=positions,
        ln_pre_weight=get("visual.ln_pre.weight"),
        ln_pre_bias=get("visual.ln_pre.bias"),
        ln_post_weight=None if pooled else get("visual.ln_post.weight"),
        ln_post_bias=None if pooled else get("visual.ln_post.bias"),
        vision_projection=get("visual.proj"),
        logit_scale=_in_double(torch.exp, state["logit_scale"]).reshape(()),
        text_projection_bias=get("text_projection_bias"),
        vision_projection_bias=get("visual.proj_bias"),
        pool=pool,
        closed=closed,
        form=arch.form,
    )


def _in_double(function: Callable[..., Tensor], tensor: Tensor, *others: Tensor | None) -> Tensor:
    """Rounded once, so that its last bit, and with it the digest of the weights, is the same on every CPU."""
    wide = (None if other is None else other.double() for other in others)
    return function(tensor.double(), *wide).to(tensor.dtype)


@dataclass(frozen=True)
class _Reader:
    """Tensors by name, and the blocks of a tower that are made of them."""

    state: Mapping[str, Tensor]
    num_heads: int
    activation: str
    eps: float

    def tower(self, prefix: str) -> Tower:
        stem = f"{prefix}.resblocks."
        numbers = (int(k[len(stem) :].split(".")[0]) for k in self.state if k.startswith(stem))
        return self._tower(tuple(self._block(f"{stem}{i}.") for i in range(1 + max(numbers))))

    def attention_pool(self, prefix: str, norm: str) -> Tower:
        """A block whose only query is the pool's own: its weight is zero, and what it asks is its bias."""
        latent, weight = self.state[f"{prefix}.latent"].flatten(0, -2), self.state[f"{prefix}.q.weight"]
        ask = _in_double(F.linear, latent, weight, self.state.get(f"{prefix}.q.bias"))[0]
        keys, bias = self.state[f"{prefix}.kv.weight"], self.state[f"{prefix}.kv.bias"]
        block = Block(
            ln_1_weight=self.state[f"{norm}.weight"],
            ln_1_bias=self.state[f"{norm}.bias"],
            in_proj_weight=torch.cat([torch.zeros_like(keys[: len(ask)]), keys]),
            in_proj_bias=torch.cat([ask, bias]),
            out_proj_weight=self.state[f"{prefix}.proj.weight"],
            out_proj_bias=self.state[f"{prefix}.proj.bias"],
            ln_2_weight=self.state[f"{prefix}.norm.weight"],
            ln_2_bias=self.state[f"{prefix}.norm.bias"],
            c_fc_weight=self.state[f"{prefix}.mlp.c_fc.weight"],
            c_fc_bias=self.state[f"{prefix}.mlp.c_fc.bias"],
            c_proj_weight=self.state[f"{prefix}.mlp.c_proj.weight"],
            c_proj_bias=self.state[f"{prefix}.mlp.c_proj.bias"],
        )
        return replace(self._tower((block,)), residual=False)

    def _block(self, stem: str) -> Block:
        """Scales of a layer are in the weights of the products before them."""
        block = Block(*(self.state[f"{stem}{key}"] for key in _BLOCK_KEYS))
        one, two = self.state.get(f"{stem}ls_1.gamma"), self.state.get(f"{stem}ls_2.gamma")
        if one is None or two is None:
            return block
        return block._replace(
            out_proj_weight=block.out_proj_weight * one[:, None],
            out_proj_bias=block.out_proj_bias * one,
            c_proj_weight=block.c_proj_weight * two[:, None],
            c_proj_bias=block.c_proj_bias * two,
        )

    def _tower(self, blocks: tuple[Block, ...]) -> Tower:
        width = blocks[0].out_proj_bias.shape[0]
        return Tower(blocks, self.num_heads, self.activation, (width // self.num_heads) ** -0.5, self.eps)
