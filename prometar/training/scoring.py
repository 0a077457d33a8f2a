"""Accuracy of trained prompts: classes are encoded once, images in large batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prometar.backbone.openclip import Backbone
from prometar.backbone.vision import embed_images
from prometar.data.streaming.stream import Batch
from prometar.step.prompted_clip import Model


def classify(
    backbone: Backbone, model: Model, leaves: Mapping[str, Tensor]
) -> Callable[[NDArray[np.uint8]], Tensor]:
    """A function from uint8 images (B, H, W, 3) to logits (B, C); the classes are encoded once."""
    with torch.no_grad():
        prompts = model.prompts.tokens(dict(leaves))
        text_CE = model.text_features(prompts)

    @torch.no_grad()
    def logits(images: NDArray[np.uint8]) -> Tensor:
        tokens = embed_images(backbone.clip, backbone.normalise(torch.from_numpy(images)))
        return model.logits(model.image_features(prompts, tokens), text_CE)

    return logits


def accuracy(
    backbone: Backbone, model: Model, leaves: Mapping[str, Tensor], batches: Iterable[Batch]
) -> float:
    """Percent of the batches' images whose most likely class of `model` is their label."""
    logits = classify(backbone, model, leaves)
    correct = total = 0
    for batch in batches:
        predicted = logits(batch.images).argmax(dim=-1).cpu()
        correct += int((predicted == torch.from_numpy(batch.labels)).sum())
        total += len(batch.labels)
    return 100 * correct / total
