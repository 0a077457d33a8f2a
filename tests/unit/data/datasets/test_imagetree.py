"""`--dataset folder`: folders of images, which are split by folders or automatically."""

import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from prometar.cli.app import main
from prometar.data.datasets.catalog import open_dataset, reject_output_in_dataset
from prometar.data.datasets.imagetree import SPLIT_NOTE, split_paths
from prometar.data.preparation.check import check
from prometar.data.preparation.prepare import prepare
from prometar.data.splits.objective import split_dataset
from prometar.errors import UserError
from tests.support.copies import write_tree
from tests.support.texts import ANY

TREE = [
    "train/cat/1.png",
    "train/cat/2.png",
    "train/dog/1.png",
    "train/dog/2.png",
    "val/cat/1.png",
    "val/cat/2.png",
    "val/dog/1.png",
    "val/dog/2.png",
    "test/cat/1.png",
    "test/cat/2.png",
    "test/dog/1.png",
    "test/dog/2.png",
]
"""Images in split folders."""


def ten_images_each(*names: str) -> list[str]:
    """Return the paths of images in class folders."""
    paths: list[str] = []
    for name in names:
        paths += [f"{name}/{k}.jpg" for k in range(10)]
    return paths


FLAT = ten_images_each("oak_tree", "pine", "yew")
FOUR_CLASSES = ten_images_each("ash", "fir", "oak_tree", "yew")


def test_split_folders_are_kept_and_need_no_note(tmp_path: Path) -> None:
    dataset = open_dataset("folder", write_tree(tmp_path, TREE))
    assert dataset.splits.keys() == {"train", "val", "test"}
    for split, items in dataset.splits.items():
        assert [item.path for item in items] == sorted(path for path in TREE if path.startswith(split))
    assert dataset.note == ""


def test_a_tree_has_its_folders_as_class_names_and_a_general_template(tmp_path: Path) -> None:
    dataset = open_dataset("folder", write_tree(tmp_path, TREE))
    assert dataset.name == "folder"
    assert dataset.classnames == ("cat", "dog")
    assert [item.label for item in dataset.test] == [0, 0, 1, 1]
    assert dataset.template == "a photo of a {}."


@pytest.mark.parametrize("splits", [("train", "test"), ("test",)], ids="+".join)
def test_val_and_train_may_be_missing(tmp_path: Path, splits: tuple[str, ...]) -> None:
    write_tree(tmp_path, [path for path in TREE if path.split("/")[0] in splits])
    counts = {split: len(items) for split, items in open_dataset("folder", tmp_path).splits.items()}
    expected = {"train": 0, "val": 0, "test": 0}
    for split in splits:
        expected[split] = 4
    assert counts == expected


def test_half_of_each_class_is_trained_on_and_the_rest_is_val_and_test(tmp_path: Path) -> None:
    dataset = open_dataset("folder", write_tree(tmp_path, FLAT))
    assert dataset.classnames == ("oak_tree", "pine", "yew")
    num_per_class = {"train": 5, "val": 2, "test": 3}
    assert dataset.splits.keys() == num_per_class.keys()
    for split, items in dataset.splits.items():
        counts = Counter(item.classname for item in items)
        assert counts == dict.fromkeys(dataset.classnames, num_per_class[split])
    assert sorted(item.path for item in dataset.items) == sorted(FLAT)


def test_the_note_states_the_shares_of_an_automatic_split(tmp_path: Path) -> None:
    dataset = open_dataset("folder", write_tree(tmp_path, FLAT))
    assert dataset.note == SPLIT_NOTE
    assert "30% of each class are test images, 20% val, the rest train" in SPLIT_NOTE


def test_an_automatic_split_does_not_change_between_versions(tmp_path: Path) -> None:
    dataset = open_dataset("folder", write_tree(tmp_path, FLAT))
    first_test_paths = [item.path for item in dataset.test[:3]]
    # These paths are recorded, because the results of users depend on the split.
    assert first_test_paths == ["oak_tree/1.jpg", "oak_tree/8.jpg", "oak_tree/9.jpg"]


path_sets = st.sets(st.text(ANY, min_size=1), min_size=3, max_size=60)


@given(path_sets)
def test_an_automatic_split_is_a_partition_with_the_documented_sizes(paths: set[str]) -> None:
    splits = split_paths(sorted(paths))
    assert sorted([*splits["train"], *splits["val"], *splits["test"]]) == sorted(paths)
    assert len(splits["test"]) == max(1, len(paths) * 3 // 10)
    assert len(splits["val"]) == max(1, len(paths) // 5)
    assert splits["train"]


@given(path_sets, st.integers(0, 99))
def test_an_automatic_split_does_not_depend_on_the_order_of_paths(paths: set[str], seed: int) -> None:
    shuffled = random.Random(seed).sample(sorted(paths), len(paths))
    assert split_paths(shuffled) == split_paths(sorted(paths))


def test_the_note_counts_files_without_an_image_suffix_except_hidden_ones(tmp_path: Path) -> None:
    write_tree(tmp_path, TREE)
    (tmp_path / "labels.csv").write_text("")
    (tmp_path / "train/cat/notes.txt").write_text("")
    write_tree(tmp_path / ".git", ["notes.txt"])
    (tmp_path / "train/cat/.DS_Store").write_text("")

    note = open_dataset("folder", tmp_path).note

    assert note == "2 files without an image suffix are skipped, such as labels.csv"
    _, _, summary_and_notes = check("folder", tmp_path)
    assert note in summary_and_notes


def test_the_note_says_which_photos_are_skipped_and_how_to_include_them(tmp_path: Path) -> None:
    write_tree(tmp_path, [*TREE, "stray.jpg", "train/stray.png"])
    (tmp_path / "train/cat/IMG_1.HEIC").write_bytes(b"")
    assert open_dataset("folder", tmp_path).note == (
        "1 photos in HEIC format are skipped (convert them to JPEG), such as train/cat/IMG_1.HEIC; "
        "2 images outside the class folders are skipped, such as stray.jpg"
    )


@pytest.fixture
def chosen_base(tmp_path: Path) -> Path:
    """Image folder of four classes whose base_classes.txt contains the last two."""
    tree = write_tree(tmp_path / "tree", FOUR_CLASSES)
    (tree / "base_classes.txt").write_text("Oak tree\n\nyew\n")
    return tree


def test_base_classes_txt_chooses_the_base_classes(chosen_base: Path) -> None:
    dataset = open_dataset("folder", chosen_base)
    assert dataset.base_labels == (2, 3)
    assert dataset.note == SPLIT_NOTE


def test_base_classes_txt_changes_the_digest_so_that_no_study_resumes_with_it(chosen_base: Path) -> None:
    chosen = open_dataset("folder", chosen_base)
    (chosen_base / "base_classes.txt").unlink()
    default = open_dataset("folder", chosen_base)
    assert default.base_labels == (0, 1)
    assert chosen.digest != default.digest


def test_a_study_trains_and_scores_on_the_chosen_base_classes(chosen_base: Path) -> None:
    dataset = open_dataset("folder", chosen_base)
    final = split_dataset("final", dataset, shots=2, seed=1)
    assert final.classnames == ("oak_tree", "yew")
    assert {item.classname for item in final.evaluations["new"]} == {"ash", "fir"}

    search = split_dataset("drift", dataset, shots=2, seed=1)
    assert {item.classname for item in search.evaluations["base"]} == {"oak_tree", "yew"}


def test_a_prepared_copy_has_the_chosen_base_classes_and_check_lists_them(
    chosen_base: Path, tmp_path: Path
) -> None:
    prepare("folder", chosen_base, tmp_path / "copy")
    assert open_dataset("folder", tmp_path / "copy").digest == open_dataset("folder", chosen_base).digest
    _, _, summary_and_notes = check("folder", tmp_path / "copy")
    assert "base classes: oak_tree, yew" in summary_and_notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oak\nyew", "base_classes.txt, line 1: 'oak' is not a class folder."),
        ("yew\nash\nYEW", "base_classes.txt, line 3: yew is listed twice. Delete one of the lines."),
        ("yew", "lists 1 base classes, so 3 classes are new. List at least 2, and omit at least 2."),
        ("yew\nash\nfir", "lists 3 base classes, so 1 classes are new."),
    ],
)
def test_a_mistake_in_base_classes_txt_is_named(tmp_path: Path, text: str, message: str) -> None:
    write_tree(tmp_path, FOUR_CLASSES)
    (tmp_path / "base_classes.txt").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)):
        open_dataset("folder", tmp_path)


def test_check_reports_photos_with_an_exif_rotation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path, TREE)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "train/cat/phone.jpg", exif=exif)
    assert main(["data", "check", "folder", "--data-root", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "1 images have an EXIF rotation, which is applied. The first is train/cat/phone.jpg\n" in text


def test_check_reports_test_images_that_are_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path, TREE)
    for split in ("train", "test"):
        Image.new("RGB", (9, 9)).save(tmp_path / split / "dog/same.png")
    assert main(["data", "check", "folder", "--data-root", str(tmp_path)]) == 0
    assert (
        "test images are identical to training or validation images, so test accuracies are too high. "
        "The first is test/"
    ) in capsys.readouterr().out


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_tree(tmp_path, ten_images_each("train", "ship"))
    dataset = open_dataset("folder", tmp_path)
    assert dataset.classnames == ("ship", "train")


MISTAKES = {
    "only images": (["1.jpg"], "{} has no class folders. Put each class's images into its own folder."),
    "one class": (["cat/1.jpg"], "{} has only one class folder (cat). Add at least one more."),
    "nested": (
        [f"photos/{path}" for path in TREE],
        "{} contains only the folder {}/photos. Pass --data-root {}/photos.",
    ),
    "nested classes": (
        [f"photos/{path}" for path in FLAT],
        "{} contains only the folder {}/photos. Pass --data-root {}/photos.",
    ),
    "training and testing": (
        [path.replace("train", "training").replace("test", "testing") for path in TREE],
        "{} has the folder testing. Rename it to test.",
    ),
    "Train": (
        [path.replace("train", "Train") for path in TREE],
        "{} has the folder Train. Rename it to train.",
    ),
    "few images": (
        ["cat/1.jpg", "dog/1.jpg"],
        "{}/cat has 1 images. An automatic split into train, val and test needs at least 3",
    ),
    "an empty class": ([*FLAT, "rose/notes.txt"], "Class folder {}/rose has no images"),
    "folders in classes": ([*FLAT, "yew/old/1.jpg"], "Class folder {}/yew contains the folder old."),
    "no test": ([p for p in TREE if p.startswith("train")], "{} has the folders train. Expected train and"),
    "no train": ([p for p in TREE if not p.startswith("train")], "{} has the folders test, val. Expected"),
    "a strange split": ([*TREE, "valid/cat/1.jpg"], "{} has the folders test, train, val, valid. Expected"),
    "no classes in a split": (
        [*(path for path in TREE if not path.startswith("val")), "val/1.jpg"],
        "{} has the folders test, train, val. ",
    ),
    "class only in test": ([*TREE, "test/eel/1.jpg"], "have different classes, such as 'eel'."),
    "class only in train": ([*TREE, "train/eel/1.jpg"], "have different classes, such as 'eel'."),
    "one class, split": ([p for p in TREE if "cat" in p], "{} has only one class folder (cat)"),
    "the same name": (
        ten_images_each("Red_Oak", "red oak"),
        "{}: the folders 'Red_Oak' and 'red oak' name the same class",
    ),
}
"""Paths of images, and the error message for them. In the message, {} stands for the image folder."""


@pytest.mark.parametrize(("paths", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_an_image_folder_is_explained_in_one_line(
    tmp_path: Path, paths: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path, paths)
    assert main(["data", "check", "folder", "--data-root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message.replace("{}", str(tmp_path)) in error
    assert error.count("\n") == 1


def test_a_class_of_photos_in_heic_format_says_what_to_do(tmp_path: Path) -> None:
    write_tree(tmp_path, FLAT)
    (tmp_path / "zelkova").mkdir()
    (tmp_path / "zelkova/1.heic").write_bytes(b"")
    with pytest.raises(UserError, match=r"zelkova has only photos in HEIC format\. Convert them to JPEG\."):
        open_dataset("folder", tmp_path)


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, FLAT)
    (tmp_path / "yew/1.jpg").rename(tmp_path / "yew" / os.fsdecode(b"\xff.jpg"))
    with pytest.raises(UserError, match=r"lists 'yew/\\udcff.jpg', which is not UTF-8"):
        open_dataset("folder", tmp_path)


def test_a_prepared_copy_keeps_the_split_and_its_note(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", FLAT)
    prepare("folder", tree, tmp_path / "copy")
    copy = open_dataset("folder", tmp_path / "copy")
    assert copy.splits == open_dataset("folder", tree).splits
    assert copy.note == SPLIT_NOTE


def test_a_copy_cannot_be_prepared_in_the_image_folder(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", FLAT)
    for to in (tree, tree / "copy"):
        with pytest.raises(UserError, match="own folder"):
            prepare("folder", tree, to)


def test_an_output_folder_inside_the_image_folder_is_refused(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", FLAT)
    (tmp_path / "link").symlink_to(tree)
    for folder in (tree, tree / "out", tree / "yew/out", tmp_path / "link/out"):
        with pytest.raises(UserError, match=rf"^{tree}.* lies in the dataset's own folder\. Choose another "):
            reject_output_in_dataset(folder, "folder", str(tree))


def test_an_output_folder_that_no_dataset_reads_as_a_class_is_accepted(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", FLAT)
    reject_output_in_dataset(tmp_path / "out", "folder", str(tree))
    reject_output_in_dataset(tmp_path / "tree-out", "folder", str(tree))
    # dtd and prepared copies have a file that lists their images, so they may contain an output folder.
    reject_output_in_dataset(tree / "out", "dtd", str(tree))
    prepare("folder", tree, tmp_path / "copy")
    reject_output_in_dataset(tmp_path / "copy/out", "folder", tmp_path / "copy")
