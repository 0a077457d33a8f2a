"""Predictions and metrics of a run: their definitions and files. They need no more passes of the towers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from prometar import run_folder
from prometar.config.settings import configure
from prometar.data.datasets.dataset import classnames
from prometar.methods.logits import LinearHead
from prometar.step import prompted_clip
from prometar.training.classification import NUM_BINS, ClassificationMetrics
from prometar.training.prediction_file import PREDICTIONS_FILE, has_predictions
from prometar.training.run_result import RunResult, read_result
from prometar.training.scoring import NUM_TOP, PredictionCollector
from prometar.training.session import Session
from tests.support.small import SMALL, small_run

SHORT = {"train.epochs": 1, "data.shots": 1}
"""Settings of a run of a few steps."""


@pytest.fixture(scope="module")
def metrics() -> ClassificationMetrics:
    """Metrics of six images of three classes."""
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 1, 0])
    confidences = np.array([0.99, 0.95, 0.5, 0.55, 0.99, 0.1])
    return ClassificationMetrics.of(["a", "b", "c"], labels, predicted, confidences)


def test_each_class_has_a_number_of_images_and_an_accuracy(metrics: ClassificationMetrics) -> None:
    assert metrics.num_images == (3, 2, 1)
    assert metrics.class_accuracies == (66.6667, 100.0, 0.0)


def test_macro_f1_is_the_mean_over_classes(metrics: ClassificationMetrics) -> None:
    # Twice the correct predictions, by the number of images plus the number of predictions.
    f1 = [2 * 2 / (3 + 3), 2 * 2 / (2 + 3), 0.0]
    assert metrics.macro_f1 == pytest.approx(100 * np.mean(f1), abs=1e-4)


def test_the_confusion_matrix_lists_class_prediction_and_count(metrics: ClassificationMetrics) -> None:
    assert metrics.confusion == ((0, 0, 2), (0, 1, 1), (1, 1, 2), (2, 0, 1))


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy_in_bins(
    metrics: ClassificationMetrics,
) -> None:
    # Bins: 0.1 in (1/15, 2/15], 0.5 in (7/15, 8/15], 0.55 in (8/15, 9/15], the others in the last one.
    gaps = [0.1, 0.5, 0.45, 3 * abs(1 - (0.99 + 0.95 + 0.99) / 3)]
    assert metrics.calibration_error == pytest.approx(100 * sum(gaps) / 6, abs=1e-3)
    assert len(metrics.bins) == NUM_BINS
    assert [count for count, *_ in metrics.bins if count > 0] == [1, 1, 1, 3]
    _, _, accuracy_of_last_bin = metrics.bins[-1]
    assert accuracy_of_last_bin == 100.0


def test_many_classes_have_no_confusion_matrix() -> None:
    labels = np.arange(201)
    names = [str(label) for label in labels]
    found = ClassificationMetrics.of(names, labels, labels, np.ones(201))
    assert found.confusion is None
    assert found.macro_f1 == 100.0


def test_a_result_contains_metrics_and_joint_accuracies(tmp_path: Path) -> None:
    session = Session(small_run(objective="final", train__epochs=1, data__shots=1), tmp_path)
    session.run_epoch()

    result = run_folder.write_result(tmp_path, session)

    assert read_result(tmp_path) == result
    for name, accuracy in result.accuracies.items():
        metrics = result.metrics[name]
        assert sum(metrics.num_images) == result.images[name]
        weighted = np.average(metrics.class_accuracies, weights=metrics.num_images)
        assert weighted == pytest.approx(accuracy, abs=1e-3)
        # More candidates can only turn correct predictions into wrong ones.
        assert 0 <= result.joint_accuracies[name] <= accuracy
    assert result.metrics["base"].classnames == result.classnames
    assert not set(result.metrics["new"].classnames) & set(result.classnames)


def test_a_joint_prediction_of_an_own_class_is_the_prediction_among_own_classes(tmp_path: Path) -> None:
    """A joint prediction is one among base and new classes. Base classes come first."""
    run = small_run(objective="final", train__epochs=1)
    session = Session(run, tmp_path)
    session.run_epoch()
    num_base = len(classnames(run.evaluations["base"].order.items))

    base = session.predictions["base"]
    assert base.joint_start == 0
    assert base.joint_N is not None
    is_base = base.joint_N < num_base
    assert (base.joint_N[is_base] == base.classes_NK[is_base, 0]).all()

    new = session.predictions["new"]
    assert new.joint_start == num_base
    assert new.joint_N is not None
    is_new = new.joint_N >= num_base
    assert (new.joint_N[is_new] - num_base == new.classes_NK[is_new, 0]).all()


@pytest.mark.parametrize("method", ["prometar", "coop", "cocoop", "dept-coop"])
def test_scoring_with_metrics_encodes_each_image_and_each_text_once(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small_run(method, objective="final", train__epochs=1, data__shots=1)
    session = Session(run, tmp_path)
    session.score()  # fills the caches of frozen features

    passes = {
        name: mock.Mock(side_effect=getattr(prompted_clip, name))
        for name in ("encode_text", "encode_image", "adapted_text", "adapted_image")
    }
    for name, function in passes.items():
        monkeypatch.setattr(prompted_clip, name, function)
    session.score()

    num_batches = sum(each.order.num_steps for each in run.evaluations.values())
    # The texts of CoCoOp depend on the images.
    max_text_passes = num_batches if method == "cocoop" else len(run.evaluations)
    assert passes["encode_text"].call_count + passes["adapted_text"].call_count <= max_text_passes
    assert passes["encode_image"].call_count + passes["adapted_image"].call_count <= num_batches


def test_joint_classification_is_left_out_for_conditional_prompts(tmp_path: Path) -> None:
    session = Session(small_run("cocoop", objective="final", train__epochs=1, data__shots=1), tmp_path)
    session.run_epoch()
    assert run_folder.write_result(tmp_path, session).joint_accuracies == {}


def test_joint_classification_uses_the_rule_for_new_classes(tmp_path: Path) -> None:
    """A linear head knows only the base classes. Its logits cannot be compared with cosines."""
    run = small_run("dept-coop", objective="final", train__epochs=1, data__shots=1)
    assert isinstance(run.method.logits, LinearHead)
    session = Session(run, tmp_path)

    session.state.leaves["logits.weight"].mul_(1000)
    session.score()
    with_head = session.predictions
    session.state.leaves["logits.weight"].zero_()
    session.score()
    without_head = session.predictions

    for name in ("base", "new"):
        assert np.array_equal(with_head[name].joint_N, without_head[name].joint_N)
    assert not np.array_equal(with_head["base"].classes_NK, without_head["base"].classes_NK)


@dataclass(frozen=True)
class Predicted:
    """A finished run with predictions.

    Args:
        result: Result of the run.
        rows: Rows of its table of predictions.
    """

    result: RunResult
    rows: list[dict[str, Any]]


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Predicted:
    """A run of CoOp with predictions."""
    folder = tmp_path_factory.mktemp("predicted")
    run_folder.train_run(configure("coop", {**SMALL, **SHORT}), folder, predictions=True)
    return Predicted(read_result(folder), pq.read_table(folder / PREDICTIONS_FILE).to_pylist())


def test_predictions_agree_with_the_accuracies_of_the_run(predicted: Predicted) -> None:
    result = predicted.result
    for part, num_images in result.images.items():
        rows = [row for row in predicted.rows if row["part"] == part]
        assert len(rows) == num_images
        is_correct = [row["predictions"][0] == row["classname"] for row in rows]
        assert 100 * np.mean(is_correct) == pytest.approx(result.accuracies[part])
        is_joint_correct = [row["joint_prediction"] == row["classname"] for row in rows]
        assert 100 * np.mean(is_joint_correct) == pytest.approx(result.joint_accuracies[part])
    assert len(predicted.rows) == sum(result.images.values())


def test_predictions_are_different_classes_sorted_by_probability(predicted: Predicted) -> None:
    for row in predicted.rows:
        assert len(row["predictions"]) == len(set(row["predictions"]))
        assert len(row["predictions"]) == len(row["probabilities"])
        assert len(row["predictions"]) <= NUM_TOP
        assert row["probabilities"] == sorted(row["probabilities"], reverse=True)
        assert 0 < sum(row["probabilities"]) < 1 + 1e-5


def test_predictions_can_be_added_to_a_finished_run_without_changing_it(tmp_path: Path) -> None:
    config = configure("coop", {**SMALL, **SHORT})
    run_folder.train_run(config, tmp_path)
    before = (tmp_path / "result.json").read_bytes()
    assert not (tmp_path / PREDICTIONS_FILE).exists()

    run_folder.train_run(config, tmp_path, predictions=True)

    assert (tmp_path / "result.json").read_bytes() == before
    assert has_predictions(tmp_path / PREDICTIONS_FILE, read_result(tmp_path).run_digest)
    assert not has_predictions(tmp_path / PREDICTIONS_FILE, "another run")


def test_an_evaluation_replaces_a_corrupt_table_of_predictions(tmp_path: Path) -> None:
    run_folder.train_run(configure("coop", {**SMALL, **SHORT}), tmp_path)
    (tmp_path / PREDICTIONS_FILE).write_bytes(b"corrupt")

    evaluation = run_folder.evaluate_run(tmp_path, predictions=True)

    result = read_result(tmp_path)
    assert evaluation.metrics == result.metrics
    assert has_predictions(tmp_path / PREDICTIONS_FILE, result.run_digest)


def test_the_first_of_several_classes_with_equal_logits_is_predicted() -> None:
    """Version 0.2 used argmax, which does the same. So accuracies do not change."""
    collector = PredictionCollector(small_run("coop", data__shots=1).backbone)
    collector.add(np.array([1, 0]), torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]]))
    found = collector.finish()
    assert found.classes_NK[:, 0].tolist() == [1, 0]
    assert found.accuracy == 100.0
