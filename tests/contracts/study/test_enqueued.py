"""Studies that first try the best settings of another study (`--enqueue`)."""

import shutil
from pathlib import Path

import pytest

from tests.support.driver import NAME, records, run_fake, small_config
from tune.records.folder import read_records
from tune.report.page import render
from tune.report.statements import search_summary
from tune.study import Study


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study, whose two best settings are enqueued in the study under test."""
    out = tmp_path_factory.mktemp("other")
    run_fake(out, trials=4, seed=7, top=2)
    return out / NAME


def origins(out: Path) -> list[str]:
    """Return where the settings of each trial of OUT/fake come from, ordered by number."""
    return [record["origin"] for record in records(out)]


def test_enqueued_settings_are_tried_before_sampled_ones(tmp_path: Path, other: Path) -> None:
    _, text = run_fake(tmp_path, trials=4, enqueue=[other])

    assert f"Enqueued: 2 trials (2 from {other})" in text
    assert origins(tmp_path) == ["baseline", "enqueued", "enqueued", "sampled"]
    best = read_records(other).completed[0]
    assert records(tmp_path)[1]["settings"] == best.settings


def test_record_and_report_of_an_enqueued_trial_name_its_source(tmp_path: Path, other: Path) -> None:
    run_fake(tmp_path, trials=3, enqueue=[other])

    source = f"trial {read_records(other).completed[0].number} of {other}"
    assert records(tmp_path)[1]["source"] == source
    study = read_records(tmp_path / NAME)
    assert search_summary(study).endswith(f"Enqueued: 2 trials (2 from {other}).")
    assert f"enqueued ({source})" in render(study)


def test_a_resumed_study_keeps_the_settings_of_a_study_that_was_deleted(tmp_path: Path, other: Path) -> None:
    deleted = tmp_path / "deleted"
    shutil.copytree(other, deleted)
    run_fake(tmp_path, trials=2, enqueue=[deleted])
    shutil.rmtree(deleted)
    run_fake(tmp_path, trials=4, enqueue=[deleted])
    assert origins(tmp_path) == ["baseline", "enqueued", "enqueued", "sampled"]


def test_a_resumed_study_keeps_enqueued_settings_without_the_option(tmp_path: Path, other: Path) -> None:
    run_fake(tmp_path, trials=2, enqueue=[other])
    run_fake(tmp_path, trials=3)
    assert origins(tmp_path) == ["baseline", "enqueued", "enqueued"]


def test_the_plan_names_enqueued_settings(tmp_path: Path, other: Path) -> None:
    study = Study(config=small_config(tmp_path, enqueue=[other]))
    assert f"Enqueued: 2 trials (2 from {other})" in study.describe_plan()
