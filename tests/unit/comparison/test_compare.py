"""`prometar compare` through the command line, on run folders made here and on real ones."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from prometar import runs
from prometar.cli.app import main
from prometar.config.settings import Config, configure, dump_config
from prometar.data.streaming.stream import stream_local
from prometar.metrics import harmonic_mean

HOSTILE = "<script>alert(1)</script>\x1b[31m\n${7*7}{{7*7}}"


def write(
    folder: Path,
    config: Config,
    *,
    objective: str = "final",
    data: str = "",
    weights: str = "",
    code: dict[str, str] | None = None,
    **accuracies: float,
) -> Path:
    """A finished run's folder, as far as a comparison reads it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    result = {
        "result": {"epoch": 1, "direct_ce": 0.5}, "accuracies": accuracies, "images": {}, "history": [],
        "objective": objective, "classnames": ["banded", "dotted"], "template": "a photo of a {}.",
        "run": "0" * 64, "environment": {}, "data": data, "weights": weights,
        "code": code or {},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def config_of(method: str, seed: int = 1, dataset: str = "dtd", **settings: Any) -> Config:
    return configure(method, {"data.name": dataset, "train.seed": seed, **settings})


GAIN = {"coop": {"dtd": 1.0, "eurosat": -3.0}, "prometar": {"dtd": 2.0, "eurosat": 2.0}}


def grid(out: Path, *, seeds: tuple[int, ...] = (1, 2)) -> Path:
    """Both methods on both data sets, in folders of folders."""
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


def test_folders_below_folders(said: Any, tmp_path: Path) -> None:
    out, table, page = grid(tmp_path / "out"), tmp_path / "pairs.csv", tmp_path / "pairs.html"
    for _ in range(2):  # a file of its own kind is replaced
        status, text, err = said(out, out / "coop", "--csv", table, "--html", page)
        assert (status, err) == (0, "")
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:6] == ["8", "runs", "on", "dtd,", "eurosat;", "objective"], (
        "a folder given twice counts once"
    )
    assert [
        "coop",
        "-3.00",
        "[-28.41,",
        "+22.41]",
        "2",
        "data",
        "sets",
        "0.500",
        "0.500",
        "0–0–2",
        "2.00",
    ] in lines
    with table.open() as file:
        rows = {(r["column"], r["method"], r["dataset"]): r for r in csv.DictReader(file)}
    assert rows["base", "coop", "eurosat"]["difference"] == "-5.0000"
    h = [
        [harmonic_mean({"base": b, "new": b - 10}) for b in (60 + gain + 5 * s for s in (1, 2))]
        for gain in (-3, 2)
    ]
    expected = sum(a - b for a, b in zip(*h, strict=True)) / 2
    assert float(rows["H", "coop", "eurosat"]["difference"]) == pytest.approx(expected, abs=1e-4)
    assert "<svg" in page.read_text()


def test_the_reference_is_chosen(said: Any, tmp_path: Path) -> None:
    out = grid(tmp_path / "out")
    assert "the method - prometar, in points" in said(out)[1]
    assert "the method - coop, in points" in said(out, "--to", "coop")[1]
    assert "--to vpt is none of the methods there: coop, prometar" in refused(said, out, "--to", "vpt")


def test_settings_tell_runs_of_a_method_apart(said: Any, tmp_path: Path) -> None:
    out, many = (
        grid(tmp_path / "out"),
        {"optim.lr": 0.1, "train.epochs": 7, "optim.momentum": 0.5, "augment.flip": 0},
    )
    for seed in (1, 2):
        for name, settings in (("fast", {"optim.lr": 0.1}), ("other", many)):
            write(tmp_path / name / str(seed), config_of("coop", seed, **settings), base=70.0, new=70.0)
    _, text, _ = said(out, tmp_path / "fast")
    assert "coop optim.lr=0.002 " in text
    assert "coop optim.lr=0.1 " in text
    assert "not paired, for want of runs of coop optim.lr=0.1: eurosat seeds 1 2" in text
    assert "--to coop stands for several: coop optim.lr=0.002; coop optim.lr=0.1: name one" in refused(
        said, out, tmp_path / "fast", "--to", "coop"
    )
    status, text, _ = said(out, tmp_path / "other", "--to", "prometar")
    assert status == 0
    (meaning,) = [line for line in text.splitlines() if "train.epochs=7" in line]
    label = meaning.removeprefix("- ").split(":")[0]
    assert label.startswith("coop #")
    assert f"\n{label} " in text
    assert said(out, tmp_path / "other", "--to", label)[0] == 0


def test_what_is_missing_or_unfinished_is_said(said: Any, tmp_path: Path) -> None:
    out = grid(tmp_path / "out")
    (out / "coop" / "dtd-2" / "result.json").unlink()
    status, text, _ = said(out)
    assert status == 0
    lines = text.splitlines()
    assert f"- not finished, and left out: {out / 'coop' / 'dtd-2'}" in lines
    assert "- not paired, for want of runs of coop: dtd seed 2" in lines


def test_what_learns_nothing_counts_for_every_seed(said: Any, tmp_path: Path) -> None:
    out = grid(tmp_path / "out")
    path = write(out / "zero", config_of("zero-shot"), base=50.0, new=40.0) / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"result": {"epoch": 1}}))
    lines = [line.split() for line in said(out)[1].splitlines()]
    assert ["zero-shot", "-19.50", "[-51.27,", "+12.27]", "2", "seeds", "–", "–", "0–0–1", "3.00"] in lines

    again = write(tmp_path / "again", config_of("zero-shot", 2), base=50.0, new=40.0) / "result.json"
    again.write_text(path.read_text())
    assert said(out, again.parent)[0] == 0, "the same, whichever is taken"
    again.write_text(path.read_text().replace("40.0", "45.0"))
    same = f"{path.parent} and {again.parent} are both zero-shot on dtd with other figures"
    assert same in refused(said, out, again.parent)


def test_ranks_of_many_methods_can_be_read(said: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in range(24):
        for seed in (1, 2):
            config = config_of("coop", seed, **{"optim.lr": 0.01 * (number + 1)})
            write(out / f"{number}-{seed}", config, base=50.0 + number + seed, new=60.0)
    page = tmp_path / "page.html"
    write(out / "reference", config_of("prometar"), base=60.0, new=60.0)
    write(out / "reference-2", config_of("prometar", 2), base=61.0, new=60.0)
    assert said(out, "--html", page)[0] == 0
    ticks = re.findall(r'text-anchor="middle"[^>]*>(\d+)<', page.read_text())
    assert ticks[:9] == ["1", "4", "7", "10", "13", "16", "19", "22", "25"]


def test_runs_that_do_not_stand_beside_each_other(said: Any, tmp_path: Path) -> None:
    out = grid(tmp_path / "out", seeds=(1,))
    later = write(tmp_path / "later", config_of("ivlp", 5), base=50.0, new=50.0)
    only = refused(said, out / "coop", later)
    assert "nothing can be paired with coop: coop has dtd seed 1, eurosat seed 1; ivlp has dtd seed 5" in only
    assert "are of coop: there is nothing to compare it to" in refused(said, out / "coop")
    again = write(tmp_path / "again", config_of("coop"), base=50.0, new=50.0)
    assert f"{out}/coop/dtd-1 and {again} are both coop on dtd with seed 1" in refused(said, out, again)
    whole = write(tmp_path / "all", config_of("vpt"), objective="all_classes", all=50.0)
    assert "several objectives, final (4 runs), all_classes (1 runs)" in refused(said, out, whole)
    path = write(tmp_path / "part", config_of("vpt"), base=50.0, new=50.0) / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"classnames": ["banded"]}))
    assert "differ in their classes of dtd" in refused(said, out, path.parent)


def test_own_image_folders_are_told_apart(said: Any, tmp_path: Path) -> None:
    for root, classes in (("/a", ["cat"]), ("/b", ["dog"])):
        for method in ("coop", "vpt"):
            config = config_of(method, dataset="folder", **{"data.root": root})
            path = write(tmp_path / method / root.strip("/"), config, base=50.0, new=50.0) / "result.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"classnames": classes}))
    assert "4 runs on folder /a, folder /b;" in said(tmp_path)[1]


DAMAGED: list[dict[str, Any]] = [
    {"accuracies": {}}, {"accuracies": {"base": "high"}}, {"accuracies": {"base": 1e999}},
    {"accuracies": {"base": -1}}, {"accuracies": {"base": True}}, {"accuracies": [50.0]},
    {"classnames": 3}, {"objective": None}, {"result": None}, {"images": 7}, {"history": [{"loss": "low"}]},
    {"accuracies": {"base": "50"}},
]  # fmt: skip


def test_what_is_no_record_is_refused_and_nothing_is_written(said: Any, tmp_path: Path) -> None:
    out, page = grid(tmp_path / "out", seeds=(1,)), tmp_path / "page.html"
    path = out / "coop" / "dtd-1" / "result.json"
    whole = json.loads(path.read_text())
    for change in DAMAGED:
        path.write_text(json.dumps(whole | change))
        assert f"{path} is missing or damaged" in refused(said, out, "--html", page), change
    for text in ("", "[", "{}"):
        path.write_text(text)
        assert f"{path} is missing or damaged" in refused(said, out, "--html", page)
    path.write_text(json.dumps(whole))
    (path.parent / "config.yaml").write_text("optim: {lr: 1, magic: 2}")
    assert "config.yaml: optim.magic: unknown key" in refused(said, out, "--html", page)
    (path.parent / "config.yaml").write_text('modulator: {kind: "\\ud800"}')
    assert "config.yaml: the text of a setting is not UTF-8" in refused(said, out, "--html", page)
    (path.parent / "config.yaml").unlink()
    assert "config.yaml" in refused(said, out, "--html", page)
    assert not page.exists()


def test_where_there_are_no_runs(said: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert f"there is no run in {tmp_path / 'empty'}" in refused(said, tmp_path / "empty")
    assert f"{tmp_path / 'nowhere'} is no folder" in refused(said, tmp_path / "nowhere")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text(dump_config(Config()))
    assert "is finished: the commands that trained them go on" in refused(said, tmp_path / "begun")
    study = tmp_path / "study"
    write(study / "trials" / "0001", config_of("coop"), base=1.0, new=1.0)
    (study / "study.yaml").write_text("")
    assert f"{study} holds a study" in refused(said, study)
    assert f"no run in {tmp_path} is finished" in refused(said, tmp_path), "a study's trials are no runs"


def test_no_other_file_is_replaced(said: Any, tmp_path: Path) -> None:
    out, mine = grid(tmp_path / "out", seeds=(1,)), tmp_path / "mine"
    mine.write_text("column,of,mine")
    for option, what in (("--csv", "table"), ("--html", "page")):
        message = refused(said, out, option, mine)
        assert f"{option} {mine} is there already, and no {what} of `prometar compare`" in message
        assert f"{option} {out} is a folder" in refused(said, out, option, out)
    assert mine.read_text() == "column,of,mine"
    both = tmp_path / "both"
    assert "name two files" in refused(said, out, "--csv", both, "--html", both)
    assert not both.exists()


def test_hostile_names_are_shown_and_not_obeyed(said: Any, tmp_path: Path) -> None:
    out, page = grid(tmp_path / "out", seeds=(1,)), tmp_path / "page.html"
    write(tmp_path / "other", config_of("coop", **{"prompts.init": HOSTILE}), base=1.0, new=1.0)
    status, text, _ = said(out, tmp_path / "other", "--html", page)
    assert status == 0
    assert "\x1b" not in text
    html = page.read_text()
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; [31m ${7*7}{{7*7}}" in html


def test_real_runs(said: Any, small_dtd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(run: runs.Run) -> runs.Stream:
        return lambda plan, step: stream_local(plan, run.dataset.source, start_step=step)

    monkeypatch.setattr(runs, "ray_stream", here)
    figures = {}
    for method, seed in (("zero-shot", 7), ("coop", 1), ("coop", 2)):
        settings = {"data.root": str(small_dtd), "data.shots": 1, "train.epochs": 1}
        found = runs.train_run(config_of(method, seed, **settings), tmp_path / f"{method}-{seed}")
        figures[method, seed] = found["base"]
    status, _, err = said(tmp_path, "--csv", tmp_path / "pairs.csv")
    assert (status, err) == (0, "")
    with (tmp_path / "pairs.csv").open() as file:
        (row,) = [r for r in csv.DictReader(file) if (r["column"], r["n"], r["dataset"]) == ("base", "2", "")]
    expected = [figures["zero-shot", 7] - figures["coop", seed] for seed in (1, 2)]
    assert (row["method"], row["reference"], row["over"]) == ("zero-shot", "coop", "seeds")
    assert float(row["difference"]) == pytest.approx(sum(expected) / 2, abs=1e-4)


def test_folders_of_other_images_are_other_data_sets(said: Any, tmp_path: Path) -> None:
    for method, root in (("coop", "/A"), ("prometar", "/B")):
        config = configure(method, {"data.name": "folder", "data.root": root, "train.seed": 1})
        write(tmp_path / method, config, base=60.0, new=50.0)
    status, _, error = said(tmp_path)
    assert status == 2
    assert "folder /A" in error
    assert "folder /B" in error


@pytest.mark.parametrize(("of", "said_of"), [("data", "splits of dtd"), ("weights", "weights (mini, fp32)")])
def test_one_name_for_two_things_is_refused(of: str, said_of: str, said: Any, tmp_path: Path) -> None:
    for method, digest in (("coop", "a"), ("prometar", "b")):
        write(tmp_path / method, config_of(method), base=60.0, new=50.0, **{of: digest})
    expected = f"coop and {tmp_path}/prometar differ in their {said_of}: pass one"
    assert expected in refused(said, tmp_path)


def test_runs_of_one_part_with_other_code_are_not_of_one_method(said: Any, tmp_path: Path) -> None:
    for seed, code in ((1, "sha256 a"), (2, "sha256 b")):
        write(tmp_path / f"{seed}", config_of("prometar", seed), base=60.0, new=50.0, code={"mine": code})
        write(tmp_path / f"coop-{seed}", config_of("coop", seed), base=60.0, new=50.0)
    assert f"{tmp_path}/2 differ in their code of mine in prometar: pass one" in refused(said, tmp_path)


def test_what_methods_differ_in_besides_is_said(said: Any, tmp_path: Path) -> None:
    for method, settings in (("vpt", {"data.shots": 4}), ("prometar", {"backbone.name": "ViT-B-32"})):
        for seed in (1, 2):
            write(
                tmp_path / f"{method}{seed}", config_of(method, seed, **settings), base=60.0 + seed, new=50.0
            )
    _, text, _ = said(tmp_path)
    assert "data.shots differ: prometar 16, vpt 4" in text
    assert "backbone.name differ: prometar ViT-B-32, vpt mini" in text
    assert "train.batch_size differ" not in text
