"""Texts of classes are read from a JSON file. Problems of the file are reported in one line."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from prometar.data.datasets import class_texts
from prometar.data.datasets.class_texts import read_texts, texts_of
from prometar.errors import InfrastructureError, UserError


def write_texts(folder: Path, content: object) -> Path:
    """Write texts.json, and return its path."""
    path = folder / "texts.json"
    path.write_text(json.dumps(content), "utf-8")
    return path


def test_names_match_whatever_their_case_and_underscores(tmp_path: Path) -> None:
    path = write_texts(tmp_path, {"Ceiling fan": ["a fan.", "it turns."], "rhino": ["grey."]})
    texts, _ = read_texts(path)
    found = texts_of(texts, ["rhino", "ceiling_fan"], path=str(path), equal_numbers=False)
    assert found == [("grey.",), ("a fan.", "it turns.")]


def test_the_digest_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    path = write_texts(tmp_path, {"rhino": ["grey."]})
    _, digest = read_texts(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([], "must map class names to lists of texts"),
        ({}, "must map class names to lists of texts"),
        ({"rhino": []}, "'rhino' must have a list of at least one text"),
        ({"rhino": "grey"}, "'rhino' must have a list of at least one text"),
        ({"rhino": [3]}, "'rhino' must have a list of at least one text"),
    ],
)
def test_a_file_of_another_form_is_refused(content: object, problem: str, tmp_path: Path) -> None:
    path = write_texts(tmp_path, content)
    with pytest.raises(UserError, match=problem):
        read_texts(path)


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Check the path"):
        read_texts(tmp_path / "nowhere.json")


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_texts(tmp_path / "bad.json")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_failing_disk_is_an_error_of_the_machine(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(class_texts, "read_bytes", fail)
    with pytest.raises(InfrastructureError, match="Check the disk and the mounts of this machine"):
        read_texts(tmp_path / "texts.json")


def test_classes_without_texts_are_named() -> None:
    texts = {"rhino": ("grey.", "big.")}
    names = ["rhino", "lynx", "boar", "hare", "seal"]
    with pytest.raises(UserError, match="has no texts for lynx, boar, hare and 1 more"):
        texts_of(texts, names, path="x", equal_numbers=False)


def test_different_numbers_of_texts_are_refused_if_they_must_be_equal() -> None:
    texts = {"rhino": ("grey.", "big."), "pug": ("small.",)}
    with pytest.raises(UserError, match="equally many texts for each class, but x has 1 to 2"):
        texts_of(texts, ["rhino", "pug"], path="x", equal_numbers=True)
