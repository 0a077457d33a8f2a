"""Predictions and metrics of a run: what they contain, and that they cost no pass of a tower."""

from pathlib import Path
from typing import Any

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
from prometar.training.run_result import read_result
from prometar.training.scoring import NUM_TOP, PredictionCollector
from prometar.training.session import Session
from tests.support.small import SMALL, small_run

KEYS = {"train.epochs": 1, "data.shots": 1}


def test_metrics_follow_their_definitions() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 1, 0])
    confidences = np.array([0.99, 0.95, 0.5, 0.55, 0.99, 0.1])
    found = ClassificationMetrics.of(["a", "b", "c"], labels, predicted, confidences)
    assert found.num_images == (3, 2, 1)
    assert found.class_accuracies == (66.6667, 100.0, 0.0)
    f1 = [2 * 2 / (3 + 3), 2 * 2 / (2 + 3), 0.0]
    assert found.macro_f1 == pytest.approx(100 * np.mean(f1), abs=1e-4)
    assert found.confusion == ((0, 0, 2), (0, 1, 1), (1, 1, 2), (2, 0, 1))
    # Bins: 0.1 in (1/15, 2/15], 0.5 in (7/15, 8/15], 0.55 in (8/15, 9/15], the others in the last one.
    gaps = [0.1, 0.5, 0.45, 3 * abs(1 - (0.99 + 0.95 + 0.99) / 3)]
    assert found.calibration_error == pytest.approx(100 * sum(gaps) / 6, abs=1e-3)
    assert [count for count, *_ in found.bins if count] == [1, 1, 1, 3]
    assert len(found.bins) == NUM_BINS
    assert found.bins[-1][2] == 100.0


def test_many_classes_have_no_confusion_matrix() -> None:
    labels = np.arange(201)
    found = ClassificationMetrics.of([str(k) for k in labels], labels, labels, np.ones(201))
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
    run = small_run(objective="final", train__epochs=1)
    session = Session(run, tmp_path)
    session.run_epoch()
    base = session.predictions["base"]
    new = session.predictions["new"]
    assert base.joint_N is not None
    assert new.joint_N is not None
    num_base = len(classnames(run.evaluations["base"].order.items))
    assert base.joint_start == 0
    assert new.joint_start == num_base
    own = base.joint_N < num_base
    assert (base.joint_N[own] == base.classes_NK[own, 0]).all()
    own = new.joint_N >= num_base
    assert (new.joint_N[own] - num_base == new.classes_NK[own, 0]).all()


@pytest.mark.parametrize("method", ["prometar", "coop", "cocoop", "dept-coop"])
def test_metrics_cost_no_pass_of_a_tower(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image passes the image tower once, and the texts of each set are encoded once."""
    passes = {"encode_text": 0, "encode_image": 0, "adapted_text": 0, "adapted_image": 0}

    def count(name: str) -> None:
        original = getattr(prompted_clip, name)

        def counted(*args: Any, **options: Any) -> Any:
            passes[name] += 1
            return original(*args, **options)

        monkeypatch.setattr(prompted_clip, name, counted)

    run = small_run(method, objective="final", train__epochs=1, data__shots=1)
    session = Session(run, tmp_path)
    session.score()  # fills the caches of frozen features
    for name in passes:
        count(name)
    session.score()
    num_batches = sum(each.order.num_steps for each in run.evaluations.values())
    num_texts = num_batches if method == "cocoop" else len(run.evaluations)
    assert passes["encode_text"] + passes["adapted_text"] <= num_texts
    assert passes["encode_image"] + passes["adapted_image"] <= num_batches


def test_joint_classification_is_left_out_for_conditional_prompts(tmp_path: Path) -> None:
    session = Session(small_run("cocoop", objective="final", train__epochs=1, data__shots=1), tmp_path)
    session.run_epoch()
    assert run_folder.write_result(tmp_path, session).joint_accuracies == {}


def test_joint_classification_uses_the_rule_for_new_classes(tmp_path: Path) -> None:
    """A linear head knows only the base classes. Its logits are not comparable with cosines."""
    run = small_run("dept-coop", objective="final", train__epochs=1, data__shots=1)
    assert isinstance(run.method.logits, LinearHead)
    session = Session(run, tmp_path)
    session.state.leaves["logits.weight"].mul_(1000)
    session.score()
    with_head = session.predictions
    session.state.leaves["logits.weight"].zero_()
    session.score()
    for name in ("base", "new"):
        assert np.array_equal(with_head[name].joint_N, session.predictions[name].joint_N)
    assert not np.array_equal(with_head["base"].classes_NK, session.predictions["base"].classes_NK)


def test_predictions_are_sorted_and_agree_with_the_accuracy(tmp_path: Path) -> None:
    config = configure("coop", {**SMALL, **KEYS})
    result = run_folder.train_run(config, tmp_path, predictions=True)
    rows = pq.read_table(tmp_path / PREDICTIONS_FILE).to_pylist()
    images = read_result(tmp_path).images
    assert {name: sum(row["part"] == name for row in rows) for name in images} == images
    for name in images:
        own = [row for row in rows if row["part"] == name]
        correct = [row["predictions"][0] == row["classname"] for row in own]
        assert 100 * np.mean(correct) == pytest.approx(result[name])
        joint = [row["joint_prediction"] == row["classname"] for row in own]
        assert 100 * np.mean(joint) == pytest.approx(read_result(tmp_path).joint_accuracies[name])
    for row in rows:
        assert len(row["predictions"]) == len(set(row["predictions"])) == len(row["probabilities"]) <= NUM_TOP
        assert row["probabilities"] == sorted(row["probabilities"], reverse=True)
        assert 0 < sum(row["probabilities"]) < 1 + 1e-5


def test_predictions_do_not_change_the_run_and_can_be_added_later(tmp_path: Path) -> None:
    config = configure("coop", {**SMALL, **KEYS})
    run_folder.train_run(config, tmp_path)
    before = (tmp_path / "result.json").read_bytes()
    assert not (tmp_path / PREDICTIONS_FILE).exists()
    run_folder.train_run(config, tmp_path, predictions=True)
    assert (tmp_path / "result.json").read_bytes() == before
    assert has_predictions(tmp_path / PREDICTIONS_FILE, read_result(tmp_path).run_digest)
    assert not has_predictions(tmp_path / PREDICTIONS_FILE, "another run")
    (tmp_path / PREDICTIONS_FILE).write_bytes(b"corrupt")
    evaluation = run_folder.evaluate_run(tmp_path, predictions=True)
    assert evaluation.metrics == read_result(tmp_path).metrics
    assert has_predictions(tmp_path / PREDICTIONS_FILE, read_result(tmp_path).run_digest)


def test_of_equal_logits_the_first_class_is_predicted() -> None:
    """As with argmax, so that accuracies are those of earlier versions."""
    collector = PredictionCollector(small_run("coop", data__shots=1).backbone)
    collector.add(np.array([1, 0]), torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]]))
    found = collector.finish()
    assert found.classes_NK[:, 0].tolist() == [1, 0]
    assert found.accuracy == 100.0
