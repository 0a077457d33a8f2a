"""The embedded data set: equal arguments give equal pixels, splits are disjoint, mistakes are named."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from prometar.bundled import textures
from prometar.errors import UserError

# SHA-256 over the pixels of image 0 of every class; a change here changes every figure on `textures`.
PIXELS = "6aaf8f9d2bcf00df8659b29719a0760a6f68226bf276951d20f8e9373524675c"


def test_pixels_are_pinned() -> None:
    digest = hashlib.sha256()
    for name in textures.CLASSNAMES:
        digest.update(textures.render(name, 0).tobytes())
    assert digest.hexdigest() == PIXELS


def test_counts_and_order() -> None:
    assert len(textures.CLASSNAMES) == 32
    assert list(textures.CLASSNAMES) == sorted(textures.CLASSNAMES)
    for split, count in textures.COUNTS.items():
        wanted = textures.paths(split)
        assert len(wanted) == len(set(wanted)) == 32 * count
        assert wanted[0] == f"{textures.CLASSNAMES[0]}/{split}_0000.png"


def test_splits_never_share_a_seed() -> None:
    seen = [textures.locate(path) for split in textures.COUNTS for path in textures.paths(split)]
    assert len(seen) == len(set(seen))
    assert max(seed for _, seed in seen) < textures.FIRST_SEED["pretrain"]


@pytest.mark.parametrize("name", textures.CLASSNAMES)
def test_every_class_renders_and_varies(name: str) -> None:
    first, again, other = (textures.render(name, seed) for seed in (5, 5, 6))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.std() > 4.0


def test_size_is_free() -> None:
    assert textures.render("grid", 1, size=96).shape == (96, 96, 3)


def test_encoded_pixels_are_the_rendered_ones() -> None:
    path = textures.item_path("woven", "test", 7)
    with Image.open(io.BytesIO(textures.encode(path))) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), textures.render_path(path))


@pytest.mark.parametrize(
    "path",
    [
        "grid/train_0032.png",
        "grid/train_00003.png",
        "gird/train_0000.png",
        "grid/trian_0000.png",
        "../etc/passwd",
    ],
)
def test_unknown_paths_are_refused(path: str) -> None:
    with pytest.raises(UserError, match="textures has no image"):
        textures.locate(path)


def test_unknown_class_and_split_are_refused() -> None:
    with pytest.raises(UserError, match="no class 'gird'"):
        textures.render("gird", 0)
    with pytest.raises(UserError, match="no split 'trian'"):
        textures.paths("trian")
