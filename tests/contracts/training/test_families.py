"""Training on SigLIP towers with the command, and loading the exported prompts."""

import json
from pathlib import Path

import numpy as np
import pytest

import prometar
from prometar.cli.app import main
from tests.support import families


@pytest.fixture(autouse=True)
def _tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    families.register(monkeypatch)


@pytest.mark.parametrize(
    ("name", "method"), [("tiny-siglip", "prometar"), ("tiny-siglip", "cocoop"), ("tiny-siglip2", "maple")]
)
def test_exported_prompts_classify(name: str, method: str, small_dtd: Path, tmp_path: Path) -> None:
    settings = {
        "backbone.name": name, "backbone.pretrained": "random", "train.epochs": 1, "data.shots": 1,
        "train.batch_size": 6,
    }  # fmt: skip
    assigned = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    run, file = tmp_path / "run", tmp_path / "prompts.safetensors"
    data = ["--dataset", "dtd", "--data-root", str(small_dtd)]
    assert main(["train", "--method", method, "--out", str(run), *data, *assigned]) == 0
    assert len(json.loads((run / "result.json").read_text())["history"]) == 1
    assert main(["export", str(run), "--to", str(file)]) == 0
    classifier = prometar.load(file, device="cpu")
    size = classifier.backbone.clip.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    np.testing.assert_allclose(classifier.predict(list(pixels)).probabilities.sum(axis=1), 1, rtol=1e-5)
