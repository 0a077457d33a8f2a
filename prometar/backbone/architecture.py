"""What a CLIP consists of, and how it reads texts and pools tokens: all that its towers must be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prometar.backbone.norm import EPS


class Unlike(ValueError):
    """Why a model is none that the towers compute: its text follows "is not supported: "."""


@dataclass(frozen=True)
class Form:
    """OpenAI's CLIP by default.

    causal: Whether a text's token sees those up to it alone.
    num_start: How many tokens the tokenizer puts before a text.
    text_pool: The token that a text's feature is: `argmax` the first of the largest id, `eos` the first
        `eos_id`, `last` the last of all, padding or not.
    average: Whether an image's feature is the mean of its patches instead of the first token.
    norm_after_pool: Whether that mean is taken before the last LayerNorm.
    summary: Whether a text's feature is a token of its own, behind the last position (CoCa); its id is the
        last one. A token behind id 0, which is padding and CLIP's "!", then is no key.
    image_size: Pixels, where the patches leave some out at the edge.
    """

    causal: bool = True
    num_start: int = 1
    text_pool: str = "argmax"
    eos_id: int = 2
    average: bool = False
    norm_after_pool: bool = False
    image_size: int | None = None
    summary: bool = False

    def end(self, ids: Sequence[int]) -> int:
        """Where the token stands that a text's feature is."""
        if self.text_pool == "last":
            return len(ids) - 1
        return ids.index(max(ids) if self.text_pool == "argmax" else self.eos_id)


OPENAI = Form()


@dataclass(frozen=True)
class Architecture:
    """What must agree between a model's configuration and its weights.

    From `text_activation` on the defaults are OpenAI's CLIP. Projections are a `matrix` (D, E), a `linear`
    layer, one with a `bias`, or `none`. `qkv_bias`: all three have one (`qkv`), queries and values in tensors
    of their own (`qv`), or `none`. `custom_text`: the text tower's names begin with "text.". `trunk`: the
    vision tower has timm's names, and `trunk_norm` is what its last LayerNorm is called. `closed`: why no
    prompt can enter the image tower, if so; then it is the tensors of `closed_shapes`, and has no fields.
    `language`: the language model that the text tower is, if so, likewise.
    """

    activation: str
    image_size: int
    patch_size: int
    embed_dim: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_hidden: int
    text_width: int
    text_layers: int
    text_heads: int
    text_hidden: int
    context_length: int
    vocabulary: int
    text_activation: str | None = None
    text_eps: float = EPS
    text_layer_scale: bool = False
    text_projection: str = "matrix"
    custom_text: bool = False
    vision_eps: float = EPS
    vision_layer_scale: bool = False
    vision_projection: str = "matrix"
    class_token: bool = True
    ln_pre: bool = True
    patch_bias: bool = False
    qkv_bias: str = "qkv"
    attention_pool: bool = False
    pool_queries: int = 0
    pool_heads: int | None = None
    trunk: bool = False
    trunk_norm: str = "norm"
    language: str = ""
    language_shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    closed: str = ""
    closed_shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    form: Form = OPENAI
