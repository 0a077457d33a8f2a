"""Accuracy of trained prompts: classes are encoded once, images in large batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from prometar.backbone.openclip import Backbone
from prometar.backbone.vision import embed_images
from prometar.data.stream import Batch
from prometar.model import Model


@torch.no_grad()
def accuracy(
    backbone: Backbone, model: Model, leaves: Mapping[str, Tensor], batches: Iterable[Batch]
) -> float:
    """Percent of the batches' images whose most likely class of `model` is their label."""
    prompts = model.prompts.tokens(dict(leaves))
    text_CE = model.text_features(prompts)
    correct = total = 0
    for batch in batches:
        tokens = embed_images(backbone.clip, backbone.normalise(torch.from_numpy(batch.images)))
        predicted = model.logits(model.image_features(prompts, tokens), text_CE).argmax(dim=-1)
        correct += int((predicted.cpu() == torch.from_numpy(batch.labels)).sum())
        total += len(batch.labels)
    return 100 * correct / total
