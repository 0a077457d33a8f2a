"""A method's name stands for its published settings, which given settings override."""

from pathlib import Path

import pytest

from prometar.config import recipes
from prometar.config.recipes import METHODS, recipe
from prometar.config.settings import Config, configure, dump_config, load_config
from prometar.errors import UserError
from prometar.methods.composition import build
from tune.reproduce.published import published_accuracies

PAPERS_SETTINGS = {
    "backbone.name": "ViT-B-16-quickgelu",
    "backbone.pretrained": "openai",
    "data.name": "dtd",
}
"""Backbone and a dataset for which papers publish accuracies."""
WITHOUT_PUBLISHED_ACCURACIES = {
    "zero-shot-ensemble",
    "prograd",
    "dept-kgcoop",
    "dept-maple",
    "ivlp-regularized",
    "prometar-coop",
    "prometar-vpt",
    "prometar-maple",
}


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_names_its_sources(name: str) -> None:
    chosen = recipe(name)
    assert chosen.title
    assert chosen.about
    assert chosen.paper
    assert chosen.source


@pytest.mark.parametrize("name", METHODS)
def test_the_method_of_a_recipe_does_not_depend_on_backbone_and_data(name: str) -> None:
    assert build(configure(name, PAPERS_SETTINGS)) == build(Config(method=name))


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_published_accuracies_or_says_what_is_unverified(name: str) -> None:
    config = configure(name, PAPERS_SETTINGS, protocol="base-to-new")
    published, _ = published_accuracies("base-to-new", config)
    if name in WITHOUT_PUBLISHED_ACCURACIES:
        assert not published
        assert recipe(name).unverified
    else:
        assert {"base", "new", "H"} <= published["average"].keys()


@pytest.mark.parametrize("name", METHODS)
def test_the_configuration_of_a_recipe_can_be_written_and_read(name: str, tmp_path: Path) -> None:
    config = configure(name, PAPERS_SETTINGS, protocol="base-to-new")
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_every_recipe_file_is_a_built_in_method() -> None:
    folder = Path(recipes.__file__).parent / "recipes"
    assert sorted(METHODS) == sorted(path.stem for path in folder.glob("*.yaml"))


def test_the_defaults_are_prometars() -> None:
    assert Config() == Config(method="prometar") == configure("prometar")


def test_another_method_replaces_all_settings_except_data_backbone_and_seed() -> None:
    kept = {"data.shots": 2, "train.seed": 7, "backbone.name": "b"}
    start = configure("coop", {**kept, "optim.lr": 1.0})
    changed = start.override({"train.epochs": 4, "method": "maple"})
    assert changed == configure("maple", {**kept, "train.epochs": 4})


def test_the_same_method_replaces_no_settings() -> None:
    start = configure("coop", {"optim.lr": 1.0})
    assert start.override({"method": "coop"}) == start


def test_a_file_that_names_a_method_starts_from_its_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: vpt\nprompts: {vision_length: 3}\n")
    assert load_config(path) == configure("vpt", {"prompts.vision_length": 3})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(
            "method: vpt\nprompts: 3\n",
            "prompts must be a valid dictionary",
            id="section that is not a mapping",
        ),
        pytest.param(
            "method: maple2\n",
            r"Unknown method 'maple2'\. Choose one of zero-shot, ",
            id="unknown method",
        ),
        pytest.param("method: [coop]\n", "method must be a valid string", id="method that is a list"),
    ],
)
def test_an_invalid_method_or_section_in_a_file_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=problem):
        load_config(path)


def test_the_recipe_in_examples_learns_only_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("examples")
    method = build(configure("examples/lora.yaml"))
    assert method.learning_sections == {"adapters"}
    assert method.inner is None
    assert not method.regularizer.terms


def test_the_guide_shows_the_recipe_in_examples() -> None:
    text = Path("examples/lora.yaml").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    block = "\n".join(f"   {line}" for line in lines)  # indented, because it is part of a list
    assert f"   ```yaml\n{block}\n   ```\n" in Path("docs/extending.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("excluded", "settings"),
    [
        ("data", "data: {shots: 4}"),
        ("backbone", "backbone: {name: ViT-B-32}"),
        ("train.seed", "train: {seed: 3, epochs: 2}"),
    ],
    ids=["data", "backbone", "seed"],
)
def test_a_recipe_file_does_not_choose_images_backbone_or_seed(
    excluded: str, settings: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"settings:\n  {settings}\n")
    with pytest.raises(UserError, match=rf"mine\.yaml is not a valid recipe: settings: {excluded} is not"):
        recipe(str(path))
