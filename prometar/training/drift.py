"""Drift of prompted features from frozen ones, measured on out-of-domain class names without labels.

Accuracy on new classes cannot be measured without their images. But prompts that change the predictions of
the frozen CLIP on names outside the training lose its knowledge of new classes too (docs/results.md).
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.features import Seen, embedded, frozen_image
from prometar.clip.openclip import Backbone
from prometar.clip.wording import readable
from prometar.data.datasets.dataset import Dataset
from prometar.data.streaming.stream import Batch
from prometar.device import send
from prometar.errors import UserError
from prometar.methods.regularizers import similarity
from prometar.step.prompted_clip import Model
from prometar.training.scoring import not_finite

TEMPLATE = "a photo of a {}."
"""Template of the frozen texts. Most contexts start from it."""
LOSS_PER_NAT = 0.05
"""Relative loss of new accuracy per nat of divergence: new = zero_shot exp(-0.05 d) (docs/results.md)."""
FEWEST = 20
"""Smallest number of out-of-domain names."""


@torch.no_grad()
def divergence(
    image_NE: Tensor, text_VE: Tensor, *, frozen_image_NE: Tensor, frozen_text_VE: Tensor, scale: Tensor
) -> float:
    """Return KL(frozen || prompted) of an image's probabilities over names, in nats. Mean over images.

    Args:
        image_NE: Normalized features of N images.
        text_VE: Normalized features of V names, or (N, V, E) if they depend on the images.
        scale: Factor of cosines in logits.

    Example:
        >>> features = F.normalize(torch.eye(2))
        >>> frozen = {"frozen_image_NE": features, "frozen_text_VE": features}
        >>> divergence(features, features, **frozen, scale=torch.tensor(100.0))
        0.0
    """
    prompted = (scale * similarity(image_NE, text_VE)).float().log_softmax(dim=-1)
    frozen = (scale * frozen_image_NE @ frozen_text_VE.T).float().log_softmax(dim=-1)
    return float(F.kl_div(prompted, frozen, log_target=True, reduction="batchmean"))


def drift_identity(backbone: Backbone) -> str:
    """Return an identifier of the prediction rule. Scores of different rules do not compare."""
    names = hashlib.sha256("\n".join(backbone.vocabulary).encode()).hexdigest()[:12]
    return f"{LOSS_PER_NAT} a nat, names {names}"


def foreign_to(dataset: Dataset, vocabulary: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a vocabulary that share no word with the classes of a dataset.

    Raises:
        UserError: they are too few, as for ImageNet, which contains most names of the vocabulary.
    """

    def words(name: str) -> set[str]:
        return set(readable(name).lower().split())

    known = set().union(*map(words, dataset.classnames))
    names = tuple(name for name in vocabulary if known.isdisjoint(words(name)))
    if len(names) < FEWEST:
        raise UserError(
            f"drift cannot be measured for {dataset.name}: of {len(vocabulary)} foreign names, {len(names)} "
            f"share no word with its classes, and {FEWEST} are needed: use --objective base_val"
        )
    return names


@torch.no_grad()
def drift_scores(
    backbone: Backbone,
    base: Model,
    foreign: Model,
    leaves: Mapping[str, Tensor],
    batches: Iterable[Batch],
    seen: Seen,
) -> dict[str, float]:
    """Return the accuracy on base images, the predicted one on new classes, and what predicts it.

    Args:
        base, foreign: Prompted CLIP of the base classes and of out-of-domain names, with frozen features.
        leaves: Trained prompts.
        batches: Validation images of the base classes. seen: Their cached features.

    Raises:
        WorkError: a value is not finite.
    """
    assert base.frozen_text_CE is not None
    assert foreign.frozen_text_CE is not None
    prompts = base.prompts.tokens(dict(leaves))
    images, frozen, labels = [], [], []
    for batch in batches:
        pixels = backbone.normalize(send(torch.from_numpy(batch.images), backbone.clip.device))
        tokens = embedded(backbone.clip, pixels, seen, batch.step)
        frozen.append(frozen_image(backbone.clip, tokens, seen, batch.step))
        images.append(F.normalize(base.image_features(prompts, tokens), dim=-1))
        labels.append(torch.from_numpy(batch.labels))
    image_NE, frozen_NE, labels_N = torch.cat(images), torch.cat(frozen), torch.cat(labels)
    drift = divergence(
        image_NE,
        foreign.text_features(prompts, frozen_NE),
        frozen_image_NE=frozen_NE,
        frozen_text_VE=foreign.frozen_text_CE,
        scale=backbone.clip.logit_scale,
    )
    prompted_NC = similarity(image_NE, base.text_features(prompts, frozen_NE))
    if not (math.isfinite(drift) and bool(prompted_NC.isfinite().all())):
        raise not_finite(backbone)
    accuracy, zero_shot = (
        100 * int((found_NC.argmax(dim=-1).cpu() == labels_N).sum()) / len(labels_N)
        for found_NC in (prompted_NC, similarity(frozen_NE, base.frozen_text_CE))
    )
    new = zero_shot * math.exp(-LOSS_PER_NAT * drift)
    return {"base": accuracy, "new": new, "zero_shot": zero_shot, "divergence": drift}
