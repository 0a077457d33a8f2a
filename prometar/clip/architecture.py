"""Architectures that the towers compute, as open_clip's configurations describe them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prometar.errors import UserError

ModelConfig = Mapping[str, Any]
"""open_clip's configuration of a model."""

_VISION = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers"}
_SIGLIP_TEXT = _TEXT | {
    "mlp_ratio", "hf_tokenizer_name", "tokenizer_kwargs", "no_causal_mask", "pool_type", "proj_bias",
    "proj_type", "norm_kwargs", "act_kwargs",
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """Properties of a model that its tensors do not tell.

    causal: If true, OpenAI's CLIP: a token attends to earlier ones, and a text's feature is its end token.
        Otherwise SigLIP: a token attends to all others, and a text's feature is the last of them.
    """

    vision_heads: int
    text_heads: int
    vision_activation: str
    text_activation: str
    image_size: int
    causal: bool = True


def clip_architecture(config: ModelConfig) -> Architecture:
    """Describe a CLIP with OpenAI's vision and text transformers."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    heads = vision["width"] // vision.get("head_width", 64)
    return Architecture(heads, text["heads"], activation, activation, vision["image_size"])


def siglip_architecture(config: ModelConfig, model: Any) -> Architecture:
    """Describe a SigLIP; `model` is open_clip's, as its image tower is defined by a name of timm."""
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
    """Return True for a configuration of a SigLIP, and False for one of a CLIP.

    Raises:
        UserError: it is neither.
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    siglip = "_siglip_" in vision.get("timm_model_name", "") and text.keys() <= _SIGLIP_TEXT
    clip = vision.keys() <= _VISION and text.keys() <= _TEXT and isinstance(vision["layers"], int)
    if not (clip or siglip):
        raise UserError(
            f"backbone {name} is not supported: it is neither a CLIP with vision transformer nor a SigLIP; "
            "use e.g. ViT-B-16-quickgelu (docs/data.md)"
        )
    return siglip
