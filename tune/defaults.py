"""Settings that are best on average over the datasets of several studies (`prometar defaults`).

Studies sample different settings, so only the default settings have been trained on every dataset. For each
dataset, a random forest (scikit-learn) learns from its trials to predict the gain of settings: their score
minus that of the default settings. Candidates are the settings of all completed trials. The one with the
highest mean prediction is chosen, or the default settings if no mean is above 0.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
from numpy.typing import NDArray

from prometar.cli.console import format_count
from prometar.config.settings import Config
from prometar.errors import UserError, one_line
from prometar.io.yamltext import dump_yaml
from prometar.metrics import Interval, t_interval
from tune.records.folder import Records, paired_differences
from tune.records.schema import RunScores
from tune.report.formatting import describe_difference, format_setting
from tune.space.ranges import Settings
from tune.space.space import Space

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
        settings: Chosen settings, or the default settings if no other settings have a mean gain above 0.
        predicted: Predicted gain by dataset. The mean is too high, because it is a maximum.
        left_out: For each dataset, the gain that its trials predict for the settings that the *other*
            datasets choose. This mean is not a maximum. Empty if there is only one other dataset.
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


def find_average_best(gains: GainsByDataset, space: Space, default: Settings) -> AverageBest:
    """Return the settings with the highest mean predicted gain over datasets.

    Args:
        gains: Measured gains by dataset. The default settings have a gain of 0.
        space: Space from which all settings were sampled.
        default: Default settings.
    """
    candidates = [default, *(each.settings for found in gains.values() for each in found)]
    origins = ["", *(dataset for dataset, found in gains.items() for _ in found)]
    predictions = {name: predict_gains(found, candidates, space) for name, found in gains.items()}
    for values in predictions.values():
        values[0] = 0.0  # the default settings need no prediction

    def choose(datasets: Sequence[str]) -> int:
        means = np.mean([predictions[name] for name in datasets], axis=0)
        allowed = [number for number, origin in enumerate(origins) if origin in {"", *datasets}]
        return max(allowed, key=lambda number: means[number])  # the first of equal ones: the default settings

    best = choose(list(gains))
    left_out = {}
    if len(gains) > 2:
        for name in gains:
            others = [other for other in gains if other != name]
            left_out[name] = float(predictions[name][choose(others)])
    return AverageBest(
        settings=candidates[best],
        is_default=best == 0 or candidates[best] == default,
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
        _require_same_options(studies[0], study)
    gains: dict[str, list[MeasuredGain]] = {}
    for (_, name), parts in _by_dataset(studies).items():
        for study, dataset in parts:
            gains.setdefault(name, []).extend(measured_gains(study, dataset))
    if len(gains) < 2:
        raise UserError("Pass studies of at least two datasets. The best settings of one are in best.yaml.")
    for name, found in gains.items():
        if len(found) < MIN_TRIALS:
            count = format_count(len(found), "completed trial")
            raise UserError(f"{name} has {count}, but {MIN_TRIALS} are needed. Extend its study (--trials).")
    config = studies[0].config
    return find_average_best(gains, config.search.space, config.baseline_settings)


def _by_dataset(studies: Sequence[Records]) -> dict[tuple[str, str], list[tuple[Records, str]]]:
    """Return studies and the dataset's name in them, by digest and label of the dataset.

    Datasets that share a name, such as `folder`, are told apart by their splits. Then the label of each
    includes the name of its first study.
    """
    by_digest: dict[tuple[str, str], list[tuple[Records, str]]] = {}
    for study in studies:
        for dataset in study.config.search.datasets:
            digest = study.study.digests.get(f"split of {dataset}", "")
            by_digest.setdefault((digest, dataset), []).append((study, dataset))
    names = [dataset for _, dataset in by_digest]
    return {
        (digest, dataset if names.count(dataset) == 1 else f"{dataset} ({parts[0][0].folder.name})"): parts
        for (digest, dataset), parts in by_digest.items()
    }


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
        runs, baseline_runs = trial.runs, baseline.runs
        if confirmed_baseline is not None and trial.number in confirmed:
            runs, baseline_runs = confirmed[trial.number], confirmed_baseline
        differences = paired_differences(_on(dataset, runs), _on(dataset, baseline_runs)).values()
        if differences:
            found.append(MeasuredGain(trial.settings, mean(differences), len(differences)))
    return found


def _on(dataset: str, runs: RunScores) -> RunScores:
    return tuple(run for run in runs if run.dataset == dataset)


def _require_same_options(first: Records, study: Records) -> None:
    """Raise a UserError if two studies differ in more than datasets, seeds and budgets."""
    ours, theirs = _options(first), _options(study)
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{first.folder} and {study.folder} differ in {key} ({ours.get(key, 'absent')} and "
                f"{theirs.get(key, 'absent')}). Pass studies that differ only in their datasets."
            )


def _options(study: Records) -> dict[str, object]:
    """Return the options that studies with common default settings must share."""
    config = study.config
    baseline = config.baseline.identity()
    own = {"data.name", "train.seed", *(key for key in baseline if key.startswith("data.args"))}
    space = {f"space.{key}": text for key, text in config.search.space.describe().items()}
    return {
        "objective": config.search.objective,
        **space,
        **{key: value for key, value in baseline.items() if key not in own},
    }


# Recipe


def recipe_text(studies: Sequence[Records], best: AverageBest) -> str:
    """Return a recipe (`--method FILE.yaml`) with the chosen settings, as YAML.

    It trains for as many epochs as the final tests of the studies, unless the epochs were searched.
    """
    config = studies[0].config
    run = config.run_config(
        best.settings, dataset=config.search.datasets[0], seed=config.search.seed, final_epochs=True
    )
    published = Config().flat()  # a recipe contains what differs from ProMetaR's settings
    sections: dict[str, dict[str, object]] = {}
    for key, value in run.flat().items():
        section, _, name = key.partition(".")
        excluded = section in {"method", "data", "backbone"} or key == "train.seed"
        if not excluded and (key not in published or value != published[key]):
            sections.setdefault(section, {})[name] = value
    folders = ", ".join(str(study.folder) for study in studies)
    content = {
        "title": f"{config.baseline.method}, average best",
        "about": one_line(f"best on average on {', '.join(best.predicted)}"),
        "source": one_line(f"prometar defaults {folders}"),
        "settings": sections,
    }
    return dump_yaml(content)


def describe_average_best(studies: Sequence[Records], best: AverageBest) -> Iterator[str]:
    """Yield lines that describe the chosen settings and their predicted gain."""
    default = studies[0].config.baseline_settings
    score = studies[0].study.score_name
    if best.is_default:
        yield "The default settings: no other settings have a positive mean predicted gain."
    else:
        yield "Settings that are best on average, as predicted from the trials of each dataset:"
        for key, value in best.settings.items():
            change = "" if default.get(key) == value else f" (default: {format_setting(default.get(key))})"
            yield f"  {key} = {format_setting(value)}{change}"
    for name, gain in best.predicted.items():
        left_out = f", {best.left_out[name]:+.2f} if chosen without it" if name in best.left_out else ""
        yield one_line(f"{name}: predicted gain in the score ({score}) {gain:+.2f}{left_out}")
    if best.predicted_interval and not best.is_default:
        measured = describe_difference(best.predicted_interval)
        yield f"Mean predicted gain over the datasets: {measured}. It is a maximum, so it is too high."
    if best.left_out_interval:
        measured = describe_difference(best.left_out_interval)
        yield f"Mean predicted gain on a dataset that was left out of the choice: {measured}."
    yield "No run was trained with these settings on all datasets. Test them with `prometar reproduce`."
