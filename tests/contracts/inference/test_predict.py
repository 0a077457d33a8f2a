"""The command `prometar predict`: printed lines, written tables, and unreadable images."""

import csv
import json
import shutil
from pathlib import Path

import pytest

import prometar
from prometar.cli.app import main
from prometar.config.settings import Config
from prometar.run_folder import export_run, train_run


@pytest.fixture(scope="module")
def prompts(small_dtd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported prompts of a short run."""
    folder = tmp_path_factory.mktemp("predict")
    settings = {"data.name": "dtd", "data.root": str(small_dtd), "data.shots": 1, "train.epochs": 1}
    train_run(Config(method="coop").override(settings), folder / "run")
    export_run(folder / "run", folder / "prompts.safetensors")
    return folder / "prompts.safetensors"


@pytest.fixture
def photos(small_dtd: Path, tmp_path: Path) -> Path:
    """A folder of three photos, one of them in a subfolder, and of files that are not images."""
    files = sorted((small_dtd / "dtd/images").rglob("*.jpg"))[:3]
    for file, name in zip(files, ("a.jpg", "b.JPG", "more/c.jpg"), strict=True):
        target = tmp_path / "photos" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    (tmp_path / "photos/notes.txt").write_text("x")
    (tmp_path / "photos/.hidden.jpg").write_text("x")
    return tmp_path / "photos"


def test_files_and_folders_are_classified_as_in_python(
    prompts: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [photos / "b.JPG", photos / "a.jpg", photos / "b.JPG", photos / "more/c.jpg"]
    expected = prometar.load(prompts).predict(paths)

    assert main(["predict", str(prompts), str(photos / "b.JPG"), str(photos)]) == 0

    lines = capsys.readouterr().out.splitlines()
    for line, path, name, probabilities in zip(
        lines, paths, expected.names, expected.probabilities, strict=True
    ):
        printed_path, printed_name, printed_percent, *_ = line.split()
        assert printed_path == str(path)
        assert printed_name == name
        assert printed_percent == f"{100 * probabilities.max():.1f}"


@pytest.mark.parametrize("as_file", [False, True], ids=["names", "a file of names"])
def test_probabilities_of_the_given_classes_are_written_as_json_and_csv(
    prompts: Path, photos: Path, tmp_path: Path, as_file: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["polka dots", "zebra"]
    given = names
    if as_file:
        (tmp_path / "names.txt").write_text("polka dots\n\nzebra\n")
        given = [str(tmp_path / "names.txt")]
    photo = photos / "a.jpg"
    table = tmp_path / "out/table.csv"
    expected = prometar.load(prompts).predict(photo, classnames=names)

    args = ["predict", str(prompts), str(photo), "--csv", str(table), "--json", "-"]
    assert main([*args, "--classnames", *given]) == 0

    (row,) = json.loads(capsys.readouterr().out)
    assert row["image"] == str(photo)
    assert row["class"] == expected.names[0]
    assert list(row["probabilities"]) == names
    probabilities = list(row["probabilities"].values())
    assert probabilities == pytest.approx(expected.probabilities[0].tolist(), abs=1e-5)

    header, values = csv.reader(table.read_text().splitlines())
    assert header == ["image", "class", "probability", *names]
    image, classname, _, *probabilities_in_table = values
    assert image == row["image"]
    assert classname == row["class"]
    assert [float(each) for each in probabilities_in_table] == probabilities


def test_an_unreadable_image_is_named_and_the_others_are_classified(
    prompts: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "b.JPG").write_bytes(b"no image")
    assert main(["predict", str(prompts), str(photos)]) == 1
    captured = capsys.readouterr()
    classified = [line.split()[0] for line in captured.out.splitlines()]
    assert classified == [str(photos / "a.jpg"), str(photos / "more/c.jpg")]
    assert f"Cannot use image {photos}/b.JPG: not an image." in captured.err
    assert captured.err.endswith("error: 1 of 3 images cannot be read. They are listed above.\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["{prompts}", "{photos}/none.jpg"],
            "none.jpg does not exist. Pass image files, or folders of images.",
        ),
        (["{prompts}", "{photos}/empty"], "empty contains no images (.jpg, .jpeg, "),
        (["{photos}/a.jpg", "{photos}/a.jpg"], "a.jpg"),
        (
            ["{prompts}", "{photos}/a.jpg", "--classnames", "a", "A"],
            "classnames must be a non-empty sequence",
        ),
    ],
    ids=["no file", "an empty folder", "no prompt file", "equal names"],
)
def test_wrong_usage_is_refused_in_one_line(
    args: list[str], message: str, prompts: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "empty").mkdir()
    assert main(["predict", *(arg.format(prompts=prompts, photos=photos) for arg in args)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
