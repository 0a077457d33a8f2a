"""`prometar compare` through the command line, on run folders made here and on real ones."""

import csv
import json
from pathlib import Path
from typing import Any

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
    """A finished run's folder, as far as a comparison reads it."""
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
    return configure(method, {"data.name": dataset, "train.seed": seed, **settings})


GAIN = {"coop": {"dtd": 1.0, "eurosat": -3.0}, "prometar": {"dtd": 2.0, "eurosat": 2.0}}


def grid(out: Path, *, seeds: tuple[int, ...] = (1, 2)) -> Path:
    """Both methods on both datasets, in folders of folders."""
    for method, gains in GAIN.items():
        for dataset, gain in gains.items():
            for seed in seeds:
                base = 60 + gain + 5 * seed
                config = config_of(method, seed, dataset)
                write(out / method / f"{dataset}-{seed}", config, base=base, new=base - 10)
    return out


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command on a wide terminal: its status, its output and its error."""
    monkeypatch.setenv("COLUMNS", "200")

    def say(*args: object) -> tuple[int, str, str]:
        status = main(["compare", *map(str, args)])
        found = capsys.readouterr()
        return status, found.out, found.err

    return say


def refused(said: Any, *args: object) -> str:
    status, out, err = said(*args)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    return str(err)


def test_runs_below_folders(said: Any, tmp_path: Path) -> None:
    out = grid(tmp_path / "out")
    table = tmp_path / "pairs.csv"
    for _ in range(2):  # a table of its own is replaced
        status, text, err = said(out, out / "coop", "--csv", table)
        assert (status, err) == (0, "")
    row = "base coop -3.00 [-28.41, +22.41] 2 datasets 0.500 0.500"
    assert row.split() in [line.split() for line in text.splitlines()]
    with table.open() as file:
        rows = {(r["metric"], r["method"], r["dataset"]): r for r in csv.DictReader(file)}
    assert rows["base", "coop", "eurosat"]["difference"] == "-5.0000"
    h = [
        [harmonic_mean({"base": b, "new": b - 10}) for b in (60 + gain + 5 * s for s in (1, 2))]
        for gain in (-3, 2)
    ]
    expected = sum(a - b for a, b in zip(*h, strict=True)) / 2
    assert float(rows["H", "coop", "eurosat"]["difference"]) == pytest.approx(expected, abs=1e-4)


def test_the_reference_is_chosen(said: Any, tmp_path: Path) -> None:
    out = grid(tmp_path / "out")
    assert "a method minus prometar in points" in said(out)[1]
    assert "a method minus coop in points" in said(out, "--reference", "coop")[1]
    assert "--reference must be one of coop; prometar, got vpt" in refused(said, out, "--reference", "vpt")


def test_other_metrics_are_compared_on_request(said: Any, tmp_path: Path) -> None:
    for method, gain in {"coop": 1.0, "prometar": 2.0}.items():
        for seed in (1, 2):
            joint = {"base": 40.0 + gain, "new": 40.0 + gain}
            write(tmp_path / method / str(seed), config_of(method, seed), base=60.0, new=50.0, joint=joint)
    status, text, _ = said(tmp_path, "--metric", "joint_H", "--metric", "joint_new")
    assert status == 0
    rows = [line.split()[:3] for line in text.splitlines()]
    assert ["joint_H", "coop", "-1.00"] in rows
    assert ["joint_new", "coop", "-1.00"] in rows
    assert "joint_H" not in said(tmp_path)[1]
    known = "base, new, H, joint_base, joint_new, joint_H"
    assert f"--metric must be one of {known}, got base_f2." in refused(said, tmp_path, "--metric", "base_f2")


def test_settings_distinguish_runs_of_a_method(said: Any, tmp_path: Path) -> None:
    out = grid(tmp_path / "out")
    for seed in (1, 2):
        write(tmp_path / f"fast/{seed}", config_of("coop", seed, **{"optim.lr": 0.1}), base=70.0, new=70.0)
    _, text, _ = said(out, tmp_path / "fast", "--reference", "coop optim.lr=0.1")
    assert "a method minus coop optim.lr=0.1 in points" in text
    assert "coop optim.lr=0.002 " in text
    assert "Not paired: coop optim.lr=0.1 has no run on eurosat." in text
    write(tmp_path / "small", config_of("prometar", 1, **{"data.shots": 4}), base=60.0, new=50.0)
    assert "Different data.shots: coop 16, prometar 4." in said(out / "coop", tmp_path / "small")[1]


def test_many_different_settings_are_numbered_and_listed_once(said: Any, tmp_path: Path) -> None:
    out = grid(tmp_path / "out")
    changes = {"optim.lr": 0.1, "prompts.text_depth": 3, "augment.flip": 0.25, "augment.crop_scale_min": 0.75}
    for seed in (1, 2):
        write(tmp_path / f"best/{seed}", config_of("prometar", seed, **changes), base=70.0, new=70.0)
    _, text, _ = said(out, tmp_path / "best", "--reference", "prometar #1")
    assert "a method minus prometar #1 in points" in text
    assert max(map(len, text.split("\n- ")[0].splitlines())) <= 90, "the table is narrow"
    settings = "optim.lr=0.1 augment.crop_scale_min=0.75 augment.flip=0.25"
    (line,) = [line for line in text.splitlines() if line.startswith("- prometar #2 (first run: ")]
    assert str(tmp_path / "best/1") in line
    for setting in settings.split():
        assert setting in line


def test_runs_that_are_not_comparable(said: Any, tmp_path: Path) -> None:
    out = grid(tmp_path / "out", seeds=(1,))
    later = write(tmp_path / "later", config_of("ivlp", 5), base=50.0, new=50.0)
    assert "No run shares its dataset and seed with a run of coop" in refused(said, out / "coop", later)
    assert "all runs use coop" in refused(said, out / "coop")
    again = write(tmp_path / "again", config_of("coop"), base=50.0, new=50.0)
    assert f"{out}/coop/dtd-1 and {again} share dataset and seed" in refused(said, out, again)
    whole = write(tmp_path / "all", config_of("vpt"), objective="all_classes", all=50.0)
    assert "differ in objectives" in refused(said, out, whole)


@pytest.mark.parametrize(("of", "what"), [("data", "images or classes"), ("weights", "weights")])
def test_one_name_for_two_things_is_rejected(of: str, what: str, said: Any, tmp_path: Path) -> None:
    for method, digest in (("coop", "a"), ("prometar", "b")):
        write(tmp_path / method, config_of(method), base=60.0, new=50.0, **{of: digest})
    expected = f"{tmp_path}/coop and {tmp_path}/prometar differ in {what}. Pass comparable runs."
    assert expected in refused(said, tmp_path)


def test_folders_of_images_are_different_datasets(said: Any, tmp_path: Path) -> None:
    for root in ("/a", "/b"):
        for method in ("coop", "vpt"):
            config = config_of(method, dataset="folder", **{"data.root": root})
            write(tmp_path / method / root.strip("/"), config, data=root, base=50.0, new=50.0)
    assert "2 datasets" in said(tmp_path)[1]


@pytest.mark.parametrize("change", [{"accuracies": {"base": 1e999}}, {"classnames": 3}, None])
def test_a_corrupt_record_is_rejected(change: dict[str, Any] | None, said: Any, tmp_path: Path) -> None:
    out = grid(tmp_path / "out", seeds=(1,))
    table = tmp_path / "pairs.csv"
    path = out / "coop" / "dtd-1" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change) if change else "[")
    assert str(path) in refused(said, out, "--csv", table)
    assert not table.exists()


def test_folders_without_runs(said: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no finished run found" in refused(said, tmp_path / "empty")
    assert "no finished run found" in refused(said, tmp_path / "nowhere")
    study = tmp_path / "study"
    write(study / "trials" / "0001", config_of("coop"), base=1.0, new=1.0)
    (study / "study.yaml").write_text("")
    assert "has no run of a final test. Finish the study" in refused(said, study), "trials are not compared"
    assert "no finished run found" in refused(said, tmp_path), "studies below a folder are skipped"


def study(
    folder: Path, lr: float, gain: float, seeds: tuple[int, ...] = (1, 2, 3), dataset: str = "dtd"
) -> Path:
    """A finished study whose selected learning rate gains `gain` points. Without `lr`, the default one."""
    default = config_of("prometar", 1, dataset)
    selected = default.override({"optim.lr": lr} if lr else {})
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text("")
    (folder / "selected.yaml").write_text(dump_config(selected))
    (folder / "default.yaml").write_text(dump_config(default))
    for number, config, more in ((0, default, 0.0), (7, selected, gain))[: 2 if lr else 1]:
        for seed in seeds:
            run = config.override({"train.seed": seed})
            base = 60.0 + seed + more
            write(folder / f"finals/trial-{number:04d}-{dataset}-seed{seed}", run, base=base, new=base)
    return folder


def rows_of(text: str) -> dict[str, list[str]]:
    """Rows for the metric H, by label."""
    lines = [line.split() for line in text.splitlines() if line.startswith("H ")]
    return {" ".join(words[1:3]): words[3:] for words in lines}


def test_two_studies_are_compared_by_the_seeds_of_their_final_tests(said: Any, tmp_path: Path) -> None:
    first = study(tmp_path / "a", 0.01, 1.0)
    second = study(tmp_path / "b", 0.02, 3.5, seeds=(2, 3, 4))
    status, text, err = said(first, second)
    assert (status, err) == (0, "")
    assert "a method minus a selected in points" in text
    assert rows_of(text) == {
        "a default": ["-1.00", "[-1.00,", "-1.00]", "3", "seeds", "–", "–"],
        "b selected": ["+2.50", "[+2.50,", "+2.50]", "2", "seeds", "–", "–"],
        "b default": ["-1.00", "[-1.00,", "-1.00]", "2", "seeds", "–", "–"],
    }
    assert "Not paired: b selected has no run on dtd with seed 1." in text
    assert "do not allow for early stops" in text
    assert "minus b default in points" in said(first, second, "--reference", "b default")[1]


def test_a_study_that_selected_the_default_settings_has_one_label(said: Any, tmp_path: Path) -> None:
    text = said(study(tmp_path / "a", 0.01, 1.0), study(tmp_path / "b", 0.0, 0.0))[1]
    (row,) = [line for line in text.splitlines() if line.startswith("H ") and "b selected" in line]
    assert row.split()[1:6] == ["b", "selected", "=", "default", "-1.00"]


def test_runs_of_an_earlier_selection_are_not_compared(said: Any, tmp_path: Path) -> None:
    first = study(tmp_path / "a", 0.01, 1.0)
    earlier = config_of("prometar", 1, **{"optim.lr": 0.05})
    write(first / "finals/trial-0003-dtd-seed1", earlier, base=1.0, new=1.0)
    assert "lr" not in said(first)[1]


def test_a_dataset_with_other_published_settings_is_compared(said: Any, tmp_path: Path) -> None:
    """MMRL has other settings for eurosat, which the study has written to files of their own."""
    folder = tmp_path / "both"
    for dataset, suffix in (("dtd", ""), ("eurosat", "-eurosat")):
        default = configure("mmrl", {"data.name": dataset}, protocol="base-to-new")
        kinds = {"default": default, "selected": default.override({"optim.lr": 0.01})}
        for number, (kind, config) in enumerate(kinds.items()):
            for seed in (1, 2):
                run = folder / f"finals/trial-000{number}-{dataset}-seed{seed}"
                write(run, config.override({"train.seed": seed}), base=60.0 - number, new=60.0 - number)
            (folder / f"{kind}{suffix}.yaml").write_text(dump_config(config))
    (folder / "study.yaml").write_text("")
    text = said(folder)[1]
    assert rows_of(text)["both default"][:5] == ["+1.00", "[+1.00,", "+1.00]", "2", "datasets"]
    assert "Not paired" not in text


def test_studies_with_the_same_name_are_labeled_with_their_paths(said: Any, tmp_path: Path) -> None:
    first = study(tmp_path / "a/dtd", 0.01, 1.0)
    second = study(tmp_path / "b/dtd", 0.02, 3.0)
    assert f"minus {first} selected in points" in said(first, second)[1]


def test_studies_of_different_datasets_are_refused(said: Any, tmp_path: Path) -> None:
    first = study(tmp_path / "a", 0.0, 0.0)
    second = study(tmp_path / "b", 0.0, 0.0, dataset="eurosat")
    assert "No run shares its dataset and seed with a run of a selected" in refused(said, first, second)


def reproduction(folder: Path, gain: float, *, lr: float = 0.002, seeds: tuple[int, ...] = (1, 2)) -> Path:
    """A folder of `prometar reproduce` with two methods."""
    for method in ("coop", "ivlp"):
        for dataset in ("dtd", "eurosat"):
            for seed in seeds:
                base = 60.0 + seed + gain * (2 if method == "ivlp" else 1)
                config = config_of(method, seed, dataset, **{"optim.lr": lr})
                write(folder / "runs" / f"{method}-{dataset}-{seed}", config, base=base, new=base)
    return folder


def test_each_method_is_compared_between_two_folders_of_reproduce(said: Any, tmp_path: Path) -> None:
    old = reproduction(tmp_path / "old", 0.0)
    new = reproduction(tmp_path / "new", 1.0, lr=0.1, seeds=(2, 3))
    table = tmp_path / "pairs.csv"
    status, text, err = said(old, new, "--csv", table)
    assert (status, err) == (0, "")
    h = [" ".join(line.split()) for line in text.splitlines() if line.startswith("H ")]
    assert h[0].startswith("H coop (new) - coop (old) +1.00 [+1.00, +1.00] 2 datasets")
    assert h[1].startswith("H ivlp (new) - ivlp (old) +2.00 [+2.00, +2.00] 2 datasets")
    assert "a method in one folder minus the same method in another" in text
    assert "Not paired: coop (new) has no run on dtd with seed 1." in text
    with table.open() as file:
        found = {(r["method"], r["reference"]) for r in csv.DictReader(file)}
    assert found == {("coop (new)", "coop (old)"), ("ivlp (new)", "ivlp (old)")}
    assert "coop (old) - coop (new) " in said(old, new, "--reference", "new")[1]
    assert "--reference must be one of old; new, got coop" in refused(said, old, new, "--reference", "coop")


def test_tuned_and_published_settings_are_compared_between_two_folders_of_reproduce_tune(
    said: Any, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    study(old / "studies" / "dtd-prometar", 0.01, 1.0)
    new = tmp_path / "new"
    study(new / "studies" / "dtd-prometar", 0.02, 3.0)
    text = said(old, new, "--metric", "H")[1]
    h = [" ".join(line.split()) for line in text.splitlines() if line.startswith("H ")]
    assert len(h) == 2
    assert h[0].startswith("H prometar published (new) - prometar published (old) +0.00")
    assert h[1].startswith("H prometar selected (new) - prometar selected (old) +2.00")


def test_a_folder_of_reproduce_tune_compares_its_methods(said: Any, tmp_path: Path) -> None:
    study(tmp_path / "studies" / "dtd-prometar", 0.01, 1.0)
    text = said(tmp_path, "--reference", "prometar published", "--metric", "H")[1]
    assert "H prometar selected +1.00" in [" ".join(line.split()[:4]) for line in text.splitlines()]
    assert "do not allow for early stops" in text


def test_the_correction_counts_all_methods_of_both_folders(said: Any, tmp_path: Path) -> None:
    text = said(reproduction(tmp_path / "old", 0.0), reproduction(tmp_path / "new", 1.0))[1]
    h = [line.split() for line in text.splitlines() if line.startswith("H ")]
    assert [words[-2:] for words in h] == [["0.500", "1.000"]] * 2


def test_folders_of_reproduce_with_different_methods_are_compared_as_before(
    said: Any, tmp_path: Path
) -> None:
    for method in ("coop", "vpt"):
        write(tmp_path / method / "runs" / "one", config_of(method), base=60.0, new=60.0)
    assert "a method minus coop in points" in said(tmp_path / "coop", tmp_path / "vpt")[1]


def test_hostile_names_are_printed_as_text(said: Any, tmp_path: Path) -> None:
    out = grid(tmp_path / "out", seeds=(1,))
    write(tmp_path / "other", config_of("coop", **{"prompts.init": HOSTILE}), base=1.0, new=1.0)
    status, text, _ = said(out, tmp_path / "other")
    assert (status, "\x1b" in text, "<script>" in text) == (0, False, True)
