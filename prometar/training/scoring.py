"""Accuracy of trained prompts: classes are encoded once, images in large batches."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from prometar.clip.features import Seen
from prometar.clip.openclip import Backbone
from prometar.data.streaming.stream import Batch
from prometar.device import fetch, send
from prometar.errors import WorkError
from prometar.step.prompted_clip import Model


def classify(
    backbone: Backbone, model: Model, leaves: Mapping[str, Tensor], seen: Seen = Seen()
) -> Callable[[Tensor, int], Tensor]:
    """A function from uint8 images (B, H, W, 3), where the backbone is, and their batch's number to logits.

    These are (B, C). Classes are encoded once; once an image where the text sees it. `seen`: what is known of
    each batch.
    """
    with torch.no_grad():
        prompts = model.prompts.tokens(dict(leaves))
        text_CE = None if model.prompts.conditional else model.text_features(prompts)

    @torch.no_grad()
    def logits(images: Tensor, number: int) -> Tensor:
        tokens = seen.embed(backbone.clip, number, backbone.normalise(images))
        image_BE, known_CE = model.image_features(prompts, tokens), text_CE
        if known_CE is None:
            known_CE = model.text_features(prompts, seen.frozen(backbone.clip, number, tokens))
        return model.logits(image_BE, known_CE)

    return logits


def accuracy(
    backbone: Backbone,
    model: Model,
    leaves: Mapping[str, Tensor],
    batches: Iterable[Batch],
    seen: Seen = Seen(),
) -> float:
    """Percent of the batches' images whose most likely class of `model` is their label.

    Raises:
        WorkError: a logit is not finite: such a model has no score.
    """
    logits, device, total = classify(backbone, model, leaves, seen), backbone.clip.device, 0
    correct = torch.zeros((), dtype=torch.long, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for batch in batches:
        images, labels = send((torch.from_numpy(batch.images), torch.from_numpy(batch.labels)), device)
        found = logits(images, batch.step)
        correct += (found.argmax(dim=-1) == labels).sum()
        finite &= found.isfinite().all()
        total += len(batch.labels)
    # Read once: asking after every batch would make a GPU wait for the next one.
    right, whole = fetch((correct, finite))
    if not whole:
        raise not_finite(backbone)
    return 100 * int(right) / total


def not_finite(backbone: Backbone) -> WorkError:
    """What is said of a model whose logits hold NaN or infinity."""
    kind = str(backbone.clip.dtype).removeprefix("torch.")
    return WorkError(
        f"logits of {backbone.name} in {kind} are not finite: its prompts or its precision overflow"
    )
