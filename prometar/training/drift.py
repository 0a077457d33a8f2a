"""How far prompts have moved a CLIP where nobody needs a label: on foreign class names.

Accuracy on new classes cannot be measured without their images. What can be: prompts that change what the
frozen CLIP says of names it was not tuned for lose its knowledge of new classes, too. docs/objectives.md has
the evidence.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.features import Seen
from prometar.clip.openclip import Backbone
from prometar.clip.wording import readable
from prometar.data.datasets.dataset import Dataset
from prometar.data.streaming.stream import Batch
from prometar.errors import UserError
from prometar.methods.regularizers import similarity
from prometar.step.prompted_clip import Model
from prometar.training.scoring import not_finite

TEMPLATE = "a photo of a {}."
"""Of the frozen CLIP's texts that prompts are compared with: what most contexts start from."""
LOSS_PER_NAT = 0.05
"""The share of new accuracy that is lost with each nat of divergence (docs/objectives.md)."""
FEWEST = 20
"""Foreign names that a measure of drift needs."""


@dataclass(frozen=True)
class Drift:
    """Means over the images, or over the foreign names.

    Args:
        divergence: KL(frozen || prompted) of an image's probabilities over the names, in nats.
        agreement: Share of images whose most likely name is the same.
        text_cosine: Of a name's prompted and frozen feature. image_cosine: Of an image's.
    """

    divergence: float
    agreement: float
    text_cosine: float
    image_cosine: float


@torch.no_grad()
def measure_drift(
    image_NE: Tensor, text_VE: Tensor, *, frozen_image_NE: Tensor, frozen_text_VE: Tensor, scale: Tensor
) -> Drift:
    """The drift of normalised features under prompts from those of the frozen CLIP.

    Args:
        image_NE: Of N images. text_VE: Of V foreign names, or (N, V, E) where they see the images.
        scale: What cosines are multiplied by in logits.

    Example:
        >>> features = F.normalize(torch.eye(2))
        >>> frozen = {"frozen_image_NE": features, "frozen_text_VE": features}
        >>> measure_drift(features, features, **frozen, scale=torch.tensor(100.0)).divergence
        0.0
    """
    prompted = (scale * similarity(image_NE, text_VE)).float().log_softmax(dim=-1)
    frozen = (scale * frozen_image_NE @ frozen_text_VE.T).float().log_softmax(dim=-1)
    return Drift(
        float(F.kl_div(prompted, frozen, log_target=True, reduction="batchmean")),
        float((prompted.argmax(dim=-1) == frozen.argmax(dim=-1)).float().mean()),
        float((text_VE * frozen_text_VE).sum(dim=-1).mean()),
        float((image_NE * frozen_image_NE).sum(dim=-1).mean()),
    )


def predicted_new(zero_shot: float, drift: Drift) -> float:
    """zero_shot * exp(-LOSS_PER_NAT * divergence): accuracy in percent on classes that were never seen.

    `zero_shot`: the frozen CLIP's accuracy on the base classes' validation images, which sets the level.
    """
    return zero_shot * math.exp(-LOSS_PER_NAT * drift.divergence)


def drift_identity(backbone: Backbone) -> str:
    """What decides a prediction beside images and prompts: scores of two do not compare."""
    names = hashlib.sha256("\n".join(backbone.vocabulary).encode()).hexdigest()[:12]
    return f"{LOSS_PER_NAT} a nat, names {names}"


def foreign_names(known: Iterable[str], vocabulary: Sequence[str]) -> tuple[str, ...]:
    """What of a vocabulary shares no word with the known names.

    Example:
        >>> foreign_names(["red_fox", "owl"], ["fox", "dog", "barn owl"])
        ('dog',)
    """
    words = {word for name in known for word in _words(name)}
    return tuple(name for name in vocabulary if words.isdisjoint(_words(name)))


def foreign_to(dataset: Dataset, vocabulary: Sequence[str]) -> tuple[str, ...]:
    """The foreign names that drift is measured on for a data set.

    Raises:
        UserError: they are too few to tell anything, as for ImageNet, whose names these are.
    """
    names = foreign_names(dataset.classnames, vocabulary)
    if len(names) < FEWEST:
        raise UserError(
            f"drift cannot be measured for {dataset.name}: of {len(vocabulary)} foreign names, {len(names)} "
            f"share no word with its classes, and {FEWEST} are needed: use --objective base_val"
        )
    return names


def _words(name: str) -> set[str]:
    return set(readable(name).lower().split())


@dataclass(frozen=True)
class Foreign:
    """What drift is measured on.

    Args:
        model: Of the foreign names. frozen_text_VE: Their features under the frozen CLIP.
        frozen_base_CE: Of the base names, for the zero-shot accuracy.
        seen: What is known of each batch of base images.
    """

    model: Model
    frozen_text_VE: Tensor
    frozen_base_CE: Tensor
    seen: Seen

    @torch.no_grad()
    def score(
        self, backbone: Backbone, model: Model, leaves: Mapping[str, Tensor], batches: Iterable[Batch]
    ) -> dict[str, float]:
        """Percent of base images classified rightly (`base`), the prediction for new classes (`new`), and
        the drift that it is made from.

        Args:
            model: Of the base classes. leaves: Trained prompts. batches: Validation images of base classes.
        Raises:
            WorkError: a figure is not finite: such a model has no score.
        """
        prompts = model.prompts.tokens(dict(leaves))
        images, frozen, labels = [], [], []
        for batch in batches:
            pixels = backbone.normalise(torch.from_numpy(batch.images))
            tokens = self.seen.embed(backbone.clip, batch.step, pixels)
            frozen.append(self.seen.frozen(backbone.clip, batch.step, tokens))
            images.append(F.normalize(model.image_features(prompts, tokens), dim=-1))
            labels.append(torch.from_numpy(batch.labels))
        image_NE, frozen_NE, labels_N = torch.cat(images), torch.cat(frozen), torch.cat(labels)
        drift = measure_drift(
            image_NE,
            self.model.text_features(prompts, frozen_NE),
            frozen_image_NE=frozen_NE,
            frozen_text_VE=self.frozen_text_VE,
            scale=backbone.clip.logit_scale,
        )
        prompted_NC = similarity(image_NE, model.text_features(prompts, frozen_NE))
        if not (math.isfinite(drift.divergence) and bool(prompted_NC.isfinite().all())):
            raise not_finite(backbone)
        zero_shot = _percent_right(similarity(frozen_NE, self.frozen_base_CE), labels_N)
        base = _percent_right(prompted_NC, labels_N)
        return {"base": base, "new": predicted_new(zero_shot, drift), "zero_shot": zero_shot} | vars(drift)


def _percent_right(similarity_NC: Tensor, labels_N: Tensor) -> float:
    return 100 * int((similarity_NC.argmax(dim=-1).cpu() == labels_N).sum()) / len(labels_N)
