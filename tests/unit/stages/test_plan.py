"""Plan of a study: maximum number of runs, epochs and steps."""

import json
import re
import time
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
from tune.stages.plan import inspect_inputs, plan_study, require_readable_images, seconds_per_step
from tune.stages.study_jobs import final_job, trial_job
from tune.study import Study


def config_of(tmp_path: Path, *, ranges: dict[str, Any] | None = None, **options: Any) -> StudyConfig:
    if ranges:
        options["space"] = Space.model_validate({"name": "mine", "ranges": ranges})
    return small_config(tmp_path, **options)


def steps_of(job: Job) -> int:
    """Steps per epoch, summed over the runs of a job."""
    return sum(build_run(run, job.objective).order.steps_per_epoch for run in job.configs.values())


def jobs_of(config: StudyConfig, **settings: Any) -> tuple[Job, Job]:
    """Jobs of a trial, and of its final test on the first dataset."""
    folder = StudyFolder.of(config)
    settings = {**config.baseline_settings, **settings}
    trial = trial_job(config, folder, 1, settings)
    return trial, final_job(config, folder, 1, settings, config.search.datasets[0], 5)


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
    assert plan.stages["Search"] == (
        search_runs * num_datasets,
        search_runs * num_datasets * trial_epochs,
        search_runs * trial_epochs * search_steps,
    )
    assert plan.stages["Confirmation"] == (
        confirmation_runs * num_datasets,
        confirmation_runs * num_datasets * final_epochs,
        confirmation_runs * final_epochs * search_steps,
    )
    assert plan.stages["Final test"] == (
        final_runs * num_datasets,
        final_runs * num_datasets * final_epochs,
        final_runs * final_epochs * final_steps,
    )
    assert "Maximum total: 42 runs, " in str(plan)


def test_the_plan_names_base_and_new_classes(tmp_path: Path) -> None:
    plan = plan_study(config_of(tmp_path, dataset=["cells"]))
    base = "amoeba, bacillus, coccus, diatom, erythrocyte"
    new = "lymphocyte, neuron, neutrophil, spirillum, yeast"
    assert f"cells: 5 base classes ({base}), 5 new classes ({new})" in str(plan)


def test_a_test_that_may_end_early(tmp_path: Path) -> None:
    plan = plan_study(config_of(tmp_path, final_seeds="auto"))
    assert plan.stages["Final test"].runs == 30
    assert "(10 runs if the first seed pairs suffice, 3 runs if the default settings are" in str(plan)


def test_trials_of_different_lengths(tmp_path: Path) -> None:
    lengths = {"train.epochs": {"type": "int", "low": 1, "high": 6}}
    config = config_of(tmp_path, ranges=lengths, epochs=2, trials=4, final_seeds=(5,))
    trial, final = jobs_of(config, **{"train.epochs": 6})
    assert (trial.epochs, final.epochs, config.baseline_settings) == (6, 6, {"train.epochs": 2})
    assert [amounts.epochs for amounts in plan_study(config).stages.values()] == [24, 0, 12, 36]
    with pytest.raises(UserError, match=r"requires a --space without train\.epochs. Use --pruner none"):
        plan_study(config_of(tmp_path, ranges=lengths, pruner="percentile"))


def test_trials_of_different_batches(tmp_path: Path) -> None:
    sizes = {"train.batch_size": {"type": "choice", "choices": [2, 8]}}
    config = config_of(
        tmp_path, ranges=sizes, trials=4, epochs=1, final_epochs=1, settings={"train.batch_size": 8}
    )
    trial, final = jobs_of(config, **{"train.batch_size": 2})
    assert [amounts.steps for amounts in plan_study(config).stages.values()] == [
        4 * steps_of(trial),
        0,
        2 * steps_of(final),
        4 * steps_of(trial) + 2 * steps_of(final),
    ]


@pytest.mark.parametrize(("trials", "top", "runs"), [(2, 3, 4), (1, 3, 0), (5, 0, 0), (5, 3, 8)])
def test_no_more_candidates_than_trials(trials: int, top: int, runs: int, tmp_path: Path) -> None:
    plan = plan_study(config_of(tmp_path, trials=trials, top=top))
    assert plan.stages["Confirmation"].runs == runs


def test_nested_conditions_hold_for_tried_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert plan.stages["Search"][0] == 4, "no condition is refused"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranges": {"train.shuffle": {"type": "int", "low": 1, "high": 2}}}, "not a setting of a run"),
        ({"pruner": "median", "goals": ("base", "new")}, "requires a single goal"),
        ({"goals": ("base", "new"), "objective": "base_val"}, "requires an objective that scores new"),
        ({"objective": "final"}, "--objective must be one of drift, base_val"),
        ({"ranges": {"train.seed": {"type": "int", "low": 1, "high": 2}}}, "must not contain train.seed"),
        ({"backbone": "ViT-B-16", "pretrained": "/none.safetensors"}, "/none.safetensors does not exist"),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        plan_study(config_of(tmp_path, **options))


def write_texts(tmp_path: Path, text: str) -> Path:
    """Write a file with one text per class of `cells`: `text` and the class name."""
    path = tmp_path / "texts.json"
    path.write_text(json.dumps({name: [f"{text} {name}"] for name in open_dataset("cells").classnames}))
    return path


def with_texts(tmp_path: Path, text: str, *datasets: str) -> StudyConfig:
    """A study whose regularizer reads a file with one text per class of `cells`."""
    path = write_texts(tmp_path, text)
    settings = {"regularizer.texts": str(path), "data.shots": 1}
    return config_of(tmp_path, dataset=["cells", *datasets], method="ivlp-regularized", settings=settings)


def test_a_study_does_not_resume_with_other_texts_of_classes(tmp_path: Path) -> None:
    config = with_texts(tmp_path, "a cell called")
    digests, _ = inspect_inputs(config, plan_study(config))
    config.require_same(config.identity(digests), digests)
    changed = with_texts(tmp_path, "a microbe called")
    now, _ = inspect_inputs(changed, plan_study(changed))
    with pytest.raises(UserError, match=r"was started with other settings \(texts of .*texts\.json"):
        changed.require_same(config.identity(digests), now)


def test_texts_that_lack_the_classes_of_any_dataset_are_refused_before_the_start(tmp_path: Path) -> None:
    config = with_texts(tmp_path, "a cell called", "textures")
    with pytest.raises(UserError, match=r"texts\.json has no texts for banded"):
        inspect_inputs(config, plan_study(config))


def test_texts_with_too_many_tokens_are_refused_before_the_start(tmp_path: Path) -> None:
    config = with_texts(tmp_path, "a cell " * 50 + "called")
    with pytest.raises(UserError, match=r"accepts 77 tokens per text, but 'a cell a cell .* would be cut"):
        inspect_inputs(config, plan_study(config))


def test_class_names_with_too_many_tokens_are_refused_before_the_start(tmp_path: Path) -> None:
    paths = [f"{name}/{k}.png" for name in ("ash", "fir", "oak", "q7 " * 80) for k in range(10)]
    write_tree(tmp_path / "photos", paths)
    options = {"dataset": ["folder"], "data_root": tmp_path / "photos", "backbone": "mini"}
    config = config_of(tmp_path, **options)
    with pytest.raises(UserError, match=r"accepts 77 tokens per text, but .*q7 q7.* would be cut"):
        inspect_inputs(config, plan_study(config))


def test_all_templates_of_the_regularizer_are_checked_and_not_only_that_with_most_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_word = "a photograph of a {}" + " internationalization" * 15
    many_words = "a photograph of a {}" + " 7" * 80
    assert len(many_words) < len(long_word)
    monkeypatch.setattr(openclip, "TEMPLATES", (long_word, many_words))
    settings = {"regularizer.teacher": "ensemble", "data.shots": 1}
    config = config_of(tmp_path, dataset=["cells"], method="ivlp-regularized", settings=settings)
    with pytest.raises(UserError, match="accepts 77 tokens per text"):
        inspect_inputs(config, plan_study(config))


def test_the_only_step_of_a_run_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_step(*args: Any) -> Any:
        time.sleep(0.2)
        return train_step(*args)

    monkeypatch.setattr("tune.stages.plan.train_step", slow_step)
    settings = {"data.shots": 1, "train.batch_size": 64}
    config = config_of(tmp_path, dataset=["cells"], epochs=1, final_epochs=1, settings=settings)
    assert build_run(config.baseline, config.search.objective).order.num_steps == 1
    assert seconds_per_step(config) > 0.2


def test_searched_texts_are_read_before_the_start(tmp_path: Path) -> None:
    texts = write_texts(tmp_path, "a cell called")
    (tmp_path / "space.yaml").write_text(
        f"regularizer.texts: {{type: choice, choices: [{texts}, {tmp_path}/others.json]}}\n"
    )
    options = {
        "dataset": ["cells"],
        "method": "ivlp-regularized",
        "settings": {"regularizer.texts": str(texts), "data.shots": 1},
        "space": str(tmp_path / "space.yaml"),
    }
    config = config_of(tmp_path, **options)
    with pytest.raises(UserError, match=r"Cannot read regularizer\.texts .*others\.json"):
        inspect_inputs(config, plan_study(config))


def test_the_plan_tells_what_is_skipped_in_a_folder(tmp_path: Path) -> None:
    paths = [f"{name}/{k}.png" for name in ("ash", "fir", "oak", "yew") for k in range(10)]
    write_tree(tmp_path / "photos", paths)
    (tmp_path / "photos/ash/IMG_1.HEIC").write_bytes(b"")
    options = {"dataset": ["folder"], "data_root": tmp_path / "photos", "backbone": "mini"}
    plan = plan_study(config_of(tmp_path, **options, settings={"data.shots": 16}))
    assert plan.notes[0].startswith("folder: automatic split, because the folder has no train/ or test/")
    assert (
        "1 photos in HEIC format are skipped (convert them to JPEG), such as ash/IMG_1.HEIC" in plan.notes[0]
    )
    assert "fewer than data.shots=16 training images, all of which are used, in these" in plan.notes[1]


def test_images_that_any_stage_reads_are_decoded_before_the_start(tmp_path: Path) -> None:
    """One corrupt photo would otherwise fail runs of the final test, hours later."""
    paths = [f"{name}/{k}.png" for name in ("ash", "fir", "oak", "yew") for k in range(10)]
    write_tree(tmp_path / "photos", paths)
    options = {"dataset": ["folder"], "data_root": tmp_path / "photos", "backbone": "mini"}
    config = config_of(tmp_path, **options, objective="base_val")
    plan = plan_study(config)
    [photos] = plan.datasets
    # `yew` is a new class. The search scores base classes only, so its validation images are never read.
    unread = next(item.path for item in photos.val if item.classname == "yew")
    test_image = next(item.path for item in photos.test if item.classname == "yew")
    train_image = next(item.path for item in photos.train if item.classname == "ash")
    messages: list[str] = []
    (tmp_path / "photos" / unread).write_bytes(b"no image")
    require_readable_images(config, plan, messages.append)
    assert re.fullmatch(r"Decoding \d+ images of folder once, to find corrupt files", messages[0])
    for path in (test_image, train_image):
        (tmp_path / "photos" / path).write_bytes(b"no image")
    expected = (
        f"2 images of folder cannot be decoded: {train_image}, {test_image}. Replace them, or list them"
    )
    with pytest.raises(WorkError, match=re.escape(expected)):
        require_readable_images(config, plan, messages.append)
    study = Study(config=config)
    with pytest.raises(WorkError, match="cannot be decoded"):
        study.run()
    with pytest.raises(WorkError, match="cannot be decoded"):
        study.estimate()
    assert not (tmp_path / "fake").exists(), "no study is started"
