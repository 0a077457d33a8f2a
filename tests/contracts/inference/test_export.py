"""Exported prompts: `prometar.load` returns what was trained, and refuses files that are no export."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
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
    """Train a small run of one epoch.

    Args:
        folder: Folder of the run.
        method: Name of the method.
        settings: Settings by dotted key, with "__" in place of ".".

    Returns:
        The run's result.
    """
    values: dict[str, Any] = {"train.epochs": 1, "data.shots": 1}
    for name, value in settings.items():
        values[name.replace("__", ".")] = value
    train_run(Config(method=method).override(values), folder)
    return read_result(folder)


@pytest.fixture(scope="module")
def run(small_dtd: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    """A trained run, and its result.json."""
    folder = tmp_path_factory.mktemp("run")
    return folder, train(folder, "prometar", data__name="dtd", data__root=str(small_dtd))


@pytest.fixture(scope="module")
def exported(run: tuple[Path, RunResult], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported prompts of the run."""
    path = tmp_path_factory.mktemp("export") / "prompts.safetensors"
    folder, _ = run
    export_run(folder, path)
    return path


def truncated_image() -> Image.Image:
    """Return an image whose file ends before all pixels are read."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "BMP")
    return Image.open(io.BytesIO(file.getvalue()[:900]))


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_missing_device_is_rejected(exported: Path, device: str) -> None:
    with pytest.raises(UserError, match=rf"^Cannot use the device {device!r} \(.+"):
        prometar.load(exported, device=device)


@pytest.mark.parametrize(
    ("method", "precision"),
    [*((method, "fp32") for method in METHODS), ("prometar", "bf16"), ("prometar", "fp16")],
)
def test_exported_prompts_of_every_method_have_the_accuracies_of_their_run(
    method: str, precision: str, small_dtd: Path, tmp_path: Path
) -> None:
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
        is_correct = np.array(predicted.names) == np.array([item.classname for item in items])
        assert 100 * np.mean(is_correct) == pytest.approx(result.accuracies[name])
        assert np.allclose(predicted.probabilities.sum(axis=1), 1, atol=1e-5)
        assert predicted.probabilities.dtype == np.float32

    assert classifier.config.method == method
    assert classifier.backbone.clip.dtype == DTYPES[precision]
    assert classifier.classnames == classnames(base)


def test_photos_are_rotated_as_their_exif_data_say(exported: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be rotated by 90 degrees, clockwise
    path = tmp_path / "phone.png"
    Image.fromarray(pixels).save(path, exif=exif)
    upright = np.ascontiguousarray(np.rot90(pixels, -1))
    classifier = prometar.load(exported)

    found = classifier.predict([path, Image.open(path), upright, pixels])

    from_path, from_image, from_upright, not_rotated = found.probabilities
    np.testing.assert_allclose(from_path, from_upright, rtol=1e-5)
    np.testing.assert_allclose(from_image, from_upright, rtol=1e-5)
    assert not np.allclose(from_upright, not_rotated)


def random_pixels(*shape: int) -> np.ndarray:
    """Return an array of random pixels, the same for each call."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_paths_images_and_arrays_of_the_same_pixels_have_the_same_probabilities(
    exported: Path, tmp_path: Path
) -> None:
    array = random_pixels(90, 70, 3)
    image = Image.fromarray(array)
    path = tmp_path / "image.png"
    image.save(path)
    classifier = prometar.load(exported)

    together = classifier.predict([path, str(path), image, array]).probabilities
    # If several threads share a product, its rows may differ in their last bit.
    np.testing.assert_allclose(together, np.repeat(together[:1], 4, axis=0), rtol=1e-5)

    expected = classifier.predict([path]).probabilities
    for single in (path, image, array):
        assert np.array_equal(classifier.predict(single).probabilities, expected)


def test_gray_images_of_8_and_16_bits_have_the_same_probabilities(exported: Path) -> None:
    gray = random_pixels(64, 64)
    eight_bits = Image.fromarray(gray)
    sixteen_bits = Image.fromarray(gray.astype(np.uint16) * 257)
    classifier = prometar.load(exported)
    expected = classifier.predict(eight_bits).probabilities
    assert np.array_equal(classifier.predict(sixteen_bits).probabilities, expected)


def test_images_of_all_common_modes_are_classified(exported: Path) -> None:
    image = Image.fromarray(random_pixels(90, 70, 3))
    images = [image.convert(mode) for mode in ("L", "P", "RGBA")]
    assert prometar.load(exported).predict(images).probabilities.shape == (3, 3)


def test_a_classifier_predicts_among_other_class_names(exported: Path) -> None:
    classifier = prometar.load(exported)
    names = (*classifier.classnames[:3], "a color that nobody has seen")

    predicted = classifier.predict(random_pixels(4, 70, 80, 3), classnames=names, batch_size=3)

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
    ids=["empty", "string", "number", "none", "blank", "repeated", "equal-after-cleaning"],
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
        (truncated_image(), WorkError, "truncated"),
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
def test_what_is_not_an_image_is_refused_with_the_reason(
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
    _, result = run
    assert card["accuracies"] == result.accuracies
    assert card["classnames"] == list(result.classnames)
    assert card["objective"] == "final"
    assert card["environment"]["torch"] == version("torch")


def test_the_card_contains_the_settings_without_local_paths(exported: Path) -> None:
    text = exported.with_suffix(".json").read_text()
    data = json.loads(text)["config"]["data"]
    assert data["name"] == "dtd"
    assert data["shots"] == 1
    assert data["root"] is None
    assert str(Path.cwd()) not in text


def test_the_card_is_written_beside_the_prompts_and_into_their_file(exported: Path) -> None:
    with safe_open(exported, framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["card"]) == json.loads(exported.with_suffix(".json").read_text())


def test_prompts_of_weights_from_a_file_require_the_same_weights(small_dtd: Path, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    state = {name: tensor.contiguous() for name, tensor in load_mini().items()}
    save_file(state, weights)
    other_weights = tmp_path / "other.safetensors"
    projection = state["text_projection"].clone()
    projection[0, 0] += 1e-3
    save_file({**state, "text_projection": projection}, other_weights)
    data = {"data__name": "dtd", "data__root": str(small_dtd)}
    train(tmp_path / "run", "ivlp", backbone__pretrained=str(weights), **data)
    path = tmp_path / "prompts.safetensors"

    export_run(tmp_path / "run", path)

    assert str(tmp_path) not in path.with_suffix(".json").read_text()
    with pytest.raises(UserError, match=r"requires a local file of weights\. Pass it as pretrained=FILE"):
        prometar.load(path)
    with pytest.raises(UserError, match="was trained with other weights"):
        prometar.load(path, pretrained=str(other_weights))
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


@dataclass(frozen=True)
class Export:
    """Content of exported prompts, which tests damage and write to `path`.

    Args:
        path: Path of a file that does not exist yet.
        leaves: Tensors of the file.
        metadata: Metadata of the file: the card and the version.
    """

    path: Path
    leaves: dict[str, torch.Tensor]
    metadata: dict[str, str]

    @property
    def card(self) -> dict[str, Any]:
        """The card."""
        card: dict[str, Any] = json.loads(self.metadata["card"])
        return card

    def write_card(self, text: str) -> None:
        """Write the prompts with another card."""
        save_file(self.leaves, self.path, {**self.metadata, "card": text})

    def require_refusal(self, message: str) -> None:
        """Check that the file is refused."""
        with pytest.raises(UserError, match=message):
            prometar.load(self.path)


@pytest.fixture
def export(exported: Path, tmp_path: Path) -> Export:
    """The content of the exported prompts."""
    with safe_open(exported, framework="pt") as file:
        metadata = file.metadata()
    return Export(tmp_path / "prompts.safetensors", load_file(exported), metadata)


def test_prompts_that_do_not_exist_are_refused(export: Export) -> None:
    export.require_refusal("does not exist. Write one with `prometar export")


def test_an_incomplete_file_is_refused(export: Export, exported: Path) -> None:
    export.path.write_bytes(exported.read_bytes()[:-7])
    export.require_refusal(r"is not a \.safetensors file")


def test_tensors_without_a_card_are_refused(export: Export) -> None:
    save_file(export.leaves, export.path)
    export.require_refusal("was not written by this version of `prometar export`")


def test_tensors_of_another_shape_are_refused(export: Export) -> None:
    name, leaf = next(iter(export.leaves.items()))
    save_file({**export.leaves, name: leaf[:, :3].contiguous()}, export.path, export.metadata)
    export.require_refusal(rf"{name} is float \(4, 3\)")


@pytest.mark.parametrize(
    "change",
    [
        {"template": "a photo."},
        {"template": "{} {}"},
        {"classnames": ["a", " "]},
        {"classnames": ["a", "\x1b[2J"]},
        {"classnames": ["a", "\ud800"]},
        {"classnames": ["a", "b" * 2000]},
        {"config": {"method": "prometar", "x": 1}},
    ],
    ids=[
        "template-without-class",
        "template-of-two-classes",
        "blank-class",
        "escape-sequence",
        "surrogate",
        "long-class",
        "unknown-setting",
    ],
)
def test_a_card_with_an_invalid_value_is_refused(change: dict[str, Any], export: Export) -> None:
    export.write_card(json.dumps({**export.card, **change}))
    export.require_refusal("has a corrupt card ")


@pytest.mark.parametrize("text", ["[" * 5000, "null", "{}"], ids=["nested", "null", "empty"])
def test_a_card_that_is_not_one_is_refused(text: str, export: Export) -> None:
    export.write_card(text)
    export.require_refusal("has a corrupt card ")


HUBS = "Use mini or an open_clip name, not a hub or folder"


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("hf-hub:a/b", "openai", HUBS),
        ("local-dir:/tmp", "openai", HUBS),
        ("mini", "/dev/zero", "requires a local file of weights"),
        ("mini", "secret", "requires a local file of weights"),
    ],
)
def test_a_card_cannot_name_other_files_or_hubs(
    name: str, pretrained: str, message: str, export: Export
) -> None:
    """Cards may come from strangers, so loading one must not read or download what it names."""
    config = export.card["config"]
    backbone = {**config["backbone"], "name": name, "pretrained": pretrained}
    export.write_card(json.dumps({**export.card, "config": {**config, "backbone": backbone}}))
    export.require_refusal(message)


def test_export_names_the_classes(
    run: tuple[Path, RunResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, result = run
    assert main(["export", str(folder), "--to", str(tmp_path / "prompts.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert f"Classes: {', '.join(result.classnames)}" in shown
    assert "To train on all classes: prometar train --objective all_classes" in shown


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere", "--to", "x.safetensors"], "does not contain a run"),
        (["{run}", "--to", "x.pt"], "--to must end in .safetensors, got"),
        (["{run}"], "Missing option '--to'"),
    ],
    ids=["no-run", "other-suffix", "no-file"],
)
def test_wrong_usage_of_export_is_refused(
    args: list[str],
    message: str,
    run: tuple[Path, RunResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, _ = run
    assert main(["export", *(arg.format(run=folder) for arg in args)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the contents of all files below a folder by path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["run/checkpoint", "run/result", "exported", "plain", "dangling"])
def test_export_overwrites_nothing(
    name: str,
    run: tuple[Path, RunResult],
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An export consists of a .safetensors and a .json. Neither may exist."""
    folder, _ = run
    shutil.copytree(folder, tmp_path / "run")
    shutil.copy(exported, tmp_path / "exported.safetensors")
    (tmp_path / "plain.json").write_text("{}")
    (tmp_path / "dangling.safetensors").symlink_to(tmp_path / "nothing")
    before = contents(tmp_path)

    assert main(["export", str(tmp_path / "run"), "--to", str(tmp_path / f"{name}.safetensors")]) == 2

    assert "exists. Choose another name." in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_pushed_file_is_loaded(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is replaced. Commits to it are kept in memory."""
    commits: dict[str, list[Any]] = {}

    def create_commit(api: object, repo: str, added: list[Any], **kwargs: str) -> None:
        commits[repo] = added

    def hf_hub_download(repo: str, name: str, *, revision: str | None) -> str:
        if repo not in commits:
            raise OSError("no such repository")
        assert revision == "v1"
        (file,) = [file for file in commits[repo] if file.path_in_repo == name]
        (tmp_path / name).write_bytes(file.path_or_fileobj)
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda api, repo, **_: f"https://hub/{repo}")
    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", create_commit)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)

    assert main(["push", str(exported), "me/prompts"]) == 0

    assert [file.path_in_repo for file in commits["me/prompts"]] == ["prompts.safetensors", "card.json"]
    assert prometar.load("hf://me/prompts@v1").card == prometar.load(exported).card
    with pytest.raises(WorkError, match=r"Cannot download hf://me/none \(no such repository\)"):
        prometar.load("hf://me/none")


def test_prometar_has_no_other_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        prometar.nothing  # noqa: B018


INFERENCE = """
import sys
import numpy
import prometar
print(*sorted({"torch", "ray", "open_clip"} & set(sys.modules)))
classifier = prometar.load(sys.argv[1])
print(*classifier.predict(numpy.zeros((70, 80, 3), numpy.uint8)).names)
print(*{name.split(".")[0] for name in sys.modules})
"""
"""Script that prints slow modules that `prometar` imports, a predicted class, and all imported packages."""


def test_inference_imports_only_what_a_server_needs(exported: Path) -> None:
    """A server needs no search, cluster, tables, hub or plots."""
    command = [sys.executable, "-c", INFERENCE, str(exported)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    slow_modules, predicted, packages = done.stdout.splitlines()
    assert slow_modules == ""
    assert predicted in json.loads(exported.with_suffix(".json").read_text())["classnames"]
    imported = set(packages.split())
    assert {"torch", "prometar"} <= imported
    unneeded = {
        "ray",
        "optuna",
        "pandas",
        "mlflow",
        "matplotlib",
        "plotly",
        "open_clip",
        "torchvision",
        "huggingface_hub",
        "tune",
    }
    assert not unneeded & imported


@pytest.mark.parametrize("kind", ["not finite", "of another run"])
def test_a_run_with_wrong_prompts_is_neither_exported_nor_evaluated(
    kind: str, run: tuple[Path, RunResult], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    original, _ = run
    shutil.copytree(original, folder)
    path = folder / "checkpoint.safetensors"
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    first = next(name for name in tensors if name.startswith("prompts/"))
    if kind == "not finite":
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
