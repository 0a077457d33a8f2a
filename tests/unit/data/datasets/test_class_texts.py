"""Texts of classes are read from a JSON file, or one line says what is wrong with the file."""

import errno
import json
import os
from pathlib import Path

import pytest

from prometar.data.datasets import class_texts
from prometar.data.datasets.class_texts import read_texts, texts_of
from prometar.errors import InfrastructureError, UserError


def written(path: Path, tree: object) -> Path:
    path.write_text(json.dumps(tree), "utf-8")
    return path


def test_names_match_whatever_their_case_and_underscores(tmp_path: Path) -> None:
    path = written(tmp_path / "texts.json", {"Ceiling fan": ["a fan.", "it turns."], "rhino": ["grey."]})
    texts, digest = read_texts(path)
    found = texts_of(texts, ["rhino", "ceiling_fan"], path=str(path), equal_numbers=False)
    assert found == [("grey.",), ("a fan.", "it turns.")]
    assert len(digest) == 64


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ([], "must map class names to lists of texts"),
        ({}, "must map class names to lists of texts"),
        ({"rhino": []}, "'rhino' must have a list of at least one text"),
        ({"rhino": "grey"}, "'rhino' must have a list of at least one text"),
        ({"rhino": [3]}, "'rhino' must have a list of at least one text"),
    ],
)
def test_a_file_of_another_form_is_refused(tree: object, problem: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=problem):
        read_texts(written(tmp_path / "texts.json", tree))


def test_a_missing_file_and_a_file_that_is_not_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Check the path"):
        read_texts(tmp_path / "nowhere.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_texts(tmp_path / "bad.json")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_failing_disk_is_a_fault_of_the_machine(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(class_texts, "read_bytes", failing)
    with pytest.raises(InfrastructureError, match="Check the disk and the mounts of this machine"):
        read_texts(tmp_path / "texts.json")


def test_missing_classes_and_unequal_numbers_are_named(tmp_path: Path) -> None:
    path = written(tmp_path / "texts.json", {"rhino": ["grey.", "big."], "pug": ["small."]})
    texts, _ = read_texts(path)
    with pytest.raises(UserError, match="has no texts for lynx, boar, hare and 1 more"):
        texts_of(texts, ["rhino", "lynx", "boar", "hare", "seal"], path="x", equal_numbers=False)
    with pytest.raises(UserError, match="equally many texts for each class, but x has 1 to 2"):
        texts_of(texts, ["rhino", "pug"], path="x", equal_numbers=True)
