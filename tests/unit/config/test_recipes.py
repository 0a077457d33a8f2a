"""A method's name stands for its published settings; what is asked besides overrides them."""

from pathlib import Path

import pytest

from prometar.config import recipes
from prometar.config.recipes import METHODS, recipe
from prometar.config.settings import Config, configure, dump_config, load_config
from prometar.errors import UserError
from prometar.methods.composition import build
from tune.reproduce.published import published_accuracies

PAPERS_SETTING = {"backbone.name": "ViT-B-16-quickgelu", "backbone.pretrained": "openai", "data.name": "dtd"}
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
def test_a_recipe_says_where_it_comes_from_and_is_a_configuration(name: str, tmp_path: Path) -> None:
    entry = recipe(name)
    assert entry.title
    assert entry.about
    assert entry.paper
    assert entry.source
    config = configure(name, PAPERS_SETTING, protocol="base-to-new")
    assert build(configure(name, PAPERS_SETTING)) == build(Config(method=name))
    published, _ = published_accuracies("base-to-new", config)
    if name in WITHOUT_PUBLISHED_ACCURACIES:
        assert not published
        assert entry.unverified
    else:
        assert {"base", "new", "H"} <= published["average"].keys()
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_every_recipe_is_in_the_table() -> None:
    folder = Path(recipes.__file__).parent / "recipes"
    assert sorted(METHODS) == sorted(path.stem for path in folder.glob("*.yaml"))


def test_the_defaults_are_prometars() -> None:
    assert Config() == Config(method="prometar") == configure("prometar")


def test_another_method_brings_its_own_settings_and_leaves_data_and_seed() -> None:
    start = configure("coop", {"data.shots": 2, "train.seed": 7, "optim.lr": 1.0, "backbone.name": "b"})
    other = start.override({"train.epochs": 4, "method": "maple"})
    assert other == configure(
        "maple", {"data.shots": 2, "train.seed": 7, "train.epochs": 4, "backbone.name": "b"}
    )
    assert start.override({"method": "coop"}) == start


def test_a_file_that_names_a_method_starts_from_its_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: vpt\nprompts: {vision_length: 3}\n")
    assert load_config(path) == configure("vpt", {"prompts.vision_length": 3})
    path.write_text("method: vpt\nprompts: 3\n")
    with pytest.raises(UserError, match="prompts must be a valid dictionary"):
        load_config(path)
    path.write_text("method: maple2\n")
    with pytest.raises(UserError, match=r"Unknown method 'maple2'\. Choose one of zero-shot, "):
        load_config(path)
    path.write_text("method: [coop]\n")
    with pytest.raises(UserError, match="method must be a valid string"):
        load_config(path)


def test_the_recipe_of_the_guide_is_an_example_that_only_learns_adapters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend("examples")
    path = Path("examples/lora.yaml")
    method = build(configure(str(path)))
    assert method.learning_sections == {"adapters"}
    assert method.inner is None
    assert not method.regularizer.terms
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.startswith("#")]
    block = "\n".join(f"   {line}" for line in lines)
    assert f"   ```yaml\n{block}\n   ```\n" in Path("docs/extending.md").read_text("utf-8")


OF_NO_METHOD = [("data", "shots: 4"), ("backbone", "name: ViT-B-32"), ("train.seed", "seed: 3, epochs: 2")]


@pytest.mark.parametrize(("named", "text"), OF_NO_METHOD)
def test_an_own_recipe_does_not_choose_images_backbone_or_seed(named: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"settings:\n  {named.partition('.')[0]}: {{{text}}}\n")
    with pytest.raises(UserError, match=rf"mine\.yaml is not a valid recipe: settings: {named} is not"):
        recipe(str(path))
