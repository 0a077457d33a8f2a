"""A run on a folder of one's own images, and on a data set of the hub."""

from pathlib import Path

import pytest

from prometar.cli.app import main
from tests.support.copies import write_tree
from tests.support.hub_datasets import serve_hub, table

FLAT = [f"{name}/{k}.jpg" for name in ("oak_tree", "pine", "yew") for k in range(10)]


def test_a_run_on_ones_own_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    write_tree(tmp_path / "tree", FLAT)
    args = ["train", "--data-root", str(tmp_path / "tree"), "--out", str(tmp_path / "run")]
    settings = ["data.name=folder", "method=ivlp", "train.epochs=1", "data.shots=4"]
    args += [word for setting in settings for word in ("--set", setting)]
    assert main(args) == 2
    assert "folder has too few classes, 3: base and new ones are two each at least" in capsys.readouterr().err
    assert main([*args, "--objective", "all_classes"]) == 0
    assert "ivlp on folder, seed 1: all " in capsys.readouterr().out


def test_a_run_on_a_data_set_of_the_hub(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ray_local: None
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    root, name = tmp_path / "root", "hf://someone/leaves?label=kind"
    args = ["train", "--dataset", name, "--data-root", str(root), "--out", str(tmp_path / "run")]
    settings = ["method=ivlp", "train.epochs=1", "data.shots=4", "backbone.name=mini"]
    with serve_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.files["someone/leaves"] = {
            f"data/{split}.parquet": table([0, 1, 2, 3] * 6, seed=seed, label="kind")
            for seed, split in enumerate(("train", "validation", "test"))
        }
        assert main([*args, *(word for setting in settings for word in ("--set", setting))]) == 0
    assert f"ivlp on {name}, seed 1: base " in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run")]) == 0, "the copy is enough"
    assert "base " in capsys.readouterr().out
