"""Which tensors a CLIP of an architecture consists of; checked once, where weights enter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prometar.errors import UserError

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """What must agree between a model's configuration and its weights."""

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


def architecture(config: dict[str, Any]) -> Architecture:
    """The architecture that an open_clip model configuration describes."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    return Architecture(
        activation="quick_gelu" if config.get("quick_gelu") else "gelu",
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        embed_dim=config["embed_dim"],
        vision_width=vision["width"],
        vision_layers=vision["layers"],
        vision_heads=vision["width"] // vision.get("head_width", 64),
        vision_hidden=int(vision["width"] * vision.get("mlp_ratio", 4.0)),
        text_width=text["width"],
        text_layers=text["layers"],
        text_heads=text["heads"],
        text_hidden=int(text["width"] * text.get("mlp_ratio", 4.0)),
        context_length=text.get("context_length", 77),
        vocabulary=text.get("vocab_size", 49408),
    )


def expected_shapes(arch: Architecture) -> Shapes:
    """Every tensor's shape but the scale's, by OpenAI's names, which open_clip's CLIP class shares."""
    v, t, e = arch.vision_width, arch.text_width, arch.embed_dim
    positions = (arch.image_size // arch.patch_size) ** 2 + 1
    return {
        "token_embedding.weight": (arch.vocabulary, t),
        "positional_embedding": (arch.context_length, t),
        **_norm("ln_final", t),
        "text_projection": (t, e),
        "visual.conv1.weight": (v, 3, arch.patch_size, arch.patch_size),
        "visual.class_embedding": (v,),
        "visual.positional_embedding": (positions, v),
        **_norm("visual.ln_pre", v),
        **_norm("visual.ln_post", v),
        "visual.proj": (v, e),
        **_tower("transformer", t, arch.text_hidden, arch.text_layers),
        **_tower("visual.transformer", v, arch.vision_hidden, arch.vision_layers),
    }


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, width: int, out: int) -> Shapes:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _tower(name: str, width: int, hidden: int, layers: int) -> Shapes:
    found: Shapes = {}
    for layer in range(layers):
        stem = f"{name}.resblocks.{layer}"
        found |= _norm(f"{stem}.ln_1", width) | _norm(f"{stem}.ln_2", width)
        found |= {
            f"{stem}.attn.in_proj_weight": (3 * width, width),
            f"{stem}.attn.in_proj_bias": (3 * width,),
        }
        found |= _linear(f"{stem}.attn.out_proj", width, width)
        found |= _linear(f"{stem}.mlp.c_fc", width, hidden) | _linear(f"{stem}.mlp.c_proj", hidden, width)
    return found


def require_tensors(arch: Architecture, state: Mapping[str, Tensor], *, where: str) -> None:
    """
    Raises:
        UserError: a tensor is missing, of another shape, of whole numbers, or holds NaN or infinity.
    """
    for name, shape in (expected_shapes(arch) | {"logit_scale": ()}).items():
        tensor = state.get(name)
        if tensor is None:
            raise UserError(f"{where} has no '{name}': no CLIP with a ViT and a text transformer")
        # Some files keep the scale as a vector of one.
        found = () if name == "logit_scale" and tensor.numel() == 1 else tuple(tensor.shape)
        if found != shape:
            raise UserError(f"{where} does not fit: '{name}' is {found}, the model's is {shape}")
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{where}: '{name}' is {kind}: quantised weights are not read")
        if not all_finite(tensor.exp() if name == "logit_scale" else tensor):
            raise UserError(f"{where}: '{name}' holds values that are not finite: the file is damaged")


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; no mask of its size is made."""
    if tensor.numel() == 0:
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())
