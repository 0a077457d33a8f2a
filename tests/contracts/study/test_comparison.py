"""`prometar compare` of two studies that a driver has run."""

from pathlib import Path

import pytest

from prometar.cli.app import main
from tests.support.driver import NAME, run_fake


def test_runs_of_the_final_test_are_found_by_their_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = ["textures", "cells"]
    for name, seed in (("a", 7), ("b", 8)):
        finals, _ = run_fake(tmp_path, trials=4, seed=seed, final_seeds=(1, 2), dataset=datasets)
        assert finals["selected"]["number"] > 0, "other settings than the default ones"
        (tmp_path / NAME).rename(tmp_path / name)

    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    assert "a method minus a selected in points" in text
    for label in ("a default", "b selected", "b default"):
        assert f"base  {label} " in text
