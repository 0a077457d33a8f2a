"""Towers of open_clip with prompts. Hooks replace or append tokens in the input of layers.

Unlike the towers of the package, these compute all tokens in all layers.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

Put = Callable[[Tensor, Tensor], Tensor]
"""Function that puts prompts (P, width) into tokens (rows, length, width), and returns the tokens."""


def _put_into_input(module: nn.Module, put: Put, prompt: Tensor) -> Any:
    """Put prompts into the first argument of a module. Return the hook, which `remove` ends."""

    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, *others = arguments
        return (put(tokens, prompt), *others)

    return module.register_forward_pre_hook(hook)


def _put_into_output(module: nn.Module, put: Put, prompt: Tensor) -> Any:
    """Put prompts into the output of a module. Return the hook, which `remove` ends."""

    def hook(_: nn.Module, arguments: tuple[Any, ...], tokens: Tensor) -> Tensor:
        return put(tokens, prompt)

    return module.register_forward_hook(hook)


def plain_text(model: Any, ids: Tensor, prompts: Mapping[int, Tensor], start: int) -> Tensor:
    """Return the features of texts in which prompts replace tokens.

    Args:
        model: open_clip model.
        ids: (C, L) token ids.
        prompts: (P, width) prompt tokens, by the layer whose input they are put into.
        start: Position of the first replaced token.
    """
    tower = model.text if hasattr(model, "text") else model

    def put(x: Tensor, prompt: Tensor) -> Tensor:
        rows = prompt.expand(len(x), -1, -1)
        return torch.cat([x[:, :start], rows, x[:, start + len(prompt) :]], dim=1)

    with ExitStack() as hooks:
        for layer, prompt in prompts.items():
            if layer == 0:
                hook = _put_into_output(tower.token_embedding, put, prompt)
            else:
                hook = _put_into_input(tower.transformer.resblocks[layer], put, prompt)
            hooks.callback(hook.remove)
        features: Tensor = model.encode_text(ids, normalize=False)
    return features


def plain_image(model: Any, pixels: Tensor, prompts: Mapping[int, Tensor]) -> Tensor:
    """Return the features of images with prompts after the image's tokens.

    Prompts of the first layer go through the LayerNorm before it, if there is one. Pooling ignores prompts.

    Args:
        model: open_clip model with patches of 8 pixels. Its vision tower is open_clip's or timm's.
        pixels: (B, 3, H, H) normalized images.
        prompts: (P, width) prompt tokens, by the layer whose input they are put into.
    """
    trunk = getattr(model.visual, "trunk", None)
    before_blocks: nn.Module
    if trunk is None:
        blocks = model.visual.transformer.resblocks
        before_blocks = model.visual.ln_pre
        has_class_token = True
    else:
        blocks = trunk.blocks
        before_blocks = trunk.norm_pre
        has_class_token = trunk.cls_token is not None
    num_own = (pixels.shape[-1] // 8) ** 2
    if has_class_token:
        num_own += 1

    def put(x: Tensor, prompt: Tensor) -> Tensor:
        return torch.cat([x[:, :num_own], prompt.expand(len(x), -1, -1)], dim=1)

    def without_prompts(_: nn.Module, arguments: tuple[Any, ...], x: Tensor) -> Tensor:
        return x[:, :num_own]

    with ExitStack() as hooks:
        for layer, prompt in prompts.items():
            module = before_blocks if layer == 0 else blocks[layer]
            hook = _put_into_input(module, put, prompt)
            hooks.callback(hook.remove)
        hook = blocks[-1].register_forward_hook(without_prompts)
        hooks.callback(hook.remove)
        features: Tensor = model.encode_image(pixels, normalize=False)
    return features
