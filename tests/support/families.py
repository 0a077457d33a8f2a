"""Tiny models of other families than OpenAI's CLIP, under configurations that open_clip finds by name."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip import factory
from safetensors.torch import save_file
from timm.layers import LayerNorm
from timm.models import register_model
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from prometar.clip import openclip

__all__: list[str] = []
TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}


def trunk(kind: type[nn.Module] = VisionTransformer, **settings: Any) -> Any:
    given = {key: value for key, value in settings.items() if not key.startswith(("pretrained", "cache"))}
    model = kind(**{**TINY, **given})
    model.default_cfg = {}  # type: ignore[assignment]
    return model


@register_model
def prometar_test_siglip(**settings: Any) -> Any:
    return trunk(**{"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh", **settings})


@register_model
def prometar_test_siglip_edge(**settings: Any) -> Any:
    """Images whose edge no patch covers."""
    return trunk(**{"class_token": False, "global_pool": "map", "img_size": 20, **settings})


@register_model
def prometar_test_clip(**settings: Any) -> Any:
    return trunk(**{"pre_norm": True, "norm_layer": partial(LayerNorm, eps=1e-5), **settings})


@register_model
def prometar_test_gap(**settings: Any) -> Any:
    fixed = {"class_token": False, "global_pool": "avg", "qkv_bias": False, "init_values": 0.5}
    return trunk(**{**fixed, "fc_norm": False, **settings})


@register_model
def prometar_test_fc_norm(**settings: Any) -> Any:
    return trunk(**{"global_pool": "avg", **settings})


@register_model
def prometar_test_eva(**settings: Any) -> Any:
    return trunk(Eva, **{"use_rot_pos_emb": False, "use_abs_pos_emb": True, "mlp_ratio": 3.0, **settings})


@register_model
def prometar_test_eva02(**settings: Any) -> Any:
    """With rotary positions, which are in no file of weights."""
    return trunk(Eva, **{"use_rot_pos_emb": True, "swiglu_mlp": True, **settings})


TEXT: dict[str, Any] = {"width": 16, "heads": 2, "layers": 3}
VISION: dict[str, Any] = {"layers": 3, "width": 32, "head_width": 8, "image_size": 16, "patch_size": 8}
OTHERS: dict[str, Any] = {**TEXT, "context_length": 12, "vocab_size": 60, "hf_tokenizer_name": "words"}
SIGLIP: dict[str, Any] = {
    **OTHERS, "no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-6}
}  # fmt: skip


def timm(name: str, pool: str = "token", proj: str | None = None) -> dict[str, Any]:
    return {"timm_model_name": f"prometar_test_{name}", "timm_pool": pool, "timm_proj": proj}


def custom(text: dict[str, Any], vision: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"embed_dim": 24, "custom_text": True, "text_cfg": text, "vision_cfg": vision, **more}


CONFIGS: dict[str, dict[str, Any]] = {
    "tiny-clipa": {
        "embed_dim": 24,
        "text_cfg": {**OTHERS, "no_causal_mask": True, "pool_type": "last"},
        "vision_cfg": {**VISION, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    },
    "tiny-average": {"embed_dim": 24, "text_cfg": TEXT, "vision_cfg": {**VISION, "pool_type": "avg"}},
    "tiny-worldwide": {
        "embed_dim": 24,
        "quick_gelu": True,
        "text_cfg": {**OTHERS, "pool_type": "eos", "eos_id": 2},
        "vision_cfg": VISION,
    },
    "tiny-layer-scale": {"embed_dim": 24, "text_cfg": TEXT, "vision_cfg": {**VISION, "ls_init_value": 0.5}},
    "tiny-siglip": custom(SIGLIP, timm("siglip", "map", "none"), init_logit_bias=-10),
    "tiny-siglip2": custom(
        {**SIGLIP, "act_kwargs": {"approximate": "tanh"}}, timm("siglip_edge", "map", "none")
    ),
    "tiny-siglip-i18n": custom(
        {**SIGLIP, "width": 24, "heads": 3, "proj_type": "none"}, timm("siglip", "map", "none")
    ),
    "tiny-mobileclip": custom({**TEXT, "no_causal_mask": True}, timm("clip")),
    "tiny-eva": custom(TEXT, timm("eva")),
    "tiny-gap": {"embed_dim": 24, "text_cfg": TEXT, "vision_cfg": timm("gap", "", "linear")},
    "tiny-fc-norm": {"embed_dim": 24, "text_cfg": TEXT, "vision_cfg": timm("fc_norm", "", "linear")},
}
CLOSED: dict[str, dict[str, Any]] = {
    "tiny-resnet": {
        "embed_dim": 24,
        "text_cfg": TEXT,
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 64},
    },
    "tiny-eva02": custom(TEXT, {**timm("eva02"), "image_size": 16}),
}
"""Those whose image towers take no prompts."""

START: dict[str, list[int]] = {"tiny-clipa": [3], "tiny-worldwide": [1]}
"""What the tokenizer puts before a text, by configuration."""


@dataclass(frozen=True)
class Words:
    """A tokenizer of whole words, like SentencePiece's in what stands before and behind them."""

    length: int
    start: list[int]
    eos: int = 2
    pad: int = 0

    def __call__(self, texts: Sequence[str]) -> Tensor:
        rows = torch.full((len(texts), self.length), self.pad)
        for row, text in zip(rows, texts, strict=True):
            ids = [*self.start, *(4 + zlib.crc32(word.encode()) % 50 for word in text.split())]
            ids = [*ids[: self.length - 1], self.eos]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def register(monkeypatch: Any) -> None:
    """Make the tiny models known to open_clip for as long as a test runs, without a hub."""
    for name, config in (CONFIGS | CLOSED).items():
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, config)

    def words(name: str) -> Words:
        return Words(CONFIGS[name]["text_cfg"]["context_length"], START.get(name, []))

    monkeypatch.setattr(openclip, "_hub_tokenizer", words)


def model_of(name: str) -> Any:
    """open_clip's own model in float64; every weight has something to do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(name, pretrained=None, pretrained_text=False)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return model.double().eval().requires_grad_(False)


def write_weights(name: str, folder: Path) -> Path:
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in model_of(name).state_dict().items()}, path)
    return path
