"""A tiny open_clip model with random weights, and the same model as the frozen towers of the package."""

from functools import cache
from typing import Any

import torch
from open_clip.model import CLIP

from prometar.clip.model import Clip
from prometar.clip.openclip import Backbone, clip_architecture
from prometar.clip.weights import from_state_dict


def config(*, layers: int = 3, quick_gelu: bool = True) -> dict[str, Any]:
    """Return a configuration in open_clip's format."""
    return {
        "embed_dim": 24,
        "vision_cfg": {"layers": layers, "width": 32, "head_width": 8, "image_size": 16, "patch_size": 8},
        "text_cfg": {"width": 16, "heads": 2, "layers": layers},
        "quick_gelu": quick_gelu,
    }


def open_clip_model(*, layers: int = 3) -> CLIP:
    """Return the model in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(**config(layers=layers))
        with torch.no_grad():  # biases start at zero, where an error might have no effect
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return model.double().eval().requires_grad_(False)


def towers(model: CLIP) -> Clip:
    """Return the frozen towers of the package with the weights of a model."""
    return from_state_dict(model.state_dict(), clip_architecture(config()))


@cache
def backbone(dtype: torch.dtype = torch.float32) -> Backbone:
    """Return the model as a backbone. It is cached, because no test changes its tensors."""
    return Backbone("tiny", towers(open_clip_model()).to(dtype))
