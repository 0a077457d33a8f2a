"""Tiny models that open_clip creates by name: a CLIP with plain GELU, and several SigLIPs."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import factory
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from prometar.clip import openclip
from tests.support import tiny

__all__: list[str] = []  # `register_model` of timm appends to it
_TRUNK = {
    "img_size": 16,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 3,
    "class_token": False,
    "global_pool": "map",
}


def _trunk(**settings: Any) -> Any:
    """Return a vision tower of timm. Settings of timm's loading of weights are ignored."""
    own = {key: value for key, value in settings.items() if not key.startswith(("pretrained", "cache"))}
    model = VisionTransformer(**{**_TRUNK, **own})
    model.default_cfg = {}  # type: ignore[assignment]
    return model


@register_model
def vit_test_siglip_16(**settings: Any) -> Any:
    """Return the vision tower of the tiny SigLIP."""
    return _trunk(act_layer="gelu_tanh", **settings)


@register_model
def vit_test_siglip_edge(**settings: Any) -> Any:
    """Return a vision tower for images that patches do not cover to the edge."""
    return _trunk(**{**settings, "img_size": 20})


_SIGLIP_TEXT: dict[str, Any] = {
    "width": 16,
    "heads": 2,
    "layers": 3,
    "context_length": 12,
    "vocab_size": 60,
    "hf_tokenizer_name": "words",
    "no_causal_mask": True,
    "pool_type": "last",
    "proj_bias": True,
    "norm_kwargs": {"eps": 1e-6},
}


def _siglip(trunk: str = "vit_test_siglip_16", **text_settings: Any) -> dict[str, Any]:
    """Return a configuration in open_clip's format."""
    return {
        "embed_dim": 24,
        "custom_text": True,
        "text_cfg": {**_SIGLIP_TEXT, **text_settings},
        "vision_cfg": {"timm_model_name": trunk, "timm_pool": "map", "timm_proj": "none"},
        "init_logit_bias": -10,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-clip": tiny.config(quick_gelu=False),
    "tiny-siglip": _siglip(),
    "tiny-siglip2": _siglip("vit_test_siglip_edge", act_kwargs={"approximate": "tanh"}),
    "tiny-siglip-i18n": _siglip(width=24, heads=3, proj_type="none", proj_bias=False),
}


@dataclass(frozen=True)
class Words:
    """Tokenizer of whole words. It ends texts as SentencePiece does.

    Args:
        length: Default number of tokens per text.
        eos: Token id at the end of a text.
        pad: Token id after the end.
    """

    length: int = 12
    eos: int = 2
    pad: int = 0

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        length = context_length or self.length
        rows = torch.full((len(texts), length), self.pad)
        for row, text in zip(rows, texts, strict=True):
            word_ids = [4 + zlib.crc32(word.encode()) % 50 for word in text.split()]
            ids = [*word_ids[: length - 1], self.eos]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def register(monkeypatch: Any) -> None:
    """Register the tiny models with open_clip for the duration of a test, with a tokenizer from no hub."""
    for name, config in CONFIGS.items():
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, config)
    monkeypatch.setattr(openclip, "_hub_tokenizer", lambda name: Words())


def model_of(name: str) -> Any:
    """Return a model of open_clip in float64, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(name, pretrained=None)
        with torch.no_grad():  # biases start at zero, where an error might have no effect
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return model.double().eval().requires_grad_(False)


def write_weights(name: str, folder: Path) -> Path:
    """Write the weights of `model_of`. Return the file's path."""
    path = folder / f"{name}.safetensors"
    weights = model_of(name).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path)
    return path
