"""Settings that are best on average over the datasets of several studies (`prometar defaults`).

Studies sample different settings, so only the default settings have been trained on every dataset. For each
dataset, a random forest (scikit-learn) learns from its trials to predict the gain of settings: their score
minus that of the default settings. Candidates are the settings of all completed trials. The one with the
highest mean prediction is chosen, or the default settings if no mean is above 0.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prometar.cli.console import format_count
from prometar.config.recipes import Recipe, SettingsBySection, is_recipe_file, recipe
from prometar.config.sections import kind_field, settings_of_kind
from prometar.config.settings import Config, configure
from prometar.data.splits.objective import protocol_of
from prometar.errors import UserError, one_line
from prometar.io.yamltext import dump_yaml
from prometar.metrics import Interval, t_interval
from tune.config import StudyConfig
from tune.records.folder import Records
from tune.records.schema import RunScores, paired_differences
from tune.report.formatting import describe_difference, format_setting
from tune.space.ranges import Settings, Value
from tune.space.space import SHARED_SPACE, Space, built_in_spaces

NUM_TREES = 500
MIN_TRIALS = 5
"""Minimum number of trials of a dataset, including the baseline."""


@dataclass(frozen=True)
class MeasuredGain:
    """Gain of settings on one dataset: their score minus that of the default settings.

    Args:
        gain: Difference of the mean scores over the same seeds, in points.
        num_seeds: Number of these seeds.
    """

    settings: Settings
    gain: float
    num_seeds: int = 1


GainsByDataset = Mapping[str, Sequence[MeasuredGain]]


@dataclass(frozen=True)
class AverageBest:
    """Settings with the highest mean predicted gain.

    Args:
        settings: Chosen settings. These are the default settings if no other settings have a mean predicted
            gain above 0. Then `settings` is {} if the default settings differ between datasets.
        is_default: True if the default settings were chosen.
        predicted: Predicted gain by dataset. The mean overestimates the gain, because these settings were
            chosen for having the highest one.
        left_out: For each dataset, the gain that its trials predict for the settings that the *other*
            datasets choose. The mean of these gains has no such bias. {} for two datasets, because a choice
            from a single other dataset is not a choice on average.
    """

    settings: Settings
    is_default: bool
    predicted: Mapping[str, float]
    left_out: Mapping[str, float]

    @property
    def predicted_interval(self) -> Interval | None:
        """95% t-interval of the predicted gain over the datasets."""
        return t_interval(list(self.predicted.values()))

    @property
    def left_out_interval(self) -> Interval | None:
        """95% t-interval of the gain on datasets that were left out."""
        return t_interval(list(self.left_out.values()))


@dataclass(frozen=True)
class Choice:
    """Settings that can be chosen.

    Args:
        dataset: Dataset of the trial that used the settings. None: the default settings.
    """

    settings: Settings
    dataset: str | None = None


def find_average_best(gains: GainsByDataset, space: Space, default: Settings | None) -> AverageBest:
    """Return the settings with the highest mean predicted gain over datasets.

    Args:
        gains: Measured gains by dataset. The default settings have a gain of 0.
        space: Space from which all settings were sampled.
        default: Default settings, or None if each dataset has its own.
    """
    choices = [Choice(default or {})]
    for dataset, measured in gains.items():
        choices += [Choice(trial.settings, dataset) for trial in measured]
    candidates = [choice.settings for choice in choices]
    predictions: dict[str, NDArray[np.float64]] = {}  # by dataset, in the order of `choices`
    for dataset, measured in gains.items():
        predictions[dataset] = predict_gains(measured, candidates, space)
        predictions[dataset][0] = 0.0  # the default settings need no prediction

    def choose(datasets: Sequence[str]) -> int:
        """Return the index of the choice with the highest mean prediction over `datasets`.

        Only the default settings and those of trials on `datasets` can be chosen.
        """
        means = np.mean([predictions[name] for name in datasets], axis=0)
        allowed: list[int] = []
        for index, choice in enumerate(choices):
            if choice.dataset is None or choice.dataset in datasets:
                allowed.append(index)
        # Of several maxima, `max` returns the first. The default settings are the first choice.
        return max(allowed, key=lambda index: means[index])

    best = choose(list(gains))
    settings = choices[best].settings
    has_default_values = default is not None and settings == default  # those of a trial may be equal
    is_default = choices[best].dataset is None or has_default_values
    left_out: dict[str, float] = {}
    if len(gains) > 2:
        for name in gains:
            others = [other for other in gains if other != name]
            left_out[name] = float(predictions[name][choose(others)])
    return AverageBest(
        settings=settings,
        is_default=is_default,
        predicted={name: float(values[best]) for name, values in predictions.items()},
        left_out=left_out,
    )


def predict_gains(
    measured: Sequence[MeasuredGain], candidates: Sequence[Settings], space: Space
) -> NDArray[np.float64]:
    """Predict the gain of each candidate on a dataset from the gains measured on it.

    A random forest (Breiman, "Random Forests", Machine Learning 45, 2001) averages over trees that were each
    fitted to a bootstrap sample. Predictions are therefore shrunk toward the mean gain of all trials.
    """
    from sklearn.ensemble import RandomForestRegressor  # loads scikit-learn, which takes a second

    forest = RandomForestRegressor(NUM_TREES, max_features=1 / 3, random_state=0)
    features = np.array([settings_features(trial.settings, space) for trial in measured])
    targets = [trial.gain for trial in measured]
    forest.fit(features, targets, sample_weight=[trial.num_seeds for trial in measured])
    candidate_features = [settings_features(settings, space) for settings in candidates]
    predicted: NDArray[np.float64] = forest.predict(candidate_features)
    return predicted


def settings_features(settings: Settings, space: Space) -> list[float]:
    """Return the features of settings, from which a forest predicts their gain.

    A numeric setting is one feature: its value, or the logarithm if its range has a log scale, and NaN if the
    setting is inactive. A choice is one feature per option: 1 if the option is chosen, else 0.
    """
    features: list[float] = []
    for key, entry in space.ranges.items():
        value = settings.get(key)
        if entry.type == "choice":
            features += [float(value is not None and value == choice) for choice in entry.choices]
        elif value is None:
            features.append(math.nan)
        else:
            features.append(math.log(float(value)) if entry.log else float(value))
    return features


# Studies


def average_best_of(studies: Sequence[Records]) -> AverageBest:
    """Return the settings that are best on average over the datasets of studies.

    Several studies of one dataset count as one dataset.

    Raises:
        UserError: there are fewer than two datasets, the studies differ in more than their datasets, a search
            has read test images, or a dataset has too few completed trials.
    """
    for records in studies:
        if records.study.reads_test_images:
            raise UserError(
                f"{records.folder} has scores of test images. Pass studies with another objective."
            )
    _require_same_options(studies)
    gains: dict[str, list[MeasuredGain]] = {}
    for label, parts in _by_dataset(studies).items():
        gains[label] = []
        for records, name in parts:
            gains[label] += measured_gains(records, name)
    if len(gains) < 2:
        raise UserError("Pass studies of at least two datasets. The best settings of one are in best.yaml.")
    for name, measured in gains.items():
        if len(measured) < MIN_TRIALS:
            count = format_count(len(measured), "completed trial")
            raise UserError(f"{name} has {count}, but {MIN_TRIALS} are needed. Extend its study (--trials).")
    defaults = _default_settings(studies)
    are_equal = all(settings == defaults[0] for settings in defaults)
    default = defaults[0] if are_equal else None
    return find_average_best(gains, studies[0].config.search.space, default)


class StudyDataset(NamedTuple):
    """Dataset of a study, by its name in the study."""

    records: Records
    name: str


def _datasets_of(studies: Sequence[Records]) -> list[StudyDataset]:
    """Return all datasets of all studies, in order."""
    parts: list[StudyDataset] = []
    for records in studies:
        parts += [StudyDataset(records, name) for name in records.config.search.datasets]
    return parts


def _default_settings(studies: Sequence[Records]) -> list[Settings]:
    """Return the default values of the searched settings for each study and dataset."""
    return [_default_settings_on(records.config, name) for records, name in _datasets_of(studies)]


def _default_settings_on(config: StudyConfig, dataset: str) -> Settings:
    """Return the default values of the searched settings of a study on one of its datasets."""
    values = _baseline_on(config, dataset).flat()
    settings: dict[str, Value] = {}
    for key, entry in config.search.space.ranges.items():
        # The condition of a range refers only to earlier ranges, whose values are already in `settings`.
        if key in values and entry.is_active(settings):
            settings[key] = values[key]
    return settings


def _baseline_on(config: StudyConfig, dataset: str) -> Config:
    return config.baselines[config.search.datasets.index(dataset)]


def _by_dataset(studies: Sequence[Records]) -> dict[str, list[StudyDataset]]:
    """Return the datasets of studies by label. Studies of the same dataset, with equal splits, share a label.

    The label is the name of the dataset. If several datasets have this name, such as `folder`, the label is
    `NAME (STUDY)`. STUDY is the folder name of the dataset's first study, or the path of this folder if
    several folders have this name.
    """
    by_split: dict[tuple[str, str], list[StudyDataset]] = {}  # by name and digest of the split
    for part in _datasets_of(studies):
        digest = part.records.study.digests.get(f"split of {part.name}", "")
        by_split.setdefault((part.name, digest), []).append(part)
    num_splits = Counter(name for name, _ in by_split)  # by name of the dataset
    first_folders = [parts[0].records.folder for parts in by_split.values()]
    num_folders = Counter(folder.name for folder in set(first_folders))  # by folder name
    by_label: dict[str, list[StudyDataset]] = {}
    for ((name, _), parts), folder in zip(by_split.items(), first_folders, strict=True):
        label = name
        if num_splits[name] > 1:
            study = folder.name if num_folders[folder.name] == 1 else str(folder)
            label = f"{name} ({study})"
        by_label[label] = parts
    return by_label


def measured_gains(records: Records, dataset: str) -> list[MeasuredGain]:
    """Return the measured gain of each completed trial of a study on a dataset.

    The gain of a confirmed trial is computed from the runs on which the selection of the confirmation is
    based (`tune.records.schema.Candidate.runs`).

    Raises:
        UserError: the trial with the default settings was not completed.
    """
    baseline = records.baseline
    if baseline is None or baseline.state != "COMPLETE":
        raise UserError(f"{records.folder}: the baseline trial failed. Rerun the command of that study.")
    confirmed: dict[int, RunScores] = {}  # runs by trial number
    confirmed_baseline: RunScores | None = None
    confirmation = records.confirmation
    if confirmation is not None and confirmation.seeds:  # without fresh seeds, no trial was rerun
        for candidate in confirmation.candidates:
            confirmed[candidate.number] = candidate.runs
            if candidate.is_baseline:
                confirmed_baseline = candidate.runs
    gains: list[MeasuredGain] = []
    for trial in records.completed:
        runs = trial.runs
        baseline_runs = baseline.runs
        if confirmed_baseline is not None and trial.number in confirmed:
            runs = confirmed[trial.number]
            baseline_runs = confirmed_baseline
        differences = paired_differences(_on(dataset, runs), _on(dataset, baseline_runs)).values()
        if differences:
            settings = trial.settings
            if settings == records.config.baseline_settings:  # each dataset has its own default settings
                settings = _default_settings_on(records.config, dataset)
            gains.append(MeasuredGain(settings, mean(differences), len(differences)))
    return gains


def _on(dataset: str, runs: RunScores) -> RunScores:
    return tuple(run for run in runs if run.dataset == dataset)


def _require_same_options(studies: Sequence[Records]) -> None:
    """Check that studies differ only in datasets, seeds and budgets.

    Settings that the method's authors chose by dataset may differ.

    Raises:
        UserError: another option differs.
    """
    first, *others = _datasets_of(studies)
    expected = _options(first.records.config, first.name)
    for other in others:
        options = _options(other.records.config, other.name)
        for key in sorted(expected.keys() | options.keys()):
            if options.get(key) != expected.get(key):
                raise UserError(_difference_message(first, other, key))


def _difference_message(first: StudyDataset, other: StudyDataset, key: str) -> str:
    """Return the message that the option `key` differs between two studies."""
    fix = "Pass studies that differ only in their datasets."
    if is_recipe_file(other.records.config.baseline.method):
        fix += " Settings by dataset are supported for built-in methods only."
    names = f"{_name_of(first)} and {_name_of(other)}"
    values = f"{_value_of(first, key)} and {_value_of(other, key)}"
    return f"{names} differ in {key} ({values}). {fix}"


def _name_of(part: StudyDataset) -> str:
    """Return the name of a study in messages, with the dataset if there are several."""
    folder = part.records.folder
    if len(part.records.config.search.datasets) == 1:
        return str(folder)
    return f"{folder} on {part.name}"


def _value_of(part: StudyDataset, key: str) -> object:
    """Return the value of an option or setting, or "absent"."""
    config = part.records.config
    options = _options(config, part.name)
    if key in options:
        return options[key]
    # Options do not contain settings with their published values.
    return _baseline_on(config, part.name).flat().get(key, "absent")


def _options(config: StudyConfig, dataset: str) -> dict[str, object]:
    """Return what must be equal in all studies, for one dataset of a study."""
    baseline = _baseline_on(config, dataset)
    options: dict[str, object] = {"method": baseline.method, "objective": config.search.objective}
    for key, text in config.search.space.describe().items():
        options[f"space.{key}"] = text
    for key, value in baseline.identity().items():
        # Studies of several datasets differ in the name of the dataset and in the arguments of its loader.
        names_dataset = key == "data.name" or key.startswith("data.args")
        if key.startswith(("data.", "backbone.")) and not names_dataset:
            options[key] = value
    return options | _unpublished_settings(config, dataset, baseline)


def _unpublished_settings(config: StudyConfig, dataset: str, run: Config) -> dict[str, object]:
    """Return the settings of a run that the study's options changed from the method's published ones.

    The published settings of a recipe file are unknown, because the file may have changed since the study. A
    run of a recipe file is therefore compared with the settings of ProMetaR (`Config()`).
    """
    published = Config()
    if not is_recipe_file(config.baseline.method):
        data = {"data.name": dataset, "data.shots": config.baseline.data.shots}
        protocol = protocol_of(config.search.objective)
        published = configure(config.baseline.method, data, protocol=protocol)
    return _differences(run, published)


def _differences(run: Config, published: Config) -> dict[str, object]:
    """Return the settings of a method in `run` that differ from `published`."""
    before = published.flat()
    differences: dict[str, object] = {}
    for key, value in run.flat().items():
        section, _, _ = key.partition(".")
        is_of_method = section not in {"method", "data", "backbone"} and key != "train.seed"
        has_changed = key not in before or before[key] != value
        if is_of_method and has_changed:
            differences[key] = value
    return differences


# Recipe


def recipe_text(studies: Sequence[Records], best: AverageBest) -> str:
    """Return a recipe (`--method FILE.yaml`) with the chosen settings, as YAML.

    The recipe starts from that of the studies' method, including the settings by dataset (`by`). The options
    of the studies override them, and the chosen settings override both. The number of epochs is that of the
    studies' final tests, unless the epochs were searched.
    """
    config = studies[0].config
    dataset = config.search.datasets[0]
    method = config.baseline.method
    default = config.run_config(
        config.baseline_settings, dataset=dataset, seed=config.search.seed, final_epochs=True
    )
    overrides = _unpublished_settings(config, dataset, default)
    fixed = set(overrides)
    if not best.is_default:
        overrides |= best.settings
        fixed |= config.search.space.ranges.keys()
    if is_recipe_file(method):
        base = Recipe(settings={})
        run = Config().override(overrides)
    else:
        base = recipe(method)
        run = configure(method).override(overrides)
    # A recipe contains the settings that differ from those of ProMetaR.
    sections: dict[str, dict[str, object]] = {}
    for key, value in _differences(run, Config()).items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value

    folders = ", ".join(str(records.folder) for records in studies)
    content: dict[str, object] = {
        "title": f"{method}, average best",
        "about": one_line(f"best on average on {', '.join(best.predicted)}"),
        "source": one_line(f"prometar defaults {folders}"),
        "space": _space_name(config),
        "settings": sections,
    }
    entries = list(_entries(base, run, fixed))
    if entries:
        content["by"] = entries
    return dump_yaml(content)


def _space_name(config: StudyConfig) -> str:
    """Return the name of the space that later studies of the new recipe search.

    For a built-in method, it is the space of its recipe. For a recipe file, which may have changed or moved,
    it is the space of `config`. If that space is neither built in nor a file, it is the shared space.
    """
    method = config.baseline.method
    if not is_recipe_file(method):
        return recipe(method).space
    name = config.search.space.name
    if name in built_in_spaces() or Path(name).is_file():
        return name
    return SHARED_SPACE


def _entries(base: Recipe, run: Config, fixed: Collection[str]) -> Iterator[dict[str, object]]:
    """Yield the entries of `by` in the new recipe: those of `base` without some of their settings.

    The entries of a recipe win over its settings. They therefore leave out settings that the user or the
    search chose. They also leave out settings that the kind of their section does not have.

    Args:
        base: Recipe of the studies' method.
        run: Configuration with the settings of the new recipe.
        fixed: Dotted keys of the settings that the user or the search chose.
    """
    values = run.flat()
    for entry in base.by:
        kept: SettingsBySection = {}
        for section, settings in entry.settings.items():
            not_fixed = {name: value for name, value in settings.items() if f"{section}.{name}" not in fixed}
            # The kind of a section, such as the kind of optimizer, determines which settings it has.
            field = kind_field(section)
            kind = not_fixed.get(field, values.get(f"{section}.{field}"))
            known = settings_of_kind(section, kind)
            used = {name: value for name, value in not_fixed.items() if name in known}
            if used:
                kept[section] = used
        if kept:
            yield {**entry.model_dump(mode="json", exclude_none=True), "settings": kept}


def describe_average_best(studies: Sequence[Records], best: AverageBest) -> Iterator[str]:
    """Yield lines that describe the chosen settings and their predicted gain."""
    defaults = _default_settings(studies)
    score = studies[0].study.score_name
    if best.is_default:
        yield "The default settings: no other settings have a positive mean predicted gain."
    else:
        yield "Settings that are best on average, as predicted from the trials of each dataset:"
        for key, value in best.settings.items():
            yield f"  {key} = {format_setting(value)}{_change_of(key, value, defaults)}"
    for name, gain in best.predicted.items():
        left_out = ""
        if name in best.left_out:
            left_out = f", {best.left_out[name]:+.2f} if chosen without it"
        yield one_line(f"{name}: predicted gain in the score ({score}) {gain:+.2f}{left_out}")
    if best.predicted_interval and not best.is_default:
        measured = describe_difference(best.predicted_interval)
        yield f"Mean predicted gain over the datasets: {measured}."
        yield (
            "The mean overestimates the gain, because these settings were chosen for having the highest one."
        )
    if best.left_out_interval:
        measured = describe_difference(best.left_out_interval)
        yield f"Mean predicted gain on a dataset that was left out of the choice: {measured}."
    if not best.is_default:
        yield "No run was trained with these settings on all datasets. Test them with `prometar reproduce`."


def _change_of(key: str, value: Value, defaults: Sequence[Settings]) -> str:
    """Return the default value of a setting in parentheses, or "" if it is `value` on all datasets."""
    default = defaults[0].get(key)
    if any(each.get(key) != default for each in defaults):
        return " (default: differs by dataset)"
    if default == value:
        return ""
    return f" (default: {format_setting(default)})"
