"""First stage of pre-training: the vision tower of `mini`, on correct labels.

The tower learns one anchor per class and per color, in the embedding space that captions are aligned with
later. Prompts cannot improve poor features, so this stage takes most of the time.
Shape legend: N = images, B = batch, D = embedding, H, W = image height and width.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW

from .world import CLASSES

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of CLIP's training pixels (0 to 1) per channel."""
STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of CLIP's training pixels (0 to 1) per channel."""
COLORS = ("red", "yellow", "green", "turquoise", "blue", "purple", "grey")
LOG_INTERVAL = 100
"""Number of steps from one logged line to the next."""


@dataclass(frozen=True)
class VisionSettings:
    """Settings of the first stage.

    Args:
        images: Share of the images of every class that are rendered.
        steps: Number of steps.
        batch: Number of images per step.
        lr: Peak learning rate.
        weight_decay: Decay of matrices.
        color_weight: Weight of the cross-entropy over colors. The cross-entropy over classes has weight 1.
        scale: Scale of the cosine logits.
        crop: Smallest share of the side that a training crop keeps.
        dropped: Share of the patches that are omitted, to halve the time of a step.
        dropped_steps: Share of the steps, from the first on, that omit patches.
    """

    images: float = 1.0
    steps: int = 2500
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    color_weight: float = 0.3
    scale: float = 20.0
    crop: float = 0.5
    dropped: float = 0.5
    dropped_steps: float = 0.8


@dataclass(frozen=True)
class Images:
    """Rendered images on the CPU: pixels (N, H, W, 3) uint8, class and color labels (N,)."""

    pixels: Tensor
    labels: Tensor
    colors: Tensor


def color_of(pixels: NDArray[np.uint8]) -> int:
    """Return the index into `COLORS` of an image's mean color: its hue, or grey if it is pale.

    The hue is the angle of the color around the axis of greys, from 0 (red) to 2 pi. `COLORS` divides it into
    six sectors of equal size.
    """
    red, green, blue = (float(channel) / 255.0 for channel in pixels.mean((0, 1)))
    chroma = max(red, green, blue) - min(red, green, blue)
    if chroma < 0.08:
        return COLORS.index("grey")
    angle = math.atan2(math.sqrt(3.0) * (green - blue), 2.0 * red - green - blue)
    turns = angle / (2.0 * math.pi) % 1.0
    num_sectors = len(COLORS) - 1
    return round(turns * num_sectors) % num_sectors


def render_images(share: float) -> Images:
    """Render `share` of the images of every class."""
    pixels = []
    labels = []
    colors = []
    for label, pictured in enumerate(CLASSES):
        num_images = max(1, round(pictured.kind.images * share))
        for index in range(num_images):
            image = pictured.picture(index)
            pixels.append(image)
            labels.append(label)
            colors.append(color_of(image))
    return Images(
        pixels=torch.from_numpy(np.stack(pixels)),
        labels=torch.tensor(labels),
        colors=torch.tensor(colors),
    )


def normalize(pixels: Tensor) -> Tensor:
    """Convert (B, H, W, 3) uint8 to (B, 3, H, W) float32, normalized as for CLIP."""
    images = pixels.permute(0, 3, 1, 2).float() / 255.0
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def augment(images: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """Crop and flip images (B, 3, H, W) at random.

    Args:
        images: Normalized images.
        smallest: Smallest share of the side that a crop keeps. Crops are square and scaled to the full size.
        generator: Generator that draws four numbers per image.
    """
    num_images = len(images)
    draws = torch.rand(num_images, 4, generator=generator)
    side = smallest + (1.0 - smallest) * draws[:, 0]
    center = (draws[:, 1:3] * 2.0 - 1.0) * (1.0 - side)[:, None]  # -1 to 1 is the whole image
    flip = torch.where(draws[:, 3] < 0.5, -1.0, 1.0)
    affine = torch.zeros(num_images, 2, 3)
    affine[:, 0, 0] = side * flip
    affine[:, 1, 1] = side
    affine[:, :, 2] = center
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def batches(num_images: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `steps` batches (B,) of image indices.

    Each epoch has a new order and drops the incomplete last batch. `size` must not exceed `num_images`.
    Otherwise, no batch would be complete.
    """
    num_yielded = 0
    while num_yielded < steps:
        order = torch.randperm(num_images, generator=generator)
        for start in range(0, num_images - size + 1, size):
            if num_yielded == steps:
                return
            yield order[start : start + size]
            num_yielded += 1


def rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step: linear warm-up in 5 % of the steps, then half a cosine to zero."""
    num_warmup = max(1, steps // 20)
    if step < num_warmup:
        return peak * (step + 1) / num_warmup
    num_decay = max(1, steps - num_warmup)
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - num_warmup) / num_decay))


def optimizer_of(parameters: Sequence[Tensor], decay: float, undecayed: Sequence[Tensor] = ()) -> AdamW:
    """Return AdamW, whose learning rate the caller sets in every step.

    Args:
        parameters: Parameters of which matrices decay, but vectors do not.
        decay: Weight decay.
        undecayed: Further parameters, which do not decay.
    """
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": [*vectors, *undecayed], "weight_decay": 0.0},
    ]
    return AdamW(groups, betas=(0.9, 0.98))


@torch.random.fork_rng(devices=[])  # open_clip omits patches by the global generator
def train_vision(
    visual: Any, images: Images, settings: VisionSettings, seed: int, log: Callable[[str], None]
) -> None:
    """Train `visual` in place. The anchors are discarded.

    Args:
        visual: open_clip vision tower. Its `patch_dropout` is switched off for the last steps, and stays off.
        images: Images with labels.
        settings: Settings of the stage.
        seed: Seed of the anchors, batches, crops and omitted patches.
        log: Function that logs a line.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    num_anchors = len(CLASSES) + len(COLORS)
    anchors = nn.Parameter(torch.randn(num_anchors, visual.output_dim, generator=generator))
    parameters = [*visual.parameters(), anchors]
    optimizer = optimizer_of(parameters, settings.weight_decay)
    first_undropped = round(settings.steps * settings.dropped_steps)

    visual.train()
    for step, index in enumerate(batches(len(images.labels), settings.batch, settings.steps, generator)):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, settings.steps, settings.lr)
        if step == first_undropped:
            visual.patch_dropout = nn.Identity()

        inputs = augment(normalize(images.pixels[index]), settings.crop, generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = visual(inputs)
        logits = settings.scale * F.normalize(features.float(), dim=-1) @ F.normalize(anchors, dim=-1).T
        by_class, by_color = logits.split((len(CLASSES), len(COLORS)), dim=1)
        class_loss = F.cross_entropy(by_class, images.labels[index])
        color_loss = F.cross_entropy(by_color, images.colors[index])
        loss = class_loss + settings.color_weight * color_loss

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % LOG_INTERVAL == 0:
            accuracy = (by_class.argmax(1) == images.labels[index]).float().mean()
            losses = f"class {class_loss:.3f} color {color_loss:.3f}"
            log(f"vision step {step + 1} {losses} accuracy {accuracy:.3f}")
    visual.eval()
