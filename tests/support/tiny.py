"""A tiny random open_clip model in float64, and the same model as our frozen towers."""

from __future__ import annotations

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from prometar.backbone.clip import Clip, from_state_dict
from prometar.backbone.openclip import Backbone


def open_clip_model(*, layers: int = 3, quick_gelu: bool = True, seed: int = 0) -> CLIP:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(
            embed_dim=24,
            vision_cfg=CLIPVisionCfg(layers=layers, width=32, head_width=8, image_size=16, patch_size=8),
            text_cfg=CLIPTextCfg(width=16, heads=2, layers=layers),
            quick_gelu=quick_gelu,
        )
        with torch.no_grad():  # biases start at zero: give every weight something to do
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return model.double().eval().requires_grad_(False)


def towers(model: CLIP, *, quick_gelu: bool = True) -> Clip:
    activation = "quick_gelu" if quick_gelu else "gelu"
    return from_state_dict(model.state_dict(), text_heads=2, vision_heads=4, activation=activation)


def backbone(dtype: torch.dtype = torch.float32) -> Backbone:
    return Backbone("tiny", towers(open_clip_model()).to(dtype))
