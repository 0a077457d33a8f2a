"""Published accuracies, cited and never mixed with ours: base-to-new, CLIP ViT-B/16, 16 shots, 3 seeds."""

from __future__ import annotations

HARMONIC_MEAN: dict[str, float] = {
    "imagenet": 74.09,
    "caltech101": 96.16,
    "oxford_pets": 96.49,
    "stanford_cars": 76.72,
    "oxford_flowers": 86.7,
    "food101": 91.34,
    "fgvc_aircraft": 40.25,
    "sun397": 80.82,
    "dtd": 72.31,
    "eurosat": 85.3,
    "ucf101": 83.25,
}
"""ProMetaR's harmonic mean of base and new accuracy in percent, from the paper's published results."""


def published(dataset: str, *, backbone: str, pretrained: str | None, shots: int) -> float | None:
    """ProMetaR's published harmonic mean where ours may stand beside it, else None.

    Only the paper's own setting compares: ViT-B/16 with OpenAI's weights, 16 shots.
    """
    same = backbone == "ViT-B-16-quickgelu" and pretrained == "openai" and shots == 16
    return HARMONIC_MEAN.get(dataset) if same else None
