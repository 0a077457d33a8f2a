"""Rendered datasets: a path always gives the same pixels, and the splits have different images."""

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

# SHA-256 of the pixels of image 0 of every class. If pixels change, so do all results on the dataset.
PIXELS = {
    "textures": "6aaf8f9d2bcf00df8659b29719a0760a6f68226bf276951d20f8e9373524675c",
    "cells": "34fabef557081d01383b4ff95e0154d9d1fddb2e564a936170aaa01a074814f8",
    "charts": "8cc547055738331836ac832eb660da0a4eb556dcc5f0ee36417de9f6e10afbda",
}
every_set = pytest.mark.parametrize("rendered", RENDERED.values(), ids=RENDERED.keys())


def all_paths(rendered: RenderedSet[Any]) -> list[str]:
    """Return the paths of all splits of a dataset."""
    paths: list[str] = []
    for split in rendered.counts:
        paths += rendered.paths(split)
    return paths


@every_set
def test_pixels_equal_those_of_earlier_versions(rendered: RenderedSet[Any]) -> None:
    digest = hashlib.sha256()
    for name in rendered.classnames:
        digest.update(rendered.render(name, 0).tobytes())
    assert digest.hexdigest() == PIXELS[rendered.name]


@every_set
def test_an_image_that_is_read_again_is_not_rendered_again(
    rendered: RenderedSet[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache holds all images of a dataset, which are read in a cycle."""
    paths = all_paths(rendered)
    encoded_paths: list[str] = []

    class RecordingSet:
        def encode(self, path: str) -> bytes:
            encoded_paths.append(path)
            return b""

    monkeypatch.setitem(RENDERED, "recording", RecordingSet())  # type: ignore[arg-type]
    dataset._render.cache_clear()
    for _ in range(2):
        dataset.RenderedSource("recording").read_many(paths)
    dataset._render.cache_clear()

    assert encoded_paths == paths


@every_set
def test_the_paths_of_a_split_are_sorted_by_class(rendered: RenderedSet[Any]) -> None:
    names = rendered.classnames
    assert list(names) == sorted(names)
    for split, count in rendered.counts.items():
        paths = rendered.paths(split)
        assert len(paths) == len(names) * count
        assert paths[0] == f"{names[0]}/{split}_0000.png"
        assert list(paths) == sorted(paths)


@every_set
def test_no_two_images_of_a_class_have_the_same_seed(rendered: RenderedSet[Any]) -> None:
    places = [rendered.locate(path) for path in all_paths(rendered)]
    assert len(places) == len(set(places))


@every_set
def test_mini_was_not_pretrained_on_images_of_a_dataset(rendered: RenderedSet[Any]) -> None:
    for path in all_paths(rendered):
        _, seed = rendered.locate(path)
        assert seed < FIRST_SEEDS["pretrain"]


def test_the_vocabulary_of_mini_consists_of_100_words() -> None:
    assert len(MINI_VOCABULARY) == 100
    assert len(set(MINI_VOCABULARY)) == 100


@every_set
def test_the_vocabulary_of_mini_contains_no_class_or_family(rendered: RenderedSet[Any]) -> None:
    names = {*rendered.classnames, *rendered.families}
    assert names.isdisjoint(MINI_VOCABULARY)


def test_an_encoded_image_has_the_rendered_pixels() -> None:
    path = image_path("woven", "test", 7)
    classname, seed = TEXTURES.locate(path)
    with Image.open(io.BytesIO(TEXTURES.encode(path))) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), TEXTURES.render(classname, seed))


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
