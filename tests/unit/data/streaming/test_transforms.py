"""Transforms need only Pillow and numpy, depend only on spec and seed, and equal CLIP's in evaluations."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torchvision.transforms.v2 as torchvision_transforms
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from prometar.data.streaming.transforms import TransformSpec, decode, make_image
from prometar.errors import WorkError


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """Return an image file of the format `kind`. `options`: arguments of `Image.save`."""
    buffer = io.BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encoded(width: int = 70, height: int = 50, mode: str = "RGB", kind: str = "PNG") -> bytes:
    """Return an image file of the format `kind` with random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return saved(Image.fromarray(pixels).convert(mode), kind)


@pytest.mark.parametrize("size", [(70, 50), (50, 70), (51, 71), (32, 32), (32, 97), (20, 301), (16, 16)])
def test_evaluation_equals_clip_resize_and_centre_crop(size: tuple[int, int]) -> None:
    file = encoded(*size)
    bicubic = torchvision_transforms.InterpolationMode.BICUBIC
    resize = torchvision_transforms.Resize(32, interpolation=bicubic)
    crop = torchvision_transforms.CenterCrop(32)
    original = Image.open(io.BytesIO(file)).convert("RGB")
    expected = np.asarray(crop(resize(original)))

    image = make_image(TransformSpec(32, train=False), file, seed=0)

    assert image.dtype == np.uint8
    assert np.array_equal(image, expected)


@given(
    st.integers(1, 80),
    st.integers(1, 80),
    st.integers(0, 2**63 - 1),
    st.floats(0, 1),
    st.sampled_from([1, 2]),
)
def test_a_training_image_has_the_size_of_the_spec_and_repeats(
    width: int, height: int, seed: int, jitter: float, views: int
) -> None:
    spec = TransformSpec(24, train=True, jitter=jitter, views=views)
    file = encoded(width, height)
    image = make_image(spec, file, seed)
    assert image.shape == (24, 24, 3 * views)
    assert np.array_equal(image, make_image(spec, file, seed))


def test_training_crops_are_spread_as_the_scale_says() -> None:
    # On a horizontal ramp, the range of the crop's values shows its width.
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    file = saved(np.ascontiguousarray(ramp))
    squared_widths = []
    spec = TransformSpec(32, train=True, flip=0.0)
    for seed in range(400):
        image = make_image(spec, file, seed).astype(float)
        steps_between_outer_pixels = (image[0, -1, 0] - image[0, 0, 0]) / 255
        width = steps_between_outer_pixels * 32 / 31  # there are 31 steps between 32 pixel centres
        squared_widths.append(width**2)
    # A squared width is the crop's area times its aspect ratio (3/4 to 4/3). Areas are from 0.08 to 1.
    assert 0.04 < min(squared_widths) < 0.1  # the least area, times an aspect ratio
    assert 0.4 < np.mean(squared_widths) < 0.62  # the mean area is (0.08 + 1) / 2 = 0.54


def flips(scale: tuple[float, float]) -> list[bool]:
    """Return for each of 300 seeds whether the image is flipped. The probability is 0.25."""
    left = np.zeros((40, 40, 3), np.uint8)
    left[:, :20] = 255
    file = saved(left)
    spec = TransformSpec(8, train=True, crop_scale=scale, flip=0.25)
    images = [make_image(spec, file, seed) for seed in range(300)]
    return [bool(image[4, -1, 0] > image[4, 0, 0]) for image in images]


def test_images_are_flipped_with_the_probability_of_the_spec() -> None:
    assert 0.18 < np.mean(flips((1.0, 1.0))) < 0.33


def test_a_seed_flips_alike_whatever_the_crop() -> None:
    assert flips((0.95, 1.0)) == flips((1.0, 1.0))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"  # PNG files cannot contain CMYK
    file = encoded(mode=mode, kind=kind)
    image = make_image(TransformSpec(16, train=False), file, 0)
    assert image.shape == (16, 16, 3)


def test_palette_with_transparency_is_read_without_a_warning() -> None:
    file = saved(Image.new("P", (20, 20)), transparency=bytes([0, 128]))
    assert decode(file).mode == "RGB"


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no image", id="text"),
        pytest.param(encoded(kind="JPEG")[:300], id="cut jpeg"),
        pytest.param(encoded()[:200], id="cut png"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", id="postscript"),
    ],
)
def test_the_error_for_a_broken_image_is_one_line_with_its_path(file: bytes) -> None:
    with pytest.raises(WorkError) as caught:
        make_image(TransformSpec(16, train=False), file, 0, path="dots/x.jpg")
    assert "dots/x.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_stream_imports_neither_torch_nor_ray() -> None:
    code = "import sys, prometar.data.streaming.stream; print('torch' in sys.modules, 'ray' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


WHITE_RATIO = 65535 // 255  # white in 16 bits, divided by white in 8 bits


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_to_8_bits(kind: str) -> None:
    """Pillow would clip values at 255, which makes the image nearly white."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    if kind == "PPM":
        file = b"P5 16 16 65535 " + (grey.astype(">u2") * WHITE_RATIO).tobytes()
    else:
        file = saved(grey.astype(np.uint16) * WHITE_RATIO, kind)
    expected = decode(saved(grey))
    assert np.array_equal(np.asarray(decode(file)), np.asarray(expected))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixel_types_without_a_defined_white_are_refused(dtype: type) -> None:
    with pytest.raises(WorkError, match=r"a\.tif: its pixels are (floating-point|32-bit) numbers"):
        decode(saved(np.ones((8, 8), dtype), "TIFF"), "a.tif")


def header_only(width: int, height: int) -> bytes:
    """Return the header of a PPM file. The pixels that it announces are missing."""
    return f"P6 {width} {height} 255 ".encode()


@pytest.mark.parametrize("size", [(60_000, 1), (1, 8_000_000), (101, 1), (1, 101)])
def test_aspect_ratios_above_100_are_refused_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(WorkError, match=r"Cannot use image a\.ppm: the aspect ratio"):
        decode(header_only(*size), "a.ppm")


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((10_000, 10_000), id="of which Pillow only warns"),
        pytest.param((14_000, 14_000), id="that Pillow refuses"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # the limit also holds for users who switch Pillow's warning off
def test_numbers_of_pixels_above_the_limit_are_refused_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(WorkError, match=r"Cannot use image a\.ppm: Image size"):
        decode(header_only(*size), "a.ppm")


def photo(orientation: int | None) -> bytes:
    """Return a photo, left half white, with an EXIF orientation tag (None: without one).

    The pixels are the same for every tag.
    """
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40] = 255
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    return saved(pixels, exif=exif)


# Orientations 1 to 8 are defined. The invalid values 0 and 9 are ignored.
every_orientation = pytest.mark.parametrize("orientation", [None, *range(10)])


@every_orientation
def test_a_photo_is_decoded_upright_only_if_exif_rotation_is_on(orientation: int | None) -> None:
    file = photo(orientation)
    stored = Image.open(io.BytesIO(file))
    upright = ImageOps.exif_transpose(stored)
    assert np.array_equal(np.asarray(decode(file, exif_rotation=True)), np.asarray(upright))
    assert np.array_equal(np.asarray(decode(file)), np.asarray(stored))


@every_orientation
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_a_transform_with_exif_rotation_treats_a_photo_like_an_upright_image(
    orientation: int | None, train: bool
) -> None:
    file = photo(orientation)
    stored = Image.open(io.BytesIO(file))
    upright = saved(ImageOps.exif_transpose(stored))
    spec = TransformSpec(16, train, exif_rotation=True)
    assert np.array_equal(make_image(spec, file, seed=3), make_image(spec, upright, seed=3))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_photo_with_corrupt_exif_data_is_read() -> None:
    file = saved(Image.new("RGB", (8, 4)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(file, exif_rotation=True).size == (8, 4)


def test_the_error_for_a_photo_in_heic_format_with_another_suffix_says_what_to_do() -> None:
    start_of_heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    expected = r"a\.jpg: not an image, but a photo in HEIC format\. Convert it to JPEG\."
    with pytest.raises(WorkError, match=expected):
        decode(start_of_heic + bytes(100), "a.jpg")


def test_a_second_view_is_another_augmentation_and_leaves_the_first_as_it_is() -> None:
    file = encoded(60, 40)
    single_view = make_image(TransformSpec(16, train=True), file, seed=5)

    two_views = make_image(TransformSpec(16, train=True, views=2), file, seed=5)

    assert two_views.shape == (16, 16, 6)
    assert np.array_equal(two_views[..., :3], single_view)
    assert not np.array_equal(two_views[..., 3:], single_view)
