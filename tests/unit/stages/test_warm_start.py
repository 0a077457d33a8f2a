"""Settings that a study starts from."""

from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
from tune.results.schema import LEARNED, EarlierStudy, EarlierTrial
from tune.results.writer import StudyFolder
from tune.stages.choice import CALIBRATIONS, UNKNOWN, Promise
from tune.stages.warm_start import WARM_TRIALS, earlier_study, enqueued, learned_of, promised

from prometar.config.settings import Config, dump_config
from prometar.errors import UserError
from tests.support.report_study import description, trial, write
from tune.space.spaces import parse_space

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
        ("regularizer.text_weight: 5", "text_weight is used where regularizer.kind is l1: give that too"),
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
    found = learned_of(StudyFolder(tmp_path, "mine"), [one, other, one], SPACE, seed=0)
    assert found is not None
    assert str(found) == "20 trials on dtd, dtd"
    assert len(found.starts) == WARM_TRIALS
    assert found.starts[0]["optim.lr"] > 0.5
    assert found == learned_of(StudyFolder(tmp_path, "mine"), [one, tmp_path / "." / "other"], SPACE, seed=0)
    assert [(each.released, len(each.trials)) for each in found.studies] == [(50.0, 11), (0.1, 7)]


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return study(tmp_path / "other", *((50.0 + k, {"optim.lr": k / 100}) for k in range(1, 6)))


@pytest.fixture
def mine(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path, "mine")


def test_what_is_learned_is_kept_when_the_other_study_changes_or_is_gone(
    mine: StudyFolder, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert learned_of(mine, [], SPACE, seed=0) is None
    first = learned_of(mine, [other], SPACE, seed=0)
    assert str(first) == "5 trials on dtd"
    assert first is not None
    mine.path.mkdir()
    LEARNED.write(mine / "learned.json", first)
    study(other, *((50.0 - k, {"optim.lr": k / 100}) for k in range(1, 9)))
    assert learned_of(mine, [other], SPACE, seed=0) == first == learned_of(mine, [], SPACE, seed=0)
    rmtree(other)
    monkeypatch.chdir(other.parent)
    assert learned_of(mine, [Path("other")], SPACE, seed=0) == first
    assert LEARNED.find(mine / "learned.json") == first


def test_other_studies_than_those_it_began_with_are_refused(mine: StudyFolder, other: Path) -> None:
    study(mine.path, (50.0, {"optim.lr": 0.01}))
    with pytest.raises(UserError, match=r"the study .*mine has begun without it: leave it out, or begin an"):
        learned_of(mine, [other], SPACE, seed=0)
    with pytest.raises(UserError, match=r"--warm-start .*mine: a study cannot learn from itself"):
        learned_of(mine, [other, mine.path], SPACE, seed=0)
    (mine.path / "study.yaml").unlink()
    learned = learned_of(mine, [other], SPACE, seed=0)
    assert learned is not None
    LEARNED.write(mine / "learned.json", learned)
    with pytest.raises(UserError, match=r"--warm-start .*else: .* has learned from .*other: leave"):
        learned_of(mine, [other, other.parent / "else"], SPACE, seed=0)


def test_starts_outside_the_space_are_refused(mine: StudyFolder, other: Path) -> None:
    learned = learned_of(mine, [other], SPACE, seed=0)
    assert learned is not None
    mine.path.mkdir()
    LEARNED.write(mine / "learned.json", replace(learned, starts=({"optim.lr": 7.0},)))
    with pytest.raises(UserError, match=r"must hold .*learned.json: optim.lr is 7.0, its range 0.001 .. 1"):
        learned_of(mine, [], SPACE, seed=0)


DRIFT = CALIBRATIONS["drift"]


def beliefs(*studies: tuple[float, list[float]]) -> list[float]:
    """Means for rates 0.001 and 1.0, of studies by the scores of the released settings and of five rates."""
    rates = (0.001, 0.01, 0.1, 0.5, 1.0)
    found = [
        EarlierStudy(
            "out/other", ("other",), "drift",
            tuple(EarlierTrial({"optim.lr": x}, y) for x, y in zip(rates, scores, strict=True)), released,
        )
        for released, scores in studies
    ]  # fmt: skip
    asked = [{"optim.lr": 0.001}, {"optim.lr": 1.0}]
    both = promised(asked, found, SPACE, worth=Promise(1.0, 0.0), calibration=DRIFT, before=UNKNOWN)
    assert {each.sd for each in both} == {UNKNOWN.sd}
    return [each.mean for each in both]


def test_where_the_released_settings_were_ahead_of_all_nothing_is_promised_above_them() -> None:
    behind = [(70.0, [50.0, 52.0, 54.0, 56.0, 58.0])] * 3
    low, high = beliefs(*behind)
    assert low < high < -2
    level_low, level_high = beliefs(*[(54.0, scores) for _, scores in behind])
    assert level_low < -0.2 < 0.2 < level_high
    ahead_low, ahead_high = beliefs(*[(44.0, scores) for _, scores in behind])
    assert 0 < ahead_low < ahead_high


def test_studies_whose_trials_all_score_alike_promise_next_to_nothing() -> None:
    assert beliefs((60.0, [60.0] * 5)) == pytest.approx([0.0, 0.0], abs=0.2)
    assert beliefs((60.0, [60.0, 60.01, 60.02, 60.03, 60.04])) == pytest.approx([0.0, 0.0], abs=0.2)


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
        match=r"--warm-start .*: finished trials .* space mine, beside the released ones: 0, 4 are",
    ):
        earlier_study(tmp_path, SPACE)


def test_links_in_a_circle_are_refused(mine: StudyFolder, tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    with pytest.raises(UserError, match=f"cannot follow {circle}: Too many levels of symbolic links"):
        learned_of(mine, [circle], SPACE, seed=0)


@pytest.mark.parametrize("text", ["", "[]", "{}", "name: s"])
def test_a_damaged_study_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    study(tmp_path, (50.0, {}), (50.0, {"optim.lr": 0.01}))
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(UserError, match=r"study\.yaml (is damaged|has no version)"):
        earlier_study(tmp_path, SPACE)
