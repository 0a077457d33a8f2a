"""Image decoding and transforms, determined by a `TransformSpec` and a seed.

CLIP and ProMetaR use RandomResizedCrop, Resize and CenterCrop of torchvision. This module reimplements them
with numpy and Pillow, because an import of torch would delay the start of every Ray task by seconds.
"""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageEnhance

from prometar.errors import WorkError

# Accepted formats. Pillow must not try its other decoders: the one for EPS starts a PostScript interpreter.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Bytes 4 to 11 of photos of phones, whatever the suffix of the file.
_HEIC_SIGNATURES = (b"ftypheic", b"ftypheix", b"ftypmif1")
MAX_ASPECT_RATIO = 100  # bounds the memory of a resized image, whose shorter side has a fixed length
MAX_PIXELS = 89_478_485  # Pillow warns above this size, and rejects only images that are twice as large
# As in torchvision's RandomResizedCrop.
CROP_ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
_VIEW_SEED = 0x5DEECE66D  # any odd number gives further views other seeds, and the first view its own


@dataclass(frozen=True)
class TransformSpec:
    """Transform of a decoded image to a square image.

    Args:
        size: Side of the square image in pixels.
        train: True for random crop, flip and jitter. False for resize and center crop, which use only `size`.
        crop_scale: Range of the crop's area as a fraction of the image's area (`augment.crop_scale_*`).
        flip: Probability of a horizontal flip.
        jitter: Brightness, contrast and saturation are scaled by random factors in 1 ± jitter.
        exif_rotation: True to rotate or mirror images as their EXIF orientation says (see `Dataset`).
        views: Number of views, which are different augmentations of the same image. The RGB channels of all
            views are stacked.
    """

    size: int
    train: bool
    # Not used if `train` is False, but part of the digest of an image order.
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    jitter: float = 0.0
    exif_rotation: bool = False
    views: int = 1


def decode(encoded: bytes, path: str = "", *, exif_rotation: bool = False) -> Image.Image:
    """Decode an image to 8-bit RGB.

    Args:
        path: Path of the image for the error message.
        exif_rotation: True to rotate or mirror the image as its EXIF orientation says.

    Raises:
        WorkError: the image is corrupt or not supported. The message contains `path`.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
            raise ValueError(f"the aspect ratio {image.width}:{image.height} exceeds {MAX_ASPECT_RATIO}:1")
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"Image size {image.width} x {image.height} exceeds {MAX_PIXELS} pixels")
        rgb = to_rgb(image)
        if exif_rotation:
            return rotated(rgb, exif_orientation(image))
        return rgb
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ... on corrupt files
        if not encoded:
            reason = "the file is empty"
        elif encoded[4:12] in _HEIC_SIGNATURES:
            reason = "not an image, but a photo in HEIC format. Convert it to JPEG"
        elif isinstance(error, Image.UnidentifiedImageError):
            reason = "not an image"
        else:
            reason = " ".join(str(error).split()) or type(error).__name__
        problem = f"Cannot use image {path or '(unnamed)'}: {reason.rstrip('.')}."
        raise WorkError(f"{problem} Replace it. `prometar data check` lists all such images.") from None


UPRIGHT = 1
"""EXIF orientation of images that are stored upright."""
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn an image upright, by its EXIF orientation."""


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, from 1 (upright) to 8.

    The result is 1 if the image has no valid orientation.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except Exception:  # corrupt EXIF data raise many kinds of errors, but the image itself may be readable
        return UPRIGHT
    return orientation if orientation in _TRANSPOSITIONS else UPRIGHT


def has_exif_rotation(encoded: bytes) -> bool:
    """Return True if a valid image is rotated or mirrored by its EXIF orientation."""
    return exif_orientation(Image.open(io.BytesIO(encoded), formats=FORMATS)) != UPRIGHT


def rotated(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image with the EXIF orientation `orientation` turned upright."""
    return image if orientation == UPRIGHT else image.transpose(_TRANSPOSITIONS[orientation])


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB without transparency. 16-bit gray levels are scaled to 0..255.

    Raises:
        ValueError: pixels are floating-point or 32-bit numbers, whose range is unknown.
    """
    # 16-bit images have the mode I;16, or the mode I in PNG and PPM files.
    is_16_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if is_16_bit:  # Pillow would clip the gray levels to 255, so most pixels would be white
        gray = np.asarray(image).astype(np.float64) / (65535 / 255)
        rounded = np.clip(np.rint(gray), 0, 255)
        image = Image.fromarray(rounded.astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if image.mode == "I":
        raise ValueError("its pixels are 32-bit numbers")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns if such an image is converted to RGB directly
    return image.convert("RGB")


def make_image(spec: TransformSpec, encoded: bytes, seed: int, *, path: str = "") -> NDArray[np.uint8]:
    """Decode and transform one image. Equal arguments give equal pixels.

    Args:
        seed: Seed of the augmentation. Unused if `spec.train` is False.
        path: Path of the image for the error message.

    Returns:
        uint8 array (size, size, 3 * views). The first view does not depend on the number of views.

    Raises:
        WorkError: the image is corrupt or not supported.
    """
    image = decode(encoded, path, exif_rotation=spec.exif_rotation)
    if not spec.train:
        return np.asarray(_resize_and_crop(image, spec.size))
    if spec.views == 1:
        return np.asarray(_augment(spec, image, seed))
    views: list[NDArray[np.uint8]] = []
    for view in range(spec.views):
        view_seed = seed ^ (view * _VIEW_SEED)
        views.append(np.asarray(_augment(spec, image, view_seed)))
    return np.concatenate(views, axis=-1)


def make_images(
    spec: TransformSpec, encoded: Sequence[bytes], seeds: Iterable[int], paths: Sequence[str]
) -> NDArray[np.uint8]:
    """Apply `make_image` to N encoded images. All streams use this function, so their pixels are the same.

    Args:
        encoded, seeds, paths: Arguments of `make_image` for each of the N images.

    Returns:
        uint8 array (N, size, size, 3 * views).

    Raises:
        WorkError: an image is corrupt or not supported.
    """
    images = np.empty((len(encoded), spec.size, spec.size, 3 * spec.views), np.uint8)
    for k, (content, seed, path) in enumerate(zip(encoded, seeds, paths, strict=True)):
        images[k] = make_image(spec, content, int(seed), path=path)
    return images


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size`, as Resize does. Return the central square, as CenterCrop does."""
    longer = int(size * max(image.size) / min(image.size))
    width = size
    height = size
    if image.width <= image.height:
        height = longer
    else:
        width = longer
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left = round((width - size) / 2.0)
    top = round((height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))


def _augment(spec: TransformSpec, image: Image.Image, seed: int) -> Image.Image:
    """Return a random crop of an image, resized to a square and, at random, flipped and jittered."""
    rng = np.random.Generator(np.random.PCG64(seed))
    # The crop is sampled last, because it takes a varying number of draws, which would shift later draws.
    flipped = rng.random() < spec.flip
    offsets = rng.uniform(-1.0, 1.0, size=3)
    order = rng.permutation(3)
    left, top, width, height = _crop_box(rng, image.size, spec.crop_scale)
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((spec.size, spec.size), Image.Resampling.BICUBIC)
    if flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if spec.jitter > 0:
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for k in order:
            image = enhancers[k](image).enhance(1.0 + spec.jitter * float(offsets[k]))
    return image


def _crop_box(
    rng: np.random.Generator, size: tuple[int, int], scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Sample (left, top, width, height) of a crop in pixels, as RandomResizedCrop does.

    If `CROP_ATTEMPTS` crops do not fit into the image, return the largest central crop whose aspect ratio is
    in the range `CROP_ASPECT_RATIOS`.

    Args:
        size: Width and height of the image in pixels.
        scale: Range of the crop's area as a fraction of the image's area.
    """
    width, height = size
    lowest_ratio, highest_ratio = CROP_ASPECT_RATIOS
    for _ in range(CROP_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(lowest_ratio), math.log(highest_ratio)))
        crop_width = round(math.sqrt(area * ratio))
        crop_height = round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            return left, top, crop_width, crop_height
    ratio = min(max(width / height, lowest_ratio), highest_ratio)
    crop_width = min(width, round(height * ratio))
    crop_height = min(height, round(width / ratio))
    left = (width - crop_width) // 2
    top = (height - crop_height) // 2
    return left, top, crop_width, crop_height
