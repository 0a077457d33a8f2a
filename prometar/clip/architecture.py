"""Architectures of supported models, read from open_clip's configurations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometar.errors import UserError

ModelConfig = Mapping[str, Any]
"""Model configuration of open_clip."""

_CLIP_VISION_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_CLIP_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers"}
_SIGLIP_TEXT_KEYS = _CLIP_TEXT_KEYS | {
    "mlp_ratio", "hf_tokenizer_name", "tokenizer_kwargs", "no_causal_mask", "pool_type", "proj_bias",
    "proj_type", "norm_kwargs", "act_kwargs",
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """Properties of a model that its state dict does not contain.

    causal: True for OpenAI's CLIP: tokens attend to earlier tokens, and the text feature is at the EOT token.
        False for SigLIP: tokens attend to all tokens, and the text feature is at the last token.
    """

    vision_heads: int
    text_heads: int
    vision_activation: str
    text_activation: str
    image_size: int
    causal: bool = True


def clip_architecture(config: ModelConfig) -> Architecture:
    """Return the architecture of a CLIP with OpenAI's vision and text transformers."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    heads = vision["width"] // vision.get("head_width", 64)
    return Architecture(heads, text["heads"], activation, activation, vision["image_size"])


def siglip_architecture(config: ModelConfig, model: Any) -> Architecture:
    """Return the architecture of a SigLIP. `model` is open_clip's, as timm defines the image tower."""
    text, trunk = config["text_cfg"], model.visual.trunk
    return Architecture(
        vision_heads=trunk.blocks[0].attn.num_heads,
        text_heads=text["heads"],
        vision_activation="gelu_tanh" if "tanh" in repr(trunk.blocks[0].mlp.act).lower() else "gelu",
        text_activation="gelu_tanh" if text.get("act_kwargs") else "gelu",
        image_size=trunk.patch_embed.img_size[0],
        causal=False,
    )


def is_siglip(name: str, config: ModelConfig) -> bool:
    """Return True for a SigLIP and False for a CLIP. Raise a UserError for other models."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    siglip = "_siglip_" in vision.get("timm_model_name", "") and text.keys() <= _SIGLIP_TEXT_KEYS
    clip = (
        vision.keys() <= _CLIP_VISION_KEYS
        and text.keys() <= _CLIP_TEXT_KEYS
        and isinstance(vision["layers"], int)
    )
    if not (clip or siglip):
        raise UserError(
            f"Backbone {name} is not supported. It is neither a CLIP with a vision transformer nor a SigLIP. "
            "Use a supported model, such as ViT-B-16-quickgelu (docs/data.md)."
        )
    return siglip
