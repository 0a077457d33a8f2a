"""Studies whose trials fail, whose storage or folder is lost, and whose clock is set back.

Trials do not train, and Ray is not started.
"""

import errno
import json
import os
import random
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, ClassVar

import optuna.storages._rdb.storage as rdb
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from prometar.config.settings import load_config
from prometar.errors import InfrastructureError, PrometarError, UserError, WorkError
from tests.support.databases import open_study
from tests.support.driver import NAME, Back, fail_one_in_fifty, misbehave, records, run_fake
from tests.support.fake_trial import curve
from tune.store.trial_store import MAX_FAILURES, TrialStore

WHOLE: dict[str, Any] = {"trials": 3, "epochs": 2, "top": 1, "settings": {"confirm.seeds": 1}}
"""Options of a small study with all stages."""
WRITTEN = [
    "study.yaml",
    "trials/0000/record.json",
    "trials/0001/record.json",
    "trials/0002/record.json",
    "confirmation.json",
    "selected.yaml",
    "default.yaml",
    "finals.json",
    "best.yaml",
    "report.html",
]
"""Files of a study with the options `WHOLE`, in the order in which they are written."""
MOST_COMMANDS = 60
"""Limit of how often a failing study is resumed, so that a test cannot run forever."""


def states(out: Path) -> Counter[str]:
    """Return the number of trials in the database by state."""
    study = open_study(f"sqlite:///{out / NAME / 'study.db'}", NAME)
    return Counter(trial.state.name for trial in study.trials)


def timeless_records(out: Path) -> list[dict[str, Any]]:
    """Return the records of trials without times, which differ between equal studies."""
    kept = ("number", "state", "settings", "objective", "epochs")
    return [{key: record[key] for key in kept} for record in records(out)]


@dataclass(frozen=True)
class MixedStudy:
    """A finished study in OUT/fake, of whose trials some fail and some are pruned.

    Args:
        out: Parent of the study's folder.
        finals: Content of finals.json.
        records: Records of the trials, ordered by number.
        printed: What the study printed.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {"trials": 14, "pruner": "median", "final_seeds": (1, 2, 3)}

    out: Path
    finals: dict[str, Any]
    records: list[dict[str, Any]]
    printed: str

    @property
    def best(self) -> dict[str, Any]:
        """Record of the completed trial with the highest objective."""
        completed = [record for record in self.records if record["state"] == "COMPLETE"]
        return max(completed, key=lambda record: record["objective"])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> MixedStudy:
    """Run a study whose trials 1 to 3 fail, and whose trial 13 is pruned, because its objective is low."""
    out = tmp_path_factory.mktemp("mixed")
    behaviour = {"1": "fail", "2": "missing", "3": "fail", "13": "bad"}
    finals, printed = run_fake(out, behaviour=behaviour, **MixedStudy.OPTIONS)
    return MixedStudy(out, finals, records(out), printed)


def test_each_trial_has_a_record_and_a_state_in_the_database(mixed: MixedStudy) -> None:
    assert [record["number"] for record in mixed.records] == list(range(14))
    assert mixed.records[0]["origin"] == "baseline"
    counts = states(mixed.out)
    assert counts["FAIL"] == 3
    assert counts["COMPLETE"] + counts["PRUNED"] == 11


def test_failed_trials_have_a_reason(mixed: MixedStudy) -> None:
    reasons = {record["number"]: record["reason"] for record in mixed.records if record["state"] == "FAIL"}
    assert sorted(reasons) == [1, 2, 3]
    assert "objective" in reasons[2]
    assert reasons[3] == "loss is nan in step 7"
    assert "3 failed" in mixed.printed


def test_a_trial_with_a_low_objective_is_pruned_before_its_last_epoch(mixed: MixedStudy) -> None:
    pruned = mixed.records[13]
    assert pruned["state"] == "PRUNED"
    assert len(pruned["epochs"]) < 3


def test_the_best_completed_trial_is_compared_with_the_baseline(mixed: MixedStudy) -> None:
    finals = mixed.finals
    assert finals["selected"]["number"] == mixed.best["number"]
    assert [run["seed"] for run in finals["datasets"]["textures"]["selected"]] == [1, 2, 3]
    assert finals["verdict"] == "selected"
    # A seed adds the same constant to both runs of a pair, so the interval has no width.
    gain = mixed.best["objective"] - mixed.records[0]["objective"]
    assert finals["difference"]["low"] == pytest.approx(gain)


def test_the_same_command_runs_nothing_of_a_finished_study_again(mixed: MixedStudy) -> None:
    again, _ = run_fake(mixed.out, behaviour={"all": "raise"}, **MixedStudy.OPTIONS)
    assert again == mixed.finals
    assert records(mixed.out) == mixed.records


def test_more_trials_extend_a_study(tmp_path: Path) -> None:
    run_fake(tmp_path, trials=3)
    first = records(tmp_path)

    finals, text = run_fake(tmp_path, trials=5)

    assert records(tmp_path)[:3] == first
    assert states(tmp_path) == {"COMPLETE": 5}
    assert "Resuming: 3 done, 0 interrupted" in text
    assert finals["difference"] is None, "a single seed pair has no interval"


def test_a_started_study_refuses_other_settings(tmp_path: Path) -> None:
    run_fake(tmp_path, trials=3)
    with pytest.raises(UserError, match=r"started with other settings \(.*train\.epochs"):
        run_fake(tmp_path, trials=5, epochs=4)


def test_a_study_where_everything_fails_ends_early_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"loss is nan in step 7"):
        run_fake(tmp_path, trials=12, behaviour={"all": "fail"})
    assert len(records(tmp_path)) == MAX_FAILURES

    run_fake(tmp_path, trials=12, behaviour={})
    baseline_states = [record["state"] for record in records(tmp_path) if record["origin"] == "baseline"]
    assert baseline_states == ["FAIL", "COMPLETE"]


def test_the_confirmation_selects_and_resumes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"trials": 5, "top": 2, "final_seeds": (1, 2)}
    finals, _ = run_fake(tmp_path, behaviour={}, **options)

    confirmation = json.loads((tmp_path / NAME / "confirmation.json").read_text())
    num_runs = [len(candidate["runs"]) for candidate in confirmation["candidates"]]
    assert num_runs == [3, 3, 3], "the run of the trial and two new ones"
    assert finals["selected"]["number"] == confirmation["selected"]

    # The user keeps a copy of a finished run beside the runs of the final test.
    final_runs = tmp_path / NAME / "finals"
    shutil.copytree(next(final_runs.iterdir()), final_runs / "trial-old")
    again, text = run_fake(tmp_path, behaviour={"all": "raise"}, **options)
    assert again == finals, "the copy does not count as a run"
    assert "failed: " not in text, "no run is run twice"


def test_later_stages_have_their_own_concurrency(tmp_path: Path) -> None:
    _, text = run_fake(tmp_path, trials=2, top=1, max_concurrent=None)
    assert "1 concurrent trial (a fifth of 2, so that the search learns from results)" in text
    assert "Confirmation: 2 concurrent runs (all that fit), each with 1 CPU" in text
    assert "Final test: " in text


def test_a_study_of_several_goals_resumes_after_its_storage_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original_report = TrialStore.report

    def lose_storage(store: TrialStore, number: int, *given: Any) -> bool:
        if number == 2:
            raise OperationalError("UPDATE trials", {}, Exception("database is locked"))
        return original_report(store, number, *given)

    goals = ("base", "seconds")
    message = r"database is locked.*rerun the same command to resume"
    with monkeypatch.context() as patched:
        patched.setattr(TrialStore, "report", lose_storage)
        with pytest.raises(InfrastructureError, match=message) as caught:
            run_fake(tmp_path, trials=3, goals=goals)
    assert "\n" not in str(caught.value)
    first = records(tmp_path)
    assert len(first) == 2

    run_fake(tmp_path, trials=4, goals=goals)

    found = records(tmp_path)
    assert found[:2] == first
    assert states(tmp_path) == {"COMPLETE": 4}
    assert [list(record["epochs"]) for record in found] == [["1", "2", "3"]] * 4
    study = open_study(f"sqlite:///{tmp_path / NAME / 'study.db'}", NAME)
    values = [[record["base"], record["seconds"]] for record in found]
    assert [trial.values for trial in study.trials] == values


GOOD_WEIGHT = 5.0
"""The best text weight of fake trials (see `curve`). With it, they are better than the baseline."""
BAD_WEIGHT = 199.0
"""A text weight with which fake trials are worse than the baseline."""


@pytest.mark.parametrize(
    ("weight", "seeds", "verdict", "recommended", "comment"),
    [
        (GOOD_WEIGHT, (1, 2, 3, 4), "selected", "selected.yaml", "# Use the selected"),
        (BAD_WEIGHT, (1, 2, 3, 4), "baseline", "default.yaml", "# Keep the default"),
        (GOOD_WEIGHT, (1,), "either", "selected.yaml", "# Use either"),
        (BAD_WEIGHT, (1,), "either", "default.yaml", "# Use either"),
    ],
    ids=["better", "worse", "better-with-one-seed", "worse-with-one-seed"],
)
def test_best_yaml_holds_what_the_verdict_recommends(
    weight: float, seeds: tuple[int, ...], verdict: str, recommended: str, comment: str, tmp_path: Path
) -> None:
    given = tmp_path / "given.yaml"
    given.write_text(f"regularizer.text_weight: {weight}\nregularizer.image_weight: 2.0\n")
    # With --top 0, the best trial is selected. Trial 0 fails in the search, so a worse one can be selected.
    misbehave(tmp_path, {"0": "fail"})

    finals, _ = run_fake(tmp_path, trials=2, enqueue=given, final_seeds=seeds)

    assert finals["verdict"] == verdict
    best = tmp_path / NAME / "best.yaml"
    assert load_config(best) == load_config(tmp_path / NAME / recommended)
    assert best.read_text().startswith(comment)


def test_a_dataset_with_other_published_settings_has_its_own_files(tmp_path: Path) -> None:
    given = tmp_path / "mine.yaml"
    given.write_text("settings: {}\nby: [{dataset: cells, settings: {optim: {momentum: 0.5}}}]\n")

    run_fake(tmp_path, trials=2, dataset=["textures", "cells"], method=str(given), final_seeds=(1, 2))

    folder = tmp_path / NAME
    for number, kind in ((0, "default"), (1, "selected")):
        for dataset, suffix, momentum in (("textures", "", 0.9), ("cells", "-cells", 0.5)):
            found = load_config(folder / f"{kind}{suffix}.yaml")
            assert found.flat()["optim.momentum"] == momentum
            assert found == load_config(folder / f"finals/trial-{number:04d}-{dataset}-seed1/config.yaml")
    assert load_config(folder / "best-cells.yaml").data.name == "cells"


def test_a_study_whose_records_are_lost_starts_again(tmp_path: Path) -> None:
    """Runs of its final test are still there. They have the number of a new trial, but other settings."""
    first, _ = run_fake(tmp_path, trials=2)
    for lost in ("study.db", "study.yaml", "best.yaml"):
        (tmp_path / NAME / lost).unlink()
    shutil.rmtree(tmp_path / NAME / "trials")
    given = tmp_path / "given.yaml"
    given.write_text("regularizer.text_weight: 5.0\nregularizer.image_weight: 2.0\n")

    second, _ = run_fake(tmp_path, trials=2, enqueue=given)

    assert first["selected"]["number"] == 1
    assert second["selected"]["number"] == 1
    first_run = first["datasets"]["textures"]["selected"][0]
    second_run = second["datasets"]["textures"]["selected"][0]
    effect_of_seed_1 = 0.25
    assert second_run["objective"] == pytest.approx(curve(5.0, 2.0, 3) + effect_of_seed_1)
    assert first_run["objective"] != second_run["objective"]


@dataclass(frozen=True)
class Findings:
    """What a study has found: its selected settings, and the records of its trials without times."""

    selected: dict[str, Any]
    records: list[dict[str, Any]]


def finish(out: Path, **options: Any) -> Findings:
    """Start or resume a study in OUT/fake with the options `WHOLE`. Return what it has found."""
    finals, _ = run_fake(out, **WHOLE, **options)
    return Findings(finals["selected"], timeless_records(out))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    """What the study finds when nothing fails."""
    return finish(tmp_path_factory.mktemp("whole"))


def error_of_study(out: Path) -> str | None:
    """Start or resume a study in OUT/fake. Return the message of the error that stopped it, or None.

    Raises:
        AssertionError: The message has several lines, or a record of an earlier command was lost or changed.
    """
    before = records(out)
    message = None
    try:
        run_fake(out, **WHOLE)
    except PrometarError as error:
        message = str(error)
        assert "\n" not in message
    assert [record for record in records(out) if record in before] == before, "a record was lost"
    return message


def test_a_study_survives_a_storage_that_fails_one_call_in_fifty(tmp_path: Path, expected: Findings) -> None:
    num_errors = 0
    fail = fail_one_in_fifty(random.Random(5))
    try:
        while (message := error_of_study(tmp_path)) is not None:
            assert re.fullmatch(r".*disk I/O error.*(re)?run (the same|this) command.*", message)
            num_errors += 1
            assert num_errors < MOST_COMMANDS
    finally:
        event.remove(Engine, "before_cursor_execute", fail)

    assert num_errors > 0
    assert finish(tmp_path) == expected
    assert states(tmp_path) == {"COMPLETE": 3}, "no trial is left running"


def test_a_study_survives_a_clock_that_is_set_back_by_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Findings
) -> None:
    """Only the start and the end of trials come from this clock. Durations do not."""
    monkeypatch.setattr(rdb, "datetime", Back)
    monkeypatch.setattr(Back, "num_uses", 0)

    finals, text = run_fake(tmp_path, **WHOLE, max_hours=0.5)

    assert Findings(finals["selected"], timeless_records(tmp_path)) == expected
    assert not re.search(r"\[-|-\d+:", text), "no negative times"
    times = [(record["started"], record["ended"]) for record in records(tmp_path)]
    assert any(ended < started for started, ended in times), "the clock was set back during a trial"


def final_name(path: Path) -> str:
    """Return the name of a file, given its path or the path under which it is written: `.NAME.SUFFIX`."""
    if not path.name.startswith("."):
        return path.name
    name, _, _ = path.name.removeprefix(".").rpartition(".")
    return name


def test_a_study_survives_that_each_of_its_files_is_refused_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Findings
) -> None:
    """Refusals are simulated, because root may write anywhere. tests/studies/test_disk.py has real ones."""
    reasons = cycle((errno.EACCES, errno.EROFS, errno.ENOSPC))
    original_open = Path.open
    study = tmp_path / NAME
    refused: list[str] = []
    num_errors = 0

    def refuse(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if mode == "wb" and path.is_relative_to(study) and num_errors < len(WRITTEN):
            name = str(path.with_name(final_name(path)).relative_to(study))
            # Each command is refused the next file. It may try to write the live report.html several times.
            if name == WRITTEN[num_errors]:
                refused.append(name)
                reason = next(reasons)
                raise OSError(reason, os.strerror(reason), str(path))
        return original_open(path, mode, *args, **options)

    # Pages of a running study are optional, and no failure to write one ends the study.
    monkeypatch.setattr("tune.report.live_page.LivePage._write", lambda page, progress: None)
    monkeypatch.setattr(Path, "open", refuse)
    while (message := error_of_study(tmp_path)) is not None:
        assert f"cannot write {study / refused[-1]}: " in message
        num_errors += 1

    assert list(dict.fromkeys(refused)) == WRITTEN
    assert finish(tmp_path) == expected
    assert not list(tmp_path.rglob(".*")), "half a file was left"
