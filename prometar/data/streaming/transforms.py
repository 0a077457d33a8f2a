"""From encoded bytes to uint8 pixels, decided by a spec and a seed (numpy and Pillow only).

A Ray task that imported torch would start seconds later, so nothing here does. Crop and resize follow
torchvision's RandomResizedCrop / Resize / CenterCrop on Pillow images, which CLIP and the field use.
"""

import io
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from prometar.errors import WorkError

# Formats that benchmarks use; others (EPS starts a PostScript interpreter) are refused unread.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MOST_ELONGATED = 100  # times as long as wide: the shorter side is resized to the backbone's
RATIO = (3 / 4, 4 / 3)
# Pillow only warns of images from 89 million pixels on. Here they are refused, unread.
warnings.simplefilter("error", Image.DecompressionBombWarning)
CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class TransformSpec:
    """Transform of an image.

    Args:
        size: Side of the square result, in pixels.
        train: True: random resized crop, flip and jitter; False: resize the shorter side, centre crop.
        crop_scale: Range of the crop's share of the image's area (default 0.08..1).
        flip: Probability of a horizontal flip (default 0.5).
        jitter: j: brightness, contrast and saturation are scaled by factors from 1-j..1+j (default 0: none).
    """

    size: int
    train: bool
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    jitter: float = 0.0


def decode(encoded: bytes, path: str = "") -> Image.Image:
    """A Pillow RGB image.

    Raises:
        WorkError: the bytes are no readable image; the message names `path`.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if max(image.size) > MOST_ELONGATED * min(image.size):
            raise ValueError(f"{image.width} x {image.height} pixels are more than {MOST_ELONGATED} : 1")
        return to_rgb(image)
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ... on hostile bytes
        reason = "an empty file" if not encoded else " ".join(str(error).split()) or type(error).__name__
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) and encoded else reason
        raise WorkError(
            f"broken image {path or '(unnamed)'}: {reason}; replace it (`prometar data check` lists all)"
        ) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Eight bits a channel; transparency is dropped. Grey levels of 16 bits are scaled to it.

    Raises:
        ValueError: pixels of which nobody can say what is white (floating point, 32 bits).
    """
    # Pillow's own way clips such pixels at 255, so that nearly all of them become white.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = np.asarray(image).astype(np.float64) / (65535 / 255)
        image = Image.fromarray(np.clip(np.rint(grey), 0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are {'floating-point' if image.mode == 'F' else '32-bit'} numbers")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours; the direct way warns
    return image.convert("RGB")


def apply(spec: TransformSpec, encoded: bytes, seed: int, *, path: str = "") -> NDArray[np.uint8]:
    """Decode and transform one image; equal arguments give equal pixels.

    Args:
        seed: Decides the augmentation (unused if `spec.train` is false).
        path: Named in the message if the image is broken.

    Returns:
        uint8 array (size, size, 3).

    Raises:
        WorkError: the bytes are no readable image.
    """
    image = decode(encoded, path)
    result = _augment(spec, image, seed) if spec.train else _centre(image, spec.size)
    return np.asarray(result)


def make_images(
    spec: TransformSpec, files: Sequence[bytes], seeds: Iterable[int], paths: Sequence[str]
) -> NDArray[np.uint8]:
    """uint8 (N, H, W, 3) of N encoded `files`: `apply` to each, which both streams and every worker run."""
    images = np.empty((len(files), spec.size, spec.size, 3), np.uint8)
    for k, (file, seed, path) in enumerate(zip(files, seeds, paths, strict=True)):
        images[k] = apply(spec, file, int(seed), path=path)
    return images


def _centre(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    short, long = min(width, height), max(width, height)
    longer = int(size * long / short)
    target = (size, longer) if width <= height else (longer, size)
    if target != image.size:
        image = image.resize(target, Image.Resampling.BICUBIC)
    left, top = round((target[0] - size) / 2.0), round((target[1] - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def _augment(spec: TransformSpec, image: Image.Image, seed: int) -> Image.Image:
    rng = np.random.Generator(np.random.PCG64(seed))
    # Fixed draws first: the crop draws a varying number, and flips should not depend on crop_scale.
    flipped = rng.random() < spec.flip
    factors = rng.uniform(-1.0, 1.0, size=3)
    order = rng.permutation(3)
    left, top, width, height = _crop_box(rng, image.size, spec.crop_scale)
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((spec.size, spec.size), Image.Resampling.BICUBIC)
    if flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if spec.jitter > 0:
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for k in order:
            image = enhancers[k](image).enhance(1.0 + spec.jitter * float(factors[k]))
    return image


def _crop_box(
    rng: np.random.Generator, size: tuple[int, int], scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """left, top, width, height of torchvision's RandomResizedCrop (its rule, not its generator)."""
    width, height = size
    for _ in range(CROP_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    ratio = min(max(width / height, RATIO[0]), RATIO[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (width - w) // 2, (height - h) // 2, w, h
