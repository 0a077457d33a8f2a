"""Settings that are best on average over the datasets of several studies (`prometar defaults`).

Studies sample different settings, so only the default settings have been trained on every dataset. For each
dataset, a random forest (scikit-learn) learns from its trials to predict the gain of settings: their score
minus that of the default settings. Candidates are the settings of all completed trials. The one with the
highest mean prediction is chosen, or the default settings if no mean is above 0.
"""

import math
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
        settings: Chosen settings, or the default settings if no other settings have a mean gain above 0
            (empty if datasets have different default settings).
        predicted: Predicted gain by dataset. The mean overestimates the gain, because these settings were
            chosen for having the highest one.
        left_out: For each dataset, the gain that its trials predict for the settings that the *other*
            datasets choose. The mean has no such bias. Empty if there is only one other dataset.
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
class Candidate:
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
    candidates = [Candidate(default or {})]
    for dataset, found in gains.items():
        candidates += [Candidate(each.settings, dataset) for each in found]
    predictions: dict[str, NDArray[np.float64]] = {}
    for dataset, found in gains.items():
        predictions[dataset] = predict_gains(found, [each.settings for each in candidates], space)
        predictions[dataset][0] = 0.0  # the default settings need no prediction

    def choose(datasets: Sequence[str]) -> int:
        """Return the index of the candidate with the highest mean prediction over `datasets`.

        Only the settings of their own trials and the default settings can be chosen.
        """
        means = np.mean([predictions[name] for name in datasets], axis=0)
        allowed = [
            index
            for index, candidate in enumerate(candidates)
            if candidate.dataset is None or candidate.dataset in datasets
        ]
        return max(allowed, key=lambda index: means[index])  # the first of equal ones: the default settings

    best = choose(list(gains))
    settings = candidates[best].settings
    left_out = {}
    if len(gains) > 2:
        for name in gains:
            others = [other for other in gains if other != name]
            left_out[name] = float(predictions[name][choose(others)])
    return AverageBest(
        settings=settings,
        is_default=candidates[best].dataset is None or (default is not None and settings == default),
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
    features = np.array([settings_features(each.settings, space) for each in measured])
    weights = [each.num_seeds for each in measured]
    forest.fit(features, [each.gain for each in measured], sample_weight=weights)
    predicted: NDArray[np.float64] = forest.predict([settings_features(each, space) for each in candidates])
    return predicted


def settings_features(settings: Settings, space: Space) -> list[float]:
    """Return settings as numbers: one for a number (NaN if inactive), and one per choice (1 if chosen)."""
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
    for study in studies:
        if study.study.reads_test_images:
            raise UserError(f"{study.folder} has scores of test images. Pass studies with another objective.")
    _require_same_options(studies)
    gains: dict[str, list[MeasuredGain]] = {}
    for label, parts in _by_dataset(studies).items():
        gains[label] = []
        for study, name in parts:
            gains[label] += measured_gains(study, name)
    if len(gains) < 2:
        raise UserError("Pass studies of at least two datasets. The best settings of one are in best.yaml.")
    for name, found in gains.items():
        if len(found) < MIN_TRIALS:
            count = format_count(len(found), "completed trial")
            raise UserError(f"{name} has {count}, but {MIN_TRIALS} are needed. Extend its study (--trials).")
    defaults = _default_settings(studies)
    default = defaults[0] if all(each == defaults[0] for each in defaults) else None
    return find_average_best(gains, studies[0].config.search.space, default)


def _default_settings(studies: Sequence[Records]) -> list[Settings]:
    """Return the default values of the searched settings for each study and dataset."""
    return [
        _default_settings_on(study.config, dataset)
        for study in studies
        for dataset in study.config.search.datasets
    ]


def _default_settings_on(config: StudyConfig, dataset: str) -> Settings:
    """Return the default values of the searched settings of a study on one of its datasets."""
    values = _baseline_on(config, dataset).flat()
    settings: dict[str, Value] = {}
    for key, entry in config.search.space.ranges.items():
        if key in values and entry.is_active(settings):
            settings[key] = values[key]
    return settings


def _baseline_on(config: StudyConfig, dataset: str) -> Config:
    return config.baselines[config.search.datasets.index(dataset)]


class StudyDataset(NamedTuple):
    """Dataset of a study, by its name in the study."""

    study: Records
    name: str


def _by_dataset(studies: Sequence[Records]) -> dict[str, list[StudyDataset]]:
    """Return the datasets of studies by label. Studies of the same dataset share a label.

    The label is the dataset's name. Datasets that share a name, such as `folder`, are told apart by their
    splits. Then the label of each includes the name of its first study.
    """
    by_split: dict[tuple[str, str], list[StudyDataset]] = {}
    for study in studies:
        for name in study.config.search.datasets:
            digest = study.study.digests.get(f"split of {name}", "")
            by_split.setdefault((digest, name), []).append(StudyDataset(study, name))
    names = [name for _, name in by_split]
    by_label: dict[str, list[StudyDataset]] = {}
    for (_, name), parts in by_split.items():
        label = name
        if names.count(name) > 1:
            label = f"{name} ({parts[0].study.folder.name})"
        by_label.setdefault(label, []).extend(parts)
    return by_label


def measured_gains(study: Records, dataset: str) -> list[MeasuredGain]:
    """Return the measured gain of each completed trial of a study on a dataset.

    The gain of a confirmed trial is that on the seeds of the confirmation (`Candidate.runs`).

    Raises:
        UserError: the trial with the default settings was not completed.
    """
    baseline = study.baseline
    if baseline is None or baseline.state != "COMPLETE":
        raise UserError(f"{study.folder}: the baseline trial failed. Rerun the command of that study.")
    candidates = study.confirmation.candidates if study.confirmation and study.confirmation.seeds else ()
    confirmed = {each.number: each.runs for each in candidates}
    confirmed_baseline = next((each.runs for each in candidates if each.is_baseline), None)
    found = []
    for trial in study.completed:
        runs = trial.runs
        baseline_runs = baseline.runs
        if confirmed_baseline is not None and trial.number in confirmed:
            runs = confirmed[trial.number]
            baseline_runs = confirmed_baseline
        differences = paired_differences(_on(dataset, runs), _on(dataset, baseline_runs)).values()
        if differences:
            settings = trial.settings
            if settings == study.config.baseline_settings:  # each dataset has its own default settings
                settings = _default_settings_on(study.config, dataset)
            found.append(MeasuredGain(settings, mean(differences), len(differences)))
    return found


def _on(dataset: str, runs: RunScores) -> RunScores:
    return tuple(run for run in runs if run.dataset == dataset)


def _require_same_options(studies: Sequence[Records]) -> None:
    """Raise a UserError if studies differ in more than datasets, seeds and budgets.

    Settings that the method's authors chose by dataset may differ.
    """
    pairs = [(study, dataset) for study in studies for dataset in study.config.search.datasets]
    first, first_dataset = pairs[0]
    ours = _options(first.config, first_dataset)
    for study, dataset in pairs[1:]:
        theirs = _options(study.config, dataset)
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                our_name = _name_of(first, first_dataset)
                their_name = _name_of(study, dataset)
                # Options leave out published settings, whose values are in the baseline.
                our_baseline = _baseline_on(first.config, first_dataset).flat()
                their_baseline = _baseline_on(study.config, dataset).flat()
                our_value = ours.get(key, our_baseline.get(key, "absent"))
                their_value = theirs.get(key, their_baseline.get(key, "absent"))
                fix = "Pass studies that differ only in their datasets."
                if is_recipe_file(study.config.baseline.method):
                    fix += " Settings by dataset are supported for built-in methods only."
                raise UserError(
                    f"{our_name} and {their_name} differ in {key} ({our_value} and {their_value}). {fix}"
                )


def _name_of(study: Records, dataset: str) -> str:
    """Return the name of a study in messages, with the dataset if there are several."""
    return str(study.folder) if len(study.config.search.datasets) == 1 else f"{study.folder} on {dataset}"


def _options(config: StudyConfig, dataset: str) -> dict[str, object]:
    """Return the options of a study that all studies must share, as they are on one of its datasets."""
    baseline = _baseline_on(config, dataset)
    inputs = {
        key: value
        for key, value in baseline.identity().items()
        if key.startswith(("data.", "backbone.")) and key != "data.name" and not key.startswith("data.args")
    }
    space = {f"space.{key}": text for key, text in config.search.space.describe().items()}
    return {
        "method": baseline.method,
        "objective": config.search.objective,
        **space,
        **inputs,
        **_unpublished_settings(config, dataset, baseline),
    }


def _unpublished_settings(config: StudyConfig, dataset: str, run: Config) -> dict[str, object]:
    """Return the settings of a run that differ from the method's published settings for its dataset.

    Options of the study set them. A recipe file may have changed since the study, so its runs are compared
    with ProMetaR's settings instead.
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
    return {
        key: value
        for key, value in run.flat().items()
        if key.partition(".")[0] not in {"method", "data", "backbone"}
        and key != "train.seed"
        and (key not in before or before[key] != value)
    }


# Recipe


def recipe_text(studies: Sequence[Records], best: AverageBest) -> str:
    """Return a recipe (`--method FILE.yaml`) with the chosen settings, as YAML.

    It contains the recipe of the studies' method, also its settings by dataset (`by`), over which the chosen
    settings and the options of the studies win. It trains for as many epochs as the final tests of the
    studies, unless the epochs were searched.
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
    sections: dict[str, dict[str, object]] = {}
    for key, value in _differences(run, Config()).items():  # a recipe contains what differs from ProMetaR's
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    folders = ", ".join(str(study.folder) for study in studies)
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

    For a built-in method, it is the space of its recipe. A recipe file may have changed or moved, so for one
    it is the space of `config`. If only Python code defined that space, it is the shared space.
    """
    method = config.baseline.method
    if not is_recipe_file(method):
        return recipe(method).space
    name = config.search.space.name
    return name if name in built_in_spaces() or Path(name).is_file() else SHARED_SPACE


def _entries(base: Recipe, run: Config, fixed: Collection[str]) -> Iterator[dict[str, object]]:
    """Yield the entries of a recipe's `by`, without settings in `fixed` and those that do not fit `run`.

    A recipe's entries win over its settings. An entry must therefore not contain the settings in `fixed`,
    which the user or the search chose.
    """
    values = run.flat()
    for entry in base.by:
        kept: SettingsBySection = {}
        for section, settings in entry.settings.items():
            # The kind of a section (such as its optimizer) determines which settings it has. As for any
            # setting, the entry's kind wins over the run's unless it is fixed.
            kind_key = f"{section}.{kind_field(section)}"
            kind = values.get(kind_key)
            if kind_key not in fixed:
                kind = settings.get(kind_field(section), kind)
            known = settings_of_kind(section, kind)
            used = {
                name: value
                for name, value in settings.items()
                if name in known and f"{section}.{name}" not in fixed
            }
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
        left_out = f", {best.left_out[name]:+.2f} if chosen without it" if name in best.left_out else ""
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
    yield "No run was trained with these settings on all datasets. Test them with `prometar reproduce`."


def _change_of(key: str, value: Value, defaults: Sequence[Settings]) -> str:
    """Return the default value of a setting in parentheses, or "" if it is `value` on all datasets."""
    default = defaults[0].get(key)
    if any(each.get(key) != default for each in defaults):
        return " (default: differs by dataset)"
    return "" if default == value else f" (default: {format_setting(default)})"
