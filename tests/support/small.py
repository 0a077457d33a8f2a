"""A backbone for tests of what stands around the towers: two small layers each, with random weights.

It takes a quarter of the time of `mini`, the one that knows something.
"""

from typing import Any

from open_clip import factory

NAME = "tiny-plain"

factory._MODEL_CONFIGS[NAME] = {  # in this process alone
    "embed_dim": 24,
    "quick_gelu": True,
    "text_cfg": {"width": 16, "heads": 2, "layers": 2},
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 8, "image_size": 16, "patch_size": 8},
}

BACKBONE: dict[str, Any] = {"backbone.name": NAME, "backbone.pretrained": "random"}
"""Settings that choose it."""
