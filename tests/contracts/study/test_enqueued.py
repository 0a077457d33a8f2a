"""A study that first tries the settings of other studies."""

import shutil
from pathlib import Path

from tests.support.driver import NAME, records, run_fake, small_config
from tune.records.folder import read_records
from tune.report.page import render
from tune.report.statements import search_summary
from tune.study import Study


def test_enqueued_settings_are_trials_that_name_their_source(tmp_path: Path) -> None:
    run_fake(tmp_path / "other", trials=4, seed=7, top=2)
    other = tmp_path / "other" / NAME
    _, text = run_fake(tmp_path, trials=4, enqueue=[other])
    assert f"Enqueued: 2 trials (2 from {other})" in text
    found = records(tmp_path)
    assert [each["origin"] for each in found] == ["baseline", "enqueued", "enqueued", "sampled"]
    best = read_records(other).completed[0]
    assert found[1]["settings"] == best.settings
    assert found[1]["source"] == f"trial {best.number} of {other}"
    study = read_records(tmp_path / NAME)
    assert search_summary(study).endswith(f"Enqueued: 2 trials (2 from {other}).")
    assert f"enqueued (trial {best.number} of {other})" in render(study)


def test_a_resumed_study_keeps_the_settings_of_a_study_that_is_gone(tmp_path: Path) -> None:
    run_fake(tmp_path / "other", trials=4, seed=7, top=2)
    other = tmp_path / "other" / NAME
    run_fake(tmp_path, trials=2, enqueue=[other])
    shutil.rmtree(other)
    run_fake(tmp_path, trials=4, enqueue=[other])
    assert [each["origin"] for each in records(tmp_path)] == ["baseline", "enqueued", "enqueued", "sampled"]


def test_a_resumed_study_keeps_enqueued_settings_without_the_option(tmp_path: Path) -> None:
    run_fake(tmp_path / "other", trials=4, seed=7, top=2)
    run_fake(tmp_path, trials=2, enqueue=[tmp_path / "other" / NAME])
    run_fake(tmp_path, trials=3)
    assert [each["origin"] for each in records(tmp_path)] == ["baseline", "enqueued", "enqueued"]


def test_the_plan_names_enqueued_settings(tmp_path: Path) -> None:
    run_fake(tmp_path / "other", trials=3, seed=7)
    other = tmp_path / "other" / NAME
    study = Study(config=small_config(tmp_path, enqueue=[other]))
    assert f"Enqueued: 2 trials (2 from {other})" in study.describe_plan()
