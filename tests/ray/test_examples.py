"""The examples, as their users run them: through a study and through a single run."""

import json
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml

import prometar
from prometar.cli.app import main as prometar_main
from prometar.errors import UserError
from prometar.run_folder import export_run
from tune.search import main as search

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = ["--backbone", "mini", "--set", "data.shots=1", "--set", "search.val_per_class=1"]
SHORT = ["--trials", "2", "--epochs", "1", "--top", "0", "--final-seeds", ""]
ALL = [
    "--set",
    "regularizer.kind=huber:Huber",
    "--space",
    str(ROOT / "examples" / "huber.yaml"),
    "--set",
    "prompts.kind=lowrank:LowRank",
    "--dataset",
    "circles:Circles",
    "--objective",
    "worst:worst",
]


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is on this process's path. Ray's workers inherit PYTHONPATH, see conftest.py."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def test_all_examples_are_searched_together(tmp_path: Path, ray_data: str) -> None:
    args = ["--out", str(tmp_path), "--study", "it", "--max-concurrent", "1", "--cpus-per-trial", "1"]
    assert search([*SMALL, *SHORT, *args, *ALL]) == 0
    study = yaml.safe_load((tmp_path / "it" / "study.yaml").read_text())
    for name in ("huber", "lowrank", "circles", "worst"):
        assert any(key.startswith(f"code of {name}:") for key in study["contents"])
    trials = [json.loads(path.read_text()) for path in tmp_path.glob("it/trials/*/record.json")]
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 2
    assert all(trial["objective"] == min(trial["base"], trial["new"]) for trial in trials)
    assert trials[0]["settings"].keys() == {"regularizer.text_weight", "regularizer.args.delta"}


def forget() -> None:
    """As if no example had ever been imported."""
    for module in ("huber", "lowrank", "circles"):
        sys.modules.pop(module, None)


def test_examples_are_trusted_only_when_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("prompts.kind=lowrank:LowRank", "prompts.args.rank=1", "data.args.size=48", "data.shots=1")
    words = ["--method", str(ROOT / "examples" / "mine.yaml"), "--dataset", "circles:Circles"]
    for setting in (*settings, "train.epochs=1", "backbone.name=mini"):
        words += ["--set", setting]
    assert prometar_main(["train", *words, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert {reference.partition(":")[0] for reference in result["code"]} == {"huber", "lowrank", "circles"}
    forget()
    for command in (["evaluate", str(tmp_path)], ["train", "--config", str(tmp_path / "config.yaml")]):
        assert prometar_main(command) == 2
        assert "--trust-code" in capsys.readouterr().err
    export_run(tmp_path, path := tmp_path / "prompts.safetensors", trust_code=True)
    forget()
    with pytest.raises(UserError, match="trust_code=True"):
        prometar.load(path)
    assert not sys.modules.keys() & {"huber", "lowrank", "circles"}
    assert prometar.load(path, trust_code=True).leaves.keys() == {"basis", "mix.0", "mix.1", "mix.2"}
    edited = mock.patch("prometar.inference.classifier.source_digest", return_value="")
    with edited, pytest.raises(UserError, match="The code of lowrank:LowRank has changed since "):
        prometar.load(path, trust_code=True)
