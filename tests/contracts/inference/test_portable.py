"""Programs of exported runs: they say what `predict` says, without prometar, and their files run no code."""

import io
import json
import pickletools
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import prometar.inference.portable as portable_module
from prometar.backbone.openclip import load_backbone, tokenize
from prometar.cli.app import main
from prometar.config.recipes import NAMES as METHODS
from prometar.config.settings import configure
from prometar.inference.classifier import Classifier
from prometar.methods.composition import build_prompts
from prometar.runs import trained
from prometar.training import session as session_module
from tests.contracts.inference.test_export import train
from tests.support.small import BACKBONE

FIXED = [name for name in METHODS if not build_prompts(configure(name)).conditional]


@pytest.fixture(scope="module", autouse=True)
def _images_are_dropped() -> Iterator[None]:
    yield
    session_module._IMAGES.clear()


@pytest.fixture(scope="module")
def run(small_dtd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(folder, "prometar", data__name="dtd", data__root=str(small_dtd), **BACKBONE)
    return folder


@pytest.fixture(scope="module")
def in_the_text(small_dtd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with prompts in the text alone."""
    folder = tmp_path_factory.mktemp("coop")
    train(folder, "coop", data__name="dtd", data__root=str(small_dtd), **BACKBONE)
    return folder


@pytest.fixture(scope="module")
def onnx(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as an ONNX file: to write one takes seconds."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export(run, path, "onnx")
    return path


def probabilities(logits: Any) -> NDArray[np.float32]:
    found: NDArray[np.float32] = torch.as_tensor(logits).softmax(dim=-1).numpy()
    return found


def export(run: Path, to: Path, format: str, *more: str) -> None:
    assert main(["export", str(run), "--to", str(to), "--format", format, *more]) == 0


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])


def pixels(classifier: Classifier) -> NDArray[np.uint8]:
    size = classifier.backbone.clip.image_size
    return np.random.default_rng(0).integers(0, 256, (5, size, size, 3), dtype=np.uint8)


def require_same(classifier: Classifier, program: Any, **features: Any) -> None:
    """At a batch of one, which exporters like to take for a constant, and of five."""
    for images in (pixels(classifier)[:1], pixels(classifier)):
        wanted = classifier.predict(list(images)).probabilities
        assert np.ptp(wanted, axis=0).max() > 1e-3 or len(images) == 1, "all images look the same"
        np.testing.assert_allclose(probabilities(program(images, **features)), wanted, atol=1e-4)


@pytest.mark.parametrize("method", FIXED)
def test_a_program_says_what_predict_says(method: str) -> None:
    """Of every method, before it is written: with prompts as they start."""
    config, backbone = configure(method), load_backbone("mini", None)
    prompts = build_prompts(config)
    words = tokenize([config.prompts.init])[0, 1:5]
    leaves = prompts.init(backbone.clip, words, torch.Generator().manual_seed(0))
    classifier = Classifier(backbone, prompts, leaves, config, ("striped", "dotted"), "a photo of a {}.", {})
    program = portable_module.ImageClassifier(classifier)
    require_same(classifier, lambda images: program(torch.from_numpy(images)))


def test_onnx_says_what_predict_says(run: Path, onnx: Path) -> None:
    ran, classifier = session(onnx), trained(run)
    require_same(classifier, lambda images: ran.run(["logits"], {"images": images})[0])
    texts = ran.get_modelmeta().custom_metadata_map
    assert tuple(json.loads(texts["classnames"])) == classifier.classnames
    assert json.loads(texts["card"])["method"] == "prometar"


def test_torch_says_what_predict_says_and_holds_no_pickle(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    export(run, path, "torch")
    texts = {"card.json": "", "classnames.json": ""}
    program = torch.export.load(path, extra_files=texts).module()
    classifier = trained(run)
    require_same(classifier, lambda images: program(images=torch.from_numpy(images)))
    assert tuple(json.loads(texts["classnames.json"])) == classifier.classnames
    assert json.loads(texts["card.json"])["images"]["base"] > 0
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    assert sum(map(len, members.values())) > portable_module.ImageClassifier(classifier).num_bytes
    assert not [name for name, content in members.items() if content and _is_pickle(content)]
    assert not [flag for text in members.values() for flag in (b'"use_pickle": true',) if flag in text]


def _is_pickle(content: bytes) -> bool:
    if zipfile.is_zipfile(io.BytesIO(content)):  # torch.save
        return True
    try:
        return content[:1] == b"\x80" and bool(list(pickletools.genops(content)))
    except ValueError:
        return False


def test_the_program_of_the_docs(
    run: Path,
    onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """docs/deploy.md, as it stands there, prints what `predict` says of wide, tall and 16-bit pictures."""
    text = (Path(__file__).parents[3] / "docs" / "deploy.md").read_text("utf-8")
    code = next(part.split("```")[0] for part in text.split("```python\n") if "onnxruntime" in part[:99])
    monkeypatch.chdir(tmp_path)
    shutil.copy(onnx, tmp_path / "model.onnx")
    classifier = trained(run)
    wide, tall = (
        np.random.default_rng(1).integers(0, 256, shape, np.uint8) for shape in ((90, 171, 3), (133, 80, 3))
    )
    for pixels, format in ((wide, "JPEG"), (tall, "JPEG"), (tall[..., 0].astype(np.uint16) * 256, "PNG")):
        Image.fromarray(pixels).save("a.jpg", format)
        capsys.readouterr()
        values: dict[str, Any] = {}
        exec(code, values)
        wanted = classifier.predict(["a.jpg"])
        assert capsys.readouterr().out == f"{wanted.names[0]}\n"
        np.testing.assert_allclose(probabilities(values["logits"]), wanted.probabilities, atol=1e-4)


@pytest.mark.parametrize(("format", "made"), [("onnx", "in_the_text"), ("torch", "run")])
def test_classes_may_be_a_second_input(
    format: str, made: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(made)
    path = tmp_path / f"model{portable_module.FORMATS[format].suffix}"
    export(folder, path, format, "--classes-as-input")
    classifier = trained(folder)
    program: Any
    if format == "onnx":
        ran = session(path)
        program = lambda images, text: ran.run(None, {"images": images, "text_features": text})[0]  # noqa: E731
    else:
        module = torch.export.load(path).module()
        program = lambda images, text: module(  # noqa: E731
            images=torch.from_numpy(images), text_features=torch.from_numpy(text)
        )
    require_same(classifier, program, text=classifier.text_features())
    images = pixels(classifier)
    for names in (["striped", "a cloud"], ["one", "two", "three", "four", "five"]):
        wanted = classifier.predict(list(images), classnames=names).probabilities
        found = probabilities(program(images, classifier.text_features(names)))
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize(("precision", "rounding"), [("bf16", 0.05), ("fp64", 1e-4)])
def test_a_run_in_another_precision_is_a_program_in_float32(
    precision: str, rounding: float, small_dtd: Path, tmp_path: Path
) -> None:
    data = {"data__name": "dtd", "data__root": str(small_dtd), "backbone__precision": precision}
    train(tmp_path / "run", "maple", **data)
    classifier = trained(tmp_path / "run")
    images = pixels(classifier)
    logits = portable_module.ImageClassifier(classifier)(torch.from_numpy(images))
    assert logits.dtype == torch.float32
    found, wanted = probabilities(logits), classifier.predict(list(images)).probabilities
    assert np.abs(found - wanted).max() < rounding  # what the run's own does


def test_wrong_usage_of_programs(
    run: Path,
    small_dtd: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train(tmp_path / "cocoop", "cocoop", data__name="dtd", data__root=str(small_dtd))
    folder = tmp_path / "study" / "trials" / "0001"
    shutil.copytree(run, folder)
    (tmp_path / "study" / "study.yaml").write_text("name: study")
    (folder / "best.onnx").write_bytes(b"anything")
    (tmp_path / "mine.pt2").write_bytes(b"a user's own")
    (tmp_path / "circle.onnx").symlink_to(tmp_path / "circle.onnx")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fails(source: Path, to: str, *args: str) -> str:
        assert main(["export", str(source), "--to", str(tmp_path / to), *args]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "expected prompts, onnx or torch" in fails(run, "x.onnx", "--format", "tflite")
    assert "ends in .onnx with --format onnx" in fails(run, "x.pt2", "--format", "onnx")
    assert "belongs to --format onnx or torch" in fails(run, "x.safetensors", "--classes-as-input")
    assert "is there already" in fails(run, "study/trials/0001/best.onnx", "--format", "onnx")
    assert "is there already" in fails(run, "mine.pt2", "--format", "torch")
    assert "cannot follow" in fails(run, "circle.onnx", "--format", "onnx")
    assert "holds no run" in fails(tmp_path, "x.onnx", "--format", "onnx")
    for format, suffix in (("onnx", "onnx"), ("torch", "pt2")):
        said = fails(tmp_path / "cocoop", f"x.{suffix}", "--format", format)
        assert "the prompts of cocoop make other text features for each image" in said
    monkeypatch.setattr(portable_module, "find_spec", lambda name: None)
    said = fails(run, "x.onnx", "--format", "onnx")
    assert "needs onnx and onnxscript: pip install '.[onnx]'" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_an_onnx_file_cannot_hold_is_said_before(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable_module, "_MOST_ONNX_BYTES", 1000)
    assert main(["export", str(run), "--to", str(tmp_path / "x.onnx"), "--format", "onnx"]) == 1
    assert "an ONNX file at most 2 GiB: use --format torch" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
