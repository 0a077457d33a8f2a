"""Pixels: Pillow and numpy only, decided by spec and seed, CLIP's evaluation transform."""

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
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encoded(width: int = 70, height: int = 50, mode: str = "RGB", kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return saved(Image.fromarray(pixels).convert(mode), kind)


@pytest.mark.parametrize("size", [(70, 50), (50, 70), (51, 71), (32, 32), (32, 97), (20, 301), (16, 16)])
def test_evaluation_equals_clip_resize_and_centre_crop(size: tuple[int, int]) -> None:
    file = encoded(*size)
    bicubic = torchvision_transforms.InterpolationMode.BICUBIC
    clip = torchvision_transforms.Compose(
        [torchvision_transforms.Resize(32, interpolation=bicubic), torchvision_transforms.CenterCrop(32)]
    )
    want = np.asarray(clip(Image.open(io.BytesIO(file)).convert("RGB")))
    got = make_image(TransformSpec(32, train=False), file, seed=0)
    assert got.dtype == np.uint8
    assert np.array_equal(got, want)


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 2**63 - 1), st.floats(0, 1))
def test_training_always_gives_size_and_repeats(width: int, height: int, seed: int, jitter: float) -> None:
    spec = TransformSpec(24, train=True, jitter=jitter)
    file = encoded(width, height)
    image = make_image(spec, file, seed)
    assert image.shape == (24, 24, 3)
    assert np.array_equal(image, make_image(spec, file, seed))


def test_training_crops_are_spread_as_the_scale_says() -> None:
    # horizontal ramp: the crop's width shows in the range of its values
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    file = saved(np.ascontiguousarray(ramp))
    areas = []
    spec = TransformSpec(32, train=True, flip=0.0)
    for seed in range(400):
        image = make_image(spec, file, seed).astype(float)
        width = (image[0, -1, 0] - image[0, 0, 0]) / 255 * 32 / 31
        areas.append(width**2)
    assert 0.04 < min(areas) < 0.1
    assert 0.4 < np.mean(areas) < 0.62  # (0.08 + 1) / 2 in the mean


def test_flip_probability_and_its_independence_of_the_crop() -> None:
    left = np.zeros((40, 40, 3), np.uint8)
    left[:, :20] = 255
    file = saved(left)

    def flips(scale: tuple[float, float]) -> list[bool]:
        spec = TransformSpec(8, train=True, crop_scale=scale, flip=0.25)
        images = [make_image(spec, file, seed) for seed in range(300)]
        return [bool(image[4, -1, 0] > image[4, 0, 0]) for image in images]

    whole = flips((1.0, 1.0))
    assert 0.18 < np.mean(whole) < 0.33
    assert flips((0.95, 1.0)) == whole


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    file = encoded(mode=mode, kind="TIFF" if mode == "CMYK" else "PNG")
    image = make_image(TransformSpec(16, train=False), file, 0)
    assert image.shape == (16, 16, 3)


def test_palette_with_transparency_is_read_without_a_warning() -> None:
    file = saved(Image.new("P", (20, 20)), transparency=bytes([0, 128]))
    assert decode(file).mode == "RGB"


@pytest.mark.parametrize(
    "file",
    [b"", b"no image", encoded(kind="JPEG")[:300], encoded()[:-30][:200], b"%!PS-Adobe-3.0 EPSF-3.0\n"],
    ids=["empty", "text", "cut jpeg", "cut png", "postscript"],
)
def test_a_broken_image_is_one_line_with_its_path(file: bytes) -> None:
    with pytest.raises(WorkError) as caught:
        make_image(TransformSpec(16, train=False), file, 0, path="dots/x.jpg")
    assert "dots/x.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_workers_import_no_torch() -> None:
    code = "import sys, prometar.data.streaming.stream; print('torch' in sys.modules, 'ray' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey_are_the_picture_that_eight_are(kind: str) -> None:
    """Clipped at 255, they would be nearly white."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    if kind == "PPM":
        wide = b"P5 16 16 65535 " + (grey.astype(">u2") * 257).tobytes()
    else:
        wide = saved(grey.astype(np.uint16) * 257, kind)
    assert np.array_equal(np.asarray(decode(wide)), np.asarray(decode(saved(grey))))


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_white_are_refused(dtype: type) -> None:
    with pytest.raises(WorkError, match=r"a\.tif: its pixels are (floating-point|32-bit) numbers"):
        decode(saved(np.ones((8, 8), dtype), "TIFF"), "a.tif")


@pytest.mark.parametrize(
    "size", [(60_000, 1), (1, 8_000_000), (101, 1), (1, 101), (10_000, 10_000), (14_000, 14_000)]
)
@pytest.mark.filterwarnings("ignore")  # the limit is not a warning that users could switch off
def test_extreme_sizes_are_refused_undecoded(size: tuple[int, int]) -> None:
    """By the header alone: the pixels that it promises are not there."""
    header = f"P6 {size[0]} {size[1]} 255 ".encode()
    with pytest.raises(WorkError, match=r"Cannot use image a\.ppm: (the aspect ratio|Image size)"):
        decode(header, "a.ppm")


def photo(orientation: int | None) -> bytes:
    """A landscape photo whose left half is white, stored as a camera does that was held in another way."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40] = 255
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", [None, *range(10)])
def test_exif_rotation_is_applied_where_a_dataset_wants_it(orientation: int | None) -> None:
    encoded = photo(orientation)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))
    assert np.array_equal(np.asarray(decode(encoded, exif_rotation=True)), expected)
    assert np.array_equal(np.asarray(decode(encoded)), np.asarray(Image.open(io.BytesIO(encoded))))
    for train in (True, False):
        upright = Image.fromarray(expected)
        stored = io.BytesIO()
        upright.save(stored, "PNG")
        spec = TransformSpec(16, train, exif_rotation=True)
        assert np.array_equal(make_image(spec, encoded, 3), make_image(spec, stored.getvalue(), 3))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_corrupt_exif_data_are_no_reason_to_reject_a_photo() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 4)).save(stream, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(stream.getvalue(), exif_rotation=True).size == (8, 4)


def test_a_photo_in_heic_format_with_another_suffix_says_what_to_do() -> None:
    expected = r"a\.jpg: not an image, but a photo in HEIC format\. Convert it to JPEG\."
    with pytest.raises(WorkError, match=expected):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "a.jpg")


def test_a_second_view_is_another_augmentation_and_leaves_the_first_as_it_is() -> None:
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(content, "PNG")
    one = make_image(TransformSpec(16, train=True), content.getvalue(), seed=5)
    two = make_image(TransformSpec(16, train=True, views=2), content.getvalue(), seed=5)
    assert two.shape == (16, 16, 6)
    assert np.array_equal(two[..., :3], one)
    assert not np.array_equal(two[..., 3:], one)
    again = make_image(TransformSpec(16, train=True, views=2), content.getvalue(), seed=5)
    assert np.array_equal(two, again)
