"""Backbones as configured: in their precision, on the default device of this process."""

from dataclasses import replace

import torch

from prometar.clip.openclip import Backbone, load_backbone
from prometar.config.sections import BackboneConfig
from prometar.device import default_device

DTYPES = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""dtype of the towers for each `backbone.precision`."""


def load_configured_backbone(config: BackboneConfig, *, folded: bool = True) -> Backbone:
    """Load a backbone in its configured precision on the default device of this process.

    Args:
        folded: True for an equivalent backbone with fewer operations: linear layers absorb constant factors
            and the weights of LayerNorms (`Tower.folded`). False for methods that change blocks
            (`Method.changes_blocks`), because they need the tensors of each layer.

    Raises:
        UserError: the model or its weights are missing or invalid.
        WorkError: the weights or the tokenizer cannot be downloaded.
    """
    dtype = DTYPES[config.precision]
    backbone = load_backbone(
        config.name, config.pretrained, dtype=dtype, device=default_device(), folded=folded
    )
    return replace(backbone, tf32=config.precision == "tf32")
