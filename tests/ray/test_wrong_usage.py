"""A user's mistake is one helpful line on stderr and exit status 1 or 2, never a traceback."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from prometar.cli.app import main as prometar_main
from prometar.embedded.datasets import DEFAULT_DATASET
from tests.conftest import DTD_SPLIT
from tests.support.copies import write_tree
from tune.config import StudyConfig
from tune.search import main as search_main

Main = Callable[[list[str]], int]
ROOT = Path(__file__).resolve().parents[2]


def fails(capsys: pytest.CaptureFixture[str], main: Main, args: list[str], *, status: int = 2) -> str:
    """Run a command, which must fail with one line.

    Args:
        capsys: Pytest's fixture.
        main: Function of the command.
        args: Arguments of the command.
        status: Exit status that the command must have.

    Returns:
        The line without "error: ".
    """
    assert main(args) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1, error
    return error.removeprefix("error: ").strip()


# Arguments, and a part of the message.
SEARCHES = [
    (["--final-seeds", "5000000000"], "--final-seeds must be below 4294967296, got 5000000000"),
    (["--goals", "base"], "--goals: a single goal must be the objective"),
    (["--dataset", "textures", "textures"], "--dataset: values must be distinct"),
    (["--enqueue", "nowhere.yaml"], "--enqueue nowhere.yaml does not exist"),
    (["--sampler", "grid"], "unknown sampler 'grid': choose one of tpe, random, gp, or"),
    (["--top", "-1"], "--top must be at least 0"),
    (["--max-hours", "nan"], "--max-hours must be a finite number, got 'nan'"),
    (["--set", "resources.epoch_timeout=inf"], "--set resources.epoch_timeout must be a finite"),
    (["--set", "location.trackers=[diary]"], "--set location.trackers must be 'tensorboard'"),
    (["--address", "ray://head:10001"], "--address ray://head:10001: Ray Client is not supported"),
    (["--address", "head"], "--address must be auto or HOST:PORT of the cluster's head, got head"),
    (["--set", "averager.mean=0.9"], "--set averager.mean does not apply to the default settings"),
    (["--dataset", "imagenet21k"], "Unknown dataset 'imagenet21k'. Use one of imagenet, "),
    (["--dataset", "/usr"], "For the images in /usr, use the dataset `folder`, and pass --data-root /usr."),
    (["--dataset", "dtd", "--backbone", "mini"], "data is not a folder. Pass --data-root DIR"),
    (["--dataset", "dtd", "--backbone", "mini", "--data-root", "nowhere"], "nowhere"),
    (["--trials", "-3"], "--trials must be at least 1, got -3"),
    (["--epochs", "0"], "--epochs: train.epochs must be at least 1, got 0"),
    (["--set", "optim.rate=1"], "Unknown setting 'optim.rate'. Settings of optim: lr, "),
    (["--set", "train.seed=3"], "--set train.seed is not allowed in a study. Use --seed."),
    (["--set", "regularizer.kind=huber"], "one of 'none', 'l1', 'l2', 'cosine' or module:Name, got huber"),
    (["--set", "optim.lr"], "--set requires key=value, got optim.lr"),
    (["--set", "optim.lr=true"], "--set: optim: lr: true is not a number"),
    (["--set", "optim=1"], "Unknown setting 'optim'. Settings of optim: lr, "),
    (["--method", "promptx"], "Unknown method 'promptx'. Choose one of zero-shot, zero-shot-ensemble, "),
    (["--objective", "test"], "unknown objective 'test': choose one of drift, base_val"),
    (["--space", "huge"], "--space huge does not exist. Use augmentation, coprompt, default, "),
    (["--pruner", "best"], "unknown pruner 'best': choose one of percentile, median, asha, hyperband, none"),
    (["--backbone", "ViT-B-17"], "Unknown backbone 'ViT-B-17'"),
    (["--backbone", "hf-hub:a/b", "--pretrained", "x"], "Unknown backbone 'hf-hub:a/b'. Use mini or"),
    (["--backbone", "ViT-B-16-quickgelu", "--pretrained", "hf-hub:a/b"], "'hf-hub:a/b' is neither a file"),
    (["--backbone", "ViT-B-16-quickgelu", "--pretrained", "/dev/zero"], "/dev/zero is not a regular file"),
    (["--backbone", "ViT-B-16-quickgelu", "--pretrained", "none.pt"], "none.pt does not exist. Set "),
    (["--backbone", "ViT-B-16", "--pretrained", "openai"], "activation quick_gelu, which ViT-B-16 does"),
    (["--gpus-per-trial", "half"], "--gpus-per-trial must be a valid number"),
    (["--out", "s3://bucket/x"], "'s3:/...' is not a local path. Only --data-root"),
    (["--study", "../x"], "--study must be a name of letters, digits, '_', '-' and '.', got ../x"),
    (["--dataset", "folder", "--data-root", "x\udcff"], "x\\udcff' is not UTF-8"),
    (["--data-root", "photos"], "--data-root does not apply to cells, whose images are rendered. For"),
    (["--dataset", "cells", "--data-root", "photos"], "For your own images, use the dataset `folder`."),
    (["--pretrained", "openai"], "mini contains its weights, so --pretrained openai does not apply. Omit"),
    (["--storage", "mysql://me@host/db"], "Use sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME."),
    (["cells"], "extra argument(s) (cells). Options need their names, such as --dataset NAME."),
    (["--study", "a\x1b[31mb"], r"'-' and '.', got a\x1b[31mb"),
    (["--method", "zero-shot"], "--method zero-shot does not train. Choose a method with prompts."),
    (["--set", "modulator.reduction=7"], "modulator.reduction 7 does not divide"),
    (["--set", "confirm.sedes=2"], "--set confirm.sedes is not a setting"),
    (["--set", "search.goals=5"], "--goals must be"),
    (["--set", "search.datasets=[[cells]]"], "Unknown dataset '['cells']'. Use one of"),
    (["--set", "search.datasets=null"], "Unknown dataset 'None'. Use one of"),
    (["--set", "search.enqueue=null"], "--enqueue None does not exist."),
    (["--pruner", "json:loads"], "json:loads fails: TypeError: the JSON object must be"),
    (["--nonsense"], "No such option"),
    (["--final-seeds", "1", "2"], "extra argument(s) (2). Options need their names"),
    (["--set", "optim.lr=1e39"], "optim.lr must be at most 1e+30, got 1e+39"),
]


@pytest.mark.parametrize(("args", "message"), SEARCHES, ids=[" ".join(args)[:40] for args, _ in SEARCHES])
def test_a_search_with_invalid_options_is_refused_in_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = fails(capsys, search_main, ["--out", str(tmp_path / "out"), *args])
    assert message in line
    assert not (tmp_path / "out").exists(), "a refused study leaves nothing behind"


def test_a_tilde_after_an_equals_sign_is_the_home_folder(
    small_dtd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shells do not expand the tilde in --to=~/copy, so the command must not create a folder named ~."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)

    assert prometar_main(["data", "prepare", "dtd", "--data-root", str(small_dtd), "--to=~/copy"]) == 0
    assert capsys.readouterr().out.endswith(f"To use the copy, pass --data-root {home / 'copy'}\n")
    assert prometar_main(["data", "check", "dtd", "--data-root=~/copy"]) == 0
    line = fails(capsys, prometar_main, ["data", "check", "dtd", "--data-root=~/none"])
    assert str(home / "none") in line
    study = StudyConfig.of(out="~/out", study="s")
    assert study.storage == f"sqlite:///{home / 'out'}/s/study.db"

    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize(
    ("file", "content", "message", "status"),
    [
        ("study.yaml", b"\xff\xfe", "study.yaml", 2),
        ("study.yaml", b"version: 2\nidentity: {}\n", "has file format 2", 2),
        ("study.yaml", b"version: 3\n", "is corrupt (config", 2),
        ("study.db", b"not a database" * 100, "study.db is corrupt. Restore a backup.", 1),
    ],
    ids=["no-text", "old-format", "incomplete", "no-database"],
)
def test_a_study_that_cannot_be_read_is_refused_and_not_changed(
    file: str,
    content: bytes,
    message: str,
    status: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ray_local: None,
) -> None:
    path = tmp_path / DEFAULT_DATASET / file
    path.parent.mkdir()
    path.write_bytes(content)
    assert message in fails(capsys, search_main, ["--out", str(tmp_path)], status=status)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (b"augment.flip: {type: float, low: 0, high: 5}", "augment.flip must be at most"),
        (b"data.shots: {type: float, low: 1, high: 16}", "data.shots must be a valid integer"),
        (b"train.epochs: {type: choice, choices: [a, b]}", "train.epochs = 5 lies outside the range a | b"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
    ids=["out-of-range", "not-integer", "without-default", "no-text"],
)
def test_a_space_with_invalid_values_is_refused_in_one_line(
    space: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "space.yaml"
    file.write_bytes(space)
    assert message in fails(capsys, search_main, ["--space", str(file), "--out", str(tmp_path), "--plan"])
    assert list(tmp_path.iterdir()) == [file]


# Arguments, and a part of the message.
COMMANDS = [
    (["train", "--config", "none.yaml"], "cannot read none.yaml: No such file"),
    (["train", "--method", "coop", "--set", "method=ivlp"], "--set method conflicts with --method"),
    (["train", "--set", "averager.std=0.1"], "--set averager.std does not apply to these settings. Also"),
    (["train", "--objective", "test"], "base_val, oracle_test, final, all_classes, or"),
    (["train", "--out", "s3://bucket/x"], "'s3:/...' is not a local path. Only --data-root"),
    (["data", "prepare", "dtd", "--to", "s3:/b"], "'s3:/...' is not a local path. Only"),
    (["evaluate", "nowhere"], "nowhere does not contain a run"),
    (["report", "nowhere"], "nowhere does not contain a study"),
    (["data", "check", "nope"], "Unknown dataset 'nope'"),
    (["data", "prepare", "dtd"], "Missing option '--to'"),
]


@pytest.mark.parametrize(("args", "message"), COMMANDS, ids=[" ".join(args)[:40] for args, _ in COMMANDS])
def test_a_command_with_invalid_arguments_is_refused_in_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    assert message in fails(capsys, prometar_main, args)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim: {lr: [1]}", "optim.lr must be a valid number"),
        ("settings: {optim: {lr: 1}}", "settings: unknown key"),
        ("a: [", "is not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("[" * 2000, "is nested too deep"),
    ],
    ids=["list", "unknown-key", "no-yaml", "python-object", "nested"],
)
def test_an_invalid_configuration_file_is_refused_in_one_line(
    text: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert message in fails(capsys, prometar_main, ["train", "--config", str(path)])


@pytest.mark.parametrize("kind", ["image", "split"])
def test_a_missing_split_or_image_is_named_in_one_line(
    kind: str, own_dtd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = own_dtd / "dtd" / DTD_SPLIT
    if kind == "image":
        split = json.loads(missing.read_text())
        path, _, _ = split["train"][0]
        missing = own_dtd / "dtd" / "images" / path
    missing.unlink()
    args = ["--dataset", "dtd", "--backbone", "mini", "--data-root", str(own_dtd)]
    assert missing.name in fails(capsys, search_main, [*args, "--out", str(tmp_path / "out")])


def corrupt_banded(root: Path) -> None:
    """Corrupt the eight images of the class "banded" below a data root."""
    for path in (root / "dtd" / "images" / "banded").iterdir():
        path.write_bytes(b"no image")


def test_a_corrupt_image_stops_the_training_and_is_named(
    own_dtd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ray_local: None
) -> None:
    corrupt_banded(own_dtd)
    args = ["train", "--set", "data.name=dtd", "--set", "backbone.name=mini"]
    args += ["--data-root", str(own_dtd), "--out", str(tmp_path / "run")]
    assert "banded/banded_" in fails(capsys, prometar_main, args, status=1)


def test_the_check_of_a_dataset_lists_all_corrupt_images(
    own_dtd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corrupt_banded(own_dtd)
    assert prometar_main(["data", "check", "dtd", "--data-root", str(own_dtd)]) == 1
    assert capsys.readouterr().err.count("banded/banded_") == 8


def test_the_error_of_weights_of_another_backbone_names_a_tensor_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from prometar.embedded.weights import load_mini

    path = tmp_path / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in load_mini().items()}, path)
    args = ["--backbone", "ViT-B-16-quickgelu", "--pretrained", str(path), "--out", str(tmp_path / "out")]
    line = fails(capsys, search_main, args)
    assert f"{path} does not fit the backbone or is corrupt: ln_final.bias is float (128,)" in line


def test_a_pickle_is_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pickle

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            """Return a function and its arguments, which unpickling would call."""
            return Path.touch, (tmp_path / "executed",)

    path = tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps(Hostile()))
    line = fails(capsys, search_main, ["--pretrained", str(path), "--out", str(tmp_path / "out")])
    assert f"{path} is not a .safetensors file (" in line
    assert "torch.jit.load(" in line
    assert not (tmp_path / "executed").exists()


def test_a_process_with_invalid_options_prints_one_line_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "tune/search.py", "--dataset", "nope", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: Unknown dataset 'nope'. Use one of imagenet, ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("main", "args"),
    [
        (search_main, ["--dataset", "folder", "--backbone", "mini", "--out", "oak/mine"]),
        (prometar_main, ["train", "--dataset", "folder", "--set", "backbone.name=mini", "--out", "run"]),
        (prometar_main, ["reproduce", "--datasets", "folder", "--backbone", "mini", "--methods", "coop"]),
    ],
    ids=["search", "train", "reproduce"],
)
def test_an_output_folder_among_the_images_is_refused(
    main: Main,
    args: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ray_local: None,
) -> None:
    """Otherwise, it would be a class. The default of --out is "out" in the current folder."""
    for name in ("ash", "elm", "oak", "yew"):
        write_tree(tmp_path / name, [f"{number}.png" for number in range(10)])
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    line = fails(capsys, main, [*args, "--data-root", "."])
    assert "lies in the dataset's own folder. Choose another --out" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--cpus-per-trial", "64"],
            "A trial needs 64 CPU on one machine, but Ray's machines have at most 2 CPU",
        ),
        (["--storage", "nonsense"], "--storage nonsense is invalid: Could not parse SQLAlchemy URL"),
    ],
    ids=["too-many-cpus", "no-database"],
)
def test_resources_and_storage_that_do_not_exist_are_refused_before_anything_is_written(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, ray_local: None
) -> None:
    out = tmp_path / "not" / "yet"
    assert message in fails(capsys, search_main, [*words, "--out", str(out)])
    assert not any(tmp_path.iterdir())


def test_escape_sequences_in_names_do_not_reach_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("a\x1b[31mX", "b", "c"):
        for split in ("train", "test"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    (tmp_path / "train" / "b" / "br\x1b[2Joken\n.jpg").touch()

    assert prometar_main(["data", "check", "folder", "--data-root", str(tmp_path)]) == 1
    assert prometar_main(["data", "list", "--data-root", str(tmp_path)]) == 0

    output, errors = capsys.readouterr()
    printed = output + errors
    assert "\x1b" not in printed
    assert "br\\x1b[2Joken .jpg: the file is empty" in printed
