"""The vision tower: prompts appended after the patches, replaced at their layers, CLS alone at the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.backbone.block import Layer
from prometar.backbone.clip import Clip
from prometar.backbone.norm import Norm, layer_norm
from prometar.backbone.tower import Pass, Prompts


@torch.no_grad()
def embed_images(clip: Clip, images_B3HW: Tensor) -> Tensor:
    """CLS and patch tokens after `ln_pre`, (B, T, D): frozen, so once a batch serves every pass over it.

    Images are normalised with the backbone's own mean and standard deviation.
    """
    patches = F.conv2d(images_B3HW, clip.patch_weight, stride=clip.patch_weight.shape[-1])
    patches = patches.flatten(2).transpose(1, 2)
    tokens = torch.cat([clip.class_embedding.expand(patches.shape[0], 1, -1), patches], dim=1)
    return layer_norm(tokens + clip.vision_positions, clip.ln_pre_weight, clip.ln_pre_bias)


def encode_image(clip: Clip, tokens_BTD: Tensor, prompts: Prompts | None = None) -> Tensor:
    """Un-normalised image features (B, E) of `embed_images`' tokens.

    A layer with an entry in `prompts` sees these tokens after the patches, instead of those of the layer
    before; a layer-0 prompt passes `ln_pre` like the patches. Their outputs are computed only where the
    next layer uses them.
    """
    return image_pass(clip, tokens_BTD, prompts or {}, fused=not torch.is_grad_enabled())[0]


def image_pass(
    clip: Clip, tokens_BTD: Tensor, prompts: Prompts, *, fused: bool = False
) -> tuple[Tensor, Pass]:
    """`encode_image`, and the pass that gives its derivatives."""
    tower, num_own = clip.vision, tokens_BTD.shape[1]
    num_out: list[int | None] = [
        num_own if number in prompts else None for number in range(len(tower.blocks))
    ]
    layers = [
        Layer(tower, block, num_out=num) for block, num in zip(tower.blocks, [*num_out[1:], 1], strict=True)
    ]
    first, end = (Norm(clip.ln_pre_weight, clip.ln_pre_bias), Norm(clip.ln_post_weight, clip.ln_post_bias))
    one = Pass(layers, _Appended(num_own), first=first, end=end, out_DE=clip.vision_projection)
    return one.forward(tokens_BTD, prompts, fused=fused), one


@dataclass(frozen=True)
class _Appended:
    """The slots of all rows behind their own."""

    num_own: int

    def put(self, x: Tensor, prompt: Tensor) -> Tensor:
        own = x[..., : self.num_own, :]
        behind = prompt.unsqueeze(-3).expand(*own.shape[:-2], *prompt.shape[-2:])
        return torch.cat([own, behind], dim=-2)

    def take(self, own: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        if own.shape[-2] != self.num_own:
            own, rest = torch.cat([own, rest], dim=-2).tensor_split([self.num_own], dim=-2)
        return own, rest.sum(dim=-3)
