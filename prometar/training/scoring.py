"""Accuracy of trained prompts. Axes: B images, C classes, T tokens, widths D (tokens) and E (features)."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from prometar.clip.features import FeatureCache, cached_embedding, frozen_image_features
from prometar.clip.openclip import Backbone
from prometar.data.streaming.stream import Batch
from prometar.device import send, to_cpu
from prometar.errors import WorkError
from prometar.step.prompted_clip import PromptedClip


def make_logits_fn(
    backbone: Backbone, model: PromptedClip, leaves: Mapping[str, Tensor], cache: FeatureCache | None = None
) -> Callable[[Tensor, int], Tensor]:
    """Return a function that maps uint8 images (B, H, W, 3) and their batch number to logits (B, C).

    `leaves`: the trained tensors. Class texts are encoded once, or per image if prompts depend on images.
    """
    with torch.no_grad(), backbone.matmul_precision():
        inputs = model.method.inputs(dict(leaves))
        text_CE = None if model.method.prompts.conditional else model.text_features(inputs)

    @torch.no_grad()
    def logits(images: Tensor, batch_number: int) -> Tensor:
        embedded = cached_embedding(
            backbone.clip,
            backbone.normalize(images),
            cache,
            batch_number,
            changes_vision=model.method.changes("vision"),
        )
        text = text_CE
        if text is None:
            frozen_BE = frozen_image_features(backbone.clip, embedded, cache, batch_number)
            text = model.text_features(inputs, frozen_BE)
        features = model.features(inputs, text, model.image_features(inputs, embedded))
        return model.logits(inputs, features)

    def logits_in_precision(images: Tensor, batch_number: int) -> Tensor:
        with backbone.matmul_precision():
            return logits(images, batch_number)

    return logits_in_precision


def accuracy(
    backbone: Backbone,
    model: PromptedClip,
    leaves: Mapping[str, Tensor],
    batches: Iterable[Batch],
    cache: FeatureCache | None = None,
) -> float:
    """Return the accuracy in percent. Labels in `batches` are indices of the classes of `model`.

    Raises:
        WorkError: a logit is not finite.
    """
    logits, device, total = make_logits_fn(backbone, model, leaves, cache), backbone.clip.device, 0
    correct = torch.zeros((), dtype=torch.long, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for batch in batches:
        images, labels = send((torch.from_numpy(batch.images), torch.from_numpy(batch.labels)), device)
        logits_BC = logits(images, batch.step)
        correct += (logits_BC.argmax(dim=-1) == labels).sum()
        finite &= logits_BC.isfinite().all()
        total += len(batch.labels)
    # Each copy to the CPU synchronizes with the GPU, so one call copies both results.
    correct, finite = to_cpu((correct, finite))
    if not finite:
        raise not_finite_error(backbone)
    return 100 * int(correct) / total


def not_finite_error(backbone: Backbone) -> WorkError:
    """Return the error for NaN or infinite logits."""
    dtype = str(backbone.clip.dtype).removeprefix("torch.")
    return WorkError(
        f"Logits of {backbone.name} in {dtype} are not finite. Lower optim.lr or set backbone.precision=fp32."
    )
