"""First stage of pre-training: the vision tower of `mini`, on correct labels.

The tower learns one anchor per class and per color, in the embedding space that captions are aligned with
later. Prompts cannot improve poor features, so this stage takes most of the time.
Shape legend: B = batch, C = classes, D = embedding, H, W = image height and width.
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

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's pixels, per channel in 0..1
STD = (0.26862954, 0.26130258, 0.27577711)
COLORS = ("red", "yellow", "green", "turquoise", "blue", "purple", "grey")


@dataclass(frozen=True)
class VisionSettings:
    """Settings of stage one: share of the images, steps, images per step, peak learning rate, losses."""

    images: float = 1.0
    steps: int = 2500
    batch: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    color_weight: float = 0.3
    scale: float = 20.0  # of the cosine logits
    crop: float = 0.5  # smallest share of the side that a training crop keeps
    dropped: float = 0.5  # share of the patches that are omitted, to halve the time of a step
    dropped_steps: float = 0.8  # share of the steps, from the first on, that omit patches


@dataclass(frozen=True)
class Images:
    """Rendered images on the CPU: pixels (N, H, W, 3) uint8, class and color labels (N,)."""

    pixels: Tensor
    labels: Tensor
    colors: Tensor


def color_of(pixels: NDArray[np.uint8]) -> int:
    """Return the index into `COLORS` of an image's mean color: its hue, or grey if it is pale."""
    red, green, blue = (float(v) / 255.0 for v in pixels.mean((0, 1)))
    high, low = max(red, green, blue), min(red, green, blue)
    if high - low < 0.08:
        return len(COLORS) - 1
    hue = math.atan2(math.sqrt(3.0) * (green - blue), 2.0 * red - green - blue) / (2.0 * math.pi) % 1.0
    return round(hue * 6.0) % 6


def render_images(share: float) -> Images:
    """Render `share` of the images of every class."""
    pixels, labels, colors = [], [], []
    for label, each in enumerate(CLASSES):
        for index in range(max(1, round(each.kind.images * share))):
            image = each.picture(index)
            pixels.append(image)
            labels.append(label)
            colors.append(color_of(image))
    return Images(torch.from_numpy(np.stack(pixels)), torch.tensor(labels), torch.tensor(colors))


def normalize(pixels: Tensor) -> Tensor:
    """Convert (B, H, W, 3) uint8 to (B, 3, H, W) float32, normalized as for CLIP."""
    images = pixels.permute(0, 3, 1, 2).float() / 255.0
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def augment(images: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """Apply a random crop of `smallest` to 1 of each side, and a random flip."""
    count = len(images)
    draw = torch.rand(count, 4, generator=generator)
    side = smallest + (1.0 - smallest) * draw[:, 0]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = side * torch.where(draw[:, 3] < 0.5, -1.0, 1.0)
    theta[:, 1, 1] = side
    theta[:, :, 2] = (draw[:, 1:3] * 2.0 - 1.0) * (1.0 - side)[:, None]
    where = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, where, padding_mode="reflection", align_corners=False)


def batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `steps` index batches (B,). Each epoch has a new order and drops the incomplete last batch."""
    done = 0
    while done < steps:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            if done == steps:
                return
            yield order[start : start + size]
            done += 1


def rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate: 5 % linear warm-up, then half a cosine to zero."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def optimizer_of(parameters: Sequence[Tensor], decay: float, undecayed: Sequence[Tensor] = ()) -> AdamW:
    """Return AdamW with decay on matrices, but not on vectors and `undecayed`. Every step sets the rate."""
    decayed = [p for p in parameters if p.ndim >= 2]
    plain = [*(p for p in parameters if p.ndim < 2), *undecayed]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
    return AdamW(groups, betas=(0.9, 0.98))


@torch.random.fork_rng(devices=[])  # open_clip drops patches by the global generator
def train_vision(
    visual: Any, images: Images, settings: VisionSettings, seed: int, log: Callable[[str], None]
) -> None:
    """Train `visual` in place. The anchors are discarded, and `visual.patch_dropout` is off afterwards."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    width = len(CLASSES) + len(COLORS)
    anchors = nn.Parameter(torch.randn(width, visual.output_dim, generator=generator))
    parameters = [*visual.parameters(), anchors]
    optimizer = optimizer_of(parameters, settings.weight_decay)
    visual.train()
    for step, index in enumerate(batches(len(images.labels), settings.batch, settings.steps, generator)):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, settings.steps, settings.lr)
        if step == round(settings.steps * settings.dropped_steps):
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
        if (step + 1) % 100 == 0:
            right = (by_class.argmax(1) == images.labels[index]).float().mean()
            log(f"vision step {step + 1} class {class_loss:.3f} color {color_loss:.3f} accuracy {right:.3f}")
    visual.eval()
