"""The vision tower: prompts appended after the patches, replaced at their layers, CLS alone at the end."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.backbone.attention import attention
from prometar.backbone.block import finish, normalise_1, project, project_key_value, project_query
from prometar.backbone.clip import Clip
from prometar.backbone.norm import layer_norm
from prometar.backbone.text import Prompts


@torch.no_grad()
def embed_images(clip: Clip, images_B3HW: Tensor) -> Tensor:
    """CLS and patch tokens after `ln_pre`, (B, T, D): frozen, so once a batch serves every pass over it.

    Images are normalised with the backbone's own mean and standard deviation.
    """
    patches = F.conv2d(images_B3HW, clip.patch_weight, stride=clip.patch_weight.shape[-1])
    patches = patches.flatten(2).transpose(1, 2)
    tokens = torch.cat([clip.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
    return _ln_pre(clip, tokens + clip.vision_positions)


def _ln_pre(clip: Clip, x_TD: Tensor) -> Tensor:
    return layer_norm(x_TD, clip.ln_pre_weight, clip.ln_pre_bias)


def encode_image(clip: Clip, tokens_BTD: Tensor, prompts: Prompts | None = None) -> Tensor:
    """Un-normalised image features (B, E) of `embed_images`' tokens.

    A layer with an entry in `prompts` sees these tokens after the patches, instead of those of the layer
    before; a layer-0 prompt passes `ln_pre` like the patches. Their outputs are computed only where the
    next layer uses them.
    """
    prompts = prompts or {}
    tower, num_layers = clip.vision, len(clip.vision.blocks)
    num_own = tokens_BTD.shape[1]
    x = tokens_BTD
    for layer, block in enumerate(tower.blocks):
        last = layer == num_layers - 1
        prompt = prompts.get(layer)
        shared = None
        if prompt is not None:
            x = x[:, :num_own]
            prompt = _ln_pre(clip, prompt) if layer == 0 else prompt
            if last or layer + 1 in prompts:
                shared = project_key_value(tower, block, normalise_1(block, prompt))
            else:
                x = torch.cat([x, prompt.expand(len(x), *prompt.shape)], dim=1)
        normalised = normalise_1(block, x)
        if last:
            query, own = (
                project_query(tower, block, normalised[:, :1]),
                project_key_value(tower, block, normalised),
            )
            x = x[:, :1]
        else:
            query, own = project(tower, block, normalised)
        keys = own if shared is None else shared.behind(own)
        x = finish(tower, block, x, attention(query, *keys))
    x_BD = layer_norm(x[:, 0], clip.ln_post_weight, clip.ln_post_bias)
    return x_BD @ clip.vision_projection
