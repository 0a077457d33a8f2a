"""A tuned comparison from the command to the page, with jobs that do not train."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from prometar.errors import UserError
from tests.support.fake_trial import FakeTraining, misbehave
from tests.support.tuned import SMALL, compare, num_epochs, records, trial_settings, without_ray
from tune.execution.worker import JobRequest
from tune.records.folder import read_records
from tune.records.timeline import read_timeline
from tune.tuned.comparison import Budget


def table(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (out / "tuned/table.csv").open() as file:
        return {(row["dataset"], row["method"]): row for row in csv.DictReader(file)}


def run(out: Path, *options: object, trials: int = 4, status: int = 0) -> list[str]:
    """Run a comparison. Returns the names of the jobs that ran."""
    with without_ray() as names:
        assert compare(out, *(options or SMALL), trials=trials) == status
    return names


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do not write into it."""
    out = tmp_path_factory.mktemp("finished")
    run(out)
    return out


def test_each_trained_method_has_an_ordinary_study_with_the_same_budget_and_seeds(finished: Path) -> None:
    folders = sorted(path.name for path in (finished / "studies").iterdir())
    assert folders == ["cells-maple", "cells-vpt"]
    for name in folders:
        found = read_records(finished / "studies" / name)
        assert [trial.state for trial in found.trials] == ["COMPLETE"] * 4
        assert found.config.search.seed == 0
        assert found.confirmation is not None
        assert found.confirmation.seeds == (1000, 1001)
        assert found.final_test is not None
        assert (found.final_test.seeds, found.final_test.is_sequential) == ((1, 2), False)
        assert (found.config.search.objective, found.final_test.epochs) == ("drift", 2)
        assert "</html>" in (found.folder / "report.html").read_text()
        assert len(found.timeline) == len(num_epochs(found.folder))
        assert {entry.stage for entry in found.timeline} == {"Search", "Confirmation", "Final test"}


def test_the_table_has_scores_gains_and_costs(finished: Path) -> None:
    rows = table(finished)
    assert set(rows) == {("cells", method) for method in ("zero-shot", "maple", "vpt")}
    untrained = rows["cells", "zero-shot"]
    assert (untrained["published"], untrained["tuned"], untrained["trials"]) == ("50.0000", "50.0000", "0")
    for method in ("maple", "vpt"):
        row = rows["cells", method]
        test = read_records(finished / f"studies/cells-{method}").final_test
        assert test is not None
        runs = test.datasets["cells"]
        published = sum(each.objective or 0.0 for each in runs.baseline) / 2
        assert float(row["published"]) == pytest.approx(published, abs=1e-3)
        gain = float(row["tuned"]) - float(row["published"])
        assert float(row["gain"]) == pytest.approx(gain, abs=2e-4)
        assert row["trials"] == "4"
        # Four trials of two epochs and up to four candidates with two seeds of two epochs.
        epochs = sum(
            number
            for folder, number in num_epochs(finished / f"studies/cells-{method}").items()
            if not folder.startswith("finals")
        )
        assert int(row["steps"]) % epochs == 0
        assert float(row["seconds"]) > 0
    assert (finished / "tuned/ranks.csv").read_text().count("\n") == 4


def test_the_page_answers_and_needs_no_network(finished: Path) -> None:
    page = (finished / "tuned/report.html").read_text()
    body = page[page.index("<body>") :]
    assert "the order of the methods" in body
    assert "Friedman&#39;s test needs at least two datasets" in body
    assert "http" not in body.split("<h2>")[0]
    for name in ("slopes", "ranks-published", "ranks-tuned", "timeline"):
        assert f'id="plot-{name}"' in body
    jobs = [entry.job for entry in read_timeline(finished / "tuned")]
    assert len(jobs) == len(set(jobs)) == len(num_epochs(finished))


def test_a_finished_comparison_runs_nothing_and_prints_the_same_table(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (table(finished), records(finished))
    assert run(finished) == []
    assert (table(finished), records(finished)) == before
    printed = capsys.readouterr().out
    assert "maple: 11 settings (shared: optim.lr, " in printed
    assert "Wrote " in printed


@pytest.mark.parametrize(("key", "says"), [("data", "cells"), ("weights", "weights")])
def test_a_run_without_training_of_other_data_or_weights_is_refused(
    key: str, says: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    file = next(out.glob("runs/*zero-shot*/result.json"))
    result = json.loads(file.read_text())
    file.write_text(json.dumps({**result, key: "0" * 64}))
    assert run(out, status=2) == []
    assert f"used another version of {says}" in " ".join(capsys.readouterr().err.split())


EXTENSIONS: dict[str, tuple[list[object], int, list[str]]] = {
    "method": (["--methods", "zero-shot", "maple", "vpt", "ivlp", *SMALL[6:]], 4, ["cells-ivlp"]),
    "seed": ([*SMALL[:-2], "--seeds", 1, 2, 3, "--epochs", 2], 4, ["cells-maple", "cells-vpt"]),
    "trials": ([*SMALL], 6, ["cells-maple", "cells-vpt"]),
}


@pytest.mark.parametrize("kind", EXTENSIONS)
def test_an_extension_reruns_nothing(kind: str, tmp_path: Path) -> None:
    run(tmp_path)
    before = records(tmp_path)
    epochs = num_epochs(tmp_path)
    options, trials, studies = EXTENSIONS[kind]
    if kind == "method":
        options = [*SMALL[:2], *options]
    names = run(tmp_path, *options, trials=trials)
    assert {name.split(":")[0] for name in names} == set(studies)
    after = num_epochs(tmp_path)
    assert {folder: after[folder] for folder in epochs} == epochs
    found = records(tmp_path)
    assert {path: found[path] for path in before} == before
    assert len(after) == len(epochs) + len(names)


def test_another_dataset_is_added_to_the_ranks(tmp_path: Path) -> None:
    few = ["--methods", "maple", "vpt", "--seeds", 1, 2, "--epochs", 1]
    run(tmp_path, "--datasets", "cells", *few, trials=2)
    before = num_epochs(tmp_path)
    names = run(tmp_path, "--datasets", "cells", "textures", *few, trials=2)
    assert all(name.startswith("textures-") for name in names)
    assert {folder: num_epochs(tmp_path)[folder] for folder in before} == before
    assert {dataset for dataset, _ in table(tmp_path)} == {"cells", "textures"}


def test_an_interrupted_comparison_resumes_without_repeating_an_epoch(finished: Path, tmp_path: Path) -> None:
    """The process is interrupted at several jobs, in all stages."""
    for limit in (3, 9, 17):
        with without_ray() as names, pytest.MonkeyPatch.context() as patch:
            _stop_at(patch, names, limit - len(num_epochs(tmp_path)))
            assert compare(tmp_path, *SMALL) == 1
    run(tmp_path)
    assert num_epochs(tmp_path) == num_epochs(finished)
    assert trial_settings(tmp_path) == trial_settings(finished)
    mine = table(tmp_path)
    other = table(finished)
    assert mine == other


def _stop_at(patch: pytest.MonkeyPatch, names: list[str], number: int) -> None:
    """Raise an error in the first epoch of the job with this number."""
    from tests.support import tuned

    original = tuned.FakeTraining.advance

    def advance(self: Any) -> Any:
        if len(names) > number:
            raise OSError("killed")
        return original(self)

    patch.setattr(tuned.FakeTraining, "advance", advance)


def test_a_budget_in_steps_limits_each_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An epoch of maple on cells with one shot has fewer steps than one with sixteen."""
    options = [*SMALL, "--shots", 1, "--budget", 5, "steps"]
    run(tmp_path, *options, trials=8)
    for name in ("cells-maple", "cells-vpt"):
        found = read_records(tmp_path / "studies" / name)
        assert 0 < len(found.trials) < 8
    assert "8 trials or 5 steps per method and dataset" in capsys.readouterr().out


def test_predictions_and_the_timeout_of_epochs_apply_to_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions are those for test images, so the runs of search and confirmation have none."""
    requests: list[JobRequest] = []

    class Recorded(FakeTraining):
        def __init__(self, request: JobRequest) -> None:
            requests.append(request)
            super().__init__(request)

    monkeypatch.setattr("tests.support.tuned.FakeTraining", Recorded)
    run(tmp_path, *SMALL, "--predictions", "--set", "resources.epoch_timeout=60", trials=2)
    assert {request.timeout_seconds for request in requests} == {60.0}
    with_predictions = {request.job.name for request in requests if request.job.predictions}
    on_test_images = {request.job.name for request in requests if request.job.objective == "final"}
    assert with_predictions == on_test_images
    assert "cells, zero-shot: cells, zero-shot, 16 shots, seed 1" in with_predictions


def test_a_study_that_fails_is_named_and_others_continue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "studies/cells-vpt"
    folder.mkdir(parents=True)
    misbehave(folder, {"all": "fail"})
    run(tmp_path, status=1)
    said = capsys.readouterr()
    assert "vpt on cells: " in said.out
    assert "loss is nan" in said.out
    assert said.err.startswith("error: Some results are missing (see above).")
    answer = "It needs at least two methods, and a dataset on which all of them have results."
    assert answer in " ".join(said.out.split()), "two of three methods have results"
    assert table(tmp_path)["cells", "maple"]["tuned"]
    assert not table(tmp_path)["cells", "vpt"]["tuned"]
    misbehave(folder, {})
    names = run(tmp_path)
    assert all(name.startswith("cells-vpt") for name in names)


def test_the_plan_states_runs_steps_and_hours_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert compare(out, *SMALL, "--plan") == 0
    printed = capsys.readouterr().out
    assert not out.exists()
    # Four trials, four candidates with two fresh seeds, and two settings with two test seeds.
    assert "vpt: 1 study, at most 16 runs and " in printed
    assert "In total at most 33 runs, " in printed
    assert " hours (" in printed
    assert "zero-shot: 1 run without training, nothing to tune" in printed


def planned_steps(out: Path, capsys: pytest.CaptureFixture[str], *options: object) -> int:
    """Return the maximum number of steps of the method vpt in the plan."""
    small = ("--datasets", "cells", "--methods", "maple", "vpt", "--seeds", "5", "--epochs", "2")
    assert compare(out, *small, *options, "--plan") == 0
    match = re.search(r"vpt: 1 study, at most \d+ runs and ([\d,]+) steps", capsys.readouterr().out)
    assert match is not None
    return int(match[1].replace(",", ""))


def test_the_plan_of_a_budget_includes_all_seeds_of_the_trials_that_are_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trials that have started when the budget is used up train with all of their seeds."""

    def saved_steps(seeds_per_trial: int) -> int:
        seeds = ("--set", f"search.seeds_per_trial={seeds_per_trial}")
        without_budget = planned_steps(tmp_path / "out", capsys, *seeds)
        with_budget = planned_steps(tmp_path / "out", capsys, *seeds, "--budget", "1", "steps")
        return without_budget - with_budget

    # A budget of one step saves all trials but the one that runs at a time, less that step.
    assert saved_steps(2) + 1 == 2 * (saved_steps(1) + 1)


WRONG: list[tuple[list[object], str]] = [
    (["--protocol", "few-shot"], "--tune requires --protocol base-to-new, got few-shot."),
    (["--methods", "zero-shot"], "--tune: zero-shot cannot be tuned. Add a method that trains."),
    (["--seeds", 0, 1], "--seeds 0 is used in the searches. Choose seeds for the test only."),
    (["--seeds", 1000], "--seeds 1000 is used in the searches."),
    (["--budget", "many", "steps"], "--budget must be a number of steps or seconds, such as 5000 steps"),
    (["--budget", 10, "epochs"], "got 10 epochs."),
    (["--budget", 0, "steps"], "got 0 steps."),
    (["--set", "search.trials=3"], "--set search.trials is also given as an option."),
    (["--set", "confirm.seedz=3"], "confirm.seedz is not a setting."),
    (["--set", "resources.cpus_per_trial=1"], "resources.cpus_per_trial is not allowed. Use --cpus-per-run."),
    (["--set", "search.objective=oracle_test"], "--tune selects on validation images only, but"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[" ".join(map(str, o)) for o, _ in WRONG])
def test_wrong_usage_is_one_line_and_leaves_nothing_behind(
    options: list[object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = {str(options[0])}
    base = ["--datasets", "cells", *([] if "--methods" in given else ["--methods", "maple", "vpt"])]
    with without_ray():
        assert compare(out, *base, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not out.exists()


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ("0", "at least 1, got 0."),
        ("2000000", "at most 1000000, got 2000000."),
        ("x", "a valid integer, got 'x'."),
    ],
)
def test_an_invalid_number_of_trials_is_refused_in_plain_words(
    trials: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from prometar.cli.app import main

    assert main(["reproduce", "--datasets", "cells", "--tune", trials]) == 2
    assert capsys.readouterr().err.startswith(f"error: --tune must be {message}")


@pytest.mark.parametrize("option", [["--plan"], ["--budget", "5", "steps"]])
def test_options_of_tuning_require_it(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from prometar.cli.app import main

    assert main(["reproduce", "--datasets", "cells", *option]) == 2
    assert f"{option[0]} requires --tune TRIALS." in capsys.readouterr().err


def test_other_settings_in_the_same_folder_are_refused(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = records(finished)
    with without_ray():
        assert compare(finished, *SMALL, "--set", "optim.lr=0.01") == 2
    error = capsys.readouterr().err
    assert "has other settings (optim.lr: " in error
    assert "Pass the same settings or another --out." in error
    assert records(finished) == before


def test_budgets() -> None:
    assert Budget.parse(["600.5seconds"]).settings == {"resources.budget_seconds": 600.5}
    assert json.dumps(Budget.parse(["5", "steps"]).settings) == '{"resources.budget_steps": 5}'
    assert str(Budget.parse(["5000 steps"])) == "5,000 steps"
    with pytest.raises(UserError, match=r"got 2\.5 steps"):
        Budget.parse(["2.5", "steps"])
