"""Opening datasets, and what a user is told when something is missing."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prometar.data.datasets import catalog
from prometar.data.datasets.catalog import known, open_dataset
from prometar.data.datasets.dataset import Dataset, Item, classnames
from prometar.data.datasets.sources import FolderSource
from prometar.data.preparation.check import check
from prometar.data.preparation.prepare import prepare
from prometar.data.streaming.transforms import TransformSpec, apply
from prometar.errors import UserError

SPLIT = "split_zhou_DescribableTextures.json"


def fails(name: str, root: Path | None) -> str:
    with pytest.raises(UserError) as caught:
        open_dataset(name, root)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_dtd_keeps_the_split_files_order(small_dtd: Path) -> None:
    dataset = open_dataset("dtd", small_dtd)
    tree = json.loads((small_dtd / "dtd" / SPLIT).read_text())
    for split, items in dataset.splits.items():
        assert [[i.path, i.label, i.classname] for i in items] == tree[split]
    assert dataset.classnames == ("banded", "dotted", "grid", "lined", "porous", "woven")
    assert dataset.template == "{} texture."
    path = dataset.train[0].path
    assert dataset.source.read_many([path]) == [(small_dtd / "dtd/images" / path).read_bytes()]


def test_textures_need_no_root_and_are_rendered(tmp_path: Path) -> None:
    dataset = open_dataset("textures")
    assert len(dataset.classnames) >= 24
    assert open_dataset("textures", tmp_path) == dataset
    again = pickle.loads(pickle.dumps(dataset.source))
    for item in (dataset.train[0], dataset.val[-1], dataset.test[-1]):
        first, second = dataset.source.read_many([item.path]), again.read_many([item.path])
        assert first == second
        assert apply(TransformSpec(64, train=False), first[0], 0).shape == (64, 64, 3)


def test_unknown_name_lists_the_known_ones() -> None:
    message = fails("dtt", None)
    assert all(name in message for name in ("'dtt'", *known()))


def test_missing_root_names_the_option(tmp_path: Path) -> None:
    assert "--data-root DIR, the folder that holds dtd/" in fails("dtd", None)
    assert str(tmp_path / "no") in fails("dtd", tmp_path / "no")
    assert fails("dtd", "data").endswith("or get it with `prometar data download dtd`")


def test_missing_parts_name_themselves(own_dtd: Path) -> None:
    image = next((own_dtd / "dtd/images/grid").iterdir())
    image.unlink()
    message = fails("dtd", own_dtd)
    assert str(image) in message
    assert "1 of 32 images" in message
    (own_dtd / "dtd" / SPLIT).unlink()
    message = fails("dtd", own_dtd)
    assert SPLIT in message
    assert "never made up" in message
    (own_dtd / "dtd/images").rename(own_dtd / "dtd/other")
    assert str(own_dtd / "dtd/images") in fails("dtd", own_dtd)
    (own_dtd / "dtd").rename(own_dtd / "moved")
    assert str(own_dtd / "dtd") in fails("dtd", own_dtd)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "not JSON"),
        ("[]", "must hold the lists train, val, test"),
        ('{"train": [], "val": []}', "must hold the lists"),
        ('{"train": [], "val": [], "test": []}', "no training images"),
        ('{"train": [["a.jpg", 9223372036854775808, "a"]], "val": [], "test": []}', "entry 0: label 9223"),
        ('{"train": [["a.jpg", "0", "a"]], "val": [], "test": []}', "train entry 0"),
        ('{"train": [["a.jpg", 0]], "val": [], "test": []}', "expected [path, label, class name]"),
        ('{"train": [["../a.jpg", 0, "a"]], "val": [], "test": []}', "leaves the image folder"),
        ('{"train": [["/etc/passwd", 0, "a"]], "val": [], "test": []}', "leaves the image folder"),
        ('{"train": [["a.jpg", 0, "a"]], "val": [["a.jpg", 0, "a"]], "test": []}', "lists a.jpg twice"),
        ('{"train": [["a.jpg", 0, "a"], ["b.jpg", 0, "b"]], "val": [], "test": []}', "both 'a' and 'b'"),
    ],
)
def test_a_malformed_split_file_says_where(own_dtd: Path, text: str, part: str) -> None:
    (own_dtd / "dtd" / SPLIT).write_text(text)
    message = fails("dtd", own_dtd)
    assert SPLIT in message or "split file" in message
    assert part in message


@pytest.mark.parametrize(
    "name", ["", "  ", "_", "\u00a0", "\u200b", "a\0b", "a\nb", "\x1b[31m", "a\ud800", "\udcff"]
)
def test_a_class_name_that_no_prompt_can_hold(own_dtd: Path, tmp_path: Path, name: str) -> None:
    file = own_dtd / "dtd" / SPLIT
    file.write_text(file.read_text().replace('"grid"', json.dumps(name)))
    assert f"calls label 2 {name!a}, which " in fails("dtd", own_dtd)
    assert [f"calls label 2 {name!a}, which" in line for line in check("dtd", own_dtd).problems] == [True]
    with pytest.raises(UserError, match="calls label 2"):
        prepare("dtd", own_dtd, tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("path", ["grid/\udcff.jpg", "a\0b"])
def test_a_path_that_no_record_can_hold(own_dtd: Path, path: str) -> None:
    """Also where the file is there: a name that is not UTF-8 is one for Linux, and none for a shard."""
    file = own_dtd / "dtd" / SPLIT
    split = json.loads(file.read_text())
    if path == "grid/\udcff.jpg":
        (own_dtd / "dtd" / "images" / path).write_bytes(
            (own_dtd / "dtd/images" / split["train"][0][0]).read_bytes()
        )
    split["train"][0][0] = path
    file.write_text(json.dumps(split))
    assert f"train entry 0: path {path!a} is not UTF-8" in fails("dtd", own_dtd)


@pytest.mark.parametrize(
    "item",
    [Item("a", 0, None), Item(None, 0, "a"), Item("\ud800", 0, "a"), Item("a", "0", "a"), "a"],  # type: ignore[arg-type]
)
def test_a_loader_of_ones_own_returns_items(item: Item, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Dataset("own", "own", (item,), (), (), FolderSource("."), "a {}.")
    monkeypatch.setattr(catalog, "make", lambda *_: lambda root: found)
    assert "own:Loader must return items of a path, a label and a class name, found " in fails(
        "own:Loader", None
    )


@pytest.mark.parametrize("template", ["a photo.", "{} {}", "{0}", None])
def test_a_loader_of_ones_own_returns_a_template(template: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Dataset("own", "own", (), (), (), FolderSource("."), "a {}.", wordings={"photo": template})
    monkeypatch.setattr(catalog, "make", lambda *_: lambda root: found)
    assert "own:Loader must return a template with one {} for the class's name, found " in fails(
        "own:Loader", None
    )


def test_an_image_lost_later_is_named(own_dtd: Path) -> None:
    dataset = open_dataset("dtd", own_dtd)
    path = dataset.train[0].path
    (own_dtd / "dtd/images" / path).unlink()
    with pytest.raises(UserError, match=r"cannot read image .*No such file"):
        dataset.source.read_many([path])


def test_classnames_come_in_label_order_even_if_labels_are_sparse() -> None:
    assert classnames([Item("a", 7, "x"), Item("b", 2, "y"), Item("c", 7, "x")]) == ("y", "x")


def test_check_says_which_images_cannot_be_read_rightly(own_dtd: Path) -> None:
    first = json.loads((own_dtd / "dtd" / SPLIT).read_text())["train"][0][0]
    Image.fromarray(np.ones((50, 50), np.float32)).save(own_dtd / "dtd" / "images" / first, "TIFF")
    (broken,) = check("dtd", own_dtd).broken
    assert broken.path == first
    assert "its pixels are floating-point numbers" in broken.message
