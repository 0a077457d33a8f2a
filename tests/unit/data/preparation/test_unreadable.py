"""Images are decoded once before a study. Corrupt images are reported, and so are faults of a disk."""

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

TREE: list[str] = []
for name in ("ash", "fir", "oak", "yew"):
    TREE += [f"{name}/{k}.png" for k in range(5)]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Dataset of the images `TREE`, with an empty cache folder."""
    monkeypatch.setenv("PROMETAR_CACHE", str(tmp_path / "cache"))
    return open_dataset("folder", write_tree(tmp_path / "photos", TREE))


def decode_all(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], dict[str, str]]:
    """Call `unreadable_images` for a dataset. Return the sorted paths of decoded images, and the errors."""
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
    photo_folder = tmp_path / "photos"
    (photo_folder / "fir/2.png").write_bytes(b"no image")
    for expected_paths in (sorted(TREE), ["fir/2.png"]):  # the second call decodes only the corrupt image
        paths, errors = decode_all(photos, monkeypatch)
        assert paths == expected_paths
        assert errors.keys() == {"fir/2.png"}
        assert "fir/2.png: not an image" in errors["fir/2.png"]

    write_tree(photo_folder, ["fir/2.png"])
    os.utime(photo_folder / "yew/0.png", ns=(1, 1))
    assert decode_all(photos, monkeypatch) == (["fir/2.png", "yew/0.png"], {})
    assert decode_all(photos, monkeypatch) == ([], {})


def test_the_number_of_images_to_decode_is_reported_unless_it_is_0(photos: Dataset) -> None:
    numbers: list[int] = []
    for _ in range(2):
        assert unreadable_images(photos, photos.test, on_start=numbers.append) == {}
    assert numbers == [len(photos.test)]


def test_if_the_record_is_damaged_all_images_are_decoded_again(
    photos: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unreadable_images(photos, photos.items) == {}
    [record] = (tmp_path / "cache/decoded-images").iterdir()
    record.write_text("[")
    assert decode_all(photos, monkeypatch) == (sorted(TREE), {})


def test_a_record_that_cannot_be_written_is_not_an_error(
    photos: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETAR_CACHE", "/dev/null")
    assert unreadable_images(photos, photos.items) == {}


@pytest.fixture
def with_excluded(photos: Dataset, tmp_path: Path) -> Dataset:
    """The dataset `photos` with a corrupt image that is excluded."""
    (tmp_path / "photos/fir/2.png").write_bytes(b"no image")
    (tmp_path / "photos/excluded.txt").write_text("fir/2.png\n")
    return open_dataset("folder", tmp_path / "photos")


def test_an_excluded_image_is_not_decoded(photos: Dataset, with_excluded: Dataset) -> None:
    used = with_excluded.without_excluded(with_excluded.items)
    assert unreadable_images(with_excluded, used) == {}
    assert with_excluded.digest == photos.digest


def test_check_names_an_excluded_image_but_does_not_decode_it(with_excluded: Dataset, tmp_path: Path) -> None:
    _, errors, (summary, *notes) = check.check("folder", tmp_path / "photos")
    assert errors == []
    assert "all readable" in summary
    assert "excluded: fir/2.png" in notes


def test_a_failing_disk_is_an_error_of_the_machine(photos: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(dataset_module, "read_bytes", fail)
    expected = r"^Cannot read image .*\.png \(Input/output error\) on \S+\. Check the disk and the mounts of"
    with pytest.raises(InfrastructureError, match=expected):
        unreadable_images(photos, photos.items)


def test_a_missing_image_is_an_error_of_the_user(photos: Dataset, tmp_path: Path) -> None:
    (tmp_path / "photos/yew/0.png").unlink()
    with pytest.raises(UserError, match=r"0\.png \(No such file or directory\)\. Restore the file"):
        photos.source.read_many(["yew/0.png"])


def test_a_missing_image_folder_is_an_error_of_the_machine(photos: Dataset, tmp_path: Path) -> None:
    """One machine of a cluster may not have mounted the file system with the images."""
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    with pytest.raises(InfrastructureError, match="Check the disk and the mounts of this machine"):
        photos.source.read_many(["yew/1.png"])
