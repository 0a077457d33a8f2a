"""The modules in examples/, as their users run them: in a study and in a single run."""

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
EXAMPLES = ("huber", "lowrank", "circles")
"""Modules whose code a run uses."""
SMALL = ["--backbone", "mini", "--set", "data.shots=1", "--set", "search.val_per_class=1"]
"""Options of short trials."""
SEARCH_ONLY = ["--trials", "2", "--epochs", "1", "--top", "0", "--final-seeds", ""]
"""Options of a study without confirmation and final test."""
ALL_EXAMPLES = [
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
    """Make the examples importable. For Ray's workers, tests/conftest.py sets PYTHONPATH."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


def test_all_examples_are_searched_together(tmp_path: Path, ray_data: str) -> None:
    args = ["--out", str(tmp_path), "--study", "it", "--max-concurrent", "1", "--cpus-per-trial", "1"]

    assert search([*SMALL, *SEARCH_ONLY, *args, *ALL_EXAMPLES]) == 0

    study = yaml.safe_load((tmp_path / "it" / "study.yaml").read_text())
    for name in ("huber", "lowrank", "circles", "worst"):
        assert any(key.startswith(f"code of {name}:") for key in study["contents"])
    trials = [json.loads(path.read_text()) for path in tmp_path.glob("it/trials/*/record.json")]
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 2
    assert all(trial["objective"] == min(trial["base"], trial["new"]) for trial in trials)
    assert trials[0]["settings"].keys() == {"regularizer.text_weight", "regularizer.args.delta"}


def forget_examples() -> None:
    """Remove the examples from the imported modules."""
    for module in EXAMPLES:
        sys.modules.pop(module, None)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that uses three examples: huber, lowrank and circles."""
    folder = tmp_path_factory.mktemp("run")
    settings = (
        "prompts.kind=lowrank:LowRank",
        "prompts.args.rank=1",
        "data.args.size=48",
        "data.shots=1",
        "train.epochs=1",
        "backbone.name=mini",
    )
    words = ["--method", str(ROOT / "examples" / "mine.yaml"), "--dataset", "circles:Circles"]
    for setting in settings:
        words += ["--set", setting]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        assert prometar_main(["train", *words, "--out", str(folder)]) == 0
    return folder


def test_a_run_records_the_code_that_it_has_executed(run_folder: Path) -> None:
    result = json.loads((run_folder / "result.json").read_text())
    modules = {reference.partition(":")[0] for reference in result["code"]}
    assert modules == {"huber", "lowrank", "circles"}


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_commands_execute_the_code_of_a_run_only_with_trust_code(
    run_folder: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "evaluate": ["evaluate", str(run_folder)],
        "train": ["train", "--config", str(run_folder / "config.yaml")],
    }
    forget_examples()
    assert prometar_main(arguments[command]) == 2
    assert "--trust-code" in capsys.readouterr().err
    assert not sys.modules.keys() & set(EXAMPLES)


def test_prompts_execute_unchanged_code_only_with_trust_code(run_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.safetensors"
    export_run(run_folder, path, trust_code=True)

    forget_examples()
    with pytest.raises(UserError, match="trust_code=True"):
        prometar.load(path)
    assert not sys.modules.keys() & set(EXAMPLES)

    prompts = prometar.load(path, trust_code=True)
    assert prompts.leaves.keys() == {"basis", "mix.0", "mix.1", "mix.2"}

    has_changed = mock.patch("prometar.inference.classifier.source_digest", return_value="")
    with has_changed, pytest.raises(UserError, match="The code of lowrank:LowRank has changed since "):
        prometar.load(path, trust_code=True)
