"""A small copy of every benchmark is opened and checked. Damages of a copy are reported."""

from pathlib import Path

import pytest

from prometar.cli.app import main
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import FolderSource
from prometar.data.preparation.check import check
from prometar.data.preparation.prepare import prepare
from prometar.data.splits.fewshot import labels_of
from tests.support.copies import CLASSES, COUNTS, NAMES, open_error, wnid, write_copy

ALL = sorted(BENCHMARKS)
WITH_SPLIT_FOLDERS = [name for name in ALL if BENCHMARKS[name].split_folders]
IMAGENET_VARIANTS = ["imagenet_a", "imagenet_r", "imagenet_sketch", "imagenetv2"]


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data root with a copy of every benchmark. Do not write into it."""
    root = tmp_path_factory.mktemp("copies")
    for name in ALL:
        write_copy(name, root)
    return root


def test_there_are_fifteen_benchmarks_with_four_variants_of_imagenet() -> None:
    assert len(BENCHMARKS) == 15
    assert [name for name in ALL if BENCHMARKS[name].imagenet_variant] == IMAGENET_VARIANTS


@pytest.mark.parametrize("name", ALL)
def test_a_benchmark_can_be_downloaded_or_has_instructions(name: str) -> None:
    benchmark = BENCHMARKS[name]
    has_copy = benchmark.copy_file is not None
    has_instructions = benchmark.instructions != ""
    assert has_copy != has_instructions


@pytest.mark.parametrize("name", ALL)
def test_the_digest_of_a_split_file_is_known_with_two_exceptions(name: str) -> None:
    benchmark = BENCHMARKS[name]
    if name in ("food101", "sun397"):
        assert benchmark.split_digest == ""
    else:
        assert bool(benchmark.split_digest) == bool(benchmark.split_file)


@pytest.mark.parametrize("name", ALL)
def test_a_copy_opens_with_its_title_and_counts(copies: Path, name: str) -> None:
    benchmark = BENCHMARKS[name]
    dataset = open_dataset(name, copies)
    assert dataset.name == name
    assert dataset.title == benchmark.title
    assert len(dataset.classnames) == CLASSES
    for split, num_per_class in COUNTS.items():
        expected = CLASSES * num_per_class if benchmark.sizes[split] else 0
        assert dataset.counts[split] == expected


@pytest.mark.parametrize("name", ALL)
def test_a_copy_opens_with_its_templates(copies: Path, name: str) -> None:
    dataset = open_dataset(name, copies)
    start_of_photo = "a centered satellite" if name == "eurosat" else "a photo of"
    assert dataset.template == BENCHMARKS[name].template
    assert dataset.template_named("unknown name") == dataset.template
    assert dataset.template_named("photo").startswith(start_of_photo)
    assert dataset.template_named("name_last").endswith(" {}.")
    assert set(dataset.templates) <= {"photo", "name_last"}


@pytest.mark.parametrize("name", ALL)
def test_check_finds_no_error_in_a_copy_and_compares_its_sizes(copies: Path, name: str) -> None:
    benchmark = BENCHMARKS[name]
    list_errors, image_errors, (_, sizes, *_, names) = check(name, copies)
    assert list_errors == []
    assert image_errors == []
    assert f"classes {CLASSES} of {benchmark.num_classes}" in sizes
    assert f"test {CLASSES * COUNTS['test']} of {benchmark.sizes['test']}" in sizes
    assert "tench" in names


@pytest.mark.parametrize("name", ALL)
def test_a_prepared_copy_has_the_splits_and_images_of_the_folder(
    copies: Path, tmp_path: Path, name: str
) -> None:
    original = open_dataset(name, copies)

    prepare(name, copies, tmp_path)

    copy = open_dataset(name, tmp_path)
    paths = [item.path for item in original.items]
    assert copy.splits == original.splits
    assert copy.templates == original.templates
    assert copy.source.read_many(paths) == original.source.read_many(paths)


def test_labels_of_imagenet_are_ranks_of_the_sorted_folders(copies: Path) -> None:
    dataset = open_dataset("imagenet", copies)
    for item in dataset.train:
        split_folder, class_folder, _ = item.path.split("/")
        assert split_folder == "train"
        assert class_folder == wnid(item.label)
        assert item.classname == NAMES[item.label]
    assert labels_of(dataset.train) == tuple(range(CLASSES))


def test_test_images_of_imagenet_are_those_of_val_sorted_by_name(copies: Path) -> None:
    first_items = open_dataset("imagenet", copies).test[:2]
    expected = [f"val/{wnid(0)}/test_0.JPEG", f"val/{wnid(0)}/test_1.JPEG"]
    assert [item.path for item in first_items] == expected


@pytest.mark.parametrize("name", IMAGENET_VARIANTS)
def test_labels_of_a_variant_of_imagenet_are_ranks_among_its_own_classes(copies: Path, name: str) -> None:
    assert labels_of(open_dataset(name, copies).test) == tuple(range(CLASSES))


def test_class_folders_of_imagenetv2_are_sorted_as_numbers(tmp_path: Path) -> None:
    folder = write_copy("imagenetv2", tmp_path)
    with (folder / "classnames.txt").open("a") as names:
        for number in range(CLASSES, 12):
            names.write(f"{wnid(number)} x{number}\n")
            class_folder = folder / "imagenetv2-matched-frequency-format-val" / str(number)
            class_folder.mkdir()
            (class_folder / "a.jpeg").write_bytes(b"")

    dataset = open_dataset("imagenetv2", tmp_path)

    assert [item.label for item in dataset.test if item.classname == "x10"] == [10]


REQUIRED_PATHS: list[tuple[str, str]] = []
for benchmark_name in ALL:
    REQUIRED_PATHS += [(benchmark_name, path) for path in BENCHMARKS[benchmark_name].required_paths]


@pytest.mark.parametrize(("name", "path"), REQUIRED_PATHS)
def test_the_error_for_a_missing_path_says_how_to_get_it(tmp_path: Path, name: str, path: str) -> None:
    folder = write_copy(name, tmp_path)
    (folder / path).rename(tmp_path / "gone")
    message = open_error(name, tmp_path)
    assert f"{folder / path} is missing. " in message
    assert any(word in message for word in ("Get ", "data download", "Copy "))


@pytest.mark.parametrize("name", ["dtd", "fgvc_aircraft"])
def test_missing_images_are_counted_and_corrupt_ones_listed_by_check(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_copy(name, tmp_path)
    dataset = open_dataset(name, tmp_path)
    assert isinstance(dataset.source, FolderSource)
    image_folder = Path(dataset.source.folder)
    missing = [image_folder / item.path for item in dataset.items[3:6]]
    for file in missing:
        file.unlink()
    corrupt_items = dataset.items[10:20]
    for item in corrupt_items:
        file = image_folder / item.path
        file.write_bytes(file.read_bytes()[:99])

    message = open_error(name, tmp_path)
    assert f"3 of {len(dataset.items)} images are missing. The first is {missing[0]}" in message

    assert main(["data", "check", name, "--data-root", str(tmp_path)]) == 1
    *errors, last = capsys.readouterr().err.splitlines()
    assert len(errors) == len(missing) + len(corrupt_items)
    for error, file in zip(errors[:3], missing, strict=True):
        assert error.startswith(f"Cannot read image {file} (No such file or directory). Restore the file, or")
    for error, item in zip(errors[3:], corrupt_items, strict=True):
        assert error.startswith(f"Cannot use image {item.path}: ")
    counts = f"image list errors: 0, missing or corrupt images: {len(errors)}"
    assert last == f"error: {name} is invalid ({counts}). Fix the problems listed above."


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("variants.txt", "", "is not listed in variants.txt"),
        ("images_variant_val.txt", "0000001 F/A-19\n", "line 1: 'F/A-19' is not listed in variants.txt"),
        ("images_variant_val.txt", "0000001\n", "line 1: '' is not listed in variants.txt"),
        ("images_variant_test.txt", "../0000001 tench\n", "which points outside the image folder"),
        ("images_variant_val.txt", "0000001 tench\n", "lists 0000001.jpg twice (train, val)"),
        ("images_variant_val.txt", ".//0000001 tench\n", "lists .//0000001.jpg twice (train, val)"),
    ],
)
def test_a_wrong_line_in_a_list_of_aircraft_is_reported(
    tmp_path: Path, file: str, text: str, message: str
) -> None:
    folder = write_copy("fgvc_aircraft", tmp_path)
    (folder / file).write_text(text)
    error = open_error("fgvc_aircraft", tmp_path)
    assert message in error
    assert str(folder) in error


@pytest.mark.parametrize("file", ["variants.txt", "images_variant_val.txt", "images_variant_test.txt"])
def test_a_list_of_aircraft_that_is_not_utf8_is_refused(tmp_path: Path, file: str) -> None:
    folder = write_copy("fgvc_aircraft", tmp_path)
    (folder / file).write_bytes(b"\xff\xfe\xff")
    assert f"{folder / file} is not UTF-8 text" in open_error("fgvc_aircraft", tmp_path)


@pytest.mark.parametrize("name", WITH_SPLIT_FOLDERS)
@pytest.mark.parametrize(
    "line",
    [
        pytest.param("n01440764", id="without a name"),
        pytest.param(f"{wnid(0)} tench again", id="repeated"),
    ],
)
def test_a_wrong_line_in_classnames_txt_is_reported(tmp_path: Path, name: str, line: str) -> None:
    folder = write_copy(name, tmp_path)
    names_file = folder / "classnames.txt"
    with names_file.open("a") as names:
        names.write(f"{line}\n")
    assert f"{names_file}, line " in open_error(name, tmp_path)


@pytest.mark.parametrize("name", WITH_SPLIT_FOLDERS)
def test_a_class_folder_that_classnames_txt_does_not_list_is_reported(tmp_path: Path, name: str) -> None:
    folder = write_copy(name, tmp_path)
    benchmark = BENCHMARKS[name]
    for split_folder in benchmark.split_folders.values():
        (folder / benchmark.image_folder / split_folder / "n99999999").mkdir()
    expected = f"folder n99999999 is not listed in {folder / 'classnames.txt'}."
    assert expected in open_error(name, tmp_path)


def test_list_compares_with_the_published_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_copy("eurosat", tmp_path)
    assert main(["data", "list", "--data-root", str(tmp_path)]) == 0
    assert "\neurosat: classes 5 of 10; train 20 of 13500; " in capsys.readouterr().out


def test_list_shows_which_datasets_are_missing_or_rendered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dtd = write_copy("dtd", tmp_path)
    (dtd / "images").rename(tmp_path / "gone")

    assert main(["data", "list", "--data-root", str(tmp_path)]) == 0

    text = capsys.readouterr().out
    assert f"\ndtd: {dtd}/images is missing. " in text
    line_by_name = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "missing" in line_by_name["sun397"]
    assert "rendered" in line_by_name["textures"]
    assert "folder: " not in text, "the folders in a data root with benchmarks are not classes"


@pytest.mark.parametrize("options", [[], ["--data-root", ""]], ids=["no option", "empty"])
def test_list_without_a_data_root_shows_the_published_sizes(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "list", *options]) == 0
    num_train_images_of_imagenet = "1281167"
    assert num_train_images_of_imagenet in capsys.readouterr().out


def test_list_refuses_a_data_root_that_does_not_exist(tmp_path: Path) -> None:
    assert main(["data", "list", "--data-root", str(tmp_path / "no")]) == 2
