"""A study on own photographs, one of which becomes corrupt: it is found, excluded, and the study resumes."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prometar.data.datasets.catalog import open_dataset
from prometar.data.splits.objective import FINAL, split_dataset
from prometar.training.prediction_file import PREDICTIONS_FILE
from tests.support.copies import write_tree
from tune.search import main

FINAL_SEEDS = (1, 2)
TREE = [f"{name}/{k}.png" for name in ("ash", "fir", "oak", "yew") for k in range(12)]


def training_paths(photos: Path, seed: int) -> set[str]:
    dataset = open_dataset("folder", photos)
    return {item.path for item in split_dataset(FINAL, dataset, shots=1, seed=seed).train}


def finished_results(study: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in study.rglob("result.json")}


@pytest.mark.usefixtures("ray_data")
def test_a_corrupt_image_is_found_and_excluded_and_the_study_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_tree(tmp_path / "photos", TREE)
    study = tmp_path / "out/folder"
    command = [
        "--dataset=folder",
        f"--data-root={photos}",
        f"--out={tmp_path / 'out'}",
        "--backbone=mini",
        "--method=coop",
        "--trials=1",
        "--epochs=1",
        "--final-epochs=1",
        "--final-seeds=1 2",
        "--top=0",
        "--max-concurrent=1",
        "--objective=base_val",
        "--set=data.shots=1",
    ]
    assert main(command) == 0, capsys.readouterr().err
    before = finished_results(study)
    assert not list(study.rglob(PREDICTIONS_FILE))

    first, second = FINAL_SEEDS
    image = min(training_paths(photos, second) - training_paths(photos, first) - training_paths(photos, 0))
    (photos / image).write_bytes(b"no image")
    os.utime(photos / image)
    assert main(command) == 1
    error = capsys.readouterr().err
    assert f"1 image of folder cannot be decoded: {image}. Replace them, or list them in" in error
    assert str(photos / "excluded.txt") in error
    assert finished_results(study) == before

    (photos / "excluded.txt").write_text(f"{image}\n")
    assert main([*command, "--predictions"]) == 0, capsys.readouterr().err
    after = finished_results(study)
    assert {path: after[path] for path in before} == before, "nothing finished is repeated or changed"
    new = sorted(path.parent.name for path in after.keys() - before.keys())
    assert new == [f"trial-0000-folder-seed{second}-2"]
    tables = sorted(path.parent.name for path in study.rglob(PREDICTIONS_FILE))
    assert tables == [f"trial-0000-folder-seed{first}", f"trial-0000-folder-seed{second}-2"]
    rows = pq.read_table(study / "finals" / tables[0] / PREDICTIONS_FILE).to_pylist()
    assert {row["image"] for row in rows} == {item.path for item in open_dataset("folder", photos).test}
