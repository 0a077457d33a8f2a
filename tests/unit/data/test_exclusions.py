"""Excluded images: no run reads them, and the draws of all other images stay the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from prometar import run_folder
from prometar.config.settings import Config, configure
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import Dataset
from prometar.data.preparation.prepare import prepare
from prometar.data.splits.objective import FINAL, FewShotSplit, split_dataset
from prometar.errors import UserError
from prometar.run_folder import used_same_images
from prometar.training.run_result import read_result
from tests.support.copies import write_tree
from tests.support.small import BACKBONE

TREE: list[str] = []
for name in ("ash", "fir", "oak", "yew"):
    TREE += [f"{name}/{k}.png" for k in range(12)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Folder with the images `TREE`, 12 in each of four classes."""
    return write_tree(tmp_path / "photos", TREE)


def split(dataset: Dataset, *, seed: int = 1) -> FewShotSplit:
    """Return the images of a final test with 2 shots."""
    return split_dataset(FINAL, dataset, shots=2, seed=seed)


def excluding(dataset: Dataset, *paths: str) -> Dataset:
    """Return the dataset with only these paths excluded."""
    return replace(dataset, excluded=frozenset(paths))


def test_an_excluded_training_image_is_replaced_by_the_next_of_its_class(photos: Path) -> None:
    dataset = open_dataset("folder", photos)
    before = split(dataset)
    for drawn in before.train:
        after = split(excluding(dataset, drawn.path))

        [replacement] = set(after.train) - set(before.train)
        assert replacement.label == drawn.label
        assert replacement.classname == drawn.classname
        kept = [item for item in after.train if item != replacement]
        assert kept == [item for item in before.train if item != drawn]
        assert after.evaluations == before.evaluations


def test_an_excluded_test_image_is_left_out(photos: Path) -> None:
    dataset = open_dataset("folder", photos)
    before = split(dataset)
    excluded = before.evaluations["new"][0]

    after = split(excluding(dataset, excluded.path))

    assert after.train == before.train
    assert after.evaluations["base"] == before.evaluations["base"]
    assert after.evaluations["new"] == before.evaluations["new"][1:]


def test_a_byte_order_mark_does_not_belong_to_the_first_excluded_path(photos: Path) -> None:
    (photos / "excluded.txt").write_text("oak/3.png\nyew/1.png\n", "utf-8-sig")
    assert open_dataset("folder", photos).excluded == {"oak/3.png", "yew/1.png"}


def test_excluding_an_image_that_is_not_used_changes_nothing(photos: Path) -> None:
    dataset = open_dataset("folder", photos)
    before = split(dataset)
    used_paths = {item.path for item in before.train}
    unused = next(item for item in dataset.train if item.path not in used_paths)
    assert split(excluding(dataset, unused.path)) == before


@pytest.mark.parametrize("kind", ["train", "test"])
def test_a_class_without_images_is_refused(kind: str, photos: Path) -> None:
    dataset = open_dataset("folder", photos)
    paths = [item.path for item in dataset.splits[kind] if item.classname == "fir"]
    expected = r"All .* images of 'fir'.* are excluded\. Every class needs images\."
    with pytest.raises(UserError, match=expected):
        split(excluding(dataset, *paths))


def test_an_excluded_path_without_a_file_is_refused(photos: Path) -> None:
    """A deleted file would change the split of all images into train, val and test."""
    (photos / "excluded.txt").write_text("\nash/1.png\nash/99.png\n")
    expected = r"excluded\.txt, line 3: 'ash/99\.png' is not an image of the dataset"
    with pytest.raises(UserError, match=expected):
        open_dataset("folder", photos)


def test_an_empty_file_may_take_the_place_of_an_excluded_image(photos: Path) -> None:
    (photos / "excluded.txt").write_text("ash/1.png\nash/99.png\n")
    (photos / "ash/99.png").touch()
    assert open_dataset("folder", photos).excluded == {"ash/1.png", "ash/99.png"}


def test_a_benchmark_may_lack_an_excluded_image(own_dtd: Path) -> None:
    complete = open_dataset("dtd", own_dtd)
    path = complete.test[0].path
    (own_dtd / "dtd/images" / path).unlink()
    with pytest.raises(UserError, match="1 of 32 images are missing"):
        open_dataset("dtd", own_dtd)

    (own_dtd / "dtd/excluded.txt").write_text(path)
    incomplete = open_dataset("dtd", own_dtd)

    assert incomplete.digest == complete.digest
    assert path not in {item.path for item in split(incomplete).evaluations["base"]}


def test_a_prepared_copy_has_the_same_exclusions(photos: Path, tmp_path: Path) -> None:
    (photos / "ash/1.png").write_bytes(b"no image")
    (photos / "excluded.txt").write_text("ash/1.png\n")

    prepare("folder", photos, tmp_path / "copy")

    copy = open_dataset("folder", tmp_path / "copy")
    original = open_dataset("folder", photos)
    assert copy.excluded == original.excluded == {"ash/1.png"}
    assert copy.digest == original.digest
    assert split(copy) == split(original)


def config_of(photos: Path) -> Config:
    """Return the configuration of a short run on the images of a folder."""
    settings = {"data.name": "folder", "data.root": str(photos), "data.shots": 2, "train.epochs": 1}
    return configure("zero-shot", {**BACKBONE, **settings})


def test_a_run_is_affected_only_by_images_that_it_uses(photos: Path, tmp_path: Path) -> None:
    config = config_of(photos)
    run_folder.train_run(config, tmp_path / "run")
    result = read_result(tmp_path / "run")
    assert result.excluded == ()
    assert used_same_images(result, config)

    images = split(open_dataset("folder", photos), seed=config.train.seed)
    used_items = [*images.train, *images.evaluations["base"], *images.evaluations["new"]]
    used_path = used_items[0].path
    unused_path = min(set(TREE) - {item.path for item in used_items})

    (photos / "excluded.txt").write_text(used_path)
    assert not used_same_images(result, config)
    (photos / "excluded.txt").write_text(unused_path)
    assert used_same_images(result, config)
