"""Drift: divergence of prompted from frozen CLIP when both classify images among out-of-domain names.

Out-of-domain names share no word with the class names. Accuracy on new classes tends to decrease as drift
increases (docs/results.md), so drift, measured on images of base classes, predicts it.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.features import FeatureCache, cached_embedding, frozen_image_features
from prometar.clip.openclip import Backbone
from prometar.clip.wording import readable
from prometar.data.datasets.dataset import Dataset
from prometar.data.streaming.stream import Batch
from prometar.device import send
from prometar.errors import UserError
from prometar.methods.regularizers import similarity
from prometar.step.prompted_clip import PromptedClip
from prometar.training.scoring import not_finite_error

DRIFT_TEMPLATE = "a photo of a {}."
"""Template of the names for the frozen CLIP. Most methods start with its words, so drift starts near 0."""
_MIN_NAMES = 20  # minimum number of out-of-domain names


@torch.no_grad()
def mean_drift(
    image_NE: Tensor, text_VE: Tensor, *, frozen_image_NE: Tensor, frozen_text_VE: Tensor, scale: Tensor
) -> float:
    """Return KL(frozen || prompted) of the predictions over the names, in nats, averaged over the images.

    Args:
        image_NE, frozen_image_NE: Normalized features of N images from the prompted and the frozen CLIP.
        text_VE, frozen_text_VE: Those of V names. `text_VE` is (N, V, E) if prompts depend on images.
        scale: Factor that turns cosines into logits.

    Example:
        >>> features = F.normalize(torch.eye(2))
        >>> frozen = {"frozen_image_NE": features, "frozen_text_VE": features}
        >>> mean_drift(features, features, **frozen, scale=torch.tensor(100.0))
        0.0
    """
    prompted = (scale * similarity(image_NE, text_VE)).float().log_softmax(dim=-1)
    frozen = (scale * frozen_image_NE @ frozen_text_VE.T).float().log_softmax(dim=-1)
    return float(F.kl_div(prompted, frozen, log_target=True, reduction="batchmean"))


def drift_version(backbone: Backbone) -> str:
    """Return a string that identifies formula and vocabulary. It is the same for comparable scores."""
    return "interpolated, " + hashlib.sha256("\n".join(backbone.vocabulary).encode()).hexdigest()[:12]


def out_of_domain_names(dataset: Dataset, vocabulary: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a vocabulary that share no word with the class names of a dataset.

    Raises:
        UserError: fewer than 20 names remain, e.g. for ImageNet, whose classes cover most of the vocabulary.
    """

    def words(name: str) -> set[str]:
        return set(readable(name).lower().split())

    class_words = set().union(*map(words, dataset.classnames))
    names = tuple(name for name in vocabulary if class_words.isdisjoint(words(name)))
    if len(names) < _MIN_NAMES:
        raise UserError(
            f"Cannot measure drift for {dataset.name}: only {len(names)} of the {len(vocabulary)} vocabulary "
            f"names share no word with its classes. The minimum is {_MIN_NAMES}. Use --objective base_val."
        )
    return names


@torch.no_grad()
def drift_scores(
    backbone: Backbone,
    base_model: PromptedClip,
    out_of_domain_model: PromptedClip,
    leaves: Mapping[str, Tensor],
    batches: Iterable[Batch],
    cache: FeatureCache | None,
) -> dict[str, float]:
    """Return `base`, `zero_shot` (frozen CLIP) and predicted `new` in percent, and the drift as `divergence`.

    `new` falls linearly from `zero_shot` without drift to chance at log(V) nats, for V names.

    Args:
        base_model, out_of_domain_model: Prompted CLIP for the base classes, and for the out-of-domain names.
        leaves: Tensors of the trained prompts.
        batches, cache: Validation images of the base classes, and their cached features.

    Raises:
        WorkError: the drift or a cosine is not finite.
    """
    class_text_CE, name_text_VE = base_model.frozen_text_CE, out_of_domain_model.frozen_text_CE
    assert class_text_CE is not None
    assert name_text_VE is not None
    prompt_tokens = base_model.prompts.tokens(dict(leaves))
    prompted: list[Tensor] = []
    frozen: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches:
        pixels = backbone.normalize(send(torch.from_numpy(batch.images), backbone.clip.device))
        embedded_BTD = cached_embedding(backbone.clip, pixels, cache, batch.step)
        frozen.append(frozen_image_features(backbone.clip, embedded_BTD, cache, batch.step))
        prompted.append(F.normalize(base_model.image_features(prompt_tokens, embedded_BTD), dim=-1))
        labels.append(torch.from_numpy(batch.labels))
    frozen_NE, labels_N = torch.cat(frozen), torch.cat(labels)
    if not base_model.prompts.conditional:
        prompted, frozen = [torch.cat(prompted)], [frozen_NE]
    # Conditional prompts have texts for each image, so those of all images at once would not fit into memory.
    divergences: list[float] = []
    cosines: list[Tensor] = []
    for image_BE, frozen_BE in zip(prompted, frozen, strict=True):
        divergence = mean_drift(
            image_BE,
            out_of_domain_model.text_features(prompt_tokens, frozen_BE),
            frozen_image_NE=frozen_BE,
            frozen_text_VE=name_text_VE,
            scale=backbone.clip.logit_scale,
        )
        divergences.append(len(image_BE) / len(labels_N) * divergence)
        cosines.append(similarity(image_BE, base_model.text_features(prompt_tokens, frozen_BE)))
    drift = sum(divergences)
    prompted_cosines_NC = torch.cat(cosines)
    if not (math.isfinite(drift) and bool(prompted_cosines_NC.isfinite().all())):
        raise not_finite_error(backbone)
    accuracy, zero_shot = (
        100 * int((cosines_NC.argmax(dim=-1).cpu() == labels_N).sum()) / len(labels_N)
        for cosines_NC in (prompted_cosines_NC, similarity(frozen_NE, class_text_CE))
    )
    weight = min(1.0, drift / math.log(len(name_text_VE)))
    new = zero_shot + weight * min(0.0, 100 / len(class_text_CE) - zero_shot)
    return {"base": accuracy, "new": new, "zero_shot": zero_shot, "divergence": drift}
