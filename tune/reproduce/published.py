"""Published accuracies from published.json, and the settings with which they were measured."""

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from prometar.config.recipes import Protocol, is_recipe_file
from prometar.config.settings import Config, configure
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.dataset import Dataset
from prometar.data.preparation.check import size_differences
from prometar.metrics import HARMONIC, harmonic_mean

Accuracies = Mapping[str, Mapping[str, float]]
"""Accuracies by dataset (or "average") and column."""
AVERAGE = "average"
# Settings that `changed_settings` ignores. `published_accuracies` checks backbone, weights and shots itself.
_IGNORED = {
    "backbone.name",
    "backbone.precision",
    "backbone.pretrained",
    "data.name",
    "data.root",
    "data.shots",
    "train.seed",
}


@cache
def _read_file() -> dict[str, Any]:
    """Read published.json: the common setup, and rows by protocol.

    The setup consists of backbone, weights and shots. A row of a published table contains `method`, `title`,
    `paper`, `settings` (changes to the recipe), `accuracies` by dataset (or "average") and column, such as
    {"dtd": {"base": 83.37}}, and `configuration`, the name of the authors' file.
    """
    return json.loads((resources.files("tune.reproduce") / "published.json").read_text("utf-8"))


def published_accuracies(protocol: Protocol, config: Config) -> tuple[Accuracies, str]:
    """Return the published accuracies that are comparable with runs of `config`, and a citation.

    Comparable runs use ViT-B/16 with OpenAI's weights and 16 shots. All other settings are those that the
    authors published for the protocol, the training dataset of `config` and the table's row.

    Returns:
        Accuracies by dataset (or "average") and column, including H if base and new accuracy were published.
        Accuracies and citation are empty if no row is comparable.
    """
    file = _read_file()
    setup = {"backbone": config.backbone.name, "pretrained": config.backbone.pretrained}
    if file["setup"] != {**setup, "shots": config.data.shots}:
        return {}, ""
    for row in file["rows"].get(protocol, ()):
        if row["method"] == config.method and not changed_settings(config, protocol, row["settings"]):
            sources = filter(None, (row["paper"], row.get("configuration")))
            accuracies = {dataset: _with_h(values) for dataset, values in row["accuracies"].items()}
            return accuracies, f"{row['title']} ({'; '.join(sources)})"
    return {}, ""


def _with_h(accuracies: Mapping[str, float]) -> Mapping[str, float]:
    if not {"base", "new"} <= accuracies.keys():
        return accuracies
    h = harmonic_mean({key: accuracies[key] for key in ("base", "new")})
    return {HARMONIC: round(h, 2), **accuracies}  # a published H takes precedence


def changed_settings(
    config: Config, protocol: Protocol, row_settings: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Return settings of `config` that differ from those published for its method, dataset and shots.

    Leave out the settings in `_IGNORED`. Return {} for a recipe file, which has no published settings.

    Args:
        row_settings: Changes to the published settings, such as those of a row of a table.

    Example:
        >>> changed_settings(Config().override({"train.epochs": 2, "train.seed": 7}), "base-to-new")
        {'train.epochs': 2}
    """
    if is_recipe_file(config.method):
        return {}
    values = config.flat()
    published = _published_settings(config, protocol, row_settings).flat()
    return {key: values[key] for key in values if key not in _IGNORED and values[key] != published.get(key)}


def _published_settings(config: Config, protocol: Protocol, changes: Mapping[str, Any] = {}) -> Config:
    """Return the published settings for a run of `config`, with its data, backbone and seed."""
    kept = {key: value for key, value in config.flat().items() if key in _IGNORED}
    return configure(config.method, {**kept, **changes}, protocol=protocol)


def incomparable_reason(dataset: Dataset) -> str:
    """Return why results on a dataset cannot be compared with published ones, or "" if they can be."""
    if dataset.name not in BENCHMARKS:
        return "not a benchmark"
    return ", ".join(size_differences(dataset.name, len(dataset.classnames), dataset.counts))


def published_h(dataset: Dataset, config: Config) -> float | None:
    """Return the H published for the method of `config` on a dataset, or None if there is none.

    Unlike in `published_accuracies`, settings of `config` other than backbone, weights and shots may differ.

    Returns:
        None if the method is a recipe file, the dataset is not a complete benchmark, the backbone, weights or
        shots differ, or no H was published.
    """
    if is_recipe_file(config.method) or incomparable_reason(dataset):
        return None
    on_dataset = config.override({"data.name": dataset.name})
    published = _published_settings(on_dataset, "base-to-new")
    accuracies, _ = published_accuracies("base-to-new", published)
    return accuracies.get(dataset.name, {}).get(HARMONIC)
