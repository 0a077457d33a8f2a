"""What the command line hands to a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prometar.interrupts import INTERRUPTED
from tune import study
from tune.search import main
from tune.study import Place
from tune.study_spec import StudySpec


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[StudySpec, Place]]:
    """Requests instead of studies; the current folder is a test's own."""
    found: list[tuple[StudySpec, Place]] = []
    monkeypatch.setattr(study, "run_study", lambda spec, place: found.append((spec, place)))
    monkeypatch.chdir(tmp_path)
    return found


def test_paths_mean_the_same_on_every_worker(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").touch()
    given = ["--pretrained", "weights.safetensors", "--data-root", "data", "--files", "store"]
    assert main(["--backbone", "ViT-B-16", *given]) == 0
    ((spec, place),) = asked
    assert spec.config.backbone.pretrained == str(tmp_path / "weights.safetensors")
    assert spec.config.data.root == str(tmp_path / "data")
    assert place.files == str(tmp_path / "store" / "textures")


def test_several_data_sets_make_one_study(asked: list[Any]) -> None:
    assert main(["--dataset", "dtd", "eurosat", "--seeds-per-trial", "2", "--seed", "4"]) == 0
    ((spec, place),) = asked
    assert spec.names == ("dtd", "eurosat")
    assert spec.seeds == (4, 5)
    assert place.name == "dtd-eurosat"
    assert spec.config.backbone.name == "ViT-B-16-quickgelu"


def test_several_goals_are_not_pruned(asked: list[Any]) -> None:
    assert main(["--goals", "objective", "seconds"]) == 0
    assert asked[0][0].goals == ("objective", "seconds")
    assert asked[0][0].pruner == "none"


def test_an_interrupted_study_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(spec: StudySpec, place: Place) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "run_study", interrupted)
    assert main([]) == INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted; the same command goes on from here\n"
