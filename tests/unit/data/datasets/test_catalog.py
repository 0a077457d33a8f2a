"""Opening datasets, and what a user is told when something is missing."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from prometar.data.datasets import catalog
from prometar.data.datasets.catalog import BUILT_IN_NAMES, open_dataset
from prometar.data.datasets.dataset import Dataset, FolderSource, Item
from prometar.data.preparation.check import check
from prometar.data.preparation.prepare import prepare
from prometar.data.streaming.transforms import TransformSpec, make_image
from prometar.errors import UserError
from tests.support.copies import open_error

SPLIT = "split_zhou_DescribableTextures.json"


def test_dtd_keeps_the_split_files_order(small_dtd: Path) -> None:
    dataset = open_dataset("dtd", small_dtd)
    tree = json.loads((small_dtd / "dtd" / SPLIT).read_text())
    for split, items in dataset.splits.items():
        assert [[i.path, i.label, i.classname] for i in items] == tree[split]
    assert dataset.classnames == ("banded", "dotted", "grid", "lined", "porous", "woven")
    path = dataset.train[0].path
    assert dataset.source.read_many([path]) == [(small_dtd / "dtd/images" / path).read_bytes()]


def test_textures_need_no_root_and_are_rendered(tmp_path: Path) -> None:
    dataset = open_dataset("textures")
    assert len(dataset.classnames) == 32
    assert open_dataset("textures", tmp_path) == dataset
    again = pickle.loads(pickle.dumps(dataset.source))
    for item in (dataset.train[0], dataset.val[-1], dataset.test[-1]):
        first = dataset.source.read_many([item.path])
        second = again.read_many([item.path])
        assert first == second
        spec = TransformSpec(64, train=False)
        assert make_image(spec, first[0], 0).shape == (64, 64, 3)


def test_unknown_name_lists_the_known_ones() -> None:
    message = open_error("dtt", None)
    assert all(name in message for name in ("'dtt'", *BUILT_IN_NAMES))


def test_a_missing_root_or_folder_is_named(own_dtd: Path, tmp_path: Path) -> None:
    assert "--data-root DIR, the folder that contains dtd/" in open_error("dtd", None)
    assert str(tmp_path / "no") in open_error("dtd", tmp_path / "no")
    assert open_error("dtd", Path("data")).endswith("or run `prometar data download dtd`.")
    (own_dtd / "dtd").rename(own_dtd / "moved")
    assert str(own_dtd / "dtd") in open_error("dtd", own_dtd)


@pytest.mark.parametrize(
    ("train", "part"),
    [
        ([], "train: List should have at least 1 item"),
        (3, "train must be a valid array"),
        ([["a.jpg", 9223372036854775808, "a"]], "train.0.1 must be at most 1000"),
        ([["a.jpg", "0", "a"]], "train.0.1 must be a valid integer, got '0'"),
        ([["a.jpg", True, "a"]], "train.0.1 must be a valid integer, got True"),
        ([["a.jpg", 0]], "train.0.2: a value is required"),
        ([["a\ud800.jpg", 0, "a"]], "Invalid JSON"),
        ([["a.jpg", "0", "a"]] * 9, "and 4 more"),
        ([["../a.jpg", 0, "a"]], "lists ../a.jpg, which points outside the image folder"),
        ([["/etc/passwd", 0, "a"]], "lists /etc/passwd, which points outside the image folder"),
        ([["a\0b", 0, "a"]], "which is not UTF-8 or contains a NUL"),
        ([["a.jpg", 0, "a"], ["a.jpg", 0, "a"]], "lists a.jpg twice"),
        ([["a.jpg", 0, "a"], ["b.jpg", 0, "b"]], "both 'a' and 'b'"),
    ],
)
def test_a_malformed_split_file_says_where(own_dtd: Path, train: Any, part: str) -> None:
    file = own_dtd / "dtd" / SPLIT
    file.write_text(json.dumps({"train": train, "val": [], "test": []}))
    message = open_error("dtd", own_dtd)
    assert f"split file {file}" in message
    assert part in message


@pytest.mark.parametrize("name", ["", "  ", "_", "\u00a0", "\u200b", "a\0b", "a\nb", "\x1b[31m"])
def test_a_class_name_that_no_prompt_can_hold(own_dtd: Path, tmp_path: Path, name: str) -> None:
    file = own_dtd / "dtd" / SPLIT
    file.write_text(file.read_text().replace('"grid"', json.dumps(name)))
    assert f"calls label 2 {name!a}, which " in open_error("dtd", own_dtd)
    [problem], _, _ = check("dtd", own_dtd)
    assert f"calls label 2 {name!a}, which" in problem
    with pytest.raises(UserError, match="calls label 2"):
        prepare("dtd", own_dtd, tmp_path / "to")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"train": (Item("a", 0, None),)},  # type: ignore[arg-type]
        {"train": (Item("a", "0", "a"),)},  # type: ignore[arg-type]
        {"train": (("a", 0, "a"),)},
        {"templates": {"photo": "{} {}"}},
        {"template": None},
    ],
    ids=str,
)
def test_a_custom_loader_returns_items(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"train": (), "val": (), "test": (), "source": FolderSource("."), "template": "a {}."}
    found = Dataset("own", "own", **{**fields, **change})
    monkeypatch.setattr(catalog, "instantiate", lambda *_: lambda root: found)
    assert "own:Loader must return " in open_error("own:Loader", None)
    monkeypatch.setattr(catalog, "instantiate", lambda *_: lambda root: None)
    assert "own:Loader must return a Dataset, got NoneType" in open_error("own:Loader", None)
