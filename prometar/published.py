"""Published accuracies, cited and never mixed with ours: base-to-new, CLIP ViT-B/16, 16 shots, 3 seeds."""

from __future__ import annotations

HARMONIC_MEAN: dict[str, tuple[float, int]] = {
    "imagenet": (74.09, 1000),
    "caltech101": (96.16, 100),
    "oxford_pets": (96.49, 37),
    "stanford_cars": (76.72, 196),
    "oxford_flowers": (86.7, 102),
    "food101": (91.34, 101),
    "fgvc_aircraft": (40.25, 100),
    "sun397": (80.82, 397),
    "dtd": (72.31, 47),
    "eurosat": (85.3, 10),
    "ucf101": (83.25, 101),
}
"""ProMetaR's harmonic mean of base and new accuracy in percent, from the paper's published results, and the
number of classes of the benchmark."""


def published(
    dataset: str, *, method: str, backbone: str, pretrained: str | None, shots: int, num_classes: int
) -> float | None:
    """ProMetaR's published harmonic mean where ours may stand beside it, else None.

    Only the paper's own setting compares: ViT-B/16 with OpenAI's weights, 16 shots, all the classes.
    """
    figure, classes = HARMONIC_MEAN.get(dataset, (None, 0))
    same = (method, backbone, pretrained, shots) == ("prometar", "ViT-B-16-quickgelu", "openai", 16)
    return figure if same and num_classes == classes else None
