"""A study on a folder of own photographs, one of which becomes corrupt during the study."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from prometar.data.datasets.catalog import open_dataset
from prometar.data.splits.objective import FINAL, split_dataset
from prometar.training.prediction_file import PREDICTIONS_FILE
from tests.support.copies import write_tree
from tune.search import main

FIRST_SEED = 1
SECOND_SEED = 2
"""Seeds of the final test."""


def paths_of_photos() -> list[str]:
    """Return the paths of 12 photographs of each of four trees."""
    paths = []
    for name in ("ash", "fir", "oak", "yew"):
        paths += [f"{name}/{number}.png" for number in range(12)]
    return paths


def training_paths(photos: Path, seed: int) -> set[str]:
    """Return the paths of the images on which a run of the final test trains."""
    dataset = open_dataset("folder", photos)
    return {item.path for item in split_dataset(FINAL, dataset, shots=1, seed=seed).train}


def finished_results(study: Path) -> dict[Path, bytes]:
    """Return the contents of all result.json of a study by path."""
    return {path: path.read_bytes() for path in study.rglob("result.json")}


@pytest.mark.usefixtures("ray_data")
def test_a_corrupt_image_is_found_and_excluded_and_the_study_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_tree(tmp_path / "photos", paths_of_photos())
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
        f"--final-seeds={FIRST_SEED} {SECOND_SEED}",
        "--top=0",
        "--max-concurrent=1",
        "--objective=base_val",
        "--set=data.shots=1",
    ]
    assert main(command) == 0, capsys.readouterr().err
    before = finished_results(study)
    assert not list(study.rglob(PREDICTIONS_FILE))

    # An image on which only the run with the second seed of the final test trains becomes corrupt.
    seed_of_search = 0
    other_paths = training_paths(photos, FIRST_SEED) | training_paths(photos, seed_of_search)
    image = min(training_paths(photos, SECOND_SEED) - other_paths)
    (photos / image).write_bytes(b"no image")
    os.utime(photos / image)

    # The same command finds and names it.
    assert main(command) == 1
    error = capsys.readouterr().err
    assert f"1 image of folder cannot be decoded: {image}. Replace them, or list them in" in error
    assert str(photos / "excluded.txt") in error
    assert finished_results(study) == before

    # After it is excluded, only the run that depends on it is repeated, in a new folder.
    (photos / "excluded.txt").write_text(f"{image}\n")
    assert main([*command, "--predictions"]) == 0, capsys.readouterr().err
    after = finished_results(study)
    assert {path: after[path] for path in before} == before, "nothing finished is repeated or changed"
    kept_run = f"trial-0000-folder-seed{FIRST_SEED}"
    repeated_run = f"trial-0000-folder-seed{SECOND_SEED}-2"
    assert [path.parent.name for path in after.keys() - before.keys()] == [repeated_run]

    # --predictions adds tables of predictions, also to the finished run.
    runs_with_predictions = sorted(path.parent.name for path in study.rglob(PREDICTIONS_FILE))
    assert runs_with_predictions == [kept_run, repeated_run]
    rows = pq.read_table(study / "finals" / kept_run / PREDICTIONS_FILE).to_pylist()
    assert {row["image"] for row in rows} == {item.path for item in open_dataset("folder", photos).test}
