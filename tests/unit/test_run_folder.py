"""The folder of a run: which files a run writes, resumes from, or refuses to overwrite."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from prometar import run_folder
from prometar.clip import features, openclip
from prometar.clip.openclip import Backbone
from prometar.config.settings import Config, configure, dump_config
from prometar.data.datasets.catalog import open_dataset
from prometar.data.streaming.stream import stream_local
from prometar.embedded.weights import load_mini
from prometar.environment import environment
from prometar.errors import InfrastructureError, UserError, WorkError
from prometar.inference import classifier
from prometar.io.custom import source_digest
from prometar.io.files import lock_folder
from prometar.methods.composition import build
from prometar.step import prompted_clip
from prometar.training import backbone as training_backbone
from prometar.training import scoring
from prometar.training.cache import RunCache
from prometar.training.run import build_run
from prometar.training.run_result import read_result
from prometar.training.session import Session
from tests.support.own import write_parts


@pytest.fixture
def config(small_dtd: Path) -> Config:
    """A fast run, because zero-shot trains nothing."""
    values = {"data.name": "dtd", "data.root": str(small_dtd), "data.shots": 1, "train.epochs": 1}
    return configure("zero-shot", values)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"study.yaml": "x"}, "contains a study"),
        ({"config.yaml": "# mine\noptim: {lr: 0.1}"}, "config.yaml belongs to another run"),
        ({"result.json": "{}"}, "result.json belongs to another run"),
        ({"config.yaml": "# mine", "result.json": "{}"}, "config.yaml belongs to another run"),
    ],
    ids=["study", "configuration", "result", "configuration and result"],
)
def test_the_folder_of_a_study_or_of_another_run_is_refused_and_unchanged(
    files: dict[str, str], problem: str, config: Config, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    with pytest.raises(UserError, match=f"{problem}. Choose another folder with --out"):
        run_folder.train_run(config, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_a_run_that_was_stopped_before_its_first_checkpoint_is_trained(
    config: Config, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(config))
    run_folder.train_run(config, tmp_path)
    assert (tmp_path / "result.json").is_file()


def test_the_result_of_a_finished_run_is_kept(config: Config, tmp_path: Path) -> None:
    first = run_folder.train_run(config, tmp_path)
    # Results of studies contain the allocated CPUs, which a run that is not part of a study does not know.
    of_study = read_result(tmp_path).model_copy(update={"cpus": 2.5})
    (tmp_path / "result.json").write_text(of_study.model_dump_json())

    assert run_folder.train_run(config, tmp_path) == first
    assert read_result(tmp_path) == of_study


@pytest.mark.parametrize("has_corrupt_result", [False, True], ids=["intact result", "corrupt result"])
def test_a_run_that_lost_its_checkpoint_is_repeated(
    has_corrupt_result: bool, config: Config, tmp_path: Path
) -> None:
    first = run_folder.train_run(config, tmp_path)
    (tmp_path / "checkpoint.safetensors").unlink()
    if has_corrupt_result:
        (tmp_path / "result.json").write_text("{")

    assert run_folder.train_run(config, tmp_path)["base"] == first["base"]


def test_the_result_of_another_objective_is_refused_and_unchanged(config: Config, tmp_path: Path) -> None:
    """Without a checkpoint, only the result shows the objective, which the configuration does not contain."""
    run_folder.train_run(config, tmp_path, objective="base_val")
    (tmp_path / "checkpoint.safetensors").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="belongs to another run"):
        run_folder.train_run(config, tmp_path)
    with pytest.raises(UserError, match="has no checkpoint"):
        run_folder.evaluate_run(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_scored_on_fewer_validation_images_can_be_evaluated_again(
    config: Config, tmp_path: Path
) -> None:
    """A study may set `search.val_per_class`, on which the digest of a run depends."""
    run = build_run(config, "base_val", val_per_class=1)
    session = Session(run, tmp_path)
    scores = session.run_epoch()
    run_folder.write_result(tmp_path, session)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    result = read_result(tmp_path)
    assert result.val_per_class == 1
    assert result.images == {"base": 3}
    assert run_folder.evaluate_run(tmp_path).scores["base"] == scores["base"]


def test_a_test_on_other_datasets_uses_the_backbone_of_the_training(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load_backbone(name: str, *args: Any, **options: Any) -> Backbone:
        loaded.append(name)
        return openclip.load_backbone(name, *args, **options)

    monkeypatch.setattr(training_backbone, "load_backbone", load_backbone)
    shared = RunCache()
    run_folder.train_run(config, tmp_path, shared=shared)
    run_folder.evaluate_on_targets(tmp_path, ["dtd"], stream_local, shared=shared)
    assert read_result(tmp_path).tests.keys() == {"dtd"}
    assert loaded == ["mini"]


def test_class_aware_prompts_on_another_dataset_use_its_templates(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = {"data.name": "cells", "data.root": None, "data.shots": 1, "train.epochs": 1}
    run_folder.train_run(configure("tcp", cells), tmp_path)
    texts: list[str] = []

    def prompt_texts(*args: Any, **options: Any) -> list[str]:
        of_prompts = prompted_clip.prompt_texts(*args, **options)
        texts.extend(of_prompts)
        return of_prompts

    frozen_templates: list[str] = []

    def frozen_text_features(clip: Any, tokenize: Any, names: Any, templates: Any) -> torch.Tensor:
        frozen_templates.extend(templates)
        return features.frozen_text_features(clip, tokenize, names, templates)

    monkeypatch.setattr(classifier, "prompt_texts", prompt_texts)
    monkeypatch.setattr(classifier, "frozen_text_features", frozen_text_features)
    target = open_dataset("dtd", config.data.root)
    run_folder.evaluate_classifier(run_folder.load_run_classifier(tmp_path), target)
    assert all(text.endswith(", a type of texture.") for text in texts)
    assert frozen_templates == ["a photo of a {}, a type of texture."]


@pytest.mark.parametrize(("method", "expected"), [("mmrl", [False, True]), ("dept-coop", [False, False])])
def test_the_rule_of_mmrl_for_other_datasets_does_not_depend_on_their_classes(
    method: str, expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variants of ImageNet have its classes, but MMRL's code uses both features for ImageNet alone."""
    config = configure(method, {"data.name": "cells"})
    cells = open_dataset("cells")
    backbone = openclip.load_backbone("mini", None)
    built = build(config)
    init_ids = backbone.token_ids(config.prompts.init)
    leaves = built.initialize(backbone.clip, init_ids, len(cells.classnames), torch.Generator())
    untrained = classifier.Classifier(
        backbone, built, leaves, config, cells.classnames, cells.template, cells.templates
    )
    treated_as_new: list[bool] = []  # for each tested dataset

    def encode_classes(backbone: Backbone, model: prompted_clip.PromptedClip, leaves: Any) -> Any:
        treated_as_new.append(model.new_classes)
        return scoring.encode_classes(backbone, model, leaves)

    monkeypatch.setattr(run_folder, "encode_classes", encode_classes)
    for dataset in (cells, replace(cells, name="variant-of-cells")):
        small = replace(dataset, test=dataset.test[:8])
        run_folder.evaluate_classifier(untrained, small)
    assert treated_as_new == expected


def test_the_result_names_the_texts_of_classes_that_were_used(config: Config, tmp_path: Path) -> None:
    texts = tmp_path / "texts.json"
    names = open_dataset("dtd", config.data.root).classnames
    content = json.dumps({name: [f"a {name} thing"] for name in names}).encode()
    texts.write_bytes(content)
    settings = {key: value for key, value in config.flat().items() if key.startswith(("data.", "train."))}
    settings["regularizer.texts"] = str(texts)
    run_folder.train_run(configure("ivlp-regularized", settings), tmp_path / "run")
    assert read_result(tmp_path / "run").texts == hashlib.sha256(content).hexdigest()


def test_custom_code_is_recorded(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parts(tmp_path, "recorded")
    monkeypatch.syspath_prepend(tmp_path)
    config = config.override({"regularizer.kind": "recorded:huber"})
    run_folder.train_run(config, tmp_path / "run")
    assert read_result(tmp_path / "run").code == {"recorded:huber": source_digest("recorded:huber")}


def test_weights_replaced_under_their_name_are_another_run(config: Config, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    state = load_mini()
    save_file(state, weights)
    config = config.override({"backbone.pretrained": str(weights)})
    run_folder.train_run(config, tmp_path / "run")

    other_state = {name: tensor + 0.001 for name, tensor in state.items()}
    save_file(other_state, weights)
    with pytest.raises(WorkError, match="belongs to a run with other weights"):
        run_folder.train_run(config, tmp_path / "run")
    with pytest.raises(UserError, match=r"weights\.safetensors have changed since .*run was trained"):
        run_folder.load_run_classifier(tmp_path / "run")


def test_a_second_run_in_the_same_folder_is_refused(config: Config, tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path, "the first"),
        pytest.raises(WorkError, match=f"the run {tmp_path} is in use by another process"),
    ):
        run_folder.train_run(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_folder_in_the_place_of_a_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    fix = r"Rename or move the folder that has this name\."
    message = rf"^cannot write {tmp_path}/lock: Is a directory\. {fix}$"
    with pytest.raises(InfrastructureError, match=message), lock_folder(tmp_path, "the run"):
        pytest.fail("the lock was taken")


def test_the_gpu_that_a_process_has_computed_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gpu" not in environment()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A Card")
    assert environment()["gpu"] == "A Card"


def test_a_gpu_that_fails_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    def failed() -> str:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "get_device_name", failed)
    assert "gpu" not in environment()
