"""Predictions of trained prompts.

Axes of tensors: N images of a set, B images of a batch, C classes of a set, K most probable classes, J base
and new classes together, E embedding.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prometar.clip.features import FeatureCache, cached_embedding, frozen_image_features
from prometar.clip.openclip import Backbone
from prometar.data.streaming.stream import Batch
from prometar.device import send, to_cpu
from prometar.errors import WorkError
from prometar.methods.prompts import Tensors
from prometar.step.prompted_clip import PromptedClip
from prometar.training.classification import ClassificationMetrics

NUM_TOP = 5
"""Maximum number of classes per image whose probabilities are kept."""
_MAX_LOGITS = 2**22
"""Number of logits that are kept before they are reduced to predictions (16 MiB in float32)."""
JOINT_SETS = ("base", "new")
"""Evaluation sets whose images are also classified among the classes of both sets."""


@dataclass(frozen=True)
class TopPredictions:
    """Predictions for the N images of an evaluation set with C classes.

    Args:
        labels_N: True labels.
        classes_NK: The K = min(C, `NUM_TOP`) most probable classes of each image, the most probable first.
        probabilities_NK: Probabilities of these classes.
        joint_N: Predicted class of each image in the list of base classes followed by new classes. None if
            it was not computed.
        joint_start: Index of the set's first class in this list.
    """

    labels_N: NDArray[np.int64]
    classes_NK: NDArray[np.int64]
    probabilities_NK: NDArray[np.floating]
    joint_N: NDArray[np.int64] | None = None
    joint_start: int = 0

    @property
    def accuracy(self) -> float:
        """Accuracy in percent."""
        num_correct = int((self.classes_NK[:, 0] == self.labels_N).sum())
        return 100 * num_correct / len(self.labels_N)

    @property
    def joint_accuracy(self) -> float | None:
        """Accuracy in percent among base and new classes together, or None if it was not computed."""
        if self.joint_N is None:
            return None
        num_correct = int((self.joint_N == self.labels_N + self.joint_start).sum())
        return 100 * num_correct / len(self.labels_N)

    def metrics(self, classnames: Sequence[str]) -> ClassificationMetrics:
        """Return the metrics beyond accuracy, given the names of the C classes."""
        return ClassificationMetrics.of(
            classnames, self.labels_N, self.classes_NK[:, 0], self.probabilities_NK[:, 0]
        )


class PredictionCollector:
    """Collects predictions batch by batch, without a synchronization with the GPU before the end.

    Logits are reduced to predictions for many images at once, which takes fewer operations.
    """

    def __init__(self, backbone: Backbone, *, joint_start: int = 0) -> None:
        self._backbone = backbone
        self._joint_start = joint_start
        self._labels: list[NDArray[np.int64]] = []
        self._logits: list[Tensor] = []
        self._joint_logits: list[Tensor] = []
        self._num_values = 0  # in both lists of logits
        self._classes: list[Tensor] = []
        self._probabilities: list[Tensor] = []
        self._joint: list[Tensor] = []
        self._finite: list[Tensor] = []

    def add(self, labels_B: NDArray[np.int64], logits_BC: Tensor, joint_BJ: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            labels_B: True labels.
            logits_BC: Logits of the classes of the set.
            joint_BJ: Logits of the base classes, then of the new classes. None if they are not computed.
        """
        self._labels.append(labels_B)
        self._logits.append(logits_BC)
        self._num_values += logits_BC.numel()
        if joint_BJ is not None:
            self._joint_logits.append(joint_BJ)
            self._num_values += joint_BJ.numel()
        if self._num_values > _MAX_LOGITS:
            self._reduce()

    def _reduce(self) -> None:
        """Replace the logits collected so far by predictions."""
        if not self._logits:
            return
        logits_NC = torch.cat(self._logits)
        # Of equal logits, the class with the lowest label comes first, as with argmax.
        sorted_NC, order_NC = logits_NC.sort(dim=-1, descending=True, stable=True)
        normalizer_N1 = sorted_NC.logsumexp(dim=-1, keepdim=True)
        self._classes.append(order_NC[:, :NUM_TOP])
        self._probabilities.append((sorted_NC[:, :NUM_TOP] - normalizer_N1).exp())
        self._finite.append(logits_NC.isfinite().all())
        if self._joint_logits:
            self._joint.append(torch.cat(self._joint_logits).argmax(dim=-1))
        self._logits.clear()
        self._joint_logits.clear()
        self._num_values = 0

    def finish(self) -> TopPredictions:
        """Return the predictions for all images.

        Raises:
            WorkError: a logit is not finite.
        """
        self._reduce()
        joint_N = torch.cat(self._joint) if self._joint else None
        # Each copy to the CPU synchronizes with the GPU, so one call copies all results.
        classes_NK, probabilities_NK, joint_N, finite = to_cpu(
            (torch.cat(self._classes), torch.cat(self._probabilities), joint_N, torch.stack(self._finite))
        )
        if not finite.all():
            raise not_finite_error(self._backbone)
        return TopPredictions(
            labels_N=np.concatenate(self._labels),
            classes_NK=classes_NK.numpy(),
            probabilities_NK=probabilities_NK.numpy(),
            joint_N=None if joint_N is None else joint_N.numpy(),
            joint_start=self._joint_start,
        )


@dataclass(frozen=True)
class EncodedClasses:
    """Prompted CLIP with trained tensors, whose class texts are encoded.

    Args:
        inputs: Results of `Method.inputs`.
        text_CE: Text features, or None if they depend on the images.
    """

    model: PromptedClip
    inputs: Tensors
    text_CE: Tensor | None

    @property
    def num_classes(self) -> int:
        """Number of classes, which is known if the texts do not depend on the images."""
        assert self.text_CE is not None
        return len(self.text_CE)

    def logits(self, images: Tensors, frozen_BE: Tensor | None) -> Tensor:
        """Return the logits (B, C) of images, given the two results of `image_features`."""
        text = self.text_CE
        if text is None:
            text = self.model.text_features(self.inputs, frozen_BE)
        return self.model.logits(self.inputs, self.model.features(self.inputs, text, images))


@torch.no_grad()
def encode_classes(backbone: Backbone, model: PromptedClip, leaves: Mapping[str, Tensor]) -> EncodedClasses:
    """Encode the class texts, unless they depend on the images.

    Args:
        backbone: Frozen CLIP.
        model: Prompted CLIP for the classes.
        leaves: The trained tensors.
    """
    with backbone.matmul_precision():
        inputs = model.method.inputs(dict(leaves))
        text_CE = None if model.method.prompts.conditional else model.text_features(inputs)
    return EncodedClasses(model, inputs, text_CE)


def joint_classes(by_set: Mapping[str, EncodedClasses]) -> tuple[EncodedClasses, ...]:
    """Return base and new classes for the joint classification, or () if it is left out.

    The joint classification assigns an image of a base or a new class to one of all these classes
    (generalized zero-shot learning). All logits follow the method's rule for new classes, because this rule
    is defined for any class. The method's rule for base classes may use tensors that were learned for base
    classes only, such as a linear head (`logits.kind`). Its logits are not comparable with those of new
    classes.

    The joint classification is left out if `by_set` lacks base or new classes. It is also left out for
    conditional prompts, for which it would double the time of the evaluation: each image would need its own
    texts of all classes.
    """
    sides = [by_set[name] for name in JOINT_SETS if name in by_set]
    if len(sides) < len(JOINT_SETS) or sides[0].model.method.prompts.conditional:
        return ()
    joint: list[EncodedClasses] = []
    for side in sides:
        if side.model.new_classes:
            joint.append(side)  # the same object, so that `predict` computes its logits only once
        else:
            joint.append(replace(side, model=replace(side.model, new_classes=True)))
    return tuple(joint)


@torch.no_grad()
def image_features(
    backbone: Backbone,
    classes: EncodedClasses,
    images_BHW3: Tensor,
    batch_number: int,
    cache: FeatureCache | None = None,
) -> tuple[Tensors, Tensor | None]:
    """Return the image features of a batch, which are the same for all classes.

    Args:
        backbone: Frozen CLIP.
        classes: Prompted CLIP with encoded classes.
        images_BHW3: uint8 images.
        batch_number: Number of the batch, which identifies its features in `cache`.
        cache: Cached features, or None if they are not cached.

    Returns:
        The features of the prompted CLIP, and those of the frozen CLIP if the class texts depend on them
        (otherwise None).
    """
    model = classes.model
    embedded = cached_embedding(
        backbone.clip,
        backbone.normalize(images_BHW3),
        cache,
        batch_number,
        changes_vision=model.method.changes("vision"),
    )
    frozen_BE = None
    if classes.text_CE is None:
        frozen_BE = frozen_image_features(backbone.clip, embedded, cache, batch_number)
    return model.image_features(classes.inputs, embedded), frozen_BE


def make_logits_fn(
    backbone: Backbone, model: PromptedClip, leaves: Mapping[str, Tensor], cache: FeatureCache | None = None
) -> Callable[[Tensor, int], Tensor]:
    """Return a function that maps uint8 images (B, H, W, 3) and their batch number to logits (B, C).

    Class texts are encoded once, or for each image if prompts depend on images.

    Args:
        backbone: Frozen CLIP.
        model: Prompted CLIP for the classes.
        leaves: The trained tensors.
        cache: Cached image features, or None if they are not cached.
    """
    classes = encode_classes(backbone, model, leaves)

    @torch.no_grad()
    def logits(images_BHW3: Tensor, batch_number: int) -> Tensor:
        with backbone.matmul_precision():
            features, frozen_BE = image_features(backbone, classes, images_BHW3, batch_number, cache)
            return classes.logits(features, frozen_BE)

    return logits


@torch.no_grad()
def predict(
    backbone: Backbone,
    classes: EncodedClasses,
    batches: Iterable[Batch],
    cache: FeatureCache | None = None,
    *,
    joint: Sequence[EncodedClasses] = (),
    joint_start: int = 0,
) -> TopPredictions:
    """Classify images.

    Args:
        backbone: Frozen CLIP.
        classes: Classes to choose from.
        batches: Images, whose labels are indices of `classes`.
        cache: Cached image features, or None if they are not cached.
        joint: Result of `joint_classes`. The images are also classified among these classes.
        joint_start: Index of the first of `classes` among the classes of `joint`.

    Raises:
        WorkError: a logit is not finite.
    """
    collector = PredictionCollector(backbone, joint_start=joint_start)
    for batch in batches:
        images = send(torch.from_numpy(batch.images), backbone.clip.device)
        with backbone.matmul_precision():
            features, frozen_BE = image_features(backbone, classes, images, batch.step, cache)
            logits_BC = classes.logits(features, frozen_BE)
            joint_logits: list[Tensor] = []
            for each in joint:
                if each is classes:
                    joint_logits.append(logits_BC)
                else:
                    joint_logits.append(each.logits(features, frozen_BE))
            joint_BJ = torch.cat(joint_logits, dim=-1) if joint_logits else None
        collector.add(batch.labels, logits_BC, joint_BJ)
    return collector.finish()


def predict_sets(
    backbone: Backbone,
    models: Mapping[str, PromptedClip],
    leaves: Mapping[str, Tensor],
    batches_of: Callable[[str], Iterable[Batch]],
    caches: Mapping[str, FeatureCache | None],
) -> dict[str, TopPredictions]:
    """Classify the images of each evaluation set among its classes and, if possible, `joint_classes`.

    The texts of each set are encoded once, and each image passes the image tower once.

    Args:
        backbone: Frozen CLIP.
        models: Prompted CLIP by evaluation set.
        leaves: The trained tensors.
        batches_of: Function that returns the batches of a set.
        caches: Cached image features by evaluation set.

    Raises:
        WorkError: a logit is not finite.
    """
    by_set = {name: encode_classes(backbone, model, leaves) for name, model in models.items()}
    joint = joint_classes(by_set)
    joint_starts: dict[str, int] = {}
    if joint:
        joint_starts = {"base": 0, "new": joint[0].num_classes}
    predictions: dict[str, TopPredictions] = {}
    for name, classes in by_set.items():
        predictions[name] = predict(
            backbone,
            classes,
            batches_of(name),
            caches[name],
            joint=joint if name in joint_starts else (),
            joint_start=joint_starts.get(name, 0),
        )
    return predictions


def not_finite_error(backbone: Backbone) -> WorkError:
    """Return the error for NaN or infinite logits."""
    dtype = str(backbone.clip.dtype).removeprefix("torch.")
    return WorkError(
        f"Logits of {backbone.name} in {dtype} are not finite. Lower optim.lr or set backbone.precision=fp32."
    )
