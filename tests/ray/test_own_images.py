"""A run on a folder of custom images."""

from pathlib import Path

import pytest

from prometar.cli.app import main
from tests.support.copies import write_tree

FLAT = [f"{name}/{k}.jpg" for name in ("oak_tree", "pine", "yew") for k in range(10)]


def test_a_run_on_ones_own_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path / "tree", FLAT)
    args = ["train", "--data-root", str(tmp_path / "tree"), "--out", str(tmp_path / "run")]
    settings = ["data.name=folder", "backbone.name=mini", "method=ivlp", "train.epochs=1", "data.shots=4"]
    args += [word for setting in settings for word in ("--set", setting)]
    assert main(args) == 2
    assert (
        "folder has 3 classes, but the split into base and new classes needs at least 4"
        in capsys.readouterr().err
    )
    assert main([*args, "--objective", "all_classes"]) == 0
    assert "ivlp on folder, seed 1: all " in capsys.readouterr().out
