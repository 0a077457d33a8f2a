"""Plan of a study: maximum number of runs, epochs and steps."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from prometar.clip import openclip
from prometar.data.datasets.catalog import open_dataset
from prometar.errors import UserError, WorkError
from prometar.training.epoch import train_step
from prometar.training.run import build_run
from tests.support.copies import write_tree
from tests.support.driver import small_config
from tests.support.own import PARTS
from tune import Space, StudyConfig
from tune.execution.job import Job
from tune.records.folder import StudyFolder
from tune.stages.plan import (
    TOTAL,
    Amounts,
    inspect_inputs,
    plan_study,
    require_readable_images,
    seconds_per_step,
)
from tune.stages.study_jobs import final_job, trial_job
from tune.study import Study


def config_of(tmp_path: Path, *, ranges: dict[str, Any] | None = None, **options: Any) -> StudyConfig:
    """Configuration of a small study, by default with the three settings of `small_config`."""
    if ranges:
        options["space"] = Space.model_validate({"name": "mine", "ranges": ranges})
    return small_config(tmp_path, **options)


def steps_of(job: Job) -> int:
    """Steps per epoch, summed over the runs of a job."""
    return sum(build_run(run, job.objective).order.steps_per_epoch for run in job.configs.values())


def jobs_of(config: StudyConfig, settings: Mapping[str, Any] = {}) -> tuple[Job, Job]:
    """Jobs of a trial, and of its final test on the first dataset.

    Args:
        config: Configuration of the study.
        settings: Settings of the trial that differ from the baseline.
    """
    folder = StudyFolder.of(config)
    trial_settings = {**config.baseline_settings, **settings}
    trial = trial_job(config, folder, 1, trial_settings)
    final = final_job(config, folder, 1, trial_settings, config.search.datasets[0], seed=5)
    return trial, final


def amounts_of(config: StudyConfig) -> dict[str, Amounts]:
    """Amounts of each stage and in total, by name of the stage."""
    return dict(plan_study(config).stages)


def write_photos(folder: Path, classes: Sequence[str] = ("ash", "fir", "oak", "yew")) -> Path:
    """Write ten photos of each class. Return the folder."""
    write_tree(folder, [f"{name}/{number}.png" for name, number in product(classes, range(10))])
    return folder


def photo_config(tmp_path: Path, photos: Path, **options: Any) -> StudyConfig:
    """Configuration of a study of a folder of photos."""
    return config_of(tmp_path, dataset=["folder"], data_root=photos, backbone="mini", **options)


def test_counts_are_those_of_the_jobs(small_dtd: Path, tmp_path: Path) -> None:
    datasets = ["dtd", "cells"]
    num_datasets = len(datasets)
    num_trials = 4
    seeds_per_trial = 2
    trial_epochs = 2
    top = 2
    confirm_seeds = 3
    final_seeds = (7, 8)
    final_epochs = 3
    config = config_of(
        tmp_path,
        dataset=datasets,
        data_root=small_dtd,
        backbone="mini",
        objective="base_val",
        epochs=trial_epochs,
        final_epochs=final_epochs,
        trials=num_trials,
        seeds_per_trial=seeds_per_trial,
        top=top,
        final_seeds=final_seeds,
        settings={"confirm.seeds": confirm_seeds, "data.shots": 5},
    )

    plan = plan_study(config)

    trial, _ = jobs_of(config)
    finals = [
        final_job(config, StudyFolder.of(config), 0, config.baseline_settings, name, final_seeds[0])
        for name in datasets
    ]
    # Steps per epoch of one seed, summed over the datasets.
    search_steps = steps_of(trial) // seeds_per_trial
    final_steps = sum(steps_of(job) for job in finals)
    # Runs per dataset.
    search_runs = num_trials * seeds_per_trial
    num_candidates = top + 1  # with the baseline
    confirmation_runs = num_candidates * confirm_seeds
    final_runs = 2 * len(final_seeds)  # selected and default settings

    assert plan.stages["Search"] == Amounts(
        runs=search_runs * num_datasets,
        epochs=search_runs * num_datasets * trial_epochs,
        steps=search_runs * trial_epochs * search_steps,
    )
    assert plan.stages["Confirmation"] == Amounts(
        runs=confirmation_runs * num_datasets,
        epochs=confirmation_runs * num_datasets * final_epochs,
        steps=confirmation_runs * final_epochs * search_steps,
    )
    assert plan.stages["Final test"] == Amounts(
        runs=final_runs * num_datasets,
        epochs=final_runs * num_datasets * final_epochs,
        steps=final_runs * final_epochs * final_steps,
    )
    assert "Maximum total: 42 runs, " in str(plan)


def test_the_plan_names_base_and_new_classes(tmp_path: Path) -> None:
    plan = plan_study(config_of(tmp_path, dataset=["cells"]))
    base = "amoeba, bacillus, coccus, diatom, erythrocyte"
    new = "lymphocyte, neuron, neutrophil, spirillum, yeast"
    assert f"cells: 5 base classes ({base}), 5 new classes ({new})" in str(plan)


def test_the_plan_says_when_the_final_test_needs_fewer_runs(tmp_path: Path) -> None:
    plan = plan_study(config_of(tmp_path, final_seeds="auto"))
    assert plan.stages["Final test"].runs == 30
    notes = "(10 runs if the first seed pairs suffice, 3 runs if the default settings are selected)"
    assert notes in " ".join(str(plan).split())


NUMBERS_OF_EPOCHS = {"train.epochs": {"type": "int", "low": 1, "high": 6}}


def test_if_epochs_are_searched_the_plan_counts_the_largest_number(tmp_path: Path) -> None:
    config = config_of(tmp_path, ranges=NUMBERS_OF_EPOCHS, epochs=2, trials=4, final_seeds=(5,))
    epochs = {stage: amounts.epochs for stage, amounts in amounts_of(config).items()}
    assert epochs == {"Search": 4 * 6, "Confirmation": 0, "Final test": 2 * 6, TOTAL: 36}


def test_searched_epochs_are_those_of_a_trial_and_of_its_final_test(tmp_path: Path) -> None:
    config = config_of(tmp_path, ranges=NUMBERS_OF_EPOCHS, epochs=2)
    trial, final = jobs_of(config, {"train.epochs": 6})
    assert config.baseline_settings == {"train.epochs": 2}
    assert trial.epochs == 6
    assert final.epochs == 6


def test_a_pruner_cannot_compare_trials_of_different_lengths(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"requires a --space without train\.epochs. Use --pruner none"):
        plan_study(config_of(tmp_path, ranges=NUMBERS_OF_EPOCHS, pruner="percentile"))


def test_if_batch_sizes_are_searched_the_plan_counts_the_steps_of_the_smallest(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        ranges={"train.batch_size": {"type": "choice", "choices": [2, 8]}},
        trials=4,
        epochs=1,
        final_epochs=1,
        settings={"train.batch_size": 8},
    )
    trial, final = jobs_of(config, {"train.batch_size": 2})
    search_steps = 4 * steps_of(trial)
    final_steps = 2 * steps_of(final)

    steps = {stage: amounts.steps for stage, amounts in amounts_of(config).items()}

    assert steps == {
        "Search": search_steps,
        "Confirmation": 0,
        "Final test": final_steps,
        TOTAL: search_steps + final_steps,
    }


@pytest.mark.parametrize(
    ("trials", "top", "runs"),
    [(5, 3, 8), (2, 3, 4), (1, 3, 0), (5, 0, 0)],
    ids=["top-3", "only-two-trials", "only-the-baseline", "no-confirmation"],
)
def test_the_confirmation_reruns_no_more_candidates_than_trials(
    trials: int, top: int, runs: int, tmp_path: Path
) -> None:
    """Each candidate, the baseline included, is rerun with two seeds."""
    plan = plan_study(config_of(tmp_path, trials=trials, top=top))
    assert plan.stages["Confirmation"].runs == runs


def test_values_are_checked_only_where_their_conditions_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One condition depends on another: a delta requires a weight of 1, which requires `nested:Huber`."""
    (tmp_path / "nested.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    kind = "regularizer.kind"
    weight = "regularizer.text_weight"
    ranges = {
        kind: {"type": "choice", "choices": ["l1", "nested:Huber"]},
        weight: {"type": "choice", "choices": [1.0, 9.0], "when": {kind: "nested:Huber"}},
        "regularizer.args.delta": {"type": "float", "low": 0.1, "high": 1.0, "when": {weight: 1.0}},
    }
    plan = plan_study(config_of(tmp_path, ranges=ranges, trials=4))
    assert plan.stages["Search"].runs == 4, "no value is refused"


ONE_OR_TWO = {"type": "int", "low": 1, "high": 2}
REFUSED = {
    "unknown setting": ({"ranges": {"train.shuffle": ONE_OR_TWO}}, "not a setting of a run"),
    "pruner with two goals": ({"pruner": "median", "goals": ("base", "new")}, "requires a single goal"),
    "goal without score": (
        {"goals": ("base", "new"), "objective": "base_val"},
        "requires an objective that scores new",
    ),
    "objective of the final test": ({"objective": "final"}, "--objective must be one of drift, base_val"),
    "searched seed": ({"ranges": {"train.seed": ONE_OR_TWO}}, "must not contain train.seed"),
    "missing weights": (
        {"backbone": "ViT-B-16", "pretrained": "/none.safetensors"},
        "/none.safetensors does not exist",
    ),
}
"""Options of a study, and the message."""


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_a_study_that_cannot_run_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        plan_study(config_of(tmp_path, **options))


def write_texts(tmp_path: Path, text: str) -> Path:
    """Write a file with one text per class of `cells`: `text` and the class name."""
    path = tmp_path / "texts.json"
    classnames = open_dataset("cells").classnames
    path.write_text(json.dumps({name: [f"{text} {name}"] for name in classnames}))
    return path


def with_texts(tmp_path: Path, text: str, *datasets: str) -> StudyConfig:
    """A study whose regularizer reads a file with one text per class of `cells`."""
    path = write_texts(tmp_path, text)
    settings = {"regularizer.texts": str(path), "data.shots": 1}
    return config_of(tmp_path, dataset=["cells", *datasets], method="ivlp-regularized", settings=settings)


def test_a_study_does_not_resume_with_other_texts_of_classes(tmp_path: Path) -> None:
    config = with_texts(tmp_path, "a cell called")
    digests_before, _ = inspect_inputs(config, plan_study(config))
    identity = config.identity(digests_before)
    config.require_same(identity, digests_before)

    changed = with_texts(tmp_path, "a microbe called")
    digests_now, _ = inspect_inputs(changed, plan_study(changed))

    with pytest.raises(UserError, match=r"was started with other settings \(texts of .*texts\.json"):
        changed.require_same(identity, digests_now)


def test_texts_that_lack_the_classes_of_any_dataset_are_refused_before_the_start(tmp_path: Path) -> None:
    config = with_texts(tmp_path, "a cell called", "textures")
    with pytest.raises(UserError, match=r"texts\.json has no texts for banded"):
        inspect_inputs(config, plan_study(config))


def test_texts_with_too_many_tokens_are_refused_before_the_start(tmp_path: Path) -> None:
    config = with_texts(tmp_path, "a cell " * 50 + "called")
    with pytest.raises(UserError, match=r"accepts 77 tokens per text, but 'a cell a cell .* would be cut"):
        inspect_inputs(config, plan_study(config))


def test_class_names_with_too_many_tokens_are_refused_before_the_start(tmp_path: Path) -> None:
    long_name = "q7 " * 80
    photos = write_photos(tmp_path / "photos", ["ash", "fir", "oak", long_name])
    config = photo_config(tmp_path, photos)
    with pytest.raises(UserError, match=r"accepts 77 tokens per text, but .*q7 q7.* would be cut"):
        inspect_inputs(config, plan_study(config))


def test_every_template_of_the_regularizer_is_checked_for_too_many_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the shorter template has too many tokens, so it is not enough to check the longest."""
    long_word = "a photograph of a {}" + " internationalization" * 15
    many_words = "a photograph of a {}" + " 7" * 80
    assert len(many_words) < len(long_word)
    monkeypatch.setattr(openclip, "TEMPLATES", (long_word, many_words))
    settings = {"regularizer.teacher": "ensemble", "data.shots": 1}
    config = config_of(tmp_path, dataset=["cells"], method="ivlp-regularized", settings=settings)
    with pytest.raises(UserError, match="accepts 77 tokens per text"):
        inspect_inputs(config, plan_study(config))


def test_the_only_step_of_a_run_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 0.2

    def slow_step(*args: Any) -> Any:
        time.sleep(seconds)
        return train_step(*args)

    monkeypatch.setattr("tune.stages.plan.train_step", slow_step)
    settings = {"data.shots": 1, "train.batch_size": 64}
    config = config_of(tmp_path, dataset=["cells"], epochs=1, final_epochs=1, settings=settings)
    assert build_run(config.baseline, config.search.objective).order.num_steps == 1

    assert seconds_per_step(config) > seconds


def test_searched_texts_are_read_before_the_start(tmp_path: Path) -> None:
    texts = write_texts(tmp_path, "a cell called")
    missing = tmp_path / "others.json"
    config = config_of(
        tmp_path,
        dataset=["cells"],
        method="ivlp-regularized",
        settings={"regularizer.texts": str(texts), "data.shots": 1},
        ranges={"regularizer.texts": {"type": "choice", "choices": [str(texts), str(missing)]}},
    )
    with pytest.raises(UserError, match=r"Cannot read regularizer\.texts .*others\.json"):
        inspect_inputs(config, plan_study(config))


def test_the_plan_tells_what_is_skipped_in_a_folder(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    (photos / "ash" / "IMG_1.HEIC").write_bytes(b"")

    plan = plan_study(photo_config(tmp_path, photos, settings={"data.shots": 16}))

    about_folder, about_split = plan.notes
    assert about_folder.startswith("folder: automatic split, because the folder has no train/ or test/")
    skipped = "1 photos in HEIC format are skipped (convert them to JPEG), such as ash/IMG_1.HEIC"
    assert skipped in about_folder
    assert "fewer than data.shots=16 training images, all of which are used, in these" in about_split


def corrupt(config: StudyConfig, *images: str) -> None:
    """Overwrite images of a folder of photos."""
    for image in images:
        (Path(str(config.baseline.data.root)) / image).write_bytes(b"no image")


@pytest.fixture
def photo_study(tmp_path: Path) -> StudyConfig:
    """Configuration of a study that searches on base classes only: `ash` and `fir`."""
    return photo_config(tmp_path, write_photos(tmp_path / "photos"), objective="base_val")


def find_image(config: StudyConfig, part: str, classname: str) -> str:
    """Path of an image of a class in a part of the dataset: "train", "val" or "test"."""
    dataset = open_dataset("folder", config.baseline.data.root)
    return next(item.path for item in getattr(dataset, part) if item.classname == classname)


def test_corrupt_images_that_a_stage_reads_are_named_before_the_start(photo_study: StudyConfig) -> None:
    train_image = find_image(photo_study, "train", "ash")
    test_image = find_image(photo_study, "test", "yew")
    corrupt(photo_study, train_image, test_image)
    messages: list[str] = []

    expected = (
        f"2 images of folder cannot be decoded: {train_image}, {test_image}. Replace them, or list them"
    )
    with pytest.raises(WorkError, match=re.escape(expected)):
        require_readable_images(photo_study, plan_study(photo_study), messages.append)
    (message,) = messages
    assert re.fullmatch(r"Decoding \d+ images of folder once, to find corrupt files", message)


def test_a_corrupt_image_that_no_stage_reads_does_no_harm(photo_study: StudyConfig) -> None:
    """`yew` is a new class, whose validation images neither the search nor the final test reads."""
    corrupt(photo_study, find_image(photo_study, "val", "yew"))
    require_readable_images(photo_study, plan_study(photo_study), notify=lambda message: None)


def test_a_study_with_a_corrupt_image_does_not_start(photo_study: StudyConfig, tmp_path: Path) -> None:
    corrupt(photo_study, find_image(photo_study, "train", "ash"))
    study = Study(config=photo_study)
    with pytest.raises(WorkError, match="cannot be decoded"):
        study.run()
    with pytest.raises(WorkError, match="cannot be decoded"):
        study.estimate()
    assert not StudyFolder.of(photo_study).path.exists()
