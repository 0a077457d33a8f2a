"""Rendered datasets: equal arguments give equal pixels, and splits are disjoint."""

import hashlib
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prometar.data.datasets import dataset
from prometar.embedded.datasets import RENDERED
from prometar.embedded.rendered import FIRST_SEEDS, RenderedSet, image_path
from prometar.embedded.textures import TEXTURES
from prometar.embedded.weights import MINI_VOCABULARY
from prometar.errors import UserError

# SHA-256 over the pixels of image 0 of every class. A change here changes every figure on the dataset.
PIXELS = {
    "textures": "6aaf8f9d2bcf00df8659b29719a0760a6f68226bf276951d20f8e9373524675c",
    "cells": "34fabef557081d01383b4ff95e0154d9d1fddb2e564a936170aaa01a074814f8",
    "charts": "8cc547055738331836ac832eb660da0a4eb556dcc5f0ee36417de9f6e10afbda",
}
every_set = pytest.mark.parametrize("rendered", RENDERED.values(), ids=RENDERED.keys())


@every_set
def test_pixels_are_pinned(rendered: RenderedSet[Any]) -> None:
    digest = hashlib.sha256()
    for name in rendered.classnames:
        digest.update(rendered.render(name, 0).tobytes())
    assert digest.hexdigest() == PIXELS[rendered.name]


@every_set
def test_an_image_is_rendered_once_however_many_the_dataset_has(
    rendered: RenderedSet[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [path for split in rendered.counts for path in rendered.paths(split)]
    encoded = []

    class Counting:
        def encode(self, path: str) -> bytes:
            encoded.append(path)
            return b""

    monkeypatch.setitem(RENDERED, "counting", Counting())  # type: ignore[arg-type]
    dataset._render.cache_clear()
    for _ in range(2):
        dataset.RenderedSource("counting").read_many(paths)
    dataset._render.cache_clear()
    assert encoded == paths


@every_set
def test_paths_are_in_order_and_splits_share_no_seed(rendered: RenderedSet[Any]) -> None:
    names = rendered.classnames
    seen = []
    assert list(names) == sorted(names)
    for split, count in rendered.counts.items():
        paths = rendered.paths(split)
        assert len(paths) == len(names) * count
        assert paths[0] == f"{names[0]}/{split}_0000.png"
        seen += [rendered.locate(path) for path in paths]
    assert len(seen) == len(set(seen))
    assert max(seed for _, seed in seen) < FIRST_SEEDS["pretrain"]


def test_the_vocabulary_of_mini_names_no_class() -> None:
    ours = {word for each in RENDERED.values() for word in (*each.classnames, *each.families)}
    assert len(MINI_VOCABULARY) == len(set(MINI_VOCABULARY)) == 100
    assert not ours & set(MINI_VOCABULARY)


def test_encoded_pixels_are_the_rendered_ones() -> None:
    path = image_path("woven", "test", 7)
    with Image.open(io.BytesIO(TEXTURES.encode(path))) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), TEXTURES.render(*TEXTURES.locate(path)))


@pytest.mark.parametrize(
    "path",
    [
        "grid/train_0032.png",
        "grid/train_00003.png",
        "nowhere/train_0000.png",
        "grid/other_0000.png",
        "../etc/passwd",
    ],
)
def test_unknown_paths_are_rejected(path: str) -> None:
    with pytest.raises(UserError, match="textures has no image"):
        TEXTURES.locate(path)
