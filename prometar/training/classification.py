"""Metrics of a classification beyond its accuracy: accuracy by class, calibration, confusion matrix."""

from collections.abc import Sequence
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, model_validator

Percent = Annotated[float, Field(ge=0, le=100)]
NUM_BINS = 15
"""Number of bins of the calibration error."""
MAX_CONFUSION_CLASSES = 200
"""Maximum number of classes for which a result contains the confusion matrix. This limits the file's size."""
_DECIMALS = 4
"""Decimals of percentages. This limits the size of files."""


class ClassificationMetrics(BaseModel):
    """Metrics of N images and C classes. Percentages are rounded to four decimals.

    Args:
        classnames: Names of the classes, in label order.
        num_images: Number of images by class.
        class_accuracies: Accuracy (recall) in percent by class, 0 for classes without images.
        macro_f1: Mean of F1 = 2 TP / (2 TP + FP + FN) over the classes that have images, in percent.
        calibration_error: Expected calibration error in percentage points: the sum over `NUM_BINS` bins b
            of n_b / N |accuracy_b - confidence_b|. Here, n_b is the number of images in bin b, and accuracy_b
            and confidence_b are their accuracy and mean confidence. The confidence for an image is the
            probability of the predicted class. Bin b, from 1 to 15, contains the images whose confidence is
            in ((b - 1) / 15, b / 15]. Source: "On Calibration of Modern Neural Networks", ICML 2017.
        bins: For each bin: number of images, mean confidence in percent and accuracy in percent. The last two
            are 0 for empty bins.
        confusion: Nonzero entries of the confusion matrix as (label, predicted label, number of images). None
            if there are more than `MAX_CONFUSION_CLASSES` classes.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    classnames: tuple[str, ...]
    num_images: tuple[NonNegativeInt, ...]
    class_accuracies: tuple[Percent, ...]
    macro_f1: Percent
    calibration_error: Percent
    bins: tuple[tuple[NonNegativeInt, Percent, Percent], ...]
    confusion: tuple[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt], ...] | None = None

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        num_classes = len(self.classnames)
        if not num_classes == len(self.num_images) == len(self.class_accuracies):
            raise ValueError("the numbers of classes differ")
        if len(self.bins) != NUM_BINS:
            raise ValueError(f"there must be {NUM_BINS} bins")
        if self.confusion is not None:
            for label, predicted, _ in self.confusion:
                if max(label, predicted) >= num_classes:
                    raise ValueError("the confusion matrix contains an unknown class")
        return self

    @classmethod
    def of(
        cls,
        classnames: Sequence[str],
        labels_N: NDArray[np.int64],
        predicted_N: NDArray[np.int64],
        confidences_N: NDArray[np.floating],
    ) -> Self:
        """Compute the metrics.

        Args:
            classnames: Names of the C classes.
            labels_N, predicted_N: True and predicted labels, from 0 to C - 1.
            confidences_N: Probabilities of the predicted classes, in 0..1.

        Example:
            >>> labels = np.array([0, 0, 1, 1])
            >>> predicted = np.array([0, 1, 1, 1])
            >>> found = ClassificationMetrics.of(["cat", "dog"], labels, predicted, np.full(4, 0.75))
            >>> found.class_accuracies, found.macro_f1, found.calibration_error
            ((50.0, 100.0), 73.3333, 0.0)
        """
        num_classes = len(classnames)
        is_correct = labels_N == predicted_N

        # By class. Divisors of at least 1 avoid divisions by 0 for classes without images.
        num_images = np.bincount(labels_N, minlength=num_classes)
        num_predicted = np.bincount(predicted_N, minlength=num_classes)
        num_correct = np.bincount(labels_N[is_correct], minlength=num_classes)
        class_accuracies = num_correct / np.maximum(1, num_images)
        # 2 TP + FP + FN is the number of images plus the number of predictions of the class.
        f1 = 2 * num_correct / np.maximum(1, num_images + num_predicted)

        # By bin of the confidence.
        confidences = confidences_N.astype(np.float64)
        bin_N = np.clip(np.ceil(confidences * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
        bin_counts = np.bincount(bin_N, minlength=NUM_BINS)
        divisors = np.maximum(1, bin_counts)
        bin_confidences = np.bincount(bin_N, weights=confidences, minlength=NUM_BINS) / divisors
        bin_accuracies = np.bincount(bin_N, weights=is_correct, minlength=NUM_BINS) / divisors
        gaps = np.abs(bin_accuracies - bin_confidences)
        calibration_error = (bin_counts * gaps).sum() / len(labels_N)
        bins: list[tuple[int, float, float]] = []
        for count, confidence, accuracy in zip(bin_counts, bin_confidences, bin_accuracies, strict=True):
            bins.append((int(count), _percent(confidence), _percent(accuracy)))

        confusion = None
        if num_classes <= MAX_CONFUSION_CLASSES:
            confusion = _confusion(labels_N, predicted_N, num_classes)
        return cls(
            classnames=tuple(classnames),
            num_images=tuple(num_images.tolist()),
            class_accuracies=tuple(_percent(accuracy) for accuracy in class_accuracies),
            macro_f1=_percent(f1[num_images > 0].mean()),
            calibration_error=_percent(calibration_error),
            bins=tuple(bins),
            confusion=confusion,
        )


def _confusion(
    labels_N: NDArray[np.int64], predicted_N: NDArray[np.int64], num_classes: int
) -> tuple[tuple[int, int, int], ...]:
    """Return the nonzero entries of the confusion matrix, ordered by label and predicted label."""
    # Each pair of labels is encoded as one integer.
    codes, counts = np.unique(labels_N * num_classes + predicted_N, return_counts=True)
    entries: list[tuple[int, int, int]] = []
    for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
        label, predicted = divmod(code, num_classes)
        entries.append((label, predicted, count))
    return tuple(entries)


def _percent(share: float) -> float:
    """Return a share as a rounded percentage, at most 100."""
    # Probabilities in float32 may exceed 1 by a rounding error.
    return min(100.0, round(100 * float(share), _DECIMALS))
