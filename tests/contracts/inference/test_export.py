"""Exported prompts: what `prometar.load` gives back is what was trained, and nothing else is taken."""

import io
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import prometar
from prometar.cli.app import main
from prometar.config.recipes import METHODS
from prometar.config.settings import Config
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import classnames
from prometar.data.splits.fewshot import separate_base_new
from prometar.embedded.weights import load_mini
from prometar.errors import UserError, WorkError
from prometar.inference.classifier import Classifier
from prometar.run_folder import export_run, train_run
from prometar.training.backbone import DTYPES
from prometar.training.run_result import RunResult, read_result
from tests.support.small import NAME


def train(folder: Path, method: str, **settings: Any) -> RunResult:
    """Train a small run of one epoch. Return its result."""
    values = {"train.epochs": 1, "data.shots": 1, **{k.replace("__", "."): v for k, v in settings.items()}}
    train_run(Config(method=method).override(values), folder)
    return read_result(folder)


@pytest.fixture(scope="module")
def run(small_dtd: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    """A trained run, and its result.json."""
    folder = tmp_path_factory.mktemp("run")
    return folder, train(folder, "prometar", data__name="dtd", data__root=str(small_dtd))


@pytest.fixture(scope="module")
def exported(run: tuple[Path, RunResult], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "prompts.safetensors"
    export_run(run[0], path)
    return path


def bmp(size: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size)).save(file, "BMP")
    return file.getvalue()


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_missing_device_is_rejected(exported: Path, device: str) -> None:
    with pytest.raises(UserError, match=rf"^Cannot use the device {device!r} \(.+"):
        prometar.load(exported, device=device)


@pytest.mark.parametrize(
    ("method", "precision"),
    [*((method, "fp32") for method in METHODS), ("prometar", "bf16"), ("prometar", "fp16")],
)
def test_every_method_comes_back(method: str, precision: str, small_dtd: Path, tmp_path: Path) -> None:
    settings = {"backbone__name": NAME, "backbone__pretrained": "random", "backbone__precision": precision}
    result = train(tmp_path, method, data__name="dtd", data__root=str(small_dtd), **settings)
    path = tmp_path / "prompts.safetensors"
    export_run(tmp_path, path)
    classifier = prometar.load(path)
    dataset = open_dataset("dtd", small_dtd)
    (_, base), (_, new) = separate_base_new(dataset.base_labels, dataset.train, dataset.test)
    for name, items in (("base", base), ("new", new)):
        images = [small_dtd / "dtd" / "images" / item.path for item in items]
        predicted = classifier.predict(images, classnames=classnames(items))
        hits = [a == item.classname for a, item in zip(predicted.names, items, strict=True)]
        assert 100 * np.mean(hits) == pytest.approx(result.accuracies[name])
        assert np.allclose(predicted.probabilities.sum(axis=1), 1, atol=1e-5)
        assert predicted.probabilities.dtype == np.float32
    assert classifier.config.method == method
    assert classifier.backbone.clip.dtype == DTYPES[precision]
    assert classifier.classnames == classnames(base)


def test_photos_are_rotated_as_their_exif_data_say(exported: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "phone.png", exif=exif)
    photo = tmp_path / "phone.png"
    classifier = prometar.load(exported)
    upright = np.ascontiguousarray(np.rot90(pixels, -1))
    found = classifier.predict([photo, Image.open(photo), upright, pixels]).probabilities
    np.testing.assert_allclose(found[:3], np.repeat(found[2:3], 3, axis=0), rtol=1e-5)
    assert not np.allclose(found[2], found[3])


def test_files_pictures_and_arrays_are_the_same_images(exported: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (90, 70, 3), dtype=np.uint8)
    picture = Image.fromarray(array)
    path = tmp_path / "image.png"
    picture.save(path)
    classifier = prometar.load(exported)
    together = classifier.predict([path, str(path), picture, array]).probabilities
    # Where several threads share a product, its rows may differ in their last bit.
    np.testing.assert_allclose(together, np.repeat(together[:1], 4, axis=0), rtol=1e-5)
    for one in (path, picture, array):
        assert np.array_equal(classifier.predict(one).probabilities, classifier.predict([path]).probabilities)
    grey = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    eight_bits = Image.fromarray(grey)
    sixteen_bits = Image.fromarray(grey.astype(np.uint16) * 257)
    found = [classifier.predict(each).probabilities for each in (eight_bits, sixteen_bits)]
    assert np.array_equal(*found)
    others = classifier.predict([picture.convert("L"), picture.convert("P"), picture.convert("RGBA")])
    assert others.probabilities.shape == (3, 3)


def test_a_classifier_predicts_among_other_class_names(exported: Path) -> None:
    classifier = prometar.load(exported)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 70, 80, 3), dtype=np.uint8)
    names = (*classifier.classnames[:3], "a colour that nobody has seen")
    predicted = classifier.predict(pictures, classnames=names, batch_size=3)
    assert predicted.classnames == names
    assert predicted.probabilities.shape == (4, 4)


@pytest.mark.parametrize(
    ("classnames", "problem"),
    [
        ([], "got none"),
        ("striped", "got 'striped'"),
        (1, "got 1"),
        (["a", None], "None is not a string"),
        (["a", " "], "' ' has no visible character"),
        (["a", "a"], "'a' is repeated"),
        (["a_b", "A  b"], "'A  b' is repeated"),
    ],
)
def test_class_names_that_cannot_be_used_are_refused_with_the_reason(
    exported: Path, classnames: Any, problem: str
) -> None:
    rule = "classnames must be a non-empty sequence of printable, unique names"
    with pytest.raises(UserError, match=rf"^{rule} .*, but {problem}\.$"):
        prometar.load(exported).predict(np.zeros((8, 8, 3), np.uint8), classnames=classnames)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (None, UserError, r"non-empty sequence of images \(paths, Pillow images or uint8 arrays\), got None"),
        ([], UserError, r"non-empty sequence of images \(paths, Pillow images or uint8 arrays\), got \[\]"),
        (["none.png"], UserError, r"Cannot read image none.png \(No such file"),
        (
            [np.zeros((4, 4, 3), np.float32)],
            UserError,
            r"got float32 .*\. For values in 0\.\.1, pass \(255 \*",
        ),
        (
            [np.zeros((3, 8, 8), np.uint8)],
            UserError,
            r"of shape \(3, 8, 8\).* For channels first, pass array\.",
        ),
        (np.array(7, np.uint8), UserError, r"got uint8 of shape \(\)\."),
        (np.zeros(9, np.uint8), UserError, r"got uint8 of shape \(9,\)\."),
        (
            [torch.zeros(3, 4, 4)],
            UserError,
            r"got Tensor\. For a tensor \(3, H, W\) with values in 0\.\.1, pass",
        ),
        ([3], UserError, "a uint8 array, got int"),
        (Image.fromarray(np.zeros((4, 4), np.float32)), WorkError, "floating-point"),
        ("broken.png", WorkError, r"broken\.png"),
        (Image.open(io.BytesIO(bmp(64)[:900])), WorkError, "truncated"),
    ],
    ids=[
        "none",
        "no image",
        "missing",
        "floats",
        "channels first",
        "a number in an array",
        "one dimension",
        "tensor",
        "a number",
        "mode F",
        "broken",
        "truncated",
    ],
)
def test_what_is_no_image_is_refused(
    images: Any,
    error: type[Exception],
    message: str,
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.png").write_bytes(b"no image")
    with pytest.raises(error, match=message):
        prometar.load(exported).predict(images)


def test_the_card_describes_the_prompts(run: tuple[Path, RunResult], exported: Path) -> None:
    card = json.loads(exported.with_suffix(".json").read_text())
    with safe_open(exported, framework="pt") as file:
        assert card == json.loads(file.metadata()["card"])
    assert card["accuracies"] == run[1].accuracies
    assert card["classnames"] == list(run[1].classnames)
    data = card["config"]["data"]
    assert (data["name"], data["root"], data["shots"], card["objective"]) == ("dtd", None, 1, "final")
    assert card["environment"]["torch"] == version("torch")
    assert str(Path.cwd()) not in exported.with_suffix(".json").read_text()


def test_weights_from_a_file_are_asked_for_and_checked(small_dtd: Path, tmp_path: Path) -> None:
    state = load_mini()
    weights = tmp_path / "mine.safetensors"
    other = tmp_path / "other.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, weights)
    changed = {k: v.clone() for k, v in state.items()}
    changed["text_projection"][0, 0] += 1e-3
    save_file({k: v.contiguous() for k, v in changed.items()}, other)
    data = {"data__name": "dtd", "data__root": str(small_dtd)}
    train(tmp_path / "run", "ivlp", backbone__pretrained=str(weights), **data)
    path = tmp_path / "prompts.safetensors"
    export_run(tmp_path / "run", path)
    assert str(tmp_path) not in path.with_suffix(".json").read_text()
    with pytest.raises(UserError, match=r"requires a local file of weights\. Pass it as pretrained=FILE"):
        prometar.load(path)
    with pytest.raises(UserError, match="was trained with other weights"):
        prometar.load(path, pretrained=str(other))
    assert isinstance(prometar.load(path, pretrained=str(weights)), Classifier)


def test_a_card_names_the_file_of_class_texts_without_its_folder(small_dtd: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.json"
    names = open_dataset("dtd", small_dtd).classnames
    texts.write_text(json.dumps({name: [f"a {name} thing"] for name in names}))
    data = {"data__name": "dtd", "data__root": str(small_dtd)}
    train(tmp_path / "run", "ivlp-regularized", regularizer__texts=str(texts), **data)
    path = tmp_path / "prompts.safetensors"
    export_run(tmp_path / "run", path)
    assert str(tmp_path) not in path.with_suffix(".json").read_text()
    assert prometar.load(path).config.flat()["regularizer.texts"] == "texts.json"


def test_what_is_no_export_is_refused(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.safetensors"
    leaves = load_file(exported)
    with safe_open(exported, framework="pt") as file:
        metadata = file.metadata()

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            prometar.load(path)

    refused("does not exist. Write one with `prometar export")
    path.write_bytes(exported.read_bytes()[:-7])
    refused(r"is not a \.safetensors file")
    save_file(leaves, path)
    refused("was not written by this version of `prometar export`")
    card = json.loads(metadata["card"])
    wrong = [{**card, "template": each} for each in ("a photo.", "{} {}")]
    wrong += [{**card, "classnames": ["a", each]} for each in (" ", "\x1b[2J", "\ud800", "b" * 2000)]
    wrong += [{**card, "config": {"method": "prometar", "x": 1}}, None, {}]
    for damaged in ("[" * 5000, *map(json.dumps, wrong)):
        save_file(leaves, path, {**metadata, "card": damaged})
        refused("has a corrupt card ")
    hubs = "Use mini or an open_clip name, not a hub or folder"
    for name, pretrained, message in (
        ("hf-hub:a/b", "openai", hubs),
        ("local-dir:/tmp", "openai", hubs),
        ("mini", "/dev/zero", "requires a local file of weights"),
        ("mini", "secret", "requires a local file of weights"),
    ):
        backbone = card["config"]["backbone"] | {"name": name, "pretrained": pretrained}
        config = {**card["config"], "backbone": backbone}
        save_file(leaves, path, {**metadata, "card": json.dumps({**card, "config": config})})
        refused(message)
    name = next(iter(leaves))
    save_file({**leaves, name: leaves[name][:, :3].contiguous()}, path, metadata)
    refused(rf"{name} is float \(4, 3\)")


def test_export_names_the_classes(
    run: tuple[Path, RunResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, result = run
    assert main(["export", str(folder), "--to", str(tmp_path / "prompts.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert f"Classes: {', '.join(result.classnames)}" in shown
    assert "To train on all classes: prometar train --objective all_classes" in shown


def test_wrong_usage_of_export_overwrites_nothing(
    run: tuple[Path, RunResult], exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    (tmp_path / "plain.json").write_text("{}")
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "nothing")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fails(message: str, *args: object) -> None:
        assert main(["export", *map(str, args)]) == 2
        assert message in capsys.readouterr().err

    fails("does not contain a run", "nowhere", "--to", tmp_path / "x.safetensors")
    fails("--to must end in .safetensors, got", folder, "--to", tmp_path / "x.pt")
    fails("Missing option '--to'", folder)
    names = ("run/checkpoint", "run/result", "plain", "dangling")
    for to in (exported, *(tmp_path / f"{name}.safetensors" for name in names)):
        fails("exists. Choose another name.", folder, "--to", to)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_pushed_file_is_loaded(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: dict[str, list[Any]] = {}

    def create_commit(api: object, repo: str, added: list[Any], **kwargs: str) -> None:
        commits[repo] = added

    def hf_hub_download(repo: str, name: str, *, revision: str | None) -> str:
        if repo not in commits:
            raise OSError("no such repository")
        assert revision == "v1"
        (file,) = [each for each in commits[repo] if each.path_in_repo == name]
        (tmp_path / name).write_bytes(file.path_or_fileobj)
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda api, repo, **_: f"https://hub/{repo}")
    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", create_commit)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    assert main(["push", str(exported), "me/prompts"]) == 0
    assert [each.path_in_repo for each in commits["me/prompts"]] == ["prompts.safetensors", "card.json"]
    assert prometar.load("hf://me/prompts@v1").card == prometar.load(exported).card
    with pytest.raises(WorkError, match=r"Cannot download hf://me/none \(no such repository\)"):
        prometar.load("hf://me/none")


def test_prometar_has_no_other_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        prometar.nothing  # noqa: B018


def test_inference_needs_nothing_of_studies(exported: Path) -> None:
    """What a server has to install and to import: no search, no cluster, no tables, no hub, no plots."""
    heavy = {"ray", "optuna", "pandas", "mlflow", "matplotlib", "plotly", "open_clip", "torchvision"}
    heavy |= {"huggingface_hub", "tune"}
    code = (
        "import sys, numpy, prometar\n"
        "print(sorted({'torch', 'ray', 'open_clip'} & set(sys.modules)))\n"
        "classifier = prometar.load(sys.argv[1])\n"
        "print(*classifier.predict(numpy.zeros((70, 80, 3), numpy.uint8)).names)\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", code, str(exported)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    heavy_at_once, predicted, modules = done.stdout.splitlines()
    assert heavy_at_once == "[]"
    assert predicted in json.loads(exported.with_suffix(".json").read_text())["classnames"]
    assert {"torch", "prometar"} <= set(modules.split())
    assert not heavy & set(modules.split())


@pytest.mark.parametrize("kind", ["NaN", "of another run"])
def test_a_run_with_wrong_prompts_is_used_for_nothing(
    kind: str, run: tuple[Path, RunResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    path = folder / "checkpoint.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    first = next(name for name in tensors if name.startswith("prompts/"))
    if kind == "NaN":
        tensors[first].fill_(torch.nan)
    else:
        metadata["run"] = "0" * 64
    save_file(tensors, path, metadata)
    for command in (
        ["export", str(folder), "--to", str(tmp_path / "x.safetensors")],
        ["evaluate", str(folder), "--dataset", "textures"],
    ):
        assert main(command) in (1, 2)
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "x.safetensors").exists()
