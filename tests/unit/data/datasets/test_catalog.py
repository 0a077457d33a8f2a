"""Datasets are opened by name. If something is missing or invalid, the error says what to do."""

import json
import pickle
from dataclasses import replace
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
    entries = json.loads((small_dtd / "dtd" / SPLIT).read_text())
    for split, items in dataset.splits.items():
        assert [[item.path, item.label, item.classname] for item in items] == entries[split]
    assert dataset.classnames == ("banded", "dotted", "grid", "lined", "porous", "woven")


def test_an_image_of_dtd_is_read_from_its_file(small_dtd: Path) -> None:
    dataset = open_dataset("dtd", small_dtd)
    path = dataset.train[0].path
    content = (small_dtd / "dtd/images" / path).read_bytes()
    assert dataset.source.read_many([path]) == [content]


def test_textures_need_no_data_root_and_ignore_it(tmp_path: Path) -> None:
    dataset = open_dataset("textures")
    assert len(dataset.classnames) == 32
    assert open_dataset("textures", tmp_path) == dataset


def test_a_worker_renders_the_same_textures() -> None:
    dataset = open_dataset("textures")
    received_source = pickle.loads(pickle.dumps(dataset.source))
    for item in (dataset.train[0], dataset.val[-1], dataset.test[-1]):
        [image] = dataset.source.read_many([item.path])
        assert received_source.read_many([item.path]) == [image]
        assert make_image(TransformSpec(64, train=False), image, seed=0).shape == (64, 64, 3)


def test_the_error_for_an_unknown_name_lists_the_known_names() -> None:
    message = open_error("dtt", None)
    for name in ("'dtt'", *BUILT_IN_NAMES):
        assert name in message


def test_the_error_without_a_data_root_says_which_folder_it_must_contain() -> None:
    assert "--data-root DIR, the folder that contains dtd/" in open_error("dtd", None)


def test_the_error_for_a_missing_data_root_names_it_and_the_download(tmp_path: Path) -> None:
    message = open_error("dtd", tmp_path / "no")
    assert str(tmp_path / "no") in message
    assert message.endswith("or run `prometar data download dtd`.")


def test_the_error_for_imagenet_without_a_data_root_says_where_to_get_it() -> None:
    message = open_error("imagenet", None)
    assert (
        "--data-root DIR, the folder that contains imagenet/. Get ILSVRC 2012 from image-net.org." in message
    )
    assert "prometar data download" not in message


def test_the_error_for_a_folder_of_images_names_the_dataset_of_own_images(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    assert f"use the dataset `folder`, and pass --data-root {folder}." in open_error(str(folder), None)


def test_the_error_for_a_missing_dataset_folder_names_it(own_dtd: Path) -> None:
    (own_dtd / "dtd").rename(own_dtd / "moved")
    assert str(own_dtd / "dtd") in open_error("dtd", own_dtd)


@pytest.mark.parametrize(
    ("train", "problem"),
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
def test_the_error_for_a_malformed_split_file_names_the_entry(
    own_dtd: Path, train: Any, problem: str
) -> None:
    file = own_dtd / "dtd" / SPLIT
    file.write_text(json.dumps({"train": train, "val": [], "test": []}))
    message = open_error("dtd", own_dtd)
    assert f"split file {file}" in message
    assert problem in message


@pytest.mark.parametrize("name", ["", "  ", "_", "\u00a0", "\u200b", "a\0b", "a\nb", "\x1b[31m"])
def test_a_class_name_that_cannot_be_used_in_a_prompt_is_refused(
    own_dtd: Path, tmp_path: Path, name: str
) -> None:
    file = own_dtd / "dtd" / SPLIT
    file.write_text(file.read_text().replace('"grid"', json.dumps(name)))
    problem = f"calls label 2 {name!a}, which "

    assert problem in open_error("dtd", own_dtd)

    [list_error], _, _ = check("dtd", own_dtd)
    assert problem in list_error

    with pytest.raises(UserError, match="calls label 2"):
        prepare("dtd", own_dtd, tmp_path / "to")
    assert not (tmp_path / "to").exists()


def use_loader_that_returns(dataset: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every custom loader return `dataset`."""

    def load(root: str | None) -> object:
        return dataset

    monkeypatch.setattr(catalog, "instantiate", lambda name, args: load)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("train", (Item("a", 0, None),), id="no class name"),  # type: ignore[arg-type]
        pytest.param("train", (Item("a", "0", "a"),), id="label is text"),  # type: ignore[arg-type]
        pytest.param("train", (("a", 0, "a"),), id="no items"),
        pytest.param("templates", {"photo": "{} {}"}, id="two places for the class name"),
        pytest.param("template", None, id="no template"),
    ],
)
def test_an_invalid_field_of_a_custom_dataset_is_refused(
    field: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    valid = Dataset("own", "own", train=(), val=(), test=(), source=FolderSource("."), template="a {}.")
    invalid = replace(valid, **{field: value})
    use_loader_that_returns(invalid, monkeypatch)
    assert "own:Loader must return " in open_error("own:Loader", None)


def test_a_custom_loader_that_returns_no_dataset_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    use_loader_that_returns(None, monkeypatch)
    assert "own:Loader must return a Dataset, got NoneType" in open_error("own:Loader", None)
