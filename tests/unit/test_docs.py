"""Guides describe recipes, settings, commands and files as they are; examples in docstrings work."""

import doctest
import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from prometar import __version__
from prometar.cli.app import app
from prometar.config.recipes import METHODS
from prometar.config.sections import is_setting
from prometar.config.settings import Config, configure, parse_assignments
from prometar.methods.composition import build
from tune.config import StudyConfig

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TOP_PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = sorted([*DOCS.glob("*.md"), *TOP_PAGES])
TEXT = (DOCS / "methods.md").read_text("utf-8")
ACCEPTED = TEXT.partition("## Combinations that are refused")[0]
SETTINGS = sorted(set(re.findall(r"`((?:--set [\w.]+=\w[\w.]* ?)+)`", ACCEPTED)))
"""Settings of docs/methods.md that are documented to work, such as `--set modulator.kind=add`."""
COMMANDS = re.findall(r"^prometar train (.*?)(?: #.*)?$", TEXT, flags=re.MULTILINE)


def published_rows() -> dict[str, dict[str, str]]:
    """Return the table of published settings in docs/methods.md: cells by method and column."""
    block = TEXT.partition("<!-- compositions -->")[2].partition("<!-- end -->")[0]
    lines = [line for line in block.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    cells_by_method = {}
    for row in rows:
        cells = dict(zip(head, row, strict=True))
        cells_by_method[cells["method"].strip("`")] = cells
    return cells_by_method


TABLE = published_rows()


def test_every_method_has_its_row() -> None:
    assert sorted(TABLE) == sorted(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_has_the_prompts_of_the_recipe(name: str) -> None:
    prompts = TABLE[name]["prompts"]
    settings = configure(name).flat()
    kind = settings["prompts.kind"]

    # These kinds have text prompts in the first layer only, without a setting for their depth.
    default_text_depth = 1 if kind in ("conditional", "class_aware") else 0
    text_depth = settings.get("prompts.text_depth", default_text_depth)
    text = f"text {settings.get('prompts.text_length')} x {text_depth}"
    vision_depth = settings.get("prompts.vision_depth", 0)
    vision = f"vision {settings.get('prompts.vision_length')} x {vision_depth}"
    assert (text in prompts) == (text_depth > 0)
    assert (vision in prompts) == (vision_depth > 0)

    assert ("by a network whose input is the image" in prompts) == (kind == "conditional")
    assert ("coupled" in prompts) == (kind == "coupled")
    assert ("class-aware" in prompts) == (kind == "class_aware")
    assert ("shared space" in prompts) == (kind == "shared")


@pytest.mark.parametrize("name", METHODS)
def test_a_row_has_the_regularizer_of_the_recipe(name: str) -> None:
    settings = configure(name).flat()
    weights: dict[str, float] = {}
    for term in ("text", "image", "logits"):
        weight = settings.get(f"regularizer.{term}_weight")
        if weight:
            weights[term] = weight

    # For example, "text L1 (50) + image L1 (20) + logits (1)".
    found = re.findall(r"(text|image|logits)(?: (L1|cosine))? \((\d+)\)", TABLE[name]["regularizer"])
    assert {term: float(weight) for term, _, weight in found} == weights
    distances = {distance.lower() for term, distance, _ in found if term != "logits"}
    has_distance = "text" in weights or "image" in weights
    assert distances == ({settings["regularizer.kind"]} if has_distance else set())


@pytest.mark.parametrize("name", METHODS)
def test_a_row_has_the_other_kinds_of_the_recipe(name: str) -> None:
    row = TABLE[name]
    config = configure(name)
    assert (row["adapters"] == "-") == (config.adapters.kind == "none")
    assert row["features"].partition(",")[0].replace("-", "none") == config.features.kind
    assert row["logits"].partition(" (")[0].replace(" ", "_") == config.logits.kind
    assert row["modulator"] == ("-" if config.regularizer.kind == "none" else config.modulator.kind)
    assert row["inner loop"] == ("-" if config.inner.kind == "none" else "SGD, second order")
    assert row["task augmentation"].replace("-", "none").replace(" ", "_") == config.task.augmentation
    assert row["averager"] == config.averager.kind


@pytest.mark.parametrize("name", [name for name in METHODS if not build(configure(name)).is_untrained])
def test_a_row_has_the_training_of_the_recipe(name: str) -> None:
    row = TABLE[name]
    config = configure(name)
    assert row["optimizer"].partition(",")[0].lower() == config.optim.kind
    assert float(row["epochs"]) == config.train.epochs
    assert float(row["batch"]) == config.train.batch_size
    assert float(row["lr"]) == config.optim.lr


def test_tables_and_picture_of_compositions_are_current() -> None:
    script = runpy.run_path(str(DOCS / "compositions.py"))
    advice = "Run `python docs/compositions.py`."
    assert script["guide"]() == TEXT, advice
    assert script["picture"]() == script["PICTURE"].read_text("utf-8"), advice


@pytest.mark.parametrize("setting", SETTINGS)
def test_documented_settings_exist_and_change_the_defaults(setting: str) -> None:
    config = configure("prometar", parse_assignments(assignments_in(setting.split())))
    assert build(config)
    assert config != configure("prometar")


def test_commands_are_configurations() -> None:
    assert len(COMMANDS) >= 4, "the pattern of COMMANDS no longer fits docs/methods.md"
    for command in COMMANDS:
        words = shlex.split(command)
        method = words[words.index("--method") + 1] if "--method" in words else "prometar"
        assert build(configure(method, parse_assignments(assignments_in(words))))


def assignments_in(words: list[str]) -> list[str]:
    """Return the words of a command that assign a setting, such as `train.epochs=50`."""
    return [word for word in words if "=" in word]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_files_that_are_named_are_there(page: Path) -> None:
    text = page.read_text("utf-8")

    named = re.findall(r"\b(?:prometar|tune|tests|benchmarks|clusters|examples|docs)/[\w./-]+\.\w+", text)
    files = [name for name in named if "NAME" not in name]  # NAME is a placeholder, as in recipes/NAME.yaml
    assert [name for name in files if not (ROOT / name).exists()] == []

    tests = {path.name for path in ROOT.glob("tests/**/*.py")}
    assert set(re.findall(r"\btest_\w+\.py", text)) <= tests


def commands(page: Path) -> list[str]:
    """Commands of this project in a page's code blocks, without comments."""
    text = page.read_text("utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    lines += re.findall(r"^ {4}(.*)", text, flags=re.MULTILINE)
    start = re.compile(r"(?:PYTHONPATH=\S+ )?(?:prometar|python tune/search\.py) (.*?)(?: +#.*)?$")
    return [found[1] for line in lines if (found := start.match(line))]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_commands_have_options_that_exist(page: Path) -> None:
    for command in commands(page):
        words = shlex.split(command)
        if words[0].startswith("-"):  # options of tune/search.py
            words = ["search", *words]
        leaf = typer.main.get_command(app)
        while isinstance(leaf, TyperGroup):
            leaf = leaf.commands[words.pop(0)]

        given = leaf.make_context("prometar", words).params  # refuses options that do not exist

        for assignment in given.get("settings") or ():
            key = assignment.partition("=")[0]
            of_component = ".args." in key
            of_study = key.partition(".")[0] in StudyConfig.model_fields
            assert is_setting(key) or of_component or of_study, command


def test_every_setting_is_explained() -> None:
    text = (DOCS / "settings.md").read_text("utf-8")
    assert not [key for key in Config().flat() if f"`{key}`" not in text]


def test_one_version_everywhere() -> None:
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    latest = re.search(r"^## \[(\S+)\] - \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    assert latest
    assert latest[1] == __version__


MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("prometar", "tune")
    for path in (ROOT / package).rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_do_what_they_say(module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert not doctest.testmod(importlib.import_module(module)).failed
