"""Tiny models under configurations that open_clip finds by name: a CLIP, and SigLIPs."""

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

__all__: list[str] = []
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
    given = {key: value for key, value in settings.items() if not key.startswith(("pretrained", "cache"))}
    model = VisionTransformer(**{**_TRUNK, **given})
    model.default_cfg = {}  # type: ignore[assignment]
    return model


@register_model
def vit_test_siglip_16(**settings: Any) -> Any:
    return _trunk(act_layer="gelu_tanh", **settings)


@register_model
def vit_test_siglip_edge(**settings: Any) -> Any:
    """Images whose edge no patch covers."""
    return _trunk(**{**settings, "img_size": 20})


_SIGLIP: dict[str, Any] = {
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


def _siglip(trunk: str = "vit_test_siglip_16", **text: Any) -> dict[str, Any]:
    vision = {"timm_model_name": trunk, "timm_pool": "map", "timm_proj": "none"}
    text = {**_SIGLIP, **text}
    return {
        "embed_dim": 24,
        "custom_text": True,
        "text_cfg": text,
        "vision_cfg": vision,
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
    """A tokenizer of whole words, which ends texts as SentencePiece does."""

    length: int = 12
    eos: int = 2
    pad: int = 0

    def __call__(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        length = context_length or self.length
        rows = torch.full((len(texts), length), self.pad)
        for row, text in zip(rows, texts, strict=True):
            ids = [4 + zlib.crc32(word.encode()) % 50 for word in text.split()]
            ids = [*ids[: length - 1], self.eos]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def register(monkeypatch: Any) -> None:
    """Make the tiny models known to open_clip for as long as a test runs, without a hub."""
    for name, config in CONFIGS.items():
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, config)
    monkeypatch.setattr(openclip, "_hub_tokenizer", lambda name: Words())


def model_of(name: str) -> Any:
    """open_clip's own model in float64; every weight has something to do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(name, pretrained=None)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return model.double().eval().requires_grad_(False)


def write_weights(name: str, folder: Path) -> Path:
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in model_of(name).state_dict().items()}, path)
    return path
