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

TREE = [f"{name}/{k}.png" for name in ("ash", "fir", "oak", "yew") for k in range(12)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "photos", TREE)


def split(dataset: Dataset, objective: str = FINAL, *, shots: int = 2, seed: int = 1) -> FewShotSplit:
    return split_dataset(objective, dataset, shots=shots, seed=seed, val_per_class=1)


def excluding(dataset: Dataset, *paths: str) -> Dataset:
    return replace(dataset, excluded=frozenset(paths))


def test_an_excluded_training_image_is_replaced_by_the_next_of_its_class(photos: Path) -> None:
    dataset = open_dataset("folder", photos)
    before = split(dataset)
    for drawn in before.train:
        after = split(excluding(dataset, drawn.path))
        (new,) = set(after.train) - set(before.train)
        assert (new.label, new.classname) == (drawn.label, drawn.classname)
        kept = [item for item in after.train if item != new]
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


def test_a_byte_order_mark_is_no_part_of_the_first_excluded_path(photos: Path) -> None:
    (photos / "excluded.txt").write_text("oak/3.png\nyew/1.png\n", "utf-8-sig")
    assert open_dataset("folder", photos).excluded == {"oak/3.png", "yew/1.png"}


def test_an_image_that_no_run_uses_can_be_excluded_without_a_change(photos: Path) -> None:
    dataset = open_dataset("folder", photos)
    before = split(dataset)
    unused = next(item for item in dataset.train if item.path not in {each.path for each in before.train})
    assert split(excluding(dataset, unused.path)) == before


@pytest.mark.parametrize("kind", ["train", "test"])
def test_a_class_without_images_is_refused(kind: str, photos: Path) -> None:
    dataset = open_dataset("folder", photos)
    paths = [item.path for item in dataset.splits[kind] if item.classname == "fir"]
    with pytest.raises(
        UserError, match=r"All .* images of 'fir'.* are excluded\. Every class needs images\."
    ):
        split(excluding(dataset, *paths))


def test_a_path_that_is_no_image_is_refused(photos: Path) -> None:
    """A deleted file would change the split of all images into train, val and test."""
    (photos / "excluded.txt").write_text("\nash/1.png\nash/99.png\n")
    with pytest.raises(
        UserError, match=r"excluded\.txt, line 3: 'ash/99\.png' is not an image of the dataset"
    ):
        open_dataset("folder", photos)
    (photos / "ash/99.png").touch()
    assert open_dataset("folder", photos).excluded == {"ash/1.png", "ash/99.png"}


def test_a_benchmark_may_lack_an_excluded_image(own_dtd: Path) -> None:
    dataset = open_dataset("dtd", own_dtd)
    path = dataset.test[0].path
    (own_dtd / "dtd/images" / path).unlink()
    with pytest.raises(UserError, match="1 of 32 images are missing"):
        open_dataset("dtd", own_dtd)
    (own_dtd / "dtd/excluded.txt").write_text(path)
    found = open_dataset("dtd", own_dtd)
    assert found.digest == dataset.digest
    assert path not in {item.path for item in split(found).evaluations["base"]}


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
    values = {"data.name": "folder", "data.root": str(photos), "data.shots": 2, "train.epochs": 1}
    return configure("zero-shot", {**BACKBONE, **values})


def test_a_run_is_affected_only_by_images_that_it_uses(photos: Path, tmp_path: Path) -> None:
    config = config_of(photos)
    run_folder.train_run(config, tmp_path / "run")
    result = read_result(tmp_path / "run")
    assert result.excluded == ()
    dataset = open_dataset("folder", photos)
    before = split(dataset, seed=config.train.seed)
    used = {item.path for item in (*before.train, *before.evaluations["base"], *before.evaluations["new"])}
    for path, is_used in ((before.train[0].path, True), (min({*TREE} - used), False)):
        (photos / "excluded.txt").write_text(path)
        assert used_same_images(result, config) is not is_used
    (photos / "excluded.txt").unlink()
    assert used_same_images(result, config)
