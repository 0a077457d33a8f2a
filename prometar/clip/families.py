"""What architecture an open_clip configuration describes, or why the towers do not compute it."""

from collections.abc import Mapping
from typing import Any

from prometar.clip.architecture import Architecture, Form, Unlike
from prometar.clip.norm import EPS
from prometar.clip.trunks import trunk_parts

_OWN_ATTENTION = (
    "block_type", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn",
    "scale_fc",
)  # fmt: skip


def architecture(config: Mapping[str, Any]) -> Architecture:
    """Raises Unlike (says why) where it is no ViT with a text transformer as the towers compute them."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    if text.get("hf_model_name"):
        raise Unlike("its text tower is a language model")
    if "multimodal_cfg" in config:
        raise Unlike("it is a CoCa")
    for key in _OWN_ATTENTION:
        if text.get(key):
            raise Unlike(f"its text tower has {key}")
    if text.get("pool_type", "argmax") not in ("argmax", "eos", "last"):
        raise Unlike(f"its text feature is pooled by '{text['pool_type']}'")
    try:
        parts = trunk_parts(config) if vision.get("timm_model_name") else _vision(vision, activation)
    except Unlike as why:
        parts = _closed(config, str(why))
    text_form: dict[str, Any] = {
        "causal": not text.get("no_causal_mask", False),
        "text_pool": text.get("pool_type", "argmax"),
        "eos_id": text.get("eos_id", 2),
    }
    return Architecture(
        text_heads=text["heads"],
        text_activation=_activation(text, activation),
        text_eps=_eps(text),
        custom_text=bool(config.get("custom_text")),
        form=Form(**text_form, **parts.pop("form")),
        **parts,
    )


def _closed(config: Mapping[str, Any], why: str) -> dict[str, Any]:
    """Any other image tower, for prompts of texts alone."""
    vision = config["vision_cfg"]
    if not vision.get("timm_model_name") and isinstance(vision.get("layers"), int):
        raise Unlike(why)
    return {"activation": "gelu", "closed": why, "form": {"image_size": vision.get("image_size", 224)}}


def _vision(vision: Mapping[str, Any], activation: str) -> dict[str, Any]:
    """open_clip's own vision transformer."""
    if not isinstance(vision.get("layers"), int):
        raise Unlike("its image tower is a ResNet")
    for key in _OWN_ATTENTION:
        if vision.get(key):
            raise Unlike(f"its image tower has {key}")
    if vision.get("pool_type", "tok") not in ("tok", "avg"):
        raise Unlike(f"its image feature is pooled by '{vision['pool_type']}'")
    average = vision.get("pool_type") == "avg"
    if vision.get("attentional_pool"):
        raise Unlike("its image tower has an attention pool")
    size = vision["image_size"]
    return {
        "activation": _activation(vision, activation),
        "vision_heads": vision["width"] // vision.get("head_width", 64),
        "vision_eps": _eps(vision),
        "form": {
            "average": average,
            "norm_after_pool": average and bool(vision.get("final_ln_after_pool")),
            "image_size": size if size % vision["patch_size"] else None,
        },
    }


def _eps(tower: Mapping[str, Any]) -> float:
    given = dict(tower.get("norm_kwargs") or {})
    eps = float(given.pop("eps", EPS))
    if given:
        raise Unlike(f"its LayerNorms have {min(given)}")
    return eps


def _activation(tower: Mapping[str, Any], activation: str) -> str:
    given = tower.get("act_kwargs")
    if not given:
        return activation
    if activation != "gelu" or given != {"approximate": "tanh"}:
        raise Unlike(f"its activation has {min(given)}")
    return "gelu_tanh"
