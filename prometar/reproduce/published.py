"""Published accuracies (published.json), cited and never mixed with ours."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from prometar.config.recipes import is_file
from prometar.config.settings import Config
from prometar.data.datasets.benchmarks import BENCHMARKS, OFFICIAL_NOTE
from prometar.data.datasets.dataset import Dataset
from prometar.data.preparation.check import differences
from prometar.metrics import harmonic_mean

AVERAGE = "average"
# What may differ from a published run: which images and seeds, and how numbers are held.
_FREE = {"data.name", "data.root", "data.shots", "backbone.name", "backbone.pretrained", "backbone.precision",
         "train.seed"}  # fmt: skip


@dataclass(frozen=True)
class Series:
    """One method's published accuracies under one protocol.

    Args:
        method: Its name here. title: Its name in the paper. paper: Of the method.
        settings: What the series was run with where the method has several.
        configuration: The file of its settings, where the paper is not the figures' source.
        figures: Percent by data set (or "average") and column, {"dtd": {"base": 83.37, "new": 62.97}}.
    """

    method: str
    title: str
    paper: str
    settings: Mapping[str, Any]
    figures: Mapping[str, Mapping[str, float]]
    configuration: str = ""

    @property
    def cited(self) -> str:
        """How it is named where its figures stand."""
        return f"{self.title} ({'; '.join(filter(None, (self.paper, self.configuration)))})"


@cache
def _file() -> dict[str, Any]:
    return json.loads((resources.files("prometar.reproduce") / "published.json").read_text("utf-8"))


def settings_of(protocol: str, method: str) -> Mapping[str, Any]:
    """What a method's authors set under a protocol besides its recipe; nothing where that is not known.

    Example:
        >>> settings_of("cross-dataset", "maple")["train.epochs"]
        2
    """
    return _file()["settings"].get(protocol, {}).get(method, {})


def beside(protocol: str, config: Config) -> Series | None:
    """The series that may stand beside runs of `config`, else None.

    Only the paper's own setting compares: ViT-B/16 with OpenAI's weights, 16 shots, and no setting changed
    but those that the protocol or the series itself names.
    """
    setting = (config.backbone.name, config.backbone.pretrained, config.data.shots)
    if setting != tuple(_file()["setting"][key] for key in ("backbone", "pretrained", "shots")):
        return None
    own = settings_of(protocol, config.method)
    for series in (Series(**row) for row in _file()["series"].get(protocol, ())):
        if series.method == config.method and not changes(config, {**own, **series.settings}):
            return series
    return None


def changes(
    config: Config, settings: Mapping[str, Any] | None = None, *, recipe: Config | None = None
) -> dict[str, Any]:
    """The settings in which a configuration is not its method's own, with `settings` on top.

    Which images, seeds, backbone and precision are used is left out.

    Args:
        recipe: What a method of the user's own is, by its file; None: the configuration is the method.

    Example:
        >>> changes(Config().override({"train.epochs": 2, "train.seed": 7}))
        {'train.epochs': 2}
    """
    method = recipe or (config if is_file(config.method) else Config(method=config.method))
    own = method.override(settings or {}).flat()
    return {key: value for key, value in config.flat().items() if key not in _FREE and value != own.get(key)}


def full_size(dataset: str, num_classes: int) -> bool:
    """Whether a data set has all the classes of its benchmark: a part of one does not compare."""
    return dataset in BENCHMARKS and BENCHMARKS[dataset].classes == num_classes


def unlike_published(dataset: Dataset) -> str:
    """Why figures on a benchmark's images here do not compare with published ones; "" where they do."""
    if dataset.note == OFFICIAL_NOTE:
        return OFFICIAL_NOTE
    return ", ".join(differences(dataset.name, len(dataset.classnames), dataset.counts))


def published(dataset: Dataset, config: Config) -> float | None:
    """The published harmonic mean of a configuration's method where ours may stand beside it, else None.

    Of the configuration's own settings, backbone and shots alone must be the published ones.
    """
    if is_file(config.method):
        return None
    given = config.flat()
    settings = {key: given[key] for key in ("backbone.name", "backbone.pretrained", "data.shots")}
    series = beside("base-to-new", Config(method=config.method).override(settings))
    if series is None or unlike_published(dataset):
        return None
    return harmonic(series.figures.get(dataset.name, {}))


def harmonic(figures: Mapping[str, float]) -> float | None:
    """The published H, or that of the published base and new accuracy.

    Example:
        >>> harmonic({"base": 83.37, "new": 62.97})
        71.75
    """
    if "H" in figures or not {"base", "new"} <= figures.keys():
        return figures.get("H")
    return round(harmonic_mean({key: figures[key] for key in ("base", "new")}), 2)
