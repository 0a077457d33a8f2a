"""An image is excluded after a study has started: finished runs are kept, and affected ones are repeated."""

from pathlib import Path

import pytest

from prometar.data.datasets.catalog import open_dataset
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

SEEDS = (1, 2, 4)


@pytest.fixture
def config(tmp_path: Path) -> StudyConfig:
    tree = [f"{name}/{k}.png" for name in ("ash", "fir", "oak", "yew") for k in range(12)]
    photos = write_tree(tmp_path / "photos", tree)
    options = {"data_root": str(photos), "final_seeds": "1 2 4", "backbone": "mini"}
    return small_config(tmp_path, dataset="folder", settings={"data.shots": 2}, **options)


def training_paths(config: StudyConfig, seed: int) -> set[str]:
    dataset = open_dataset("folder", config.baseline.data.root)
    return {item.path for item in split_dataset(FINAL, dataset, shots=2, seed=seed).train}


def finish(config: StudyConfig) -> list[str]:
    """Run the final test of a trial's settings. Return the seeds of the jobs that have run, in order."""
    run_stage, names = runner(lambda number, run: 60.0 + number)
    selected = Candidate(7, False, {**config.baseline_settings, "regularizer.text_weight": 1.5}, ())
    folder = StudyFolder.of(config)
    stages = run_final_test(config, folder, selected, published={"folder": None}, previous=None)
    complete(stages, run_stage)
    return [name.rpartition(" ")[2] for name in names]


def test_only_runs_that_used_the_image_are_repeated_in_folders_of_their_own(config: StudyConfig) -> None:
    assert finish(config) == [str(seed) for _ in range(2) for seed in SEEDS]
    assert finish(config) == []
    finals = StudyFolder.of(config).path / "finals"
    before = {path: path.read_bytes() for path in finals.rglob("result.json")}
    others = training_paths(config, 1) | training_paths(config, 2)
    image = min(training_paths(config, 4) - others)
    exclusions = Path(str(config.baseline.data.root)) / "excluded.txt"
    exclusions.write_text(image)
    assert image not in training_paths(config, 4)
    assert finish(config) == ["4", "4"]
    assert finish(config) == []
    assert {path.name for path in finals.iterdir() if path.name.endswith("-2")} == {
        "trial-0000-folder-seed4-2",
        "trial-0007-folder-seed4-2",
    }
    assert {path: path.read_bytes() for path in before} == before, "nothing finished is changed"
    exclusions.unlink()
    assert finish(config) == [], "the first results are used again"


def test_a_study_remarks_on_trials_that_used_an_excluded_image(config: StudyConfig) -> None:
    dataset = open_dataset("folder", config.baseline.data.root)
    previous = study()
    assert not list(exclusion_notes(config, [dataset], previous))
    seed = config.search.seeds[0]
    split = split_dataset(config.search.objective, dataset, shots=2, seed=seed, val_per_class=20)
    used = split.evaluations["base"][0].path
    exclusions = Path(str(config.baseline.data.root)) / "excluded.txt"
    exclusions.write_text(used)
    dataset = open_dataset("folder", config.baseline.data.root)
    assert not list(exclusion_notes(config, [dataset], None))
    (note,) = exclusion_notes(config, [dataset], previous)
    assert f"Excluded images of folder have changed ({used})." in note
    assert "Their scores are kept." in note
    exclusions.write_text(dataset.test[0].path)
    dataset = open_dataset("folder", config.baseline.data.root)
    assert not list(exclusion_notes(config, [dataset], previous)), "the search reads no test images"
