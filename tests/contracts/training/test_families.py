"""Training on other families, as the command does it, and what becomes of its runs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from prometar import runs
from prometar.cli.app import main
from prometar.config.settings import configure
from prometar.data.streaming.stream import stream_local
from prometar.inference.classifier import Classifier, load
from prometar.inference.portable import ImageClassifier
from prometar.training.lockstep import Lockstep
from prometar.training.rehearsal import rehearse
from prometar.training.run import build_run
from prometar.training.session import Session
from tests.support import families
from tests.support.kernels import kernels_of


@pytest.fixture(autouse=True)
def _tiny_models(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    families.register_languages(monkeypatch, tmp_path_factory.mktemp("languages"))

    def here(run: runs.Run) -> runs.Stream:
        return lambda plan, step: stream_local(plan, run.dataset.source, start_step=step)

    monkeypatch.setattr(runs, "ray_stream", here)


def command(name: str, method: str, out: Path, *more: str) -> int:
    settings = {
        "backbone.name": name, "backbone.pretrained": "random", "train.epochs": 1, "data.shots": 1,
        "train.batch_size": 6,
    }  # fmt: skip
    assigned = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return main(["train", "--method", method, "--out", str(out), *assigned, *more])


def trained(name: str, method: str, out: Path, *more: str) -> Path:
    assert command(name, method, out, *more) == 0
    return out


def pixels(classifier: Classifier) -> NDArray[np.uint8]:
    size = classifier.backbone.clip.image_size
    return np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)


def exported(run: Path) -> Classifier:
    file = run.with_name("prompts.safetensors")
    assert main(["export", str(run), "--to", str(file)]) == 0
    return load(file, device="cpu")


def test_an_epoch_on_textures(tmp_path: Path) -> None:
    run = trained("tiny-siglip", "prometar", tmp_path / "run", "--objective", "class_holdout")
    assert len(json.loads((run / "result.json").read_text())["history"]) == 1


@pytest.mark.parametrize(
    ("name", "method"),
    [("tiny-clipa", "maple"), ("tiny-worldwide", "promptsrc"), ("tiny-gap", "cocoop"),
     ("tiny-siglip-i18n", "cocoop"), ("tiny-mobileclip", "coop"),
     ("tiny-coca", "prometar"), ("tiny-coca-square", "cocoop"), ("tiny-coca-base", "maple"),
     ("tiny-roberta", "prometar"), ("tiny-xlm-roberta", "maple"), ("tiny-mt5", "coop"),
     ("tiny-nllb", "promptsrc"), ("tiny-causal", "cocoop"), ("tiny-coca-roberta", "prometar"),
     ("tiny-resnet", "coop"), ("tiny-eva02", "cocoop"), ("tiny-resnet", "zero-shot")],
)  # fmt: skip
def test_trained_prompts_classify(name: str, method: str, small_dtd: Path, tmp_path: Path) -> None:
    classifier = exported(
        trained(name, method, tmp_path / "run", "--dataset", "dtd", "--data-root", str(small_dtd))
    )
    found = classifier.predict(list(pixels(classifier))).probabilities
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


def test_methods_with_prompts_in_a_closed_image_tower_are_refused(
    small_dtd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("prometar", "maple"):
        run = tmp_path / "run"
        assert command("tiny-resnet", method, run, "--dataset", "dtd", "--data-root", str(small_dtd)) == 2
        assert not run.exists()
        said = capsys.readouterr().err.strip()
        assert "takes none (its image tower is a ResNet)" in said
        assert len(said.splitlines()) == 1


def written(classifier: Classifier, run: Path) -> NDArray[np.float32]:
    """Logits of a run's ONNX file: to write one takes seconds."""
    path = run.with_name("a.onnx")
    assert main(["export", str(run), "--to", str(path), "--format", "onnx"]) == 0
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": pixels(classifier)})
    return np.asarray(logits)


def unwritten(classifier: Classifier, run: Path) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = ImageClassifier(classifier)(torch.from_numpy(pixels(classifier))).numpy()
    return logits


@pytest.mark.parametrize(
    ("name", "method", "logits_of"),
    [
        ("tiny-siglip2", "prometar", written),
        ("tiny-clipa", "prometar", unwritten),
        ("tiny-eva", "prometar", unwritten),
        ("tiny-resnet", "coop", written),
        ("tiny-coca", "prometar", unwritten),
        ("tiny-roberta", "prometar", unwritten),
    ],
)
def test_a_program_says_what_the_prompts_say(
    name: str,
    method: str,
    logits_of: Callable[[Classifier, Path], NDArray[np.float32]],
    small_dtd: Path,
    tmp_path: Path,
) -> None:
    run = trained(name, method, tmp_path / "run", "--dataset", "dtd", "--data-root", str(small_dtd))
    classifier = exported(run)
    images, logits = pixels(classifier), logits_of(classifier, run)
    found = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = classifier.predict(list(images)).probabilities
    np.testing.assert_allclose(found / found.sum(axis=1, keepdims=True), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "method", "configurations"),
    [("tiny-siglip", "prometar", 2), ("tiny-resnet", "coop", None), ("tiny-coca", "prometar", None),
     ("tiny-mt5", "prometar", None), ("tiny-nllb", "prometar", None), ("tiny-roberta", "prometar", 2)],
)  # fmt: skip
def test_an_iteration_is_counted_without_weights(name: str, method: str, configurations: int | None) -> None:
    config = configure(method, {"backbone.name": name, "backbone.pretrained": "random"})
    counted = kernels_of(rehearse(config, num_classes=5, configurations=configurations))
    assert counted.kernels["bmm"] > 0


@pytest.mark.parametrize("name", ["tiny-roberta", "tiny-nllb", "tiny-siglip"])
def test_configurations_in_lockstep_end_where_each_ends_alone(
    name: str, small_dtd: Path, tmp_path: Path
) -> None:
    config = configure(
        "prometar",
        {"backbone.name": name, "backbone.pretrained": "random", "backbone.precision": "fp64",
         "data.name": "dtd", "data.root": str(small_dtd), "data.shots": 1, "train.batch_size": 6,
         "train.epochs": 2},
    )  # fmt: skip
    configs = [config, config.override({"inner.lr": 0.02, "regularizer.text_weight": 5.0})]
    built = [build_run(each, "base_val") for each in configs]

    def sessions(folder: Path) -> list[Session]:
        return [
            Session(
                run,
                folder / str(k),
                lambda plan, step: stream_local(plan, built[0].dataset.source, start_step=step),
            )
            for k, run in enumerate(built)
        ]

    alone, together = sessions(tmp_path / "alone"), sessions(tmp_path / "together")
    for session in alone:
        while not session.finished:
            session.epoch()
    crew = Lockstep(list(together))
    while crew.sessions:
        crew.epoch()
    assert any((a != b).any() for a, b in zip(*(s.state.prompts.values() for s in alone), strict=True))
    for one, other in zip(alone, together, strict=True):
        for key, tensor in one.state.tensors().items():
            torch.testing.assert_close(other.state.tensors()[key], tensor, rtol=0, atol=1e-8)
