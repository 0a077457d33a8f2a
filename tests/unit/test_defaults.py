"""`prometar defaults`: settings that are best on average over the datasets of several studies."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prometar.cli.app import main
from prometar.config.recipes import recipe
from prometar.config.settings import configure
from prometar.errors import UserError
from tests.support import study_records
from tests.support.study_records import DEFAULT, RANGES
from tune.config import StudyConfig
from tune.defaults import (
    AverageBest,
    MeasuredGain,
    average_best_of,
    describe_average_best,
    find_average_best,
    measured_gains,
    predict_gains,
    recipe_text,
)
from tune.records.folder import Records
from tune.records.schema import Candidate, Confirmation, RunScore
from tune.reproduce.grid import PROTOCOLS
from tune.space.space import build_space

SPACE = build_space(RANGES)
Gain = Callable[[dict[str, Any]], float]


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train small forests, because this is a matter of time and not of what is tested."""
    monkeypatch.setattr("tune.defaults.NUM_TREES", 50)


def sampled(seed: int, number: int) -> list[dict[str, Any]]:
    """Random settings."""
    return [study_records.settings_of(100 * seed + each) for each in range(1, number + 1)]


def rate_gain(settings: dict[str, Any]) -> float:
    """Gain that grows with the learning rate. It is 0 for that of the default settings."""
    return 5 * math.log10(settings["optim.lr"] / DEFAULT["optim.lr"])


def study(
    folder: Path, gain: Gain, *, seed: int, trials: int = 20, dataset: str = "dtd", **options: Any
) -> Records:
    """A study whose scores are 60 plus the gain of the settings, with two seeds."""
    records = []
    for number, settings in enumerate([DEFAULT, *sampled(seed, trials)]):
        value = 60 + (gain(settings) if number else 0.0)
        runs = tuple(RunScore(dataset, each, value, value, value + each) for each in (0, 1))
        trial = study_records.trial(number, settings=settings, runs=runs, objective=value)
        records.append(trial)
    record = study_records.study(dataset=[dataset], **options)
    digests = {**record.digests, f"split of {dataset}": f"of {dataset}"}
    return Records(folder, replace(record, digests=digests), tuple(records), None, None)


def gains_of(gain: Gain, seed: int, number: int = 20) -> list[MeasuredGain]:
    return [MeasuredGain(DEFAULT, 0.0), *(MeasuredGain(each, gain(each)) for each in sampled(seed, number))]


def test_settings_that_are_good_on_all_datasets_are_chosen() -> None:
    gains = {name: gains_of(rate_gain, seed) for seed, name in enumerate("abc")}
    best = find_average_best(gains, SPACE, DEFAULT)
    assert best.settings["optim.lr"] > 10 * DEFAULT["optim.lr"]
    assert not best.is_default
    assert best.predicted_interval is not None
    assert best.predicted_interval.low > 0
    assert best.left_out.keys() == set("abc")
    assert min(best.left_out.values()) > 0


def test_the_default_settings_are_chosen_if_gains_cancel_out() -> None:
    gains = {"a": gains_of(rate_gain, 1), "b": gains_of(lambda each: -rate_gain(each) - 20, 2)}
    best = find_average_best(gains, SPACE, DEFAULT)
    assert best.is_default
    assert best.settings == DEFAULT
    assert best.predicted == {"a": 0.0, "b": 0.0}
    assert best.left_out == {}, "a choice by one dataset is no choice by average"


def test_a_dataset_that_was_left_out_can_show_that_nothing_transfers() -> None:
    gains = {"a": gains_of(rate_gain, 1), "b": gains_of(rate_gain, 2)}
    gains["c"] = gains_of(lambda each: -rate_gain(each), 3)
    best = find_average_best(gains, SPACE, DEFAULT)
    assert best.left_out["c"] < 0 < best.predicted["a"]


def test_inactive_settings_and_choices_are_predicted() -> None:
    measured = [
        MeasuredGain(each, 5.0 if each["regularizer.kind"] == "none" else -5.0) for each in sampled(1, 40)
    ]
    without = {key: value for key, value in DEFAULT.items() if key != "regularizer.text_weight"}
    low, high = predict_gains(measured, [DEFAULT, {**without, "regularizer.kind": "none"}], SPACE)
    assert low < -2
    assert high > 2


def test_gains_are_paired_with_the_baseline_by_seed(tmp_path: Path) -> None:
    records = study(tmp_path / "s", rate_gain, seed=1, trials=2)
    found = measured_gains(records, "dtd")
    by_settings = {json.dumps(each.settings): each for each in found}
    for settings in sampled(1, 2):
        each = by_settings[json.dumps(settings)]
        assert (each.gain, each.num_seeds) == (pytest.approx(rate_gain(settings)), 2)


def test_confirmed_trials_have_the_gain_of_their_confirmation(tmp_path: Path) -> None:
    records = study(tmp_path / "s", rate_gain, seed=1, trials=2)
    candidates = tuple(
        Candidate(
            trial.number,
            trial.is_baseline,
            trial.settings,
            tuple(RunScore("dtd", seed, objective=70.0 - 3 * trial.number) for seed in (1, 2, 3)),
        )
        for trial in records.trials[:2]
    )
    confirmed = replace(records, confirmation=Confirmation((1, 2, 3), candidates, 0))
    found = {str(each.settings): each for each in measured_gains(confirmed, "dtd")}
    first, second = sampled(1, 2)
    assert (found[str(first)].gain, found[str(first)].num_seeds) == (-3.0, 3)
    assert found[str(second)].gain == pytest.approx(rate_gain(second))


def test_studies_of_one_dataset_count_as_one(tmp_path: Path) -> None:
    studies = [
        study(tmp_path / "a", rate_gain, seed=1),
        study(tmp_path / "b", rate_gain, seed=2),
        study(tmp_path / "c", rate_gain, seed=3, dataset="eurosat"),
    ]
    assert average_best_of(studies).predicted.keys() == {"dtd", "eurosat"}
    with pytest.raises(UserError, match="Pass studies of at least two datasets"):
        average_best_of(studies[:2])


def test_datasets_with_the_same_name_are_told_apart_by_their_images(tmp_path: Path) -> None:
    studies = [study(tmp_path / name, rate_gain, seed=seed) for seed, name in enumerate("ab")]
    other = replace(studies[1].study, digests={"split of dtd": "other images"})
    studies[1] = replace(studies[1], study=other)
    assert average_best_of(studies).predicted.keys() == {"dtd (a)", "dtd (b)"}


def test_datasets_and_studies_with_the_same_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    folders = [tmp_path / "first" / "own", tmp_path / "second" / "own"]
    studies = [study(folder, rate_gain, seed=seed) for seed, folder in enumerate(folders)]
    other = replace(studies[1].study, digests={"split of dtd": "other images"})
    studies[1] = replace(studies[1], study=other)
    assert average_best_of(studies).predicted.keys() == {f"dtd ({folder})" for folder in folders}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "ivlp-regularized"}, "differ in .* Pass studies that differ only in their datasets"),
        ({"settings": {"data.shots": 4}}, r"differ in data\.shots \(16 and 4\)"),
        ({"objective": "base_val"}, r"differ in objective \(drift and base_val\)"),
        ({"objective": "oracle_test"}, "has scores of test images"),
    ],
)
def test_studies_that_do_not_fit_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    first = study(tmp_path / "a", rate_gain, seed=1)
    second = study(tmp_path / "b", rate_gain, seed=2, dataset="eurosat", **options)
    with pytest.raises(UserError, match=message):
        average_best_of([first, second])


def test_studies_with_few_trials_are_refused(tmp_path: Path) -> None:
    first = study(tmp_path / "a", rate_gain, seed=1)
    second = study(tmp_path / "b", rate_gain, seed=2, dataset="eurosat", trials=2)
    with pytest.raises(UserError, match=r"eurosat has 3 completed trials, but 5 are needed"):
        average_best_of([first, second])
    failed = replace(first, trials=first.trials[1:])
    with pytest.raises(UserError, match="the baseline trial failed"):
        average_best_of([failed, second])


def write(studies: Sequence[Records]) -> list[str]:
    return [str(study_records.write(each.folder, each)) for each in studies]


def test_the_recipe_gives_the_chosen_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studies = [
        study(tmp_path / name, rate_gain, seed=seed, dataset=name, final_epochs=12)
        for seed, name in enumerate(("dtd", "eurosat", "ucf101"))
    ]
    own = tmp_path / "average.yaml"
    assert main(["defaults", *write(studies), "--to", str(own)]) == 0
    text = capsys.readouterr().out
    best = average_best_of(studies)
    assert f"optim.lr = {best.settings['optim.lr']:.4g} (default: 0.0025)" in text
    assert "Mean predicted gain on a dataset that was left out of the choice: +" in text
    assert "n = 3" in text
    config = configure(str(own)).flat()
    assert {key: config[key] for key in best.settings} == best.settings
    assert config["train.epochs"] == 12
    tuned = StudyConfig.of(dataset=["food101"], method=str(own), space=build_space(RANGES))
    assert tuned.baseline_settings == best.settings


RATE = {"optim.lr": {"type": "float", "low": 1e-5, "high": 0.1, "log": True}}


@pytest.mark.parametrize("dataset", ["dtd", "stanford_cars", "imagenet"])
@pytest.mark.parametrize("method", ["coop", "maple", "mmrl", "prometar"])
def test_a_recipe_repeats_all_settings_of_its_method(method: str, dataset: str, tmp_path: Path) -> None:
    """Also those for datasets of which there is no study."""
    config = StudyConfig.of(dataset=["dtd"], method=method, space=build_space(RATE), epochs=4)
    record = replace(study_records.study(), config=config)
    records = Records(tmp_path, record, (), None, None)
    best = replace(
        find_average_best({"a": [MeasuredGain({"optim.lr": 0.01}, 1.0)] * 5}, build_space(RATE), {}),
        settings={"optim.lr": 0.01},
    )
    (tmp_path / "average.yaml").write_text(recipe_text([records], best))
    own = str(tmp_path / "average.yaml")
    for protocol in PROTOCOLS:
        expected = configure(method, {"data.name": dataset, "optim.lr": 0.01}, protocol=protocol).flat()
        found = configure(own, {"data.name": dataset}, protocol=protocol).flat()
        assert {**found, "method": method} == expected
    assert recipe(own).space == recipe(method).space


def test_searched_and_given_settings_replace_those_by_dataset(tmp_path: Path) -> None:
    weight = {"regularizer.text_weight": {"type": "float", "low": 0.001, "high": 100.0, "log": True}}
    options = {"method": "mmrl", "space": build_space(weight), "settings": {"regularizer.image_weight": 3.0}}
    config = StudyConfig.of(dataset=["dtd"], **options)
    records = Records(tmp_path, replace(study_records.study(), config=config), (), None, None)
    best = AverageBest({"regularizer.text_weight": 2.5}, False, {"dtd": 1.0, "eurosat": 1.0}, {})
    own = tmp_path / "average.yaml"
    own.write_text(recipe_text([records], best))
    for dataset in ("dtd", "stanford_cars", "eurosat"):
        found = configure(str(own), {"data.name": dataset}, protocol="base-to-new").flat()
        assert found["regularizer.text_weight"] == 2.5
        assert found["regularizer.image_weight"] == 3.0
        published = configure("mmrl", {"data.name": dataset}, protocol="base-to-new").flat()
        assert found["train.epochs"] == published["train.epochs"]
    own.write_text(recipe_text([records], replace(best, settings={}, is_default=True)))
    found = configure(str(own), {"data.name": "stanford_cars"}, protocol="base-to-new").flat()
    assert found["regularizer.text_weight"] == 7.0


@pytest.mark.parametrize(("options", "space"), [({}, "mmrl"), ({"space": SPACE}, "default")])
def test_the_recipe_of_a_recipe_file_keeps_the_space_of_the_studies(
    options: dict[str, Any], space: str, tmp_path: Path
) -> None:
    """A space that is defined in Python code cannot be named."""
    given = tmp_path / "given.yaml"
    given.write_text("space: mmrl\nsettings: {optim: {lr: 0.004}}\n")
    config = StudyConfig.of(dataset=["dtd"], method=str(given), **options)
    records = Records(tmp_path, replace(study_records.study(), config=config), (), None, None)
    own = tmp_path / "average.yaml"
    best = AverageBest({"optim.lr": 0.01}, False, {"dtd": 1.0, "eurosat": 1.0}, {})
    own.write_text(recipe_text([records], best))
    assert recipe(str(own)).space == space


def test_settings_by_dataset_that_the_chosen_kind_lacks_are_left_out(tmp_path: Path) -> None:
    kinds = {"regularizer.kind": {"type": "choice", "choices": ["cosine", "none"]}}
    config = StudyConfig.of(dataset=["dtd"], method="mmrl", space=build_space(kinds))
    records = Records(tmp_path, replace(study_records.study(), config=config), (), None, None)
    best = AverageBest({"regularizer.kind": "none"}, False, {"dtd": 1.0, "eurosat": 1.0}, {})
    own = tmp_path / "average.yaml"
    own.write_text(recipe_text([records], best))
    assert main(["methods", str(own)]) == 0, "all entries are valid"
    found = configure(str(own), {"data.name": "stanford_cars"}, protocol="base-to-new").flat()
    assert found["regularizer.kind"] == "none"


def test_settings_that_the_authors_chose_by_dataset_may_differ(tmp_path: Path) -> None:
    weight = {"regularizer.text_weight": {"type": "float", "low": 0.001, "high": 100.0, "log": True}}
    ranges = {**RATE, **weight}
    studies = []
    for seed, dataset in enumerate(("dtd", "stanford_cars", "eurosat")):
        config = StudyConfig.of(dataset=[dataset], method="mmrl", space=build_space(ranges))
        rng = random.Random(seed)
        trials = []
        for number in range(12):
            settings: dict[str, Any] = config.baseline_settings
            if number:
                settings = {
                    "optim.lr": 10 ** rng.uniform(-5, -1),
                    "regularizer.text_weight": rng.uniform(0.01, 9),
                }
            value = 60 + math.log10(settings["optim.lr"])
            runs = (RunScore(dataset, 0, value, value, value),)
            trial = study_records.trial(number, settings=DEFAULT, runs=runs, objective=value)
            trials.append(replace(trial, settings=settings))
        digests = {f"split of {dataset}": f"of {dataset}"}
        record = replace(study_records.study(), config=config, digests=digests)
        studies.append(Records(tmp_path / dataset, record, tuple(trials), None, None))
    best = average_best_of(studies)
    assert not best.is_default
    text = "\n".join(describe_average_best(studies, best))
    assert "(default: differs by dataset)" in text
    changed = StudyConfig.of(
        dataset=["eurosat"], method="mmrl", space=build_space(ranges), settings={"optim.weight_decay": 0.3}
    )
    studies[2] = replace(studies[2], study=replace(studies[2].study, config=changed))
    with pytest.raises(UserError, match=r"differ in optim\.weight_decay \(.* and 0\.3\)"):
        average_best_of(studies)


def test_only_settings_other_than_the_default_ones_are_described_as_untrained(tmp_path: Path) -> None:
    """Every study trains its default settings, as its baseline."""
    studies = [study(tmp_path / name, rate_gain, seed=0, dataset=name) for name in ("dtd", "eurosat")]
    chosen = AverageBest({"optim.lr": 0.01}, False, {"dtd": 1.0, "eurosat": 1.0}, {})
    default = AverageBest(DEFAULT, True, {"dtd": 0.0, "eurosat": 0.0}, {})
    assert "No run was trained with these settings" in "\n".join(describe_average_best(studies, chosen))
    assert "No run was trained" not in "\n".join(describe_average_best(studies, default))


def test_wrong_usage_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["defaults", str(tmp_path)]) == 2
    assert "does not contain a study" in capsys.readouterr().err
    assert main(["defaults", str(tmp_path), "--to", "average.txt"]) == 2
    assert "--to must be a YAML file" in capsys.readouterr().err


def test_results_do_not_depend_on_chance() -> None:
    rng = random.Random(0)
    gains = {name: gains_of(lambda _: rng.gauss(0, 1), seed) for seed, name in enumerate("ab")}
    assert find_average_best(gains, SPACE, DEFAULT) == find_average_best(gains, SPACE, DEFAULT)
