"""Drift: divergence of the prompted CLIP from the frozen CLIP if both classify among out-of-domain names.

Out-of-domain names share no word with the class names. The classified images are those of base classes. The
accuracy on new classes tends to decrease as drift increases (docs/measurements.md), so drift predicts it.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

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
from prometar.methods.features import similarity
from prometar.step.prompted_clip import PromptedClip
from prometar.training.scoring import PredictionCollector, TopPredictions, not_finite_error

DRIFT_TEMPLATE = "a photo of a {}."
"""Template of the names for the frozen CLIP. Most methods start with its words, so drift starts near 0."""
_MIN_NAMES = 20  # minimum number of out-of-domain names


class OutOfDomain(NamedTuple):
    """What drift is measured with.

    Args:
        model: Prompted CLIP with V out-of-domain names as classes.
        frozen_names_VE: Normalized text features of these names from the frozen CLIP.
        frozen_classes_CE: Normalized text features of the C base classes from the frozen CLIP.
    """

    model: PromptedClip
    frozen_names_VE: Tensor
    frozen_classes_CE: Tensor


@torch.no_grad()
def drift_by_image(
    image_NE: Tensor, text_VE: Tensor, *, frozen_image_NE: Tensor, frozen_text_VE: Tensor, scale: Tensor
) -> Tensor:
    """Return KL(frozen || prompted) of the predictions over the names for each image (N,), in nats.

    Args:
        image_NE: Normalized features of N images from the prompted CLIP.
        text_VE: Normalized text features of V names from the prompted CLIP, or (N, V, E) if prompts depend
            on images.
        frozen_image_NE: Normalized features of the images from the frozen CLIP.
        frozen_text_VE: Normalized text features of the names from the frozen CLIP.
        scale: Factor that turns cosines into logits.

    Example:
        >>> features = F.normalize(torch.eye(2))
        >>> frozen = {"frozen_image_NE": features, "frozen_text_VE": features}
        >>> drift_by_image(features, features, **frozen, scale=torch.tensor(100.0))
        tensor([0., 0.])
    """
    prompted = (scale * similarity(image_NE, text_VE)).float().log_softmax(dim=-1)
    frozen = (scale * frozen_image_NE @ frozen_text_VE.T).float().log_softmax(dim=-1)
    return F.kl_div(prompted, frozen, log_target=True, reduction="none").sum(dim=-1)


def drift_version(backbone: Backbone) -> str:
    """Return a string that identifies formula and vocabulary. Comparable scores have the same string."""
    vocabulary = "\n".join(backbone.vocabulary)
    digest = hashlib.sha256(vocabulary.encode()).hexdigest()
    return f"interpolated, {digest[:12]}"


def out_of_domain_names(dataset: Dataset, vocabulary: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a vocabulary that share no word with the class names of a dataset.

    Raises:
        UserError: fewer than 20 names remain, e.g. for ImageNet, whose classes cover most of the vocabulary.
    """

    def words(name: str) -> set[str]:
        return set(readable(name).lower().split())

    class_words: set[str] = set()
    for name in dataset.classnames:
        class_words |= words(name)
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
    out_of_domain: OutOfDomain,
    leaves: Mapping[str, Tensor],
    batches: Iterable[Batch],
    cache: FeatureCache | None,
) -> tuple[dict[str, float], TopPredictions]:
    """Return scores, and the predictions for the images of base classes.

    The scores are `base` (accuracy of the prompted CLIP), `zero_shot` (accuracy of the frozen CLIP) and `new`
    (predicted accuracy on new classes), all in percent, and `divergence`, the drift in nats.

    Without drift, `new` equals `zero_shot`. It falls linearly with the drift to the accuracy of chance, which
    it reaches at log(V) nats for V names.

    Args:
        backbone: Frozen CLIP.
        base_model: Prompted CLIP for the base classes.
        out_of_domain: Prompted CLIP for the out-of-domain names, and frozen features.
        leaves: Tensors of the trained prompts.
        batches: Validation images of the base classes.
        cache: Cached features of these images, or None if they are not cached.

    Raises:
        WorkError: the drift or a cosine is not finite.
    """
    inputs = base_model.method.inputs(dict(leaves))
    names_model = out_of_domain.model
    conditional = base_model.method.prompts.conditional

    # Texts are encoded once, or for each batch if they depend on the images.
    class_text: Tensor | None = None
    name_text: Tensor | None = None
    if not conditional:
        class_text = base_model.text_features(inputs)
        name_text = names_model.text_features(inputs)

    divergences: list[Tensor] = []
    zero_shot_correct: list[Tensor] = []
    collector = PredictionCollector(backbone)
    for batch in batches:
        pixels = backbone.normalize(send(torch.from_numpy(batch.images), backbone.clip.device))
        embedded = cached_embedding(
            backbone.clip,
            pixels,
            cache,
            batch.step,
            changes_vision=base_model.method.changes("vision"),
        )
        frozen_BE = frozen_image_features(backbone.clip, embedded, cache, batch.step)
        images = base_model.image_features(inputs, embedded)
        if conditional:
            class_text = base_model.text_features(inputs, frozen_BE)
            name_text = names_model.text_features(inputs, frozen_BE)
        assert class_text is not None
        assert name_text is not None

        logits_BC = base_model.logits(inputs, base_model.features(inputs, class_text, images))
        collector.add(batch.labels, logits_BC)
        names = names_model.features(inputs, name_text, images)
        divergences.append(
            drift_by_image(
                names.unit_image_BE,
                names.unit_text_CE,
                frozen_image_NE=frozen_BE,
                frozen_text_VE=out_of_domain.frozen_names_VE,
                scale=backbone.clip.logit_scale,
            )
        )
        zero_shot_BC = similarity(frozen_BE, out_of_domain.frozen_classes_CE)
        labels_B = torch.from_numpy(batch.labels).to(zero_shot_BC.device)
        zero_shot_correct.append(zero_shot_BC.argmax(dim=-1) == labels_B)

    predictions = collector.finish()
    drift = float(torch.cat(divergences).mean())
    if not math.isfinite(drift):
        raise not_finite_error(backbone)
    zero_shot = _percentage(zero_shot_correct)
    drift_at_chance = math.log(len(out_of_domain.frozen_names_VE))
    weight = min(1.0, drift / drift_at_chance)
    chance = 100 / len(out_of_domain.frozen_classes_CE)
    # If the frozen CLIP is worse than chance, drift does not change the prediction.
    new = zero_shot + weight * min(0.0, chance - zero_shot)
    scores = {"base": predictions.accuracy, "new": new, "zero_shot": zero_shot, "divergence": drift}
    return scores, predictions


def _percentage(correct: Sequence[Tensor]) -> float:
    """Return the percentage of True in boolean tensors."""
    all_images = torch.cat(list(correct))
    return 100 * int(all_images.sum()) / len(all_images)
