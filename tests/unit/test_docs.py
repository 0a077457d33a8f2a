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
PAGES = sorted(
    [*DOCS.glob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))]
)
TEXT = (DOCS / "methods.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line[:3] == "| `"
]
TABLE = {row[0].strip("`"): row for row in ROWS if len(row) == 14}
ACCEPTED = TEXT.partition("## Combinations that are refused")[0]
SETTINGS = sorted(set(re.findall(r"`((?:--set [\w.]+=\w[\w.]* ?)+)`", ACCEPTED)))
COMMANDS = re.findall(r"^prometar train (.*?)(?: #.*)?$", TEXT, flags=re.MULTILINE)


def test_every_method_has_its_row() -> None:
    assert sorted(TABLE) == sorted(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_the_recipe(name: str) -> None:
    config = configure(name)
    s = configure(name).flat()
    _, prompts, adapters, features, logits, regularizer, modulator, inner, query, *more = TABLE[name]
    averager, optimizer, *numbers = more
    kind = s["prompts.kind"]
    r = config.regularizer.kind
    text_depth = s.get("prompts.text_depth", 1 if kind in ("conditional", "class_aware") else 0)
    vision_depth = s.get("prompts.vision_depth", 0)
    assert (f"text {s.get('prompts.text_length')} x {text_depth}" in prompts) == (text_depth > 0)
    assert ("by a network whose input is the image" in prompts) == (kind == "conditional")
    assert (f"vision {s.get('prompts.vision_length')} x {vision_depth}" in prompts) == (vision_depth > 0)
    assert ("coupled" in prompts) == (kind == "coupled")
    assert ("class-aware" in prompts) == (kind == "class_aware")
    assert ("shared space" in prompts) == (kind == "shared")
    assert (adapters == "-") == (config.adapters.kind == "none")
    assert features.partition(",")[0].replace("-", "none") == config.features.kind
    assert logits.partition(" (")[0].replace(" ", "_") == config.logits.kind
    used = {term: w for term in ("text", "image", "logits") if (w := s.get(f"regularizer.{term}_weight"))}
    found = re.findall(r"(text|image|logits)(?: (L1|cosine))? \((\d+)\)", regularizer)
    assert {term: float(weight) for term, _, weight in found} == used
    assert {each.lower() for term, each, _ in found if term != "logits"} == (
        {r} if used.keys() - {"logits"} else set()
    )
    assert modulator == ("-" if r == "none" else config.modulator.kind)
    assert averager == config.averager.kind
    assert inner == ("-" if config.inner.kind == "none" else "SGD, second order")
    assert query == (
        "-" if config.task.augmentation == "none" else config.task.augmentation.replace("_", " ")
    )
    if not build(config).is_untrained:
        assert optimizer.partition(",")[0].lower() == config.optim.kind
        assert [float(n) for n in numbers] == [config.train.epochs, config.train.batch_size, config.optim.lr]


def test_tables_and_picture_of_compositions_are_current() -> None:
    script = runpy.run_path(str(DOCS / "compositions.py"))
    advice = "Run `python docs/compositions.py`."
    assert script["guide"]() == TEXT, advice
    assert script["picture"]() == script["PICTURE"].read_text("utf-8"), advice


@pytest.mark.parametrize("setting", SETTINGS)
def test_documented_settings_exist_and_change_the_defaults(setting: str) -> None:
    config = configure("prometar", parse_assignments([w for w in setting.split() if "=" in w]))
    assert build(config)
    assert config != configure("prometar")


def test_commands_are_configurations() -> None:
    assert len(COMMANDS) >= 4
    for command in COMMANDS:
        words = shlex.split(command)
        method = words[words.index("--method") + 1] if "--method" in words else "prometar"
        assert build(configure(method, parse_assignments([w for w in words if "=" in w])))


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_files_that_are_named_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    named = re.findall(r"\b(?:prometar|tune|tests|benchmarks|clusters|examples|docs)/[\w./-]+\.\w+", text)
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []
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
        if words[0].startswith("-"):
            words = ["search", *words]
        leaf = typer.main.get_command(app)
        while isinstance(leaf, TyperGroup):
            leaf = leaf.commands[words.pop(0)]
        given = leaf.make_context("prometar", words).params
        for assignment in given.get("settings") or ():
            key = assignment.partition("=")[0]
            known = is_setting(key) or ".args." in key or key.partition(".")[0] in StudyConfig.model_fields
            assert known, command


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
