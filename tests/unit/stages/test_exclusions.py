"""An image is excluded after a study has started: finished runs are kept, and affected ones are repeated."""

from itertools import product
from pathlib import Path

import pytest

from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.dataset import Dataset
from prometar.data.splits.objective import FINAL, split_dataset
from tests.support.copies import write_tree
from tests.support.driver import small_config
from tests.support.study_records import runner, study
from tune import StudyConfig
from tune.execution.flows import complete
from tune.records.folder import StudyFolder
from tune.records.schema import Candidate
from tune.stages.exclusions import exclusion_notes
from tune.stages.final_test import run_final_test

CLASSES = ("ash", "fir", "oak", "yew")
SHOTS = 2


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    """Study of a folder of photos whose final test has the seeds 1, 2 and 4."""
    paths = [f"{name}/{number}.png" for name, number in product(CLASSES, range(12))]
    photos = write_tree(tmp_path / "photos", paths)
    return small_config(
        tmp_path,
        dataset="folder",
        data_root=str(photos),
        backbone="mini",
        final_seeds="1 2 4",
        settings={"data.shots": SHOTS},
    )


def open_photos(config: StudyConfig) -> Dataset:
    """Open the dataset of a study, with the images that are excluded now."""
    return open_dataset("folder", config.baseline.data.root)


def exclusions_of(config: StudyConfig) -> Path:
    """Path of the file that lists excluded images."""
    return Path(str(config.baseline.data.root)) / "excluded.txt"


def training_paths(config: StudyConfig, seed: int) -> set[str]:
    """Paths of the training images of a run of the final test."""
    split = split_dataset(FINAL, open_photos(config), shots=SHOTS, seed=seed)
    return {item.path for item in split.train}


def results_of(config: StudyConfig) -> dict[Path, bytes]:
    """Contents of all results of the final test."""
    finals = StudyFolder.of(config).path / "finals"
    return {path: path.read_bytes() for path in finals.rglob("result.json")}


def finish(config: StudyConfig) -> list[str]:
    """Run the final test of a trial's settings. Return the seeds of the jobs that have run, in order."""
    run_stage, names = runner(lambda number, run: 60.0 + number)
    selected = Candidate(7, False, {**config.baseline_settings, "regularizer.text_weight": 1.5}, ())
    folder = StudyFolder.of(config)
    stages = run_final_test(config, folder, selected, published={"folder": None}, previous=None)
    complete(stages, run_stage)
    return [name.rpartition(" ")[2] for name in names]


def exclude_image_of_seed_4(config: StudyConfig) -> None:
    """Exclude an image on which only the runs with seed 4 train."""
    images_of_other_seeds = training_paths(config, 1) | training_paths(config, 2)
    image = min(training_paths(config, 4) - images_of_other_seeds)
    exclusions_of(config).write_text(image)
    assert image not in training_paths(config, 4)


def test_a_finished_final_test_runs_nothing_again(config: StudyConfig) -> None:
    assert finish(config) == ["1", "2", "4", "1", "2", "4"], "default settings, then selected ones"
    assert finish(config) == []


def test_only_runs_that_used_an_excluded_image_are_repeated(config: StudyConfig) -> None:
    finish(config)
    exclude_image_of_seed_4(config)
    assert finish(config) == ["4", "4"], "default and selected settings"
    assert finish(config) == []


def test_repeated_runs_have_folders_of_their_own_and_change_nothing_finished(config: StudyConfig) -> None:
    finish(config)
    before = results_of(config)

    exclude_image_of_seed_4(config)
    finish(config)

    after = results_of(config)
    new_folders = {path.parent.name for path in after.keys() - before.keys()}
    assert new_folders == {"trial-0000-folder-seed4-2", "trial-0007-folder-seed4-2"}
    assert after.items() >= before.items()


def test_the_first_results_are_used_again_if_the_image_is_included_again(config: StudyConfig) -> None:
    finish(config)
    exclude_image_of_seed_4(config)
    finish(config)

    exclusions_of(config).unlink()
    assert finish(config) == []


def exclude_image_of_search(config: StudyConfig) -> str:
    """Exclude an image on which the search validates. Return its path."""
    split = split_dataset(
        config.search.objective,
        open_photos(config),
        shots=SHOTS,
        seed=config.search.seed,
        val_per_class=config.search.val_per_class,
    )
    image = split.evaluations["base"][0].path
    exclusions_of(config).write_text(image)
    return image


def test_a_note_says_that_trials_used_an_excluded_image(config: StudyConfig) -> None:
    image = exclude_image_of_search(config)
    (note,) = exclusion_notes(config, [open_photos(config)], previous=study())
    assert f"Excluded images of folder have changed ({image})." in note
    assert "Their scores are kept." in note


def test_there_is_no_note_if_no_image_is_excluded(config: StudyConfig) -> None:
    assert not list(exclusion_notes(config, [open_photos(config)], previous=study()))


def test_the_first_command_of_a_study_has_no_note(config: StudyConfig) -> None:
    exclude_image_of_search(config)
    assert not list(exclusion_notes(config, [open_photos(config)], previous=None))


def test_there_is_no_note_on_a_test_image_which_the_search_does_not_read(config: StudyConfig) -> None:
    test_image = open_photos(config).test[0]
    exclusions_of(config).write_text(test_image.path)
    assert not list(exclusion_notes(config, [open_photos(config)], previous=study()))
