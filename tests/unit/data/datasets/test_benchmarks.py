"""Every row of the table: a small copy opens, is drawn from and checked; a damaged one says what is wrong."""

from pathlib import Path

import pytest

from prometar.cli.app import main
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import open_dataset
from prometar.data.preparation.check import check
from prometar.data.preparation.prepare import prepare
from prometar.data.splits.fewshot import labels_of
from tests.support.copies import CLASSES, COUNTS, NAMES, open_error, wnid, write_copy

ALL = sorted(BENCHMARKS)
WITH_SPLIT_FOLDERS = [name for name in ALL if BENCHMARKS[name].split_folders]
IMAGENET_VARIANTS = ["imagenet_a", "imagenet_r", "imagenet_sketch", "imagenetv2"]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a copy of all fifteen. Do not write into it."""
    root = tmp_path_factory.mktemp("copies")
    for name in ALL:
        write_copy(name, root)
    return root


def test_the_table_has_fifteen_rows() -> None:
    assert len(BENCHMARKS) == 15
    assert [name for name in ALL if BENCHMARKS[name].imagenet_variant] == IMAGENET_VARIANTS
    for row in BENCHMARKS.values():
        assert bool(row.copy_file) != bool(row.instructions), row.name
        assert bool(row.split_digest) == (bool(row.split_file) and row.name not in ("food101", "sun397"))


@pytest.mark.parametrize("name", ALL)
def test_a_copy_opens_with_its_counts_and_templates(copies: Path, name: str) -> None:
    row = BENCHMARKS[name]
    dataset = open_dataset(name, copies)
    assert (dataset.name, dataset.title, dataset.template) == (name, row.title, row.template)
    assert dataset.counts == {split: CLASSES * COUNTS[split] * bool(row.sizes[split]) for split in COUNTS}
    assert len(dataset.classnames) == CLASSES
    assert dataset.template_named("photo").startswith(
        "a photo of" if name != "eurosat" else "a centered satellite"
    )
    assert dataset.template_named("template") == dataset.template
    assert dataset.template_named("name_last").endswith(" {}.")
    assert set(dataset.templates) <= {"photo", "name_last"}


@pytest.mark.parametrize("name", ALL)
def test_check_finds_no_problem_in_a_copy_and_compares_its_sizes(copies: Path, name: str) -> None:
    row = BENCHMARKS[name]
    problems, broken, (_, sizes, *_, names) = check(name, copies)
    assert problems == broken == []
    assert f"classes {CLASSES} of {row.num_classes}" in sizes
    assert f"test {CLASSES * COUNTS['test']} of {row.sizes['test']}" in sizes
    assert "tench" in names


@pytest.mark.parametrize("name", ALL)
def test_a_prepared_copy_has_the_splits_and_images_of_the_folder(
    copies: Path, tmp_path: Path, name: str
) -> None:
    dataset = open_dataset(name, copies)
    prepare(name, copies, tmp_path)
    copy = open_dataset(name, tmp_path)
    paths = [item.path for item in dataset.items]
    assert (copy.splits, copy.templates) == (dataset.splits, dataset.templates)
    assert copy.source.read_many(paths) == dataset.source.read_many(paths)


def test_labels_of_imagenet_are_ranks_of_the_sorted_folders(copies: Path) -> None:
    dataset = open_dataset("imagenet", copies)
    assert {(i.path.split("/")[1], i.label, i.classname) for i in dataset.train} == {
        (wnid(k), k, NAMES[k]) for k in range(CLASSES)
    }
    assert [i.path for i in dataset.test][:2] == [f"val/{wnid(0)}/test_0.JPEG", f"val/{wnid(0)}/test_1.JPEG"]
    for name in IMAGENET_VARIANTS:  # among their own classes
        assert labels_of(open_dataset(name, copies).test) == tuple(range(CLASSES))


def test_folders_of_imagenetv2_are_numbers(tmp_path: Path) -> None:
    folder = write_copy("imagenetv2", tmp_path)
    lines = (folder / "classnames.txt").read_text("utf-8")
    (folder / "classnames.txt").write_text(lines + "".join(f"{wnid(k)} x{k}\n" for k in range(5, 12)))
    for k in range(5, 12):
        place = folder / "imagenetv2-matched-frequency-format-val" / str(k)
        place.mkdir()
        (place / "a.jpeg").write_bytes(b"")
    dataset = open_dataset("imagenetv2", tmp_path)
    assert [i.label for i in dataset.test if i.classname == "x10"] == [10]


PARTS = [(name, part) for name in ALL for part in BENCHMARKS[name].required_paths]


@pytest.mark.parametrize(("name", "part"), PARTS, ids=[f"{n}-{p}" for n, p in PARTS])
def test_a_missing_part_names_itself_and_how_to_get_it(tmp_path: Path, name: str, part: str) -> None:
    folder = write_copy(name, tmp_path)
    (folder / part).rename(tmp_path / "gone")
    message = open_error(name, tmp_path)
    assert f"{folder / part} is missing. " in message
    assert any(word in message for word in ("Get ", "data download", "Copy "))


@pytest.mark.parametrize("name", ["dtd", "fgvc_aircraft"])
def test_all_broken_images_are_listed(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_copy(name, tmp_path)
    dataset = open_dataset(name, tmp_path)
    images = [Path(dataset.source.folder, item.path) for item in dataset.items]  # type: ignore[attr-defined]
    for path in images[3:6]:
        path.unlink()
    for path in images[10::4]:
        path.write_bytes(path.read_bytes()[:99])
    found = open_error(name, tmp_path)
    assert f"3 of {len(images)} images are missing. The first is {images[3]}" in found
    assert main(["data", "check", name, "--data-root", str(tmp_path)]) == 1
    *errors, last = capsys.readouterr().err.splitlines()
    assert errors[:3] == [
        f"Cannot read image {path} (No such file or directory). Restore the file, or pass --data-root with a "
        "complete copy."
        for path in images[3:6]
    ]
    for message, item in zip(errors[3:], dataset.items[10::4], strict=True):
        assert message.startswith(f"Cannot use image {item.path}: ")
    counts = f"image list errors: 0, missing or corrupt images: {len(errors)}"
    assert last == f"error: {name} is invalid ({counts}). Fix the problems listed above."


LISTS = [
    ("variants.txt", "", "is not listed in variants.txt"),
    ("images_variant_val.txt", "0000001 F/A-19\n", "line 1: 'F/A-19' is not listed in variants.txt"),
    ("images_variant_val.txt", "0000001\n", "line 1: '' is not listed in variants.txt"),
    ("images_variant_test.txt", "../0000001 tench\n", "which points outside the image folder"),
    ("images_variant_val.txt", "0000001 tench\n", "lists 0000001.jpg twice (train, val)"),
    ("images_variant_val.txt", ".//0000001 tench\n", "lists .//0000001.jpg twice (train, val)"),
]


@pytest.mark.parametrize(("file", "text", "message"), LISTS, ids=[m for _, _, m in LISTS])
def test_wrong_aircraft_lists(tmp_path: Path, file: str, text: str, message: str) -> None:
    folder = write_copy("fgvc_aircraft", tmp_path)
    (folder / file).write_text(text)
    found = open_error("fgvc_aircraft", tmp_path)
    assert message in found
    assert str(folder) in found
    (folder / file).write_bytes(b"\xff\xfe\xff")
    assert f"{folder / file} is not UTF-8 text" in open_error("fgvc_aircraft", tmp_path)


@pytest.mark.parametrize("name", WITH_SPLIT_FOLDERS)
def test_wrong_class_names_and_folders(tmp_path: Path, name: str) -> None:
    folder = write_copy(name, tmp_path)
    row = BENCHMARKS[name]
    names = folder / "classnames.txt"
    text = names.read_text("utf-8")
    for wrong in ("n01440764\n", f"{wnid(0)} tench again\n"):
        names.write_text(text + wrong, "utf-8")
        assert f"{names}, line " in open_error(name, tmp_path)
    names.write_text(text, "utf-8")
    for below in row.split_folders.values():
        (folder / row.image_folder / below / "n99999999").mkdir()
    assert f"folder n99999999 is not listed in {names}." in open_error(name, tmp_path)


def test_list_compares_with_the_published_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_copy("eurosat", tmp_path)
    (write_copy("dtd", tmp_path) / "images").rename(tmp_path / "gone")
    assert main(["data", "list", "--data-root", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "\neurosat: classes 5 of 10; train 20 of 13500; " in text
    assert f"\ndtd: {tmp_path}/dtd/images is missing. " in text
    states = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "missing" in states["sun397"]
    assert "rendered" in states["textures"]
    assert "folder: " not in text, "a data root is no tree of classes"


def test_list_without_a_data_root_shows_the_published_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "list"]) == 0
    assert "1281167" in capsys.readouterr().out
    assert main(["data", "list", "--data-root", str(tmp_path / "no")]) == 2
