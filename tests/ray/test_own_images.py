"""A run on a folder of custom images."""

from pathlib import Path

import pytest

from prometar.cli.app import main
from tests.support.copies import write_tree

CLASSES = ("oak_tree", "pine", "yew")


def test_three_classes_are_too_few_for_a_split_but_can_be_trained_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in CLASSES:
        write_tree(tmp_path / "photos" / name, [f"{number}.jpg" for number in range(10)])
    args = ["train", "--data-root", str(tmp_path / "photos"), "--out", str(tmp_path / "run")]
    for setting in (
        "data.name=folder",
        "backbone.name=mini",
        "method=ivlp",
        "train.epochs=1",
        "data.shots=4",
    ):
        args += ["--set", setting]

    assert main(args) == 2
    message = "folder has 3 classes, but the split into base and new classes needs at least 4"
    assert message in capsys.readouterr().err

    assert main([*args, "--objective", "all_classes"]) == 0
    assert "ivlp on folder, seed 1: all " in capsys.readouterr().out
