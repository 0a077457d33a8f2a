"""The embedded suite: equal arguments give equal pixels, splits are disjoint, mistakes are named."""

import hashlib
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.mini.things import THINGS
from prometar.bundled.dataset import FIRST_SEED, RenderedSet, item_path
from prometar.bundled.suite import SUITE
from prometar.bundled.textures import TEXTURES
from prometar.bundled.weights import MINI_VOCABULARY
from prometar.data.datasets.sources import RenderedSource
from prometar.errors import UserError

# SHA-256 over the pixels of image 0 of every class; a change here changes every figure on the data set.
PIXELS = {
    "textures": "6aaf8f9d2bcf00df8659b29719a0760a6f68226bf276951d20f8e9373524675c",
    "flags": "2d1d6dfc7753b2d5ad8b4fddb765b68f189d2cacb7f5e640f41d7cd960cdcabe",
    "leaves": "0b992da72a350dc6de3ad77b3eece99e50bf9335e95404405837df1e37ec4659",
    "cells": "34fabef557081d01383b4ff95e0154d9d1fddb2e564a936170aaa01a074814f8",
    "shapes": "19959a45eb397b4f11091f177257ce0412ed8973a161b69fd61f527829406954",
    "fabrics": "b00d5514beeb357bdd277e2aeaf981931b1c8fa9e46441df3fa19c4ce975f6c5",
    "plots": "fd024ac85f1cd7a8ff5b9f129fa3f2ebedde9086257c9a8927a38274bd86ad99",
    "terrain": "5eab8efd4b42d425e68c2c9e617f9f7a6d6f03b8f8b3710650cde83fc13ae8eb",
    "sketches": "c990d4ba60964678722cd8780d990bc5e5a6b095b8004d21ba43e8e4cd0183ff",
}
every_set = pytest.mark.parametrize("rendered", SUITE.values(), ids=SUITE.keys())


@every_set
def test_pixels_are_pinned(rendered: RenderedSet[Any]) -> None:
    digest = hashlib.sha256()
    for name in rendered.classnames:
        digest.update(rendered.render(name, 0).tobytes())
    assert digest.hexdigest() == PIXELS[rendered.name]


@every_set
def test_counts_and_order(rendered: RenderedSet[Any]) -> None:
    names = rendered.classnames
    assert list(names) == sorted(names)
    assert rendered.counts["train"] >= 16
    for split, count in rendered.counts.items():
        wanted = rendered.paths(split)
        assert len(wanted) == len(set(wanted)) == len(names) * count
        assert wanted[0] == f"{names[0]}/{split}_0000.png"


@every_set
def test_splits_never_share_a_seed(rendered: RenderedSet[Any]) -> None:
    seen = [rendered.locate(path) for split in rendered.counts for path in rendered.paths(split)]
    assert len(seen) == len(set(seen))
    assert max(seed for _, seed in seen) < FIRST_SEED["pretrain"]


@every_set
def test_every_class_renders_and_varies(rendered: RenderedSet[Any]) -> None:
    for name in rendered.classnames:
        first, again, other = (rendered.render(name, seed) for seed in (5, 5, 6))
        assert first.shape == (64, 64, 3)
        assert first.dtype == np.uint8
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
        assert first.std() > 4.0


@every_set
def test_families_hold_every_class_once(rendered: RenderedSet[Any]) -> None:
    members = [name for family in rendered.families.values() for name in family]
    assert sorted(members) == list(rendered.classnames)
    assert not set(rendered.families) & set(rendered.classnames)


def test_the_suite_has_sets_of_both_purposes() -> None:
    purposes = [rendered.purpose for rendered in SUITE.values()]
    assert purposes.count("development") == 4
    assert purposes.count("claim") >= 4
    assert all(name == rendered.name for name, rendered in SUITE.items())
    assert TEXTURES.purpose == "development"


def test_equal_names_in_two_sets_are_drawn_from_other_seeds() -> None:
    both = [each for each in SUITE.values() if "cross" in each.classnames]
    assert len(both) == 2
    assert len({each.salt for each in both}) == 2


def test_foreign_words_name_nothing_in_the_suite() -> None:
    ours = {word for each in SUITE.values() for word in (*each.classnames, *each.families)}
    assert len(MINI_VOCABULARY) == len(set(MINI_VOCABULARY)) == 100
    assert not ours & set(MINI_VOCABULARY)
    assert THINGS.render("dog", 1_000_000).std() > 4.0


def test_size_is_free() -> None:
    assert TEXTURES.render("grid", 1, size=96).shape == (96, 96, 3)


def test_encoded_pixels_are_the_rendered_ones() -> None:
    path = item_path("woven", "test", 7)
    with Image.open(io.BytesIO(TEXTURES.encode(path))) as image:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), TEXTURES.render(*TEXTURES.locate(path)))


def test_a_process_renders_an_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [RenderedSource(each.name) for each in SUITE.values() if "cross" in each.classnames]
    path = item_path("cross", "test", 9)
    first = [source.read_many([path]) for source in both]
    monkeypatch.setattr(RenderedSet, "encode", lambda *_: b"rendered again")
    assert [source.read_many([path]) for source in both] == first
    assert first[0] != first[1], "a set's own"


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
        TEXTURES.locate(path)


def test_unknown_class_and_split_are_refused() -> None:
    with pytest.raises(UserError, match="no class 'gird'"):
        TEXTURES.render("gird", 0)
    with pytest.raises(UserError, match="no split 'trian'"):
        TEXTURES.paths("trian")
