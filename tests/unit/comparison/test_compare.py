"""`prometar compare` through the command line, on run folders made here and on real ones."""

import csv
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import pytest

from prometar.cli.app import main
from prometar.config.settings import Config, configure, dump_config
from prometar.metrics import harmonic_mean

HOSTILE = "<script>alert(1)</script>\x1b[31m\n${7*7}{{7*7}}"


def write(
    folder: Path,
    config: Config,
    *,
    objective: str = "final",
    data: str = "",
    weights: str = "",
    joint: dict[str, float] | None = None,
    **accuracies: float,
) -> Path:
    """Write the folder of a finished run, with only what a comparison reads. Return the folder.

    Args:
        data: Digest of the dataset.
        weights: Digest of the weights.
        joint: Accuracies among base and new classes together.
        accuracies: Accuracies in percent by evaluation set.
    """
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    result = {
        "result": {"epoch": 1, "direct_ce": 0.5},
        "accuracies": accuracies,
        "images": {},
        "history": [],
        "objective": objective,
        "classnames": ["banded", "dotted"],
        "template": "a photo of a {}.",
        "run": "0" * 64,
        "environment": {},
        "data": data,
        "weights": weights,
        "joint_accuracies": joint or {},
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def config_of(method: str, seed: int = 1, dataset: str = "dtd", **settings: Any) -> Config:
    """Return the published settings of a method, with other values for dotted keys."""
    return configure(method, {"data.name": dataset, "train.seed": seed, **settings})


GAIN = {"coop": {"dtd": 1.0, "eurosat": -3.0}, "prometar": {"dtd": 2.0, "eurosat": 2.0}}
"""Points by which runs in `grid` are above a common accuracy, by method and dataset."""
NEW_CLASSES_LOSS = 10.0
"""Points by which accuracy on new classes is below that on base classes, in `grid`."""


def base_accuracy(gain: float, seed: int) -> float:
    """Accuracy on base classes of a run in `grid`."""
    return 60 + gain + 5 * seed


def h_of(gain: float, seed: int) -> float:
    """H of a run in `grid`."""
    base = base_accuracy(gain, seed)
    return harmonic_mean({"base": base, "new": base - NEW_CLASSES_LOSS})


def grid(out: Path, *, seeds: tuple[int, ...] = (1, 2)) -> Path:
    """Write runs of the methods and datasets of `GAIN`, each in a folder of its own. Return `out`."""
    for method, gains in GAIN.items():
        for dataset, gain in gains.items():
            for seed in seeds:
                base = base_accuracy(gain, seed)
                config = config_of(method, seed, dataset)
                folder = out / method / f"{dataset}-{seed}"
                write(folder, config, base=base, new=base - NEW_CLASSES_LOSS)
    return out


class Outcome(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


RunCompare = Callable[..., Outcome]


@pytest.fixture
def run_compare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunCompare:
    """Function that runs `prometar compare` on a terminal that is wide enough for all tables."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: object) -> Outcome:
        status = main(["compare", *map(str, args)])
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return run


def error_of(run_compare: RunCompare, *args: object) -> str:
    """Run a comparison that must fail with one line. Return the line."""
    outcome = run_compare(*args)
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.count("\n") == 1, outcome.err
    return outcome.err


def test_runs_below_folders_are_compared_once(run_compare: RunCompare, tmp_path: Path) -> None:
    out = grid(tmp_path / "out")
    table = tmp_path / "pairs.csv"
    for _ in range(2):  # the second comparison replaces the table of the first
        outcome = run_compare(out, out / "coop", "--csv", table)
        assert outcome.status == 0
        assert outcome.err == ""

    expected_row = "base coop -3.00 [-28.41, +22.41] 2 datasets 0.500 0.500"
    assert expected_row.split() in [line.split() for line in outcome.out.splitlines()]

    with table.open() as file:
        rows = {(row["metric"], row["method"], row["dataset"]): row for row in csv.DictReader(file)}
    assert rows["base", "coop", "eurosat"]["difference"] == "-5.0000"

    gain = GAIN["coop"]["eurosat"]
    reference_gain = GAIN["prometar"]["eurosat"]
    seed_differences = [h_of(gain, seed) - h_of(reference_gain, seed) for seed in (1, 2)]
    expected = mean(seed_differences)
    assert float(rows["H", "coop", "eurosat"]["difference"]) == pytest.approx(expected, abs=1e-4)


def test_the_reference_is_chosen(run_compare: RunCompare, tmp_path: Path) -> None:
    out = grid(tmp_path / "out")
    assert "a method minus prometar in points" in run_compare(out).out
    assert "a method minus coop in points" in run_compare(out, "--reference", "coop").out
    error = error_of(run_compare, out, "--reference", "vpt")
    assert "--reference must be one of coop; prometar, got vpt" in error


def test_other_metrics_are_compared_on_request(run_compare: RunCompare, tmp_path: Path) -> None:
    for method, gain in {"coop": 1.0, "prometar": 2.0}.items():
        for seed in (1, 2):
            joint = {"base": 40.0 + gain, "new": 40.0 + gain}
            write(tmp_path / method / str(seed), config_of(method, seed), base=60.0, new=50.0, joint=joint)

    outcome = run_compare(tmp_path, "--metric", "joint_H", "--metric", "joint_new")
    assert outcome.status == 0
    rows = [line.split()[:3] for line in outcome.out.splitlines()]
    assert ["joint_H", "coop", "-1.00"] in rows
    assert ["joint_new", "coop", "-1.00"] in rows
    assert "joint_H" not in run_compare(tmp_path).out

    known = "base, new, H, joint_base, joint_new, joint_H"
    error = error_of(run_compare, tmp_path, "--metric", "base_f2")
    assert f"--metric must be one of {known}, got base_f2." in error


def test_settings_distinguish_runs_of_a_method(run_compare: RunCompare, tmp_path: Path) -> None:
    out = grid(tmp_path / "out")
    for seed in (1, 2):
        write(tmp_path / f"fast/{seed}", config_of("coop", seed, **{"optim.lr": 0.1}), base=70.0, new=70.0)
    text = run_compare(out, tmp_path / "fast", "--reference", "coop optim.lr=0.1").out
    assert "a method minus coop optim.lr=0.1 in points" in text
    assert "coop optim.lr=0.002 " in text
    assert "Not paired: coop optim.lr=0.1 has no run on eurosat." in text


def test_different_numbers_of_shots_are_noted(run_compare: RunCompare, tmp_path: Path) -> None:
    out = grid(tmp_path / "out")
    write(tmp_path / "small", config_of("prometar", 1, **{"data.shots": 4}), base=60.0, new=50.0)
    assert "Different data.shots: coop 16, prometar 4." in run_compare(out / "coop", tmp_path / "small").out


def test_many_different_settings_are_numbered_and_listed_once(
    run_compare: RunCompare, tmp_path: Path
) -> None:
    out = grid(tmp_path / "out")
    changes = {"optim.lr": 0.1, "prompts.text_depth": 3, "augment.flip": 0.25, "augment.crop_scale_min": 0.75}
    for seed in (1, 2):
        write(tmp_path / f"best/{seed}", config_of("prometar", seed, **changes), base=70.0, new=70.0)

    text = run_compare(out, tmp_path / "best", "--reference", "prometar #1").out
    table, *notes = text.split("\n- ")
    assert max(map(len, table.splitlines())) <= 90, "the table is narrow"
    assert "a method minus prometar #1 in points" in text

    (note,) = [note for note in notes if note.startswith("prometar #2 (first run: ")]
    assert str(tmp_path / "best/1") in note
    for key, value in changes.items():
        assert f"{key}={value}" in note


def test_runs_of_a_single_method_are_refused(run_compare: RunCompare, tmp_path: Path) -> None:
    out = grid(tmp_path / "out", seeds=(1,))
    assert "all runs use coop" in error_of(run_compare, out / "coop")


def test_runs_without_a_common_seed_are_refused(run_compare: RunCompare, tmp_path: Path) -> None:
    out = grid(tmp_path / "out", seeds=(1,))
    later = write(tmp_path / "later", config_of("ivlp", 5), base=50.0, new=50.0)
    error = error_of(run_compare, out / "coop", later)
    assert "No run shares its dataset and seed with a run of coop" in error


def test_two_runs_of_a_method_with_the_same_seed_are_refused(run_compare: RunCompare, tmp_path: Path) -> None:
    out = grid(tmp_path / "out", seeds=(1,))
    again = write(tmp_path / "again", config_of("coop"), base=50.0, new=50.0)
    assert f"{out}/coop/dtd-1 and {again} share dataset and seed" in error_of(run_compare, out, again)


def test_runs_with_different_objectives_are_refused(run_compare: RunCompare, tmp_path: Path) -> None:
    out = grid(tmp_path / "out", seeds=(1,))
    all_classes = write(tmp_path / "all", config_of("vpt"), objective="all_classes", all=50.0)
    assert "differ in objectives" in error_of(run_compare, out, all_classes)


@pytest.mark.parametrize(("digest_of", "aspect"), [("data", "images or classes"), ("weights", "weights")])
def test_runs_with_other_data_or_weights_of_the_same_name_are_refused(
    digest_of: str, aspect: str, run_compare: RunCompare, tmp_path: Path
) -> None:
    for method, digest in (("coop", "a"), ("prometar", "b")):
        write(tmp_path / method, config_of(method), base=60.0, new=50.0, **{digest_of: digest})
    expected = f"{tmp_path}/coop and {tmp_path}/prometar differ in {aspect}. Pass comparable runs."
    assert expected in error_of(run_compare, tmp_path)


def test_a_single_pair_of_runs_is_one_seed(run_compare: RunCompare, tmp_path: Path) -> None:
    for method in ("coop", "prometar"):
        write(tmp_path / method, config_of(method), base=60.0, new=50.0)
    assert " 1 seed " in run_compare(tmp_path).out


def test_folders_of_images_are_different_datasets(run_compare: RunCompare, tmp_path: Path) -> None:
    for root in ("/a", "/b"):
        for method in ("coop", "vpt"):
            config = config_of(method, dataset="folder", **{"data.root": root})
            write(tmp_path / method / root.strip("/"), config, data=root, base=50.0, new=50.0)
    assert "2 datasets" in run_compare(tmp_path).out


@pytest.mark.parametrize(
    "change",
    [{"accuracies": {"base": 1e999}}, {"classnames": 3}, None],
    ids=["infinite accuracy", "class names that are a number", "not JSON"],
)
def test_a_corrupt_result_is_refused_and_no_table_is_written(
    change: dict[str, Any] | None, run_compare: RunCompare, tmp_path: Path
) -> None:
    out = grid(tmp_path / "out", seeds=(1,))
    table = tmp_path / "pairs.csv"
    path = out / "coop" / "dtd-1" / "result.json"
    if change is None:
        path.write_text("[")
    else:
        record = json.loads(path.read_text())
        record |= change
        path.write_text(json.dumps(record))
    assert str(path) in error_of(run_compare, out, "--csv", table)
    assert not table.exists()


def test_folders_without_finished_runs_are_refused(run_compare: RunCompare, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no finished run found" in error_of(run_compare, tmp_path / "empty")
    assert "no finished run found" in error_of(run_compare, tmp_path / "nowhere")


def test_the_trials_of_a_study_are_not_compared(run_compare: RunCompare, tmp_path: Path) -> None:
    unfinished = tmp_path / "study"
    write(unfinished / "trials" / "0001", config_of("coop"), base=1.0, new=1.0)
    (unfinished / "study.yaml").write_text("")
    error = error_of(run_compare, unfinished)
    assert "has no run of a final test. Finish the study" in error
    assert "no finished run found" in error_of(run_compare, tmp_path), "studies below a folder are skipped"


def study(
    folder: Path,
    lr: float | None,
    gain: float = 0.0,
    *,
    seeds: tuple[int, ...] = (1, 2, 3),
    dataset: str = "dtd",
) -> Path:
    """Write the folder of a finished study. Return the folder.

    Args:
        lr: The selected learning rate. None if the default settings were selected.
        gain: Points that the selected learning rate gains.
        seeds: Seeds of the final test.
        dataset: Name of the dataset.
    """
    default = config_of("prometar", 1, dataset)
    selected = default
    tested = [(0, default, 0.0)]  # number of the trial, settings and gain
    if lr is not None:
        selected = default.override({"optim.lr": lr})
        tested.append((7, selected, gain))
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text("")
    (folder / "selected.yaml").write_text(dump_config(selected))
    (folder / "default.yaml").write_text(dump_config(default))
    for number, config, points in tested:
        for seed in seeds:
            run = config.override({"train.seed": seed})
            accuracy = 60.0 + seed + points
            run_folder = folder / f"finals/trial-{number:04d}-{dataset}-seed{seed}"
            write(run_folder, run, base=accuracy, new=accuracy)
    return folder


def h_rows(text: str) -> list[str]:
    """Rows for the metric H, with single spaces between words."""
    return [" ".join(line.split()) for line in text.splitlines() if line.startswith("H ")]


def rows_of(text: str) -> dict[str, list[str]]:
    """Words of the rows for the metric H, by label of two words."""
    all_words = [row.split() for row in h_rows(text)]
    return {" ".join(words[1:3]): words[3:] for words in all_words}


def test_two_studies_are_compared_by_the_seeds_of_their_final_tests(
    run_compare: RunCompare, tmp_path: Path
) -> None:
    first = study(tmp_path / "a", 0.01, 1.0)
    second = study(tmp_path / "b", 0.02, 3.5, seeds=(2, 3, 4))
    outcome = run_compare(first, second)
    assert outcome.status == 0
    assert outcome.err == ""
    text = outcome.out
    assert "a method minus a selected in points" in text
    assert rows_of(text) == {
        "a default": ["-1.00", "[-1.00,", "-1.00]", "3", "seeds", "–", "–"],
        "b selected": ["+2.50", "[+2.50,", "+2.50]", "2", "seeds", "–", "–"],
        "b default": ["-1.00", "[-1.00,", "-1.00]", "2", "seeds", "–", "–"],
    }
    assert "Not paired: b selected has no run on dtd with seed 1." in text
    assert "do not allow for early stops" in text
    assert "minus b default in points" in run_compare(first, second, "--reference", "b default").out


def test_a_study_that_selected_the_default_settings_has_one_label(
    run_compare: RunCompare, tmp_path: Path
) -> None:
    text = run_compare(study(tmp_path / "a", 0.01, 1.0), study(tmp_path / "b", None)).out
    (row,) = [line for line in text.splitlines() if line.startswith("H ") and "b selected" in line]
    assert row.split()[1:6] == ["b", "selected", "=", "default", "-1.00"]


def test_runs_of_an_earlier_selection_are_not_compared(run_compare: RunCompare, tmp_path: Path) -> None:
    first = study(tmp_path / "a", 0.01, 1.0)
    earlier = config_of("prometar", 1, **{"optim.lr": 0.05})
    write(first / "finals/trial-0003-dtd-seed1", earlier, base=1.0, new=1.0)
    assert "lr" not in run_compare(first).out, "a label would contain optim.lr=0.05"


def test_a_dataset_with_other_published_settings_is_compared(run_compare: RunCompare, tmp_path: Path) -> None:
    """MMRL has other settings for eurosat, which the study has written to files of their own."""
    folder = tmp_path / "both"

    def write_runs(trial: str, config: Config, accuracy: float) -> None:
        for seed in (1, 2):
            run = folder / "finals" / f"{trial}-{config.data.name}-seed{seed}"
            write(run, config.override({"train.seed": seed}), base=accuracy, new=accuracy)

    for dataset, suffix in (("dtd", ""), ("eurosat", "-eurosat")):
        default = configure("mmrl", {"data.name": dataset}, protocol="base-to-new")
        selected = default.override({"optim.lr": 0.01})
        write_runs("trial-0000", default, accuracy=60.0)
        write_runs("trial-0001", selected, accuracy=59.0)
        (folder / f"default{suffix}.yaml").write_text(dump_config(default))
        (folder / f"selected{suffix}.yaml").write_text(dump_config(selected))
    (folder / "study.yaml").write_text("")

    text = run_compare(folder).out
    assert rows_of(text)["both default"][:5] == ["+1.00", "[+1.00,", "+1.00]", "2", "datasets"]
    assert "Not paired" not in text


def test_studies_with_the_same_name_are_labeled_with_their_paths(
    run_compare: RunCompare, tmp_path: Path
) -> None:
    first = study(tmp_path / "a/dtd", 0.01, 1.0)
    second = study(tmp_path / "b/dtd", 0.02, 3.0)
    assert f"minus {first} selected in points" in run_compare(first, second).out


def test_studies_of_different_datasets_are_refused(run_compare: RunCompare, tmp_path: Path) -> None:
    first = study(tmp_path / "a", None)
    second = study(tmp_path / "b", None, dataset="eurosat")
    error = error_of(run_compare, first, second)
    assert "No run shares its dataset and seed with a run of a selected" in error


def reproduction(folder: Path, gain: float, *, lr: float = 0.002, seeds: tuple[int, ...] = (1, 2)) -> Path:
    """Write a folder of `prometar reproduce` with two methods and two datasets. Return the folder.

    CoOp gains `gain` points, and IVLP twice as many.
    """
    gains = {"coop": gain, "ivlp": 2 * gain}
    for method, dataset, seed in product(gains, ("dtd", "eurosat"), seeds):
        accuracy = 60.0 + seed + gains[method]
        config = config_of(method, seed, dataset, **{"optim.lr": lr})
        write(folder / "runs" / f"{method}-{dataset}-{seed}", config, base=accuracy, new=accuracy)
    return folder


def test_each_method_is_compared_between_two_folders_of_reproduce(
    run_compare: RunCompare, tmp_path: Path
) -> None:
    old = reproduction(tmp_path / "old", 0.0)
    new = reproduction(tmp_path / "new", 1.0, lr=0.1, seeds=(2, 3))
    table = tmp_path / "pairs.csv"
    outcome = run_compare(old, new, "--csv", table)
    assert outcome.status == 0
    assert outcome.err == ""
    text = outcome.out
    rows = h_rows(text)
    assert rows[0].startswith("H coop (new) - coop (old) +1.00 [+1.00, +1.00] 2 datasets")
    assert rows[1].startswith("H ivlp (new) - ivlp (old) +2.00 [+2.00, +2.00] 2 datasets")
    assert "a method in one folder minus the same method in another" in text
    assert "Not paired: coop (new) has no run on dtd with seed 1." in text
    with table.open() as file:
        compared = {(row["method"], row["reference"]) for row in csv.DictReader(file)}
    assert compared == {("coop (new)", "coop (old)"), ("ivlp (new)", "ivlp (old)")}
    assert "coop (old) - coop (new) " in run_compare(old, new, "--reference", "new").out
    error = error_of(run_compare, old, new, "--reference", "coop")
    assert "--reference must be one of old; new, got coop" in error


def test_tuned_and_published_settings_are_compared_between_two_folders_of_reproduce_tune(
    run_compare: RunCompare, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    study(old / "studies" / "dtd-prometar", 0.01, 1.0)
    new = tmp_path / "new"
    study(new / "studies" / "dtd-prometar", 0.02, 3.0)
    text = run_compare(old, new, "--metric", "H").out
    rows = h_rows(text)
    assert len(rows) == 2
    assert rows[0].startswith("H prometar published (new) - prometar published (old) +0.00")
    assert rows[1].startswith("H prometar selected (new) - prometar selected (old) +2.00")


def test_a_folder_of_reproduce_tune_compares_its_methods(run_compare: RunCompare, tmp_path: Path) -> None:
    study(tmp_path / "studies" / "dtd-prometar", 0.01, 1.0)
    text = run_compare(tmp_path, "--reference", "prometar published", "--metric", "H").out
    assert "H prometar selected +1.00" in [" ".join(line.split()[:4]) for line in text.splitlines()]
    assert "do not allow for early stops" in text


def test_the_correction_counts_all_methods_of_both_folders(run_compare: RunCompare, tmp_path: Path) -> None:
    text = run_compare(reproduction(tmp_path / "old", 0.0), reproduction(tmp_path / "new", 1.0)).out
    p_values = [row.split()[-2:] for row in h_rows(text)]
    assert p_values == [["0.500", "1.000"], ["0.500", "1.000"]], "p, and p corrected for two methods"


def test_folders_of_reproduce_with_different_methods_are_compared_by_method(
    run_compare: RunCompare, tmp_path: Path
) -> None:
    for method in ("coop", "vpt"):
        write(tmp_path / method / "runs" / "one", config_of(method), base=60.0, new=60.0)
    assert "a method minus coop in points" in run_compare(tmp_path / "coop", tmp_path / "vpt").out


def test_hostile_names_are_printed_as_text(run_compare: RunCompare, tmp_path: Path) -> None:
    out = grid(tmp_path / "out", seeds=(1,))
    write(tmp_path / "other", config_of("coop", **{"prompts.init": HOSTILE}), base=1.0, new=1.0)
    outcome = run_compare(out, tmp_path / "other")
    assert outcome.status == 0
    assert "\x1b" not in outcome.out
    assert "<script>" in outcome.out
