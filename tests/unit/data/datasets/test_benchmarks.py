"""Every row of the table: a small copy opens, is drawn from and checked; a damaged one says what is wrong."""

import json
from pathlib import Path

import pytest

from prometar.cli.app import main
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import Dataset
from prometar.data.datasets.layouts import NumberedFolders, SplitFile, VariantLists, WnidFolders
from prometar.data.preparation.check import check, list_datasets
from prometar.data.preparation.prepare import prepare
from prometar.data.splits.fewshot import base_new, draw, labels_of, val_of_train
from prometar.errors import UserError
from tests.support.copies import CLASSES, COUNTS, NAMES, wnid, write_copy

ALL = sorted(BENCHMARKS)
TEST_ONLY = sorted(name for name, row in BENCHMARKS.items() if not row.sizes.train)


def of(kind: type) -> list[str]:
    return [name for name in ALL if isinstance(BENCHMARKS[name].layout, kind)]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a copy of all fifteen. Do not write into it."""
    root = tmp_path_factory.mktemp("copies")
    for name in ALL:
        write_copy(name, root)
    return root


SENTENCES = {
    "oxford_pets": "a photo of a {}, a type of pet.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "food101": "a photo of {}, a type of food.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "dtd": "a photo of a {}, a type of texture.",
    "eurosat": "a centered satellite photo of {}.",
    "ucf101": "a photo of a person doing {}.",
}
"""What KgCoOp holds the text to; "a photo of a {}." on the others."""


@pytest.mark.parametrize("name", ALL)
def test_a_data_set_has_the_wordings_that_methods_hold_to(name: str, copies: Path) -> None:
    dataset = open_dataset(name, copies)
    assert dataset.wording("photo") == SENTENCES.get(name, "a photo of a {}.")
    assert dataset.wording("template") == dataset.template
    assert dataset.wording("name_last").endswith(" {}.")
    assert set(dataset.wordings) <= {"photo", "name_last"}


def fails(name: str, root: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_dataset(name, root)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_table_has_fifteen_rows_and_each_layout_kind() -> None:
    assert len(BENCHMARKS) == 15
    assert sum(map(len, map(of, (SplitFile, VariantLists, WnidFolders, NumberedFolders)))) == 15
    assert TEST_ONLY == ["imagenet_a", "imagenet_r", "imagenet_sketch", "imagenetv2"]
    for row in BENCHMARKS.values():
        assert bool(row.archives) != bool(row.by_hand), row.name
        assert "{}" in row.template


@pytest.mark.parametrize("name", ALL)
def test_a_copy_opens(copies: Path, name: str) -> None:
    row, dataset = BENCHMARKS[name], open_dataset(name, copies)
    assert (dataset.name, dataset.title, dataset.template) == (name, row.title, row.template)
    want = {split: CLASSES * COUNTS[split] if getattr(row.sizes, split) else 0 for split in COUNTS}
    assert {split: len(items) for split, items in dataset.splits.items()} == want
    assert len(dataset.classnames) == CLASSES
    items = [item for split in dataset.splits.values() for item in split]
    files = dataset.source.read_many([item.path for item in items])
    assert all(file[:2] == b"\xff\xd8" for file in files)
    assert len({item.path for item in items}) == len(items)


@pytest.mark.parametrize("name", sorted(set(ALL) - set(TEST_ONLY)))
def test_a_copy_is_drawn_from_and_halved(copies: Path, name: str) -> None:
    dataset = open_dataset(name, copies)
    train, val = dataset.train, dataset.val
    if not val:
        train, val, _ = val_of_train(train)
    drawn, drawn_val = draw(train, val, shots=2, seed=1)
    assert (len(drawn), len(drawn_val)) == (2 * CLASSES, CLASSES * min(2, len(val) // CLASSES))
    assert not {*drawn} & {*val}
    (base, base_test), (new, new_test) = base_new(drawn, dataset.test)
    assert (len(labels_of(base)), len(labels_of(new))) == (3, 2)
    assert labels_of(base_test) == (0, 1, 2)
    assert labels_of(new_test) == (0, 1)


@pytest.mark.parametrize("name", TEST_ONLY)
def test_a_variant_has_only_test_images(copies: Path, name: str) -> None:
    dataset = open_dataset(name, copies)
    assert dataset.train == dataset.val == ()
    with pytest.raises(UserError, match="for testing only"):
        draw(dataset.train, dataset.val, shots=1, seed=1)


@pytest.mark.parametrize("name", ALL)
def test_check_names_the_published_sizes(copies: Path, name: str) -> None:
    row, found = BENCHMARKS[name], check(name, copies)
    assert found.broken == found.problems == ()
    assert f"classes {CLASSES} of {row.classes}" in found.notes[0]
    assert f"test {CLASSES * COUNTS['test']} of {row.sizes.test}" in found.notes[0]
    assert "tench" in found.notes[-1]


@pytest.mark.parametrize("name", ALL)
def test_a_copy_is_prepared_and_read_back(copies: Path, tmp_path: Path, name: str) -> None:
    prepare(name, copies, tmp_path)
    ours, theirs = open_dataset(name, tmp_path), open_dataset(name, copies)
    assert ours.splits == theirs.splits
    paths = [item.path for item in ours.test]
    assert ours.source.read_many(paths) == theirs.source.read_many(paths)


def test_imagenet_labels_are_ranks_of_the_sorted_folders(copies: Path) -> None:
    dataset = open_dataset("imagenet", copies)
    assert {(i.path.split("/")[1], i.label, i.classname) for i in dataset.train} == {
        (wnid(k), k, NAMES[k]) for k in range(CLASSES)
    }
    assert [i.path for i in dataset.test][:2] == [f"val/{wnid(0)}/test_0.JPEG", f"val/{wnid(0)}/test_1.JPEG"]


def test_variants_are_classified_among_their_own_classes(copies: Path) -> None:
    for name in ("imagenet_a", "imagenet_r", "imagenet_sketch"):
        assert labels_of(open_dataset(name, copies).test) == tuple(range(CLASSES))


def test_imagenetv2_folders_are_numbers_not_names(copies: Path, tmp_path: Path) -> None:
    folder = write_copy("imagenetv2", tmp_path)
    lines = (folder / "classnames.txt").read_text("utf-8")
    images = folder / "imagenetv2-matched-frequency-format-val"
    (folder / "classnames.txt").write_text(lines + "".join(f"{wnid(k)} x{k}\n" for k in range(5, 12)))
    assert str(images) in (message := fails("imagenetv2", tmp_path))
    assert "the folders 0 to 11, one for each line of classnames.txt: 10 is missing" in message
    for k in range(5, 12):
        (images / str(k)).mkdir()
        (images / str(k) / "a.jpeg").write_bytes(b"")
    dataset = open_dataset("imagenetv2", tmp_path)
    assert [i.label for i in dataset.test if i.classname == "x10"] == [10]


PARTS = [(name, part) for name in ALL for part in BENCHMARKS[name].layout.parts]


@pytest.mark.parametrize(("name", "part"), PARTS, ids=[f"{n}-{p}" for n, p in PARTS])
def test_a_missing_part_names_itself_and_how_to_get_it(tmp_path: Path, name: str, part: str) -> None:
    folder = write_copy(name, tmp_path)
    (folder / part).rename(tmp_path / "gone")
    message = fails(name, tmp_path)
    assert f"{folder / part} is missing: " in message
    assert any(word in message for word in ("get ", "data download", "copy it"))


def images_of(dataset: Dataset, folder: Path) -> list[Path]:
    return [folder / item.path for split in dataset.splits.values() for item in split]


@pytest.mark.parametrize("name", ["dtd", "imagenet"])
def test_broken_images_are_all_listed(tmp_path: Path, name: str) -> None:
    write_copy(name, tmp_path)
    dataset = open_dataset(name, tmp_path)
    images = images_of(dataset, Path(dataset.source.folder))  # type: ignore[attr-defined]
    for path in images[::4]:
        path.write_bytes(path.read_bytes()[:99])
    found = check(name, tmp_path)
    assert [one.path for one in found.broken] == [
        item.path for items in dataset.splits.values() for item in items
    ][::4]
    assert all("\n" not in one.message and one.path in one.message for one in found.broken)


@pytest.mark.parametrize("name", ["dtd", "fgvc_aircraft"])
def test_missing_images_stop_opening_and_are_all_listed_by_check(tmp_path: Path, name: str) -> None:
    write_copy(name, tmp_path)
    dataset = open_dataset(name, tmp_path)
    images = images_of(dataset, Path(dataset.source.folder))  # type: ignore[attr-defined]
    for path in images[3:6]:
        path.unlink()
    assert f"3 of 45 images are missing, the first is {images[3]}" in fails(name, tmp_path)
    found = check(name, tmp_path)
    assert [one.message for one in found.broken] == [
        f"cannot read image {path} (No such file or directory): restore it, or pass --data-root with a "
        "complete copy"
        for path in images[3:6]
    ]


@pytest.mark.parametrize("name", [*of(WnidFolders), *of(NumberedFolders)])
def test_a_class_folder_without_images_is_named(tmp_path: Path, name: str) -> None:
    write_copy(name, tmp_path)
    dataset = open_dataset(name, tmp_path)
    folder = Path(dataset.source.folder) / Path(dataset.test[0].path).parent  # type: ignore[attr-defined]
    for path in folder.iterdir():
        path.rename(path.with_suffix(".tar"))
    assert f"class folder {folder} has no images (.jpg, " in fails(name, tmp_path)


@pytest.mark.parametrize("name", ["dtd"])
def test_split_files_that_contradict_themselves(tmp_path: Path, name: str) -> None:
    folder = write_copy(name, tmp_path)
    file = folder / BENCHMARKS[name].layout.parts[-1]
    tree = json.loads(file.read_text("utf-8"))
    tree["val"].append(tree["train"][0])
    tree["test"][0][2] = "another"
    tree["test"][1][2] = "yet another"
    file.write_text(json.dumps(tree), "utf-8")
    assert f"split file {file} lists trains/4_0.jpg twice (train, val)" in fails(name, tmp_path)
    found = check(name, tmp_path)
    assert len(found.problems) == 3
    assert f"calls label 4 both '{NAMES[4]}' and 'another' (at tests/4_0.jpg)" in found.problems[1]


VARIANTS = [
    ("variants.txt", "", "is empty"),
    ("images_variant_val.txt", "0000001 F/A-19\n", "line 1: 'F/A-19' is no class of variants.txt"),
    ("images_variant_val.txt", "0000001\n", "line 1: '' is no class of variants.txt"),
    (
        "images_variant_test.txt",
        "../0000001 tench\n",
        "line 1: path '../0000001.jpg' leaves the image folder",
    ),
    ("images_variant_val.txt", "0000001 tench\n", "lists 0000001.jpg twice (train, val)"),
]


@pytest.mark.parametrize(("file", "text", "message"), VARIANTS, ids=[m for _, _, m in VARIANTS])
def test_wrong_aircraft_lists(tmp_path: Path, file: str, text: str, message: str) -> None:
    folder = write_copy("fgvc_aircraft", tmp_path)
    (folder / file).write_text(text)
    found = fails("fgvc_aircraft", tmp_path)
    assert message in found
    assert str(folder) in found
    (folder / file).write_bytes(b"\xff\xfe\xff")
    assert f"{folder / file} is not text" in fails("fgvc_aircraft", tmp_path)


@pytest.mark.parametrize("name", of(WnidFolders))
def test_wrong_class_names_and_folders(tmp_path: Path, name: str) -> None:
    folder = write_copy(name, tmp_path)
    layout = BENCHMARKS[name].layout
    assert isinstance(layout, WnidFolders)
    images = folder / layout.images / layout.splits[-1][1]
    names = folder / "classnames.txt"
    text = names.read_text("utf-8")
    (images / wnid(4)).rename(images / "n99999999")
    assert f"{images / 'n99999999'} is no class of {names}" in fails(name, tmp_path)
    (images / "n99999999").rename(images / wnid(4))
    for wrong in ("n01440764\n", f"{wnid(0)} tench again\n"):
        names.write_text(text + wrong, "utf-8")
        assert f"{names}, line " in fails(name, tmp_path)
    names.write_text(text, "utf-8")
    (images / wnid(4) / "more").mkdir()
    assert "is a folder in a class folder" in fails(name, tmp_path)


def test_imagenets_splits_must_hold_the_same_classes(tmp_path: Path) -> None:
    folder = write_copy("imagenet", tmp_path)
    (folder / "images/val" / wnid(2)).rename(tmp_path / "gone")
    assert f"hold different classes, such as {wnid(2)}" in fails("imagenet", tmp_path)


def test_list_compares_with_the_published_sizes(
    copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_copy("eurosat", tmp_path)
    (write_copy("dtd", tmp_path) / "images").rename(tmp_path / "gone")
    rows = {row.name: row for row in list_datasets(tmp_path)}
    assert rows["eurosat"].differences[0] == "classes 5 of 10"
    assert "dtd/images is missing" in rows["dtd"].problem
    assert rows["sun397"].where == ""
    assert all(row.counts for row in list_datasets(copies) if row.name in BENCHMARKS)
    assert main(["data", "list", "--data-root", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "\neurosat: classes 5 of 10; train 20 of 13500; " in text
    assert "\ndtd: " in text
    assert "\nsun397: " not in text
    assert main(["data", "list"]) == 0
    assert "1281167" in capsys.readouterr().out
    assert main(["data", "list", "--data-root", str(tmp_path / "no")]) == 2


def test_check_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_copy("dtd", tmp_path)
    args = ["data", "check", "dtd", "--data-root", str(tmp_path)]
    assert main(args) == 0
    text = capsys.readouterr().out
    assert text.startswith("dtd: 5 classes, train 20, val 15, test 10 images, all whole\n")
    assert "not the published sizes: classes 5 of 47" in text
    (folder / "images/tests/0_0.jpg").unlink()
    (folder / "images/tests/1_0.jpg").write_bytes(b"GIF89a")
    assert main(args) == 1
    error = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0].split(":")[0] for line in error[:-1]] == [
        "broken image tests/1_0.jpg",
        f"cannot read image {folder / 'images/tests/0_0.jpg'}",
    ]
    assert error[-1] == "error: dtd: 2 images are missing or broken: mend what is listed above"
