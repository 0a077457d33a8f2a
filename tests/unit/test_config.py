"""Configuration of a study: from Python, the command line and study.yaml."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prometar.cli.app import main as prometar_main
from prometar.config.settings import configure
from prometar.embedded.datasets import DEFAULT_DATASET
from prometar.errors import UserError
from tests.support import study_records
from tune import Space, Study, StudyConfig
from tune.config import OPTIONS
from tune.records.folder import StudyFolder
from tune.search import main

ROOT = Path(__file__).parents[2]
LR = {"optim.lr": {"type": "float", "low": 1e-4, "high": 0.1, "log": True}}
RATES = Space.model_validate({"name": "rates", "ranges": LR})
"""Space that a study samples learning rates from."""
CASES: list[tuple[list[str], dict[str, Any]]] = [
    ([], {}),
    (
        ["--dataset", "cells", "textures", "--trials", "3", "--goals", "base", "new"],
        {"dataset": ["cells", "textures"], "trials": 3, "goals": ("base", "new")},
    ),
    (
        ["--final-seeds", "4 5", "--set", "optim.lr=0.01", "data.shots=2", "--gpus-per-trial", "0.5"],
        {"final_seeds": [4, 5], "settings": {"optim.lr": 0.01, "data.shots": 2}, "gpus_per_trial": 0.5},
    ),
    (
        ["--set", "confirm.seeds=3", "--set", "location.trackers=[mlflow]", "--seed", "7"],
        {"settings": ["confirm.seeds=3", "location.trackers=[mlflow]"], "seed": 7},
    ),
    (
        ["--space", "rates.yaml", "--enqueue", "mine.yaml", "--method", "coop", "--max-hours", "0.5"],
        {"space": Path("rates.yaml"), "enqueue": Path("mine.yaml"), "method": "coop", "max_hours": 0.5},
    ),
]
"""Options of the command line, and the same options in Python."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[StudyConfig]:
    """Configurations of the studies that a test starts without running them, in `tmp_path`."""
    found: list[StudyConfig] = []
    monkeypatch.setattr(Study, "run", lambda study: found.append(study.config))
    monkeypatch.chdir(tmp_path)
    Path("rates.yaml").write_text("optim.lr: {type: float, low: 0.0001, high: 0.1, log: true}")
    Path("mine.yaml").write_text("optim.lr: 0.01")
    return found


@pytest.mark.parametrize(("words", "options"), CASES, ids=str)
def test_python_and_both_commands_make_the_same_study(
    words: list[str], options: dict[str, Any], started: list[StudyConfig]
) -> None:
    assert main([*words, "--study", "it"]) == prometar_main(["search", *words, "--study", "it"]) == 0
    assert started[0] == started[1] == StudyConfig.of(**options, study="it")
    assert StudyConfig.model_validate(started[0].model_dump(mode="json")) == started[0]
    Study("out/it", **options).run()
    assert started[2].identity() == started[0].identity()
    assert (started[2].location.out.resolve(), started[2].name) == (Path("out").resolve(), "it")


def test_a_study_without_options_is_the_one_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "it"
    config = StudyConfig.of(dataset="cells", trials=7, space=RATES, out=folder.parent, study="it")
    StudyFolder(folder).write_study(config, {"weights": "abc"})
    assert Study(folder).config == config
    assert Study(folder, trials=9).config.search.datasets == (DEFAULT_DATASET,), "options start from defaults"
    moved = folder.rename(tmp_path / "moved")
    assert Study(moved).folder.path == moved


PUBLISHED_EPOCHS = configure("prometar").train.epochs


def test_studies_of_rendered_datasets_are_small_by_default() -> None:
    config = StudyConfig.of()
    assert config.search.trials == 24
    assert config.baseline.train.epochs == 5
    assert config.baseline.backbone.name == "mini"
    assert config.test.epochs == PUBLISHED_EPOCHS


def test_studies_of_benchmarks_have_the_published_epochs_and_backbone_by_default() -> None:
    config = StudyConfig.of(dataset="dtd", data_root="data")
    assert config.search.trials == 40
    assert config.baseline.train.epochs == PUBLISHED_EPOCHS
    assert config.baseline.backbone.name == "ViT-B-16-quickgelu"
    assert config.baseline.backbone.pretrained == "openai"
    assert config.test.epochs == PUBLISHED_EPOCHS


def test_a_study_with_one_benchmark_has_the_default_trials_of_benchmarks() -> None:
    assert StudyConfig.of(dataset=["textures", "dtd"]).search.trials == 40


def test_given_epochs_are_the_maximum_of_a_trial() -> None:
    assert StudyConfig.of(epochs=3).max_epochs == 3


def test_trials_are_pruned_by_default_unless_there_are_several_goals() -> None:
    assert StudyConfig.of().search.pruner == "percentile"
    assert StudyConfig.of(goals=["objective", "seconds"]).search.pruner == "none"


def test_seeds_of_the_stages_are_disjoint() -> None:
    config = StudyConfig.of(seed=2, seeds_per_trial=2, settings={"confirm.seeds": 3})
    assert config.search.seeds == (2, 3)
    assert config.final_seeds == (1, *range(4, 18))
    assert config.confirmation_seeds == (1000, 1001, 1002)
    assert StudyConfig.of(final_seeds=[1000]).confirmation_seeds == (1001, 1002)


@pytest.mark.parametrize(
    "options", [{"final_seeds": 7}, {"final_seeds": "7"}, {"settings": ["test.seeds=7"]}], ids=str
)
def test_a_single_seed_of_the_final_test_may_be_a_number(options: dict[str, Any]) -> None:
    assert StudyConfig.of(**options).final_seeds == (7,)


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"trials": 99, "max_hours": 1, "max_concurrent": 3}, True),
        ({"out": "elsewhere", "final_seeds": [1], "top": 0, "storage": "sqlite:///x.db"}, True),
        ({"settings": {"optim.lr": 0.01}}, False),
        ({"seed": 1}, False),
        ({"epochs": 2}, False),
        ({"sampler": "random"}, False),
        ({"space": RATES}, False),
        ({"settings": {"search.val_per_class": 3}}, False),
    ],
    ids=str,
)
def test_only_what_determines_results_identifies_a_study(options: dict[str, Any], same: bool) -> None:
    assert (StudyConfig.of(**options).identity() == StudyConfig.of().identity()) is same


def test_the_final_test_is_at_least_as_long_as_the_trials() -> None:
    published = StudyConfig.of(dataset="dtd").test.epochs
    assert StudyConfig.of(dataset="cells", epochs=2).test.epochs == published
    assert StudyConfig.of(dataset="cells", epochs=50).test.epochs == 50
    assert StudyConfig.of(dataset="cells", epochs=50, final_epochs=3).test.epochs == 3


def test_paths_are_absolute(started: list[StudyConfig], tmp_path: Path) -> None:
    Path("weights.safetensors").touch()
    words = ["--dataset", "dtd", "--backbone", "ViT-B-16", "--pretrained", "weights.safetensors"]
    words += ["--data-root", "data"]
    assert main(words) == 0
    (config,) = started
    assert config.baseline.backbone.pretrained == str(tmp_path / "weights.safetensors")
    assert config.baseline.data.root == str(tmp_path / "data")


def test_settings_of_several_datasets(started: list[StudyConfig]) -> None:
    assert main(["--dataset", "dtd", "eurosat", "--seeds-per-trial", "2", "--seed", "4"]) == 0
    (config,) = started
    assert config.name == "dtd-eurosat"

    settings = {"optim.lr": 0.5, "train.epochs": 2}
    run = config.run_config(settings, dataset="eurosat", seed=9, final_epochs=True)
    assert run.data.name == "eurosat"
    assert run.train.seed == 9
    assert run.optim.lr == 0.5
    assert run.train.epochs == 2


def test_the_baseline_has_the_published_settings_of_each_dataset() -> None:
    config = StudyConfig.of(method="mmrl", dataset=("stanford_cars", "eurosat", "cells"))
    default = config.baseline_settings
    weights = {}
    for name in config.search.datasets:
        run = config.run_config(default, dataset=name, seed=0)
        weights[name] = (run.regularizer.text_weight, run.prompts.dim)
    assert weights == {"stanford_cars": (7.0, 512), "eurosat": (0.01, 2048), "cells": (4.0, 512)}
    again = StudyConfig.model_validate(config.model_dump(mode="json", by_alias=True))
    assert again.baseline_changes == config.baseline_changes
    assert again.identity() == config.identity()


def test_searched_settings_win_on_every_dataset_and_other_published_ones_stay() -> None:
    space = Space.model_validate(
        {"name": "own", "ranges": {"regularizer.text_weight": {"type": "float", "low": 0, "high": 99}}}
    )
    config = StudyConfig.of(method="mmrl", dataset=("stanford_cars", "eurosat"), space=space)
    runs = [
        config.run_config({"regularizer.text_weight": 2.5}, dataset=name, seed=0)
        for name in config.search.datasets
    ]
    assert [run.regularizer.text_weight for run in runs] == [2.5, 2.5]
    assert [run.regularizer.image_weight for run in runs] == [7.0, 0.01]
    assert [run.prompts.dim for run in runs] == [512, 2048]


def test_settings_given_with_set_win_over_published_ones_of_all_datasets() -> None:
    config = StudyConfig.of(
        method="mmrl", dataset=("stanford_cars", "eurosat"), settings={"regularizer.text_weight": 3}
    )
    runs = [
        config.run_config(config.baseline_settings, dataset=name, seed=0) for name in config.search.datasets
    ]
    assert [run.regularizer.text_weight for run in runs] == [3.0, 3.0]
    assert [run.regularizer.image_weight for run in runs] == [7.0, 0.01]


def test_each_dataset_is_trained_for_its_published_epochs() -> None:
    config = StudyConfig.of(method="tcp", dataset=("imagenet", "dtd"), epochs=5)
    assert config.test.epochs == 25

    def epochs(config: StudyConfig, final_epochs: bool) -> list[int]:
        runs = [
            config.run_config({"optim.lr": 0.1}, dataset=name, seed=0, final_epochs=final_epochs)
            for name in ("imagenet", "dtd")
        ]
        return [run.train.epochs for run in runs]

    assert epochs(config, final_epochs=False) == [5, 5]
    assert epochs(config, final_epochs=True) == [25, 50]
    given = StudyConfig.of(method="tcp", dataset=("imagenet", "dtd"), final_epochs=30)
    assert epochs(given, final_epochs=False) == [25, 50]
    assert epochs(given, final_epochs=True) == [30, 30]
    assert given.max_epochs == 50


def test_a_study_whose_datasets_have_no_published_settings_keeps_its_identity() -> None:
    config = StudyConfig.of(method="coop", dataset=("dtd", "eurosat"))
    assert config.baseline_changes == {}
    assert "baseline_changes" not in config.model_dump()
    with pytest.raises(UserError, match=r"Unknown setting 'baseline_changes\.dtd'"):
        StudyConfig.of(settings={"baseline_changes.dtd": 1})


def test_the_final_test_trains_the_baseline_for_the_epochs_of_the_method() -> None:
    ranges = {"train.epochs": {"type": "int", "low": 2, "high": 9}}
    space = Space.model_validate({"name": "own", "ranges": ranges})
    for more, final in ({}, 10), ({"final_epochs": 20}, 20):
        config = StudyConfig.of(dataset="cells", space=space, **more)
        assert config.baseline_settings == {"train.epochs": 5}, "of trial 0"
        for settings, epochs in (config.baseline_settings, final), ({"train.epochs": 7}, 7):
            assert (
                config.run_config(settings, dataset="cells", seed=1, final_epochs=True).train.epochs == epochs
            )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trails": 4}, "Unknown option 'trails'"),
        ({"gpus_per_trial": "x"}, "--gpus-per-trial must be a valid number"),
        ({"final_seeds": [1, 1]}, "--final-seeds: values must be distinct"),
        ({"settings": {"train.epochs": 3}, "epochs": 2}, "--set train.epochs is also given as an option"),
        ({"settings": {"confirm": 3}}, "--set confirm is not a setting"),
        ({"dataset": []}, "--dataset"),
        ({"seed": 2**32 - 1, "seeds_per_trial": 2}, "--seed: seeds must be below 4294967296"),
    ],
    ids=str,
)
def test_an_invalid_option_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        StudyConfig.of(**options)
    assert "\n" not in str(caught.value)


def test_a_folder_excludes_other_names() -> None:
    with pytest.raises(UserError, match="either folder, or out and study"):
        Study("out/it", out="there")


def test_help_shows_every_option_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = re.findall(r"^  (--[\w-]+)", capsys.readouterr().out, flags=re.MULTILINE)
    assert sorted(listed) == sorted([*(f"--{name}" for name in OPTIONS), "--set", "--plan", "--help"])


def test_a_plan_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dataset", "cells", "--trials", "7", "--top", "0", "--final-seeds", "1 2", "--out"]
    status = main(["--plan", *words, str(tmp_path)])
    printed, errors = capsys.readouterr()
    assert (status, errors) == (0, "")
    assert printed.startswith(f"Study {tmp_path / 'cells'}: 7 trials of up to 5 epochs, prometar on cells")
    assert "Search: 7 runs, 35 epochs, " in printed
    assert "Confirmation" not in printed
    assert "\n  augment.flip: 0 .. 0.5\n" in printed
    assert not list(tmp_path.iterdir())


def test_a_users_module_may_have_the_name_of_one_in_tune(tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text("def huber(a, b):\n    return a\n")
    words = ["--set", "regularizer.kind=config:hubber", "--plan"]
    done = subprocess.run(
        [sys.executable, ROOT / "tune/search.py", *words],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.stderr == f"error: config:hubber: {tmp_path / 'config.py'} does not define 'hubber'.\n"


def test_help_and_records_load_little(tmp_path: Path) -> None:
    study_records.write(tmp_path / "small", study_records.small(tmp_path / "small"))
    code = (
        "import sys; from prometar.cli.app import main; status = main(['--help']);"
        "heavy = {'torch', 'ray', 'optuna', 'plotly', 'open_clip', 'tune.study'};"
        "print(status, sorted(heavy & set(sys.modules)));"
        "from tune.records.folder import read_records; from pathlib import Path;"
        "print(len(read_records(Path(sys.argv[1])).trials), sorted({'ray', 'optuna'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, tmp_path / "small"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert re.search(r"^  search +Tune hyperparameters", done.stdout, flags=re.MULTILINE)
    assert done.stdout.splitlines()[-2:] == ["0 []", "4 []"]
