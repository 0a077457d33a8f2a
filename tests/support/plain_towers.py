"""open_clip's own towers with prompts among their tokens, by hooks: every token in every layer."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn


def plain_text(model: Any, ids: Tensor, prompts: Mapping[int, Tensor], start: int) -> Tensor:
    """All tokens from their ids; prompts replace those after the start."""
    tower = model.text if hasattr(model, "text") else model

    def put(x: Tensor, prompt: Tensor) -> Tensor:
        each = prompt.expand(len(x), -1, -1)
        return torch.cat([x[:, :start], each, x[:, start + len(prompt) :]], dim=1)

    with ExitStack() as hooks:
        for layer, prompt in prompts.items():
            if layer == 0:
                hook = tower.token_embedding.register_forward_hook(lambda m, a, x, p=prompt: put(x, p))
            else:
                block = tower.transformer.resblocks[layer]
                hook = block.register_forward_pre_hook(lambda m, a, p=prompt: (put(a[0], p), *a[1:]))
            hooks.callback(hook.remove)
        features: Tensor = model.encode_text(ids, normalize=False)
    return features


def plain_image(model: Any, pixels: Tensor, prompts: Mapping[int, Tensor]) -> Tensor:
    """Prompts behind the image's own tokens, before the first LayerNorm if there is one; none is pooled."""
    trunk = getattr(model.visual, "trunk", None)
    blocks = model.visual.transformer.resblocks if trunk is None else trunk.blocks
    before: nn.Module = model.visual.ln_pre if trunk is None else trunk.norm_pre
    num_own = (pixels.shape[-1] // 8) ** 2 + (trunk is None or trunk.cls_token is not None)

    def put(x: Tensor, prompt: Tensor) -> Tensor:
        return torch.cat([x[:, :num_own], prompt.expand(len(x), -1, -1)], dim=1)

    with ExitStack() as hooks:
        for layer, prompt in prompts.items():
            where = blocks[layer] if layer else before
            hook = where.register_forward_pre_hook(lambda m, a, p=prompt: (put(a[0], p), *a[1:]))
            hooks.callback(hook.remove)
        hooks.callback(blocks[-1].register_forward_hook(lambda m, a, x: x[:, :num_own]).remove)
        features: Tensor = model.encode_image(pixels, normalize=False)
    return features
