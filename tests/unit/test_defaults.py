"""`prometar defaults`: settings that are best on average over the datasets of several studies."""

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
from tune.records.schema import Candidate, Confirmation, RunScore, StudyRecord, TrialRecord
from tune.reproduce.grid import PROTOCOLS
from tune.space.space import build_space

SPACE = build_space(RANGES)
Gain = Callable[[dict[str, Any]], float]


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train small forests, which are fast. No test depends on their size."""
    monkeypatch.setattr("tune.defaults.NUM_TREES", 50)


def sampled(seed: int, number: int) -> list[dict[str, Any]]:
    """Random settings of `number` trials, which differ for each seed."""
    first = 100 * seed + 1
    return [study_records.settings_of(trial) for trial in range(first, first + number)]


def rate_gain(settings: dict[str, Any]) -> float:
    """Gain that grows with the learning rate. It is 0 for that of the default settings."""
    return 5 * math.log10(settings["optim.lr"] / DEFAULT["optim.lr"])


def study(
    folder: Path, gain: Gain, *, seed: int, trials: int = 20, dataset: str = "dtd", **options: Any
) -> Records:
    """Return a study of the default settings and of random ones, with two seeds per trial.

    Args:
        folder: Folder of the study, which is not written.
        gain: Function that returns the gain of settings. Scores are 60 plus the gain, and default settings
            gain nothing.
        seed: Seed of the random settings.
        trials: Number of trials with random settings.
        dataset: Name of the dataset.
        options: Further options of the study.
    """
    gains = [(DEFAULT, 0.0)]
    for settings in sampled(seed, trials):
        gains.append((settings, gain(settings)))
    records = []
    for number, (settings, points) in enumerate(gains):
        score = 60 + points
        runs = tuple(
            RunScore(dataset, run_seed, base=score, new=score, objective=score + run_seed)
            for run_seed in (0, 1)
        )
        records.append(study_records.trial(number, settings=settings, runs=runs, objective=score))
    record = study_records.study(dataset=[dataset], **options)
    digests = {**record.digests, f"split of {dataset}": f"of {dataset}"}
    return records_of(folder, replace(record, digests=digests), records)


def records_of(folder: Path, record: StudyRecord, trials: Sequence[TrialRecord] = ()) -> Records:
    """Return the records of a study whose confirmation and final test have not finished."""
    return Records(folder, record, tuple(trials), confirmation=None, final_test=None)


def with_other_images(records: Records) -> Records:
    """Return a study of other images of the dataset dtd."""
    record = replace(records.study, digests={"split of dtd": "other images"})
    return replace(records, study=record)


def gains_of(gain: Gain, seed: int, number: int = 20) -> list[MeasuredGain]:
    """Return the gains of the default settings, which is 0, and of random settings."""
    gains = [MeasuredGain(DEFAULT, 0.0)]
    for settings in sampled(seed, number):
        gains.append(MeasuredGain(settings, gain(settings)))
    return gains


def negative_rate_gain(settings: dict[str, Any]) -> float:
    """Gain that falls with the learning rate."""
    return -rate_gain(settings)


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
    gains = {
        "a": gains_of(rate_gain, 1),
        "b": gains_of(lambda settings: negative_rate_gain(settings) - 20, 2),
    }
    best = find_average_best(gains, SPACE, DEFAULT)
    assert best.is_default
    assert best.settings == DEFAULT
    assert best.predicted == {"a": 0.0, "b": 0.0}
    assert best.left_out == {}, "a choice from one other dataset is not a choice on average"


def test_a_dataset_that_was_left_out_can_show_that_nothing_transfers() -> None:
    gains = {"a": gains_of(rate_gain, 1), "b": gains_of(rate_gain, 2)}
    gains["c"] = gains_of(negative_rate_gain, 3)
    best = find_average_best(gains, SPACE, DEFAULT)
    assert best.left_out["c"] < 0 < best.predicted["a"]


def test_inactive_settings_and_choices_are_predicted() -> None:
    measured = []
    for settings in sampled(1, 40):
        gain = 5.0 if settings["regularizer.kind"] == "none" else -5.0
        measured.append(MeasuredGain(settings, gain))
    without_regularizer = {**DEFAULT, "regularizer.kind": "none"}
    del without_regularizer["regularizer.text_weight"]  # inactive
    gain_with, gain_without = predict_gains(measured, [DEFAULT, without_regularizer], SPACE)
    assert gain_with < -2
    assert gain_without > 2


def test_gains_are_paired_with_the_baseline_by_seed(tmp_path: Path) -> None:
    records = study(tmp_path / "s", rate_gain, seed=1, trials=2)
    measured = gains_by_settings(records)
    for settings in sampled(1, 2):
        assert measured[str(settings)].gain == pytest.approx(rate_gain(settings))
        assert measured[str(settings)].num_seeds == 2


def gains_by_settings(records: Records) -> dict[str, MeasuredGain]:
    """Return the measured gains on dtd, by the text of the settings."""
    return {str(measured.settings): measured for measured in measured_gains(records, "dtd")}


def test_confirmed_trials_have_the_gain_of_their_confirmation(tmp_path: Path) -> None:
    records = study(tmp_path / "s", rate_gain, seed=1, trials=2)
    seeds = (1, 2, 3)
    candidates = []
    for trial in records.trials[:2]:
        runs = tuple(RunScore("dtd", seed, objective=70.0 - 3 * trial.number) for seed in seeds)
        candidates.append(Candidate(trial.number, trial.is_baseline, trial.settings, runs))
    confirmation = Confirmation(seeds, tuple(candidates), selected_number=0)

    measured = gains_by_settings(replace(records, confirmation=confirmation))

    confirmed, unconfirmed = sampled(1, 2)
    assert measured[str(confirmed)].gain == -3.0
    assert measured[str(confirmed)].num_seeds == 3
    assert measured[str(unconfirmed)].gain == pytest.approx(rate_gain(unconfirmed))


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
    first = study(tmp_path / "a", rate_gain, seed=0)
    second = with_other_images(study(tmp_path / "b", rate_gain, seed=1))
    assert average_best_of([first, second]).predicted.keys() == {"dtd (a)", "dtd (b)"}


def test_datasets_and_studies_with_the_same_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    folders = [tmp_path / "first" / "own", tmp_path / "second" / "own"]
    first = study(folders[0], rate_gain, seed=0)
    second = with_other_images(study(folders[1], rate_gain, seed=1))
    best = average_best_of([first, second])
    assert best.predicted.keys() == {f"dtd ({folder})" for folder in folders}


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


def test_a_study_whose_baseline_trial_failed_is_refused(tmp_path: Path) -> None:
    whole = study(tmp_path / "a", rate_gain, seed=1)
    failed = replace(whole, trials=whole.trials[1:])
    other = study(tmp_path / "b", rate_gain, seed=2, dataset="eurosat")
    with pytest.raises(UserError, match="the baseline trial failed"):
        average_best_of([failed, other])


def write(studies: Sequence[Records]) -> list[str]:
    """Write the folders of studies. Return their paths."""
    return [str(study_records.write(records.folder, records)) for records in studies]


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
"""Range of the learning rate."""
TEXT_WEIGHT = {"regularizer.text_weight": {"type": "float", "low": 0.001, "high": 100.0, "log": True}}
"""Range of the weight of the distance between text features."""


def written_recipe(
    folder: Path, config: StudyConfig, settings: dict[str, Any], *, is_default: bool = False
) -> str:
    """Write the recipe that results if these settings of a study are chosen. Return its path."""
    records = records_of(folder, replace(study_records.study(), config=config))
    path = folder / "average.yaml"
    path.write_text(recipe_text([records], choice(settings, is_default=is_default)))
    return str(path)


def choice(settings: dict[str, Any], *, is_default: bool = False) -> AverageBest:
    """Return a choice of settings for two datasets. They gain a point, and the default settings gain 0."""
    gain = 0.0 if is_default else 1.0
    return AverageBest(settings, is_default, predicted={"dtd": gain, "eurosat": gain}, left_out={})


@pytest.mark.parametrize("dataset", ["dtd", "stanford_cars", "imagenet"])
@pytest.mark.parametrize("method", ["coop", "maple", "mmrl", "prometar"])
def test_a_recipe_repeats_all_settings_of_its_method(method: str, dataset: str, tmp_path: Path) -> None:
    """It also repeats those for datasets of which there is no study."""
    config = StudyConfig.of(dataset=["dtd"], method=method, space=build_space(RATE), epochs=4)
    own = written_recipe(tmp_path, config, {"optim.lr": 0.01})
    for protocol in PROTOCOLS:
        expected = configure(method, {"data.name": dataset, "optim.lr": 0.01}, protocol=protocol).flat()
        repeated = configure(own, {"data.name": dataset}, protocol=protocol).flat()
        assert {**repeated, "method": method} == expected
    assert recipe(own).space == recipe(method).space


def study_of_text_weight() -> StudyConfig:
    """Study of MMRL, which has other published text weights for some datasets, with a given image weight."""
    return StudyConfig.of(
        dataset=["dtd"],
        method="mmrl",
        space=build_space(TEXT_WEIGHT),
        settings={"regularizer.image_weight": 3.0},
    )


@pytest.mark.parametrize("dataset", ["dtd", "stanford_cars", "eurosat"])
def test_searched_and_given_settings_replace_those_by_dataset(dataset: str, tmp_path: Path) -> None:
    own = written_recipe(tmp_path, study_of_text_weight(), {"regularizer.text_weight": 2.5})
    config = configure(own, {"data.name": dataset}, protocol="base-to-new")
    assert config.regularizer.text_weight == 2.5
    assert config.regularizer.image_weight == 3.0
    published = configure("mmrl", {"data.name": dataset}, protocol="base-to-new")
    assert config.train.epochs == published.train.epochs


def test_settings_by_dataset_stay_if_the_default_settings_are_chosen(tmp_path: Path) -> None:
    own = written_recipe(tmp_path, study_of_text_weight(), {}, is_default=True)
    config = configure(own, {"data.name": "stanford_cars"}, protocol="base-to-new")
    assert config.regularizer.text_weight == 7.0


@pytest.mark.parametrize(("options", "space"), [({}, "mmrl"), ({"space": SPACE}, "default")])
def test_the_recipe_of_a_recipe_file_keeps_the_space_of_the_studies(
    options: dict[str, Any], space: str, tmp_path: Path
) -> None:
    """A space that is defined in Python code cannot be named."""
    given = tmp_path / "given.yaml"
    given.write_text("space: mmrl\nsettings: {optim: {lr: 0.004}}\n")
    config = StudyConfig.of(dataset=["dtd"], method=str(given), **options)
    own = written_recipe(tmp_path, config, {"optim.lr": 0.01})
    assert recipe(own).space == space


def test_settings_by_dataset_that_the_chosen_kind_lacks_are_left_out(tmp_path: Path) -> None:
    kinds = {"regularizer.kind": {"type": "choice", "choices": ["cosine", "none"]}}
    config = StudyConfig.of(dataset=["dtd"], method="mmrl", space=build_space(kinds))
    own = written_recipe(tmp_path, config, {"regularizer.kind": "none"})
    assert main(["methods", own]) == 0, "all entries are valid"
    on_cars = configure(own, {"data.name": "stanford_cars"}, protocol="base-to-new")
    assert on_cars.regularizer.kind == "none"


def mmrl_config(dataset: str, **options: Any) -> StudyConfig:
    """Configuration of a study of MMRL that searches the learning rate and the text weight."""
    space = build_space({**RATE, **TEXT_WEIGHT})
    return StudyConfig.of(dataset=[dataset], method="mmrl", space=space, **options)


def mmrl_study(folder: Path, dataset: str, seed: int) -> Records:
    """Study of MMRL, whose scores grow with the learning rate."""
    config = mmrl_config(dataset)
    rng = random.Random(seed)
    settings_of_trials: list[dict[str, Any]] = [config.baseline_settings]
    for _ in range(11):
        lr = 10 ** rng.uniform(-5, -1)
        settings_of_trials.append({"optim.lr": lr, "regularizer.text_weight": rng.uniform(0.01, 9)})
    trials = []
    for number, settings in enumerate(settings_of_trials):
        score = 60 + math.log10(settings["optim.lr"])
        run = RunScore(dataset, 0, base=score, new=score, objective=score)
        # `trial` computes scores from the default settings, because it needs settings that `RANGES` has.
        trial = study_records.trial(number, settings=DEFAULT, runs=(run,), objective=score)
        trials.append(replace(trial, settings=settings))
    digests = {f"split of {dataset}": f"of {dataset}"}
    return records_of(folder, replace(study_records.study(), config=config, digests=digests), trials)


def test_settings_that_the_authors_chose_by_dataset_may_differ(tmp_path: Path) -> None:
    datasets = ("dtd", "stanford_cars", "eurosat")
    studies = [mmrl_study(tmp_path / name, name, seed) for seed, name in enumerate(datasets)]
    best = average_best_of(studies)
    assert not best.is_default
    text = "\n".join(describe_average_best(studies, best))
    assert "(default: differs by dataset)" in text


def test_settings_that_the_user_chose_must_not_differ(tmp_path: Path) -> None:
    first = mmrl_study(tmp_path / "a", "dtd", seed=0)
    second = mmrl_study(tmp_path / "b", "eurosat", seed=2)
    config = mmrl_config("eurosat", settings={"optim.weight_decay": 0.3})
    changed = replace(second, study=replace(second.study, config=config))
    with pytest.raises(UserError, match=r"differ in optim\.weight_decay \(.* and 0\.3\)"):
        average_best_of([first, changed])


def test_only_settings_other_than_the_default_ones_are_described_as_untrained(tmp_path: Path) -> None:
    """Every study trains its default settings, as its baseline."""
    studies = [study(tmp_path / name, rate_gain, seed=0, dataset=name) for name in ("dtd", "eurosat")]
    of_other_settings = "\n".join(describe_average_best(studies, choice({"optim.lr": 0.01})))
    of_default_settings = "\n".join(describe_average_best(studies, choice(DEFAULT, is_default=True)))
    assert "No run was trained with these settings" in of_other_settings
    assert "No run was trained" not in of_default_settings


def test_wrong_usage_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["defaults", str(tmp_path)]) == 2
    assert "does not contain a study" in capsys.readouterr().err
    assert main(["defaults", str(tmp_path), "--to", "average.txt"]) == 2
    assert "--to must be a YAML file" in capsys.readouterr().err


def test_results_do_not_depend_on_chance() -> None:
    rng = random.Random(0)

    def random_gain(settings: dict[str, Any]) -> float:
        return rng.gauss(0, 1)

    gains = {"a": gains_of(random_gain, 0), "b": gains_of(random_gain, 1)}
    assert find_average_best(gains, SPACE, DEFAULT) == find_average_best(gains, SPACE, DEFAULT)
