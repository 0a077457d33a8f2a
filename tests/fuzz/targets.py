"""Files that the fuzzer changes, and the commands that read them."""

import io
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import yaml
from safetensors.torch import save_file

import prometar
from prometar.cli.app import main as prometar_main
from prometar.config.settings import Config, dump_config
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.prepared import _path_index, _read_footer
from prometar.data.preparation.download import unpack
from prometar.data.preparation.prepare import prepare
from prometar.embedded.weights import load_mini
from prometar.errors import PrometarError
from prometar.run_folder import export_run, write_result
from prometar.training.run import build_run
from prometar.training.session import Session
from tests.conftest import DTD_SPLIT, write_dtd
from tests.fuzz.mutations import mutated_bytes, mutated_json, mutated_safetensors, mutated_tree
from tests.support.study_records import rich
from tune.search import main as search_main

Main = Callable[[list[str]], int]
Mutate = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Target:
    """A file in the fuzzer's folder, a function that changes it, and a function that reads it.

    Args:
        name: Name in test reports.
        file: Pattern of paths below the folder. One of the files that match is changed.
        mutate: Function that returns changed content.
        read: Function that reads the file. It takes the folder and a new folder for output, and returns an
            exit status.
        share: Share of the examples that the target gets. It is below 1 if reading is slow.
    """

    name: str
    file: str
    mutate: Mutate
    read: Callable[[Path, Path], int]
    share: float = 1.0


def command(main: Main, *words: str) -> Callable[[Path, Path], int]:
    """Return a function that runs a command.

    Args:
        main: Function of the command.
        words: Arguments. {0} stands for the fuzzer's folder, and {1} for the folder of the output.
    """

    def read(folder: Path, out: Path) -> int:
        return main([word.format(folder, out) for word in words])

    return read


def library(call: Callable[[Path, Path], object]) -> Callable[[Path, Path], int]:
    """Return a function that calls the package from Python, and returns the status that a command would have.

    Args:
        call: Function of the fuzzer's folder and the folder of the output.
    """

    def read(folder: Path, out: Path) -> int:
        try:
            call(folder, out)
        except PrometarError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        return 0

    return read


def mutated_yaml(content: bytes, rng: Random) -> bytes:
    """Return a YAML file of which values or bytes are changed."""
    if rng.random() < 0.25:
        return mutated_bytes(content, rng)
    tree = mutated_tree(yaml.safe_load(content), rng)
    return yaml.safe_dump(tree, allow_unicode=False).encode()


def report(folder: Path, out: Path) -> int:
    """Run `prometar report` on a copy of the study, because it writes into the study's folder."""
    shutil.copytree(folder / "study", out / "study")
    return prometar_main(["report", str(out / "study")])


def stream(folder: Path, out: Path) -> None:
    """Read all images of a prepared copy, as training does. They must equal the originals.

    Raises:
        PrometarError: The copy is damaged.
    """
    for read in (_path_index, _read_footer):
        read.cache_clear()
    dataset = open_dataset("dtd", folder / "prepared")
    originals = {item.path: item for item in open_dataset("dtd", folder / "data").items}
    files = dataset.source.read_many([item.path for item in dataset.items])
    for item, file in zip(dataset.items, files, strict=True):
        assert originals[item.path] == item
        assert file == (folder / "data/dtd/images" / item.path).read_bytes()


SEARCH = ("--out", "{1}/out", "--trials", "1")
"""Options of a search."""
TARGETS: Sequence[Target] = (
    Target(
        "configuration",
        "config.yaml",
        mutated_yaml,
        command(prometar_main, "train", "--config", "{0}/config.yaml", "--out", "{1}/run"),
    ),
    Target(
        "space", "space.yaml", mutated_yaml, command(search_main, *SEARCH, "--space", "{0}/space.yaml"), 0.4
    ),
    Target(
        "enqueue",
        "enqueue.yaml",
        mutated_yaml,
        command(search_main, *SEARCH, "--enqueue", "{0}/enqueue.yaml"),
        0.4,
    ),
    Target("trial", "study/trials/*/record.json", mutated_json, report, 0.4),
    Target("confirmation", "study/confirmation.json", mutated_json, report, 0.4),
    Target("final test", "study/finals.json", mutated_json, report, 0.4),
    Target("study", "study/study.yaml", mutated_yaml, report, 0.4),
    Target(
        "split file",
        f"data/dtd/{DTD_SPLIT}",
        mutated_json,
        command(prometar_main, "data", "check", "dtd", "--data-root", "{0}/data"),
    ),
    Target(
        "image",
        "data/dtd/images/banded/*.*",
        mutated_bytes,
        command(prometar_main, "data", "check", "dtd", "--data-root", "{0}/data"),
    ),
    Target(
        "manifest",
        "prepared/dtd/manifest.json",
        mutated_json,
        command(prometar_main, "data", "list", "--data-root", "{0}/prepared"),
    ),
    Target(
        "shard, checked",
        "prepared/dtd/*.parquet",
        mutated_bytes,
        command(prometar_main, "data", "check", "dtd", "--data-root", "{0}/prepared"),
    ),
    Target("shard, streamed", "prepared/dtd/*.parquet", mutated_bytes, library(stream)),
    Target(
        "checkpoint",
        "run/checkpoint.safetensors",
        mutated_safetensors,
        command(prometar_main, "export", "{0}/run", "--to", "{1}/prompts.safetensors"),
        0.4,
    ),
    Target(
        "result",
        "run/result.json",
        mutated_json,
        command(prometar_main, "export", "{0}/run", "--to", "{1}/prompts.safetensors"),
        0.4,
    ),
    Target(
        "run's configuration",
        "run/config.yaml",
        mutated_yaml,
        command(prometar_main, "export", "{0}/run", "--to", "{1}/prompts.safetensors"),
        0.4,
    ),
    Target(
        "compared result",
        "run/result.json",
        mutated_json,
        command(prometar_main, "compare", "{0}/run", "{0}/vpt", "--csv", "{1}/x"),
        0.4,
    ),
    Target(
        "prompts",
        "prompts.safetensors",
        mutated_safetensors,
        library(lambda folder, out: prometar.load(folder / "prompts.safetensors")),
        0.5,
    ),
    Target(
        "weights",
        "weights.safetensors",
        mutated_safetensors,
        command(search_main, *SEARCH, "--pretrained", "{0}/weights.safetensors"),
        0.3,
    ),
    Target(
        "archive",
        "archive.*",
        mutated_bytes,
        library(lambda folder, out: [unpack(file, out / file.name) for file in folder.glob("archive.*")]),
    ),
)


def write_targets(folder: Path) -> None:
    """Write the files of all targets, without damage."""
    (folder / "config.yaml").write_text(dump_config(Config()))
    space = {
        "optim.lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True},
        "regularizer.kind": {"type": "choice", "choices": ["l1", "cosine", "none"]},
        "regularizer.text_weight": {
            "type": "float",
            "low": 0.5,
            "high": 200.0,
            "log": True,
            "when": {"regularizer.kind": ["l1"]},
        },
        "prompts.text_depth": {"type": "int", "low": 1, "high": 3},
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    settings = [{"regularizer.text_weight": 5.0}, {"regularizer": {"image_weight": 2.0}}]
    (folder / "enqueue.yaml").write_text(yaml.safe_dump(settings))
    rich(folder / "study")
    write_dtd(folder / "data", per_class=2)
    prepare("dtd", folder / "data", folder / "prepared")
    _write_run_and_prompts(folder)
    _write_weights(folder)
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("a/b.txt", "text")
    with tarfile.open(folder / "archive.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("a/b.txt")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"text"))


def _write_run_and_prompts(folder: Path) -> None:
    """Write a run, a copy of it with another method, and its exported prompts."""
    data = {"data.name": "dtd", "data.root": str(folder / "data"), "data.shots": 1}
    config = Config().override({**data, "train.epochs": 1})
    run = build_run(config, "final")
    session = Session(run, folder / "run")
    session.run_epoch()
    (folder / "run" / "config.yaml").write_text(dump_config(config))
    write_result(folder / "run", session)
    export_run(folder / "run", folder / "prompts.safetensors")
    shutil.copytree(folder / "run", folder / "vpt")
    (folder / "vpt" / "config.yaml").write_text(dump_config(config.override({"method": "vpt"})))


def _write_weights(folder: Path) -> None:
    """Write the weights of `mini`."""
    state = {name: tensor.contiguous() for name, tensor in load_mini().items()}
    save_file(state, folder / "weights.safetensors", {"activation": "quick_gelu"})
