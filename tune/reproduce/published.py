"""Published accuracies (published.json). They are cited and never mixed with ours."""

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from prometar.config.recipes import is_file
from prometar.config.settings import Config
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.dataset import Dataset
from prometar.data.preparation.check import differences
from prometar.metrics import HARMONIC, harmonic_mean

AVERAGE = "average"
# Settings that may differ from a published run: images, seeds, and the precision.
_FREE = {"data.name", "data.root", "data.shots", "backbone.name", "backbone.pretrained", "backbone.precision",
         "train.seed"}  # fmt: skip


@cache
def _file() -> dict[str, Any]:
    """Settings by protocol and method, and series of figures by protocol.

    A series has a `method`, its `title` in the `paper`, the `settings` if the method was published with
    several, the `configuration` file if the paper is not the source, and `figures`: percent by dataset (or
    "average") and column, such as {"dtd": {"base": 83.37, "new": 62.97}}.
    """
    return json.loads((resources.files("tune.reproduce") / "published.json").read_text("utf-8"))


def settings_of(protocol: str, method: str) -> Mapping[str, Any]:
    """Return the settings that a method's authors used under a protocol in addition to its recipe.

    Example:
        >>> settings_of("cross-dataset", "maple")["train.epochs"]
        2
    """
    return _file()["settings"].get(protocol, {}).get(method, {})


def beside(protocol: str, config: Config) -> tuple[Mapping[str, Mapping[str, float]], str]:
    """Return the published figures that are comparable with runs of `config`, and their citation.

    Only ViT-B/16 with OpenAI's weights and 16 shots compares, and only settings of the protocol and of the
    series may differ from the method's.

    Returns:
        Percent by dataset (or "average") and column, with the H of base and new accuracy. Empty if no series
        is comparable.
    """
    setting = {"backbone": config.backbone.name, "pretrained": config.backbone.pretrained}
    if _file()["setting"] != {**setting, "shots": config.data.shots}:
        return {}, ""
    own = settings_of(protocol, config.method)
    for series in _file()["series"].get(protocol, ()):
        if series["method"] == config.method and not changes(config, {**own, **series["settings"]}):
            sources = filter(None, (series["paper"], series.get("configuration")))
            figures = {dataset: _with_mean(found) for dataset, found in series["figures"].items()}
            return figures, f"{series['title']} ({'; '.join(sources)})"
    return {}, ""


def _with_mean(figures: Mapping[str, float]) -> Mapping[str, float]:
    if not {"base", "new"} <= figures.keys():
        return figures
    return {HARMONIC: round(harmonic_mean({key: figures[key] for key in ("base", "new")}), 2), **figures}


def changes(config: Config, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings that differ from the method's own, with `settings` on top.

    Images, seeds, backbone and precision are left out, and so are custom recipes.

    Example:
        >>> changes(Config().override({"train.epochs": 2, "train.seed": 7}))
        {'train.epochs': 2}
    """
    if is_file(config.method):
        return {}
    own = Config(method=config.method).override(settings or {}).flat()
    return {key: value for key, value in config.flat().items() if key not in _FREE and value != own.get(key)}


def unlike_published(dataset: Dataset) -> str:
    """Return why figures on this dataset do not compare with published ones; empty if they do."""
    if dataset.name not in BENCHMARKS:
        return "not a benchmark"
    return ", ".join(differences(dataset.name, len(dataset.classnames), dataset.counts))


def published(dataset: Dataset, config: Config) -> float | None:
    """Return the published H of a configuration's method on a dataset, if it is comparable.

    Only its backbone and shots have to be the published ones.
    """
    if is_file(config.method) or unlike_published(dataset):
        return None
    same = {"backbone": config.backbone, "data": config.data}
    figures, _ = beside("base-to-new", Config(method=config.method, **same))
    return figures.get(dataset.name, {}).get(HARMONIC)
