"""`--enqueue OUT/STUDY`: the best settings of other studies, as far as a study's space allows."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prometar.errors import UserError
from tests.support import study_records
from tests.support.study_records import RANGES
from tune.config import Enqueued, StudyConfig
from tune.records.folder import Records, StudyFolder
from tune.records.schema import Candidate, Confirmation
from tune.space.space import build_space
from tune.stages.enqueued import add_settings_of_studies, describe_enqueued

LR = {"optim.lr": RANGES["optim.lr"]}


FRESH_SEED = 1000
DEFAULT_LR = 0.0025


def other_study(folder: Path, scores: Mapping[float, float], selected: int = 1) -> Path:
    """A study of `optim.lr` with a confirmation.

    Args:
        folder: Folder of the study.
        scores: Score in the confirmation by learning rate. Trial 1 has the first rate. Trial 0 is the
            baseline, with a score of 0.
        selected: Number of the selected trial.

    Returns:
        The folder.
    """
    trials = []
    candidates = []
    for number, (rate, score) in enumerate({DEFAULT_LR: 0.0, **scores}.items()):
        settings = {"optim.lr": rate}
        trial = study_records.trial(number, settings=study_records.DEFAULT)
        run = study_records.run("dtd", FRESH_SEED, study_records.DEFAULT)
        rerun = replace(run, objective=score)
        trials.append(replace(trial, settings=settings))
        candidates.append(Candidate(number, is_baseline=number == 0, settings=settings, runs=(rerun,)))
    confirmation = Confirmation((FRESH_SEED,), tuple(candidates), selected)
    records = Records(folder, study_records.study(LR), tuple(trials), confirmation, None)
    return study_records.write(folder, records)


def new_study(out: Path, sources: list[Path], ranges: Mapping[str, Any] = LR, **options: Any) -> StudyConfig:
    """Configuration of a study that enqueues the settings of other studies or files."""
    return StudyConfig.of(dataset=["eurosat"], space=build_space(ranges), out=out, enqueue=sources, **options)


def resolved(config: StudyConfig) -> tuple[list[Enqueued], list[str]]:
    """The enqueued settings, and the notes for the user."""
    found, notes = add_settings_of_studies(config, StudyFolder.of(config))
    return list(found.search.enqueue), notes


def rates(enqueued: list[Enqueued]) -> list[Any]:
    """The enqueued learning rates."""
    return [each.settings["optim.lr"] for each in enqueued]


def test_selected_settings_come_first_and_studies_take_turns(tmp_path: Path) -> None:
    first = other_study(tmp_path / "first", {0.001: 60.0, 0.002: 62.0, 0.003: 61.0}, selected=1)
    second = other_study(tmp_path / "second", {0.01: 60.0, 0.02: 61.0}, selected=2)

    enqueued, notes = resolved(new_study(tmp_path, [first, second]))

    assert rates(enqueued) == [0.001, 0.02, 0.002, 0.01, 0.003]
    assert notes == []
    assert str(enqueued[1]) == f"trial 2 of {second}"


def test_equal_settings_and_the_default_settings_are_enqueued_once(tmp_path: Path) -> None:
    first = other_study(tmp_path / "first", {0.001: 60.0, 0.002: 59.0})
    second = other_study(tmp_path / "second", {0.001: 60.0}, selected=0)
    enqueued, _ = resolved(new_study(tmp_path, [first, second]))
    assert rates(enqueued) == [0.001, 0.002]


def test_default_settings_that_were_selected_do_not_take_a_turn(tmp_path: Path) -> None:
    first = other_study(tmp_path / "first", {0.001: 60.0, 0.002: 59.0})
    second = other_study(tmp_path / "second", {0.01: 60.0}, selected=0)
    enqueued, _ = resolved(new_study(tmp_path, [first, second]))
    assert rates(enqueued) == [0.001, 0.01, 0.002]


def test_numbers_outside_the_range_are_moved_to_its_bound(tmp_path: Path) -> None:
    study = other_study(tmp_path / "first", {0.05: 60.0})
    narrow = {"optim.lr": {"type": "float", "low": 0.001, "high": 0.02}}

    enqueued, notes = resolved(new_study(tmp_path, [study], narrow))

    assert rates(enqueued) == [0.02]
    assert notes == [f"{study}: trial 1 is tried at the bound of the range: optim.lr = 0.02 instead of 0.05."]


def test_settings_that_are_not_searched_are_named_and_left_out(tmp_path: Path) -> None:
    study = study_records.rich(tmp_path / "rich")

    enqueued, notes = resolved(new_study(tmp_path, [study]))

    assert len(enqueued) == 3
    assert all(each.settings.keys() == {"optim.lr"} for each in enqueued)
    (note,) = notes
    assert "prompts.text_depth" in note
    assert "are left out, because this study does not search them." in note


def test_a_choice_that_the_space_lacks_is_not_tried(tmp_path: Path) -> None:
    study = study_records.rich(tmp_path / "rich")
    kinds = {"regularizer.kind": {"type": "choice", "choices": ["l1", "cosine"]}, **LR}
    confirmation = StudyFolder(study).read(Confirmation)
    assert confirmation is not None
    others = [each for each in confirmation.candidates if not each.is_baseline]
    fitting = [each for each in others if each.settings["regularizer.kind"] == "l1"]

    enqueued, notes = resolved(new_study(tmp_path, [study], kinds))

    assert {each.trial for each in enqueued} == {each.number for each in fitting}
    skipped = [note for note in notes if "is not tried, because regularizer.kind = " in note]
    assert len(skipped) == len(others) - len(fitting)


def test_settings_that_the_other_study_did_not_search_have_its_values(tmp_path: Path) -> None:
    study = other_study(tmp_path / "first", {0.001: 60.0})
    more = {**LR, "augment.flip": {"type": "float", "low": 0.0, "high": 1.0}}
    (enqueued,), _ = resolved(new_study(tmp_path, [study], more))
    assert enqueued.settings == {"optim.lr": 0.001, "augment.flip": 0.5}


def test_a_study_without_confirmation_gives_its_best_trials(tmp_path: Path) -> None:
    study = study_records.rich(tmp_path / "rich")
    (study / "confirmation.json").unlink()
    records = StudyFolder(study).read_all()
    assert records is not None
    best_first = [trial.number for trial in records.completed if not trial.is_baseline]

    enqueued, _ = resolved(new_study(tmp_path, [study]))

    assert [each.trial for each in enqueued] == best_first[:3]


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty does not contain a study"):
        resolved(new_study(tmp_path, [tmp_path / "empty"]))


def test_a_study_without_completed_trials_is_refused(tmp_path: Path) -> None:
    without_trials = Records(tmp_path, study_records.study(LR), (), None, None)
    unfinished = study_records.write(tmp_path / "unfinished", without_trials)
    with pytest.raises(UserError, match="unfinished has no completed trial"):
        resolved(new_study(tmp_path, [unfinished]))


def test_a_study_cannot_enqueue_its_own_settings(tmp_path: Path) -> None:
    study = other_study(tmp_path / "same", {0.001: 60.0})
    with pytest.raises(UserError, match="is the folder of this study"):
        resolved(new_study(tmp_path, [study], study="same"))


def test_the_plan_counts_enqueued_settings_by_source(tmp_path: Path) -> None:
    study = other_study(tmp_path / "first", {0.001: 60.0, 0.002: 61.0})
    (tmp_path / "mine.yaml").write_text("optim.lr: 0.05")
    given = new_study(tmp_path, [tmp_path / "mine.yaml", study], trials=3)
    config, _ = add_settings_of_studies(given, StudyFolder.of(given))

    (line,) = describe_enqueued(config)

    assert line == (
        f"Enqueued: 3 trials (1 from {tmp_path}/mine.yaml, 2 from {study}). "
        "With the baseline, --trials 3 has room for 2"
    )


def test_the_plan_has_no_line_on_enqueued_settings_if_there_are_none(tmp_path: Path) -> None:
    assert describe_enqueued(new_study(tmp_path, [])) == []


def test_settings_enqueued_by_version_0_2_have_no_source() -> None:
    assert Enqueued.model_validate({"optim.lr": 0.1}) == Enqueued(settings={"optim.lr": 0.1})
