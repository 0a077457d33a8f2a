"""A tiny CLIP with random weights: as a model of open_clip, as a `Clip` of prometar, and as a backbone.

Tests compare the outputs of the first two, which have the same weights.
"""

from functools import cache
from typing import Any

import torch
from open_clip.model import CLIP

from prometar.clip.model import Clip
from prometar.clip.openclip import Backbone, clip_architecture
from prometar.clip.weights import from_state_dict


def config(*, layers: int = 3, quick_gelu: bool = True) -> dict[str, Any]:
    """Return the configuration of a tiny CLIP, with the keys of open_clip's model configurations.

    Args:
        layers: Number of layers per tower.
        quick_gelu: True for the activation of OpenAI's models, False for the usual GELU.
    """
    return {
        "embed_dim": 24,
        "vision_cfg": {"layers": layers, "width": 32, "head_width": 8, "image_size": 16, "patch_size": 8},
        "text_cfg": {"width": 16, "heads": 2, "layers": layers},
        "quick_gelu": quick_gelu,
    }


def open_clip_model(*, layers: int = 3) -> CLIP:
    """Return a tiny CLIP in float64, with the same random weights in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(**config(layers=layers))
        # open_clip initializes biases with zero. A test could not notice that the package omits a zero bias.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return model.double().eval().requires_grad_(False)


def towers(model: CLIP) -> Clip:
    """Return prometar's frozen towers with the weights of `model`, which may have any number of layers."""
    return from_state_dict(model.state_dict(), clip_architecture(config()))


@cache
def backbone(dtype: torch.dtype = torch.float32) -> Backbone:
    """Return a backbone with the weights of `open_clip_model()`.

    All tests share it, because none changes its tensors.
    """
    return Backbone("tiny", towers(open_clip_model()).to(dtype))
