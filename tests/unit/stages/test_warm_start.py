"""Settings that a study starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prometar.config.settings import Config, dump_config
from prometar.errors import UserError
from tests.support.report_study import description, trial, write
from tune.results.reader import read_learned
from tune.results.writer import StudyFolder
from tune.space.spaces import parse_space
from tune.stages.warm_start import WARM_TRIALS, earlier_study, enqueued, warm

SPACE = parse_space(
    "mine",
    "optim.lr: {type: float, low: 0.001, high: 1.0, log: true}\n"
    "regularizer.kind: {type: choice, choices: [l1, none]}\n"
    "regularizer.text_weight: {type: float, low: 1.0, high: 100.0, when: {regularizer.kind: l1}}",
)


def written(folder: Path, text: str) -> Path:
    path = folder / "start.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("optim.lr: 0.01", [{"optim.lr": 0.01}]),
        ("optim.lr: 1e-2", [{"optim.lr": 0.01}]),
        ("optim: {lr: 0.01}\nregularizer: {kind: none}", [{"optim.lr": 0.01, "regularizer.kind": "none"}]),
        ("- optim.lr: 0.01\n- optim.lr: 0.1", [{"optim.lr": 0.01}, {"optim.lr": 0.1}]),
    ],
)
def test_settings_of_a_file(tmp_path: Path, text: str, found: list[dict[str, Any]]) -> None:
    assert enqueued(written(tmp_path, text), SPACE) == found


def test_a_whole_configuration_gives_its_values(tmp_path: Path) -> None:
    text = dump_config(Config().override({"optim.lr": 0.02, "regularizer.text_weight": 7.0}))
    assert enqueued(written(tmp_path, text), SPACE) == [
        {"optim.lr": 0.02, "regularizer.kind": "l1", "regularizer.text_weight": 7.0}
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lr: 5", "must hold .*start.yaml: optim.lr is 5, its range 0.001 .. 1"),
        ("optim.lr: true", "must hold .*start.yaml: optim.lr is True, its range 0.001 .. 1"),
        ("- optim.lr: 0.1\n- optim.momentum: 0.5", "entry 2: 'optim.momentum' is not searched"),
        (
            "optim:\n  momentum: 0.5\nmethod: prometar\ndata: {name: dtd}",
            "gives no setting of the space mine",
        ),
        ("[]", "expected settings and their values"),
        ("just words", "expected settings and their values"),
    ],
)
def test_what_cannot_be_run_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        enqueued(written(tmp_path, text), SPACE)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--enqueue .*nowhere.yaml: no such file"):
        enqueued(tmp_path / "nowhere.yaml", SPACE)


def study(folder: Path, *objectives: tuple[float, dict[str, Any]], **asked: Any) -> Path:
    """A study with trials of these objectives and settings."""
    trials = [
        {**trial(number), "objective": objective, "settings": settings}
        for number, (objective, settings) in enumerate(objectives)
    ]
    return write(folder, description(**asked), trials)


def test_a_warm_start_is_what_other_studies_promise(tmp_path: Path) -> None:
    """High rates were ahead in both, one of which has another objective and another space."""
    one = study(
        tmp_path / "one",
        (50.0, {"optim.lr": 0.0025}),  # the released ones are trial 0 of every study
        *((60.0 + number, {"optim.lr": 10.0 ** (-number)}) for number in (2, 1)),
        *((50.0 - number, {"optim.lr": 0.002 / number, "task.mixup_alpha": 3.0}) for number in range(1, 9)),
        (90.0, {"optim.lr": 7.0}),  # beyond the range: as its end
    )
    other = study(
        tmp_path / "other",
        *((number / 10, {"optim.lr": number / 10, "prompts.text_depth": 3}) for number in range(1, 9)),
    )
    studies = [earlier_study(folder, SPACE) for folder in (one, other)]
    found = warm(studies, SPACE, seed=0)
    assert len(found) == WARM_TRIALS
    assert found[0]["optim.lr"] > 0.5
    assert found == warm(studies, SPACE, seed=0)


def test_what_is_learned_is_kept_when_the_other_study_changes_or_is_gone(tmp_path: Path) -> None:
    other = study(tmp_path / "other", *((50.0 + k, {"optim.lr": k / 100}) for k in range(1, 5)))
    folder = StudyFolder(tmp_path, "mine")
    folder.path.mkdir()
    assert folder.learn([]) is None
    first = folder.learn([earlier_study(other, SPACE)])
    assert str(first) == "4 trials on dtd"
    study(other, *((50.0 - k, {"optim.lr": k / 100}) for k in range(1, 9)))
    assert folder.learn([earlier_study(other, SPACE)]) == first == folder.learn([])
    assert read_learned(folder.path) == first


def test_without_other_studies_nothing_is_promised() -> None:
    assert warm([], SPACE, seed=0) == []


def test_a_search_that_has_read_the_test_images_is_no_start(tmp_path: Path) -> None:
    study(tmp_path, (50.0, {}), (50.0, {"optim.lr": 0.01}), objective="oracle_test")
    with pytest.raises(UserError, match="its search has read the test images"):
        earlier_study(tmp_path, SPACE)


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no study: pass a folder OUT/STUDY"):
        earlier_study(tmp_path, SPACE)
    study(tmp_path, (50.0, {"optim.lr": 0.01}))
    with pytest.raises(
        UserError,
        match=r"--warm-start .*: finished trials with settings of the space mine: 1, 4 are the fewest",
    ):
        earlier_study(tmp_path, SPACE)


@pytest.mark.parametrize("text", ["", "[]", "{}", "name: s"])
def test_a_damaged_study_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    study(tmp_path, (50.0, {}), (50.0, {"optim.lr": 0.01}))
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError, match=r"study\.yaml (is damaged|has no version)"):
        earlier_study(tmp_path, SPACE)
