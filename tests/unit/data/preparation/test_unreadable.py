"""Images are decoded once before a study. Corrupt ones are told, and faults of a disk are none of theirs."""

import errno
import os
from pathlib import Path

import pytest

from prometar.data.datasets import dataset as dataset_module
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import Dataset
from prometar.data.preparation import check
from prometar.data.preparation.check import unreadable_images
from prometar.errors import InfrastructureError, UserError
from tests.support.copies import write_tree

TREE = [f"{name}/{k}.png" for name in ("ash", "fir", "oak", "yew") for k in range(5)]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("PROMETAR_CACHE", str(tmp_path / "cache"))
    return open_dataset("folder", write_tree(tmp_path / "photos", TREE))


def decoded_paths(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], dict[str, str]]:
    """Check all images of a dataset. Return the paths of those that were decoded, and the errors."""
    paths: list[str] = []
    decode = check.decode

    def recorded(encoded: bytes, path: str) -> None:
        paths.append(path)
        decode(encoded, path)

    with monkeypatch.context() as patch:
        patch.setattr(check, "decode", recorded)
        errors = unreadable_images(dataset, dataset.items)
    return sorted(set(paths)), errors


def test_an_image_is_decoded_again_only_if_it_has_changed_or_is_corrupt(
    photos: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos/fir/2.png").write_bytes(b"no image")
    for _ in range(2):
        paths, errors = decoded_paths(photos, monkeypatch)
        assert errors.keys() == {"fir/2.png"}
        assert "fir/2.png: not an image" in errors["fir/2.png"]
    assert paths == ["fir/2.png"]
    write_tree(tmp_path / "photos", ["fir/2.png"])
    changed = tmp_path / "photos/yew/0.png"
    os.utime(changed, ns=(1, 1))
    assert decoded_paths(photos, monkeypatch) == (["fir/2.png", "yew/0.png"], {})
    assert decoded_paths(photos, monkeypatch) == ([], {})


def test_the_user_is_told_how_many_images_are_decoded(photos: Dataset) -> None:
    numbers: list[int] = []
    for _ in range(2):
        assert unreadable_images(photos, photos.test, on_start=numbers.append) == {}
    assert numbers == [len(photos.test)]


def test_a_damaged_or_unwritable_record_is_no_problem(
    photos: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unreadable_images(photos, photos.items) == {}
    [record] = (tmp_path / "cache/decoded-images").iterdir()
    record.write_text("[")
    assert decoded_paths(photos, monkeypatch) == (sorted(TREE), {})
    monkeypatch.setenv("PROMETAR_CACHE", "/dev/null")
    assert unreadable_images(photos, photos.items) == {}


def test_an_excluded_image_is_not_decoded(photos: Dataset, tmp_path: Path) -> None:
    (tmp_path / "photos/fir/2.png").write_bytes(b"no image")
    (tmp_path / "photos/excluded.txt").write_text("fir/2.png\n")
    dataset = open_dataset("folder", tmp_path / "photos")
    assert dataset.digest == photos.digest
    assert unreadable_images(dataset, dataset.without_excluded(dataset.items)) == {}
    _, errors, (summary, *notes) = check.check("folder", tmp_path / "photos")
    assert errors == []
    assert "all readable" in summary
    assert "excluded: fir/2.png" in notes


def test_a_disk_that_fails_is_no_fault_of_an_image(photos: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(dataset_module, "read_bytes", fail)
    expected = r"^Cannot read image .*\.png \(Input/output error\) on \S+\. Check the disk and the mounts of"
    with pytest.raises(InfrastructureError, match=expected):
        unreadable_images(photos, photos.items)


def test_a_missing_folder_is_a_fault_of_the_machine_but_a_missing_image_is_not(
    photos: Dataset, tmp_path: Path
) -> None:
    """As of a file system that one machine of a cluster has not mounted."""
    (tmp_path / "photos/yew/0.png").unlink()
    with pytest.raises(UserError, match=r"0\.png \(No such file or directory\)\. Restore the file"):
        photos.source.read_many(["yew/0.png"])
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    with pytest.raises(InfrastructureError, match="Check the disk and the mounts of this machine"):
        photos.source.read_many(["yew/1.png"])
