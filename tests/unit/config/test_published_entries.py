"""Recipes contain the settings that authors published for datasets, protocols and numbers of shots."""

import re
from pathlib import Path

import pytest

from prometar.cli.app import main
from prometar.config.recipes import (
    METHODS,
    Protocol,
    describe_entries,
    describe_settings,
    recipe,
    require_datasets,
)
from prometar.config.settings import (
    Config,
    configure,
    dump_config,
    flatten,
    load_config,
    parse_assignments,
)
from prometar.errors import UserError

OWN = """
settings: {optim: {lr: 0.1}, modulator: {kind: add}}
by:
  - {protocol: few-shot, settings: {optim: {lr: 0.2}, train: {epochs: 7}}}
  - {dataset: [cells, dtd], shots: 4, settings: {optim: {lr: 0.3}, modulator: {kind: constant, value: 0.25}}}
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Path of a recipe file with two entries."""
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    return str(path)


ON_CELLS = {"data.name": "cells", "data.shots": 4}
"""A run that matches the second entry of `own` and, in the protocol few-shot, also the first."""


def test_without_a_protocol_no_entry_applies(own: str) -> None:
    assert configure(own, ON_CELLS).optim.lr == 0.1


def test_only_entries_that_match_the_run_apply(own: str) -> None:
    assert configure(own, ON_CELLS, protocol="base-to-new").optim.lr == 0.3
    textures = configure(own, {"data.name": "textures"}, protocol="few-shot")
    assert textures.optim.lr == 0.2
    assert textures.modulator.selected_kind == "add"


def test_later_entries_win(own: str) -> None:
    few_shot = configure(own, ON_CELLS, protocol="few-shot")
    assert few_shot.optim.lr == 0.3
    assert few_shot.train.epochs == 7
    assert few_shot.modulator.model_dump() == {"kind": "constant", "value": 0.25}


def test_given_settings_win_over_entries(own: str) -> None:
    given = configure(own, ON_CELLS, {"--set": {"optim.lr": 0.5}}, protocol="few-shot")
    assert given.optim.lr == 0.5
    assert given.train.epochs == 7


def test_dataset_and_shots_may_be_given_with_set(own: str) -> None:
    given = {"data.name": "dtd", "data.shots": 4}
    assert configure(own, by_source={"--set": given}, protocol="base-to-new").optim.lr == 0.3


def test_a_written_configuration_is_complete_and_gets_no_entries_again(tmp_path: Path) -> None:
    config = configure("mmrl", {"data.name": "dtd", "regularizer.text_weight": 1}, protocol="base-to-new")
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert config.regularizer.text_weight == 1.0
    assert config.regularizer.image_weight == 6.0


@pytest.mark.parametrize(
    ("dataset", "weight", "dim"),
    [
        ("stanford_cars", 7, 512),
        ("fgvc_aircraft", 6, 512),
        ("sun397", 6, 512),
        ("dtd", 6, 512),
        ("food101", 5, 512),
        ("oxford_flowers", 4, 512),
        ("ucf101", 3, 512),
        ("imagenet", 0.5, 512),
        ("caltech101", 0.5, 512),
        ("oxford_pets", 0.2, 512),
        ("eurosat", 0.01, 2048),
        ("cells", 4, 512),
    ],
)
def test_mmrl_has_its_published_weight_on_each_dataset(dataset: str, weight: float, dim: int) -> None:
    config = configure("mmrl", {"data.name": dataset}, protocol="base-to-new")
    assert config.regularizer.text_weight == weight
    assert config.regularizer.image_weight == weight
    assert config.prompts.dim == dim
    few_shot = configure("mmrl", {"data.name": dataset}, protocol="few-shot")
    assert few_shot.regularizer == config.regularizer


DATASETS_WITH_EQUAL_EPOCHS = (
    "stanford_cars",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "food101",
    "oxford_flowers",
    "ucf101",
    "caltech101",
    "oxford_pets",
    "eurosat",
    "cells",
)
"""Datasets on which MMRL is trained for equally many epochs."""


@pytest.mark.parametrize("dataset", DATASETS_WITH_EQUAL_EPOCHS)
@pytest.mark.parametrize(("protocol", "epochs", "batch_size"), [("base-to-new", 10, 4), ("few-shot", 50, 32)])
def test_mmrl_has_its_published_epochs_and_batch_size(
    dataset: str, protocol: Protocol, epochs: int, batch_size: int
) -> None:
    config = configure("mmrl", {"data.name": dataset}, protocol=protocol)
    assert config.train.epochs == epochs
    assert config.train.batch_size == batch_size


@pytest.mark.parametrize("protocol", ["base-to-new", "few-shot"])
def test_mmrl_has_fewer_epochs_on_imagenet_in_both_protocols(protocol: Protocol) -> None:
    config = configure("mmrl", {"data.name": "imagenet"}, protocol=protocol)
    assert config.train.epochs == 5
    assert config.train.batch_size == 32


@pytest.mark.parametrize(("shots", "epochs"), [(1, 50), (2, 100), (4, 100), (8, 200), (16, 200)])
@pytest.mark.parametrize("method", ["coop", "prograd"])
def test_epochs_of_few_shot_runs_depend_on_the_shots(method: str, shots: int, epochs: int) -> None:
    values = {"data.name": "dtd", "data.shots": shots}
    config = configure(method, values, protocol="few-shot")
    assert config.train.epochs == epochs
    assert config.prompts.text_length == 16


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("method", ["coop", "prograd"])
def test_epochs_of_few_shot_runs_on_imagenet_do_not_depend_on_the_shots(method: str, shots: int) -> None:
    values = {"data.name": "imagenet", "data.shots": shots}
    assert configure(method, values, protocol="few-shot").train.epochs == 50


@pytest.mark.parametrize(("shots", "share"), [(1, 1.0), (2, 1.0), (4, 1.0), (8, 0.8), (16, 0.8)])
def test_the_share_of_prograd_depends_on_the_shots(shots: int, share: float) -> None:
    config = configure("prograd", {"data.name": "dtd", "data.shots": shots}, protocol="few-shot")
    assert config.modulator.share == share


@pytest.mark.parametrize(
    ("method", "dataset", "protocol", "key", "value"),
    [
        ("coop", "imagenet", "base-to-new", "train.epochs", 50),
        ("tcp", "sun397", "base-to-new", "train.epochs", 25),
        ("mma", "imagenet", "cross-dataset", "train.batch_size", 128),
        ("coprompt", "food101", "base-to-new", "train.epochs", 5),
        ("promptsrc", "dtd", "few-shot", "averager.mean", 0.9),
        ("promptsrc", "food101", "few-shot", "averager.mean", 0.6),
        ("mmrl", "imagenet", "domain-generalisation", "optim.warmup_epochs", 0),
    ],
)
def test_a_setting_published_for_a_dataset_and_protocol_applies(
    method: str, dataset: str, protocol: Protocol, key: str, value: object
) -> None:
    settings = configure(method, {"data.name": dataset}, protocol=protocol).flat()
    assert settings[key] == value


@pytest.mark.parametrize("method", METHODS)
def test_datasets_without_entries_keep_their_identity(method: str) -> None:
    on_cells = {"data.name": "cells"}
    before = Config(method=method).override(on_cells).identity()
    assert configure(method, on_cells, protocol="base-to-new").identity() == before


@pytest.mark.parametrize("method", METHODS)
def test_every_entry_of_a_built_in_recipe_is_valid(method: str) -> None:
    chosen = recipe(method)
    require_datasets(chosen, where=method)
    for entry in chosen.by:
        # A run that fulfills the conditions of the entry. Where it has no condition, any value does.
        dataset = entry.dataset[0] if entry.dataset else "dtd"
        shots = entry.shots[0] if entry.shots else 16
        protocol = entry.protocol[0] if entry.protocol else "base-to-new"
        assert entry in chosen.entries_for(dataset, protocol, shots)
        config = configure(method, {"data.name": dataset, "data.shots": shots}, protocol=protocol)
        assert config.method == method


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("{dataset: dtf, settings: {optim: {lr: 1}}}", "by: Unknown dataset 'dtf'"),
        ("{protocol: one-shot, settings: {optim: {lr: 1}}}", r"by\.0\.protocol\.0 must be 'base-to-new'"),
        ("{shots: few, settings: {optim: {lr: 1}}}", r"by\.0\.shots\.0 must be a valid integer"),
        (
            "{shots: 1, settings: {optim: {speed: 1}}}",
            r"optim\.speed is not a setting\. Settings of optim: lr",
        ),
        ("{shots: 1, settings: {optimizer: {lr: 1}}}", "optimizer is not a section"),
        ("{shots: 1, settings: {data: {shots: 2}}}", "data is not allowed in recipes"),
        ("{settings: {optim: {lr: 1}}}", "an entry needs dataset, protocol or shots"),
        ("{dataset: [], settings: {optim: {lr: 1}}}", r"by\.0\.dataset"),
        ("{shots: 1}", r"by\.0\.settings: a value is required"),
        ("{shots: 1, seeds: 2, settings: {optim: {lr: 1}}}", r"by\.0\.seeds: unknown key"),
    ],
)
def test_an_invalid_entry_is_refused_in_one_line(entry: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"settings: {{}}\nby:\n  - {entry}\n")
    with pytest.raises(UserError, match=problem) as refused:
        recipe(str(path))
    assert str(refused.value).startswith(f"{path} is not a valid recipe: ")
    assert "\n" not in str(refused.value)


def test_an_invalid_value_of_an_entry_is_refused_when_it_applies(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("settings: {}\nby: [{shots: 1, settings: {optim: {lr: -1}}}]\n")
    with pytest.raises(UserError, match=r"own\.yaml: optim\.lr must be at least 0\.0, got -1"):
        configure(str(path), {"data.shots": 1}, protocol="few-shot")


def test_described_settings_can_be_given_with_set() -> None:
    settings = {"regularizer": {"texts": None, "draw": True}, "optim": {"lr": 0.5, "kind": "adam"}}
    assignments = describe_settings(settings).split()
    assert parse_assignments(assignments) == flatten(settings)


def test_entries_are_described_in_one_line() -> None:
    entries = recipe("coop").entries_for("imagenet", "few-shot", 1)
    assert describe_entries(entries) == (
        "Published settings for few-shot: prompts.text_length=16; "
        "few-shot, 1 shot: train.epochs=50; imagenet: train.epochs=50"
    )
    assert describe_entries([]) == ""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configurations that `prometar train` was to train. Each command stops before training."""
    configs: list[Config] = []

    def stop(config: Config, *args: object, **options: object) -> None:
        configs.append(config)
        raise UserError("stopped before training")

    monkeypatch.setattr("prometar.run_folder.train_run", stop)
    return configs


@pytest.mark.parametrize(
    ("words", "line", "epochs"),
    [
        (["--dataset", "imagenet"], "Published settings for imagenet: train.epochs=50", 50),
        (["--dataset", "imagenet", "--set", "train.epochs=3"], "Published settings for imagenet", 3),
        (["--dataset", "cells"], "", 200),
        (
            ["--dataset", "cells", "--set", "data.shots=1", "--objective", "all_classes"],
            "few-shot, 1 shot: train.epochs=50",
            50,
        ),
    ],
)
def test_train_says_which_entries_apply(
    words: list[str],
    line: str,
    epochs: int,
    trained: list[Config],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "--method", "coop", *words]) == 2
    shown = capsys.readouterr().out
    assert [config.train.epochs for config in trained] == [epochs]
    assert line in shown
    assert shown.count("\n") == (1 if line else 0)


def test_a_configuration_file_is_used_as_it_is(
    tmp_path: Path, trained: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(dump_config(configure("coop", {"data.name": "imagenet", "backbone.name": "ViT-B-16"})))
    assert main(["train", "--config", str(path)]) == 2
    assert main(["train", "--config", str(path), "--method", "mma"]) == 2
    of_coop, of_mma = trained
    assert of_coop.train.epochs == 200
    assert of_mma.train.epochs == 5
    assert of_mma.train.batch_size == 128, "of MMA on ImageNet"
    assert of_mma.backbone.name == "ViT-B-16"
    assert capsys.readouterr().out == "Published settings for imagenet: train.batch_size=128\n"


def test_a_command_shows_a_recipe_and_its_entries(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "mmrl"]) == 0
    shown = capsys.readouterr().out
    assert "settings: prompts.kind=shared" in shown
    assert "for stanford_cars: regularizer.text_weight=7.0 regularizer.image_weight=7.0\n" in shown
    assert main(["methods"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(METHODS)
    assert main(["methods", "maple2"]) == 2


@pytest.mark.parametrize(
    "settings",
    [
        "{optimizer: {lr: 1}}",
        "{optim: {speed: 1}}",
        "{optim: {lr: -1}}",
        "{prompts: {kind: deepest}}",
    ],
)
def test_a_recipe_that_no_run_can_use_is_refused_as_in_train(
    settings: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "own.yaml"
    path.write_text(f"settings: {settings}\n")
    messages: list[str] = []
    for command in (["train", "--method", str(path)], ["methods", str(path)]):
        assert main(command) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        messages.append(captured.err)
    assert messages[0] == messages[1]


def test_a_recipe_with_an_invalid_entry_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("settings: {}\nby: [{shots: 1, settings: {optim: {lr: -1}}}]\n")
    assert main(["methods", str(path)]) == 2
    assert "own.yaml: optim.lr must be at least 0.0, got -1" in capsys.readouterr().err


def test_showing_a_recipe_imports_no_custom_component(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unreviewed.py").write_text("raise SystemExit(9)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "own.yaml"
    path.write_text("settings: {prompts: {kind: 'unreviewed:Prompts'}}\n")
    assert main(["methods", str(path)]) == 0
    assert "prompts.kind=unreviewed:Prompts" in capsys.readouterr().out


def listed_in_guide(before: str, after: str) -> list[str]:
    """Return the sorted items of the list between two texts in docs/protocols.md."""
    page = Path(__file__).parents[3] / "docs" / "protocols.md"
    text = " ".join(page.read_text("utf-8").split())
    _, _, rest = text.partition(before)
    listed, _, _ = rest.partition(after)
    return sorted(re.split(", | and | or ", listed))


def test_the_guide_names_the_methods_with_entries() -> None:
    with_entries = [f"`{method}`" for method in METHODS if recipe(method).by]
    assert listed_in_guide("Methods with such entries are ", ".") == sorted(with_entries)


def test_the_guide_names_the_methods_whose_settings_on_imagenet_depend_on_the_protocol() -> None:
    on_imagenet = {"data.name": "imagenet"}
    dependent: list[str] = []
    for method in METHODS:
        cross_dataset = configure(method, on_imagenet, protocol="cross-dataset")
        few_shot = configure(method, on_imagenet, protocol="few-shot")
        if cross_dataset.identity() != few_shot.identity():
            dependent.append(f"`{method}`")
    assert listed_in_guide("(ImageNet, 16 shots) for ", ", use two") == sorted(dependent)
