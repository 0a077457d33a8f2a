"""Write the tables of compositions and sizes in docs/methods.md, and the picture docs/methods.svg.

    python docs/compositions.py

Both are generated from the recipes and the source of their components. A test fails if they are outdated.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from prometar.config.recipes import METHODS
from prometar.config.settings import Config, ConfigData, configure
from prometar.methods.adapters import Adapters
from prometar.methods.composition import KINDS, build
from prometar.methods.features import FeatureFunction
from prometar.methods.logits import Logits
from prometar.methods.modulators import Modulator
from prometar.methods.optimizers import OptimSection
from prometar.methods.prompts import Prompts
from prometar.methods.regularizers import ImageDistance, RegularizerSection, TextDistance
from prometar.methods.task_augmentations import Augmentation

DOCS = Path(__file__).parent
GUIDE = DOCS / "methods.md"
PICTURE = DOCS / "methods.svg"
NONE = "-"


# Table of compositions


def prompts_text(settings: ConfigData) -> str:
    """Describe the prompts, given all settings by dotted key."""
    kind = settings["prompts.kind"]
    if kind == "none":
        texts = {
            "template": "the dataset's own template",
            "init": f"`{settings['prompts.init']} {{}}.`",
            "ensemble": "60 templates",
        }
        return f"{NONE} ({texts[settings['prompts.frozen_text']]})"
    if kind == "shared":
        layers = _layers(settings["prompts.layers"])
        return f"{settings['prompts.length']} tokens per tower from one shared space, {layers}"
    length = settings["prompts.text_length"]
    if kind == "conditional":
        return f"text {length} x 1, shifted by a network whose input is the image"
    if kind == "class_aware":
        return f"text {length} x 1, and class-aware text prompts in layer {settings['prompts.layer']}"
    depth = settings["prompts.text_depth"]
    text = f"text {length} x {depth}"
    if kind == "coupled":
        return f"{text}, vision {length} x {depth} coupled to text"
    vision_depth = settings["prompts.vision_depth"]
    vision = f"vision {settings['prompts.vision_length']} x {vision_depth}"
    if vision_depth == 0:
        return text
    if depth == 0:
        return vision
    return f"{text}, {vision}"


def adapters_text(settings: ConfigData) -> str:
    if settings["adapters.kind"] == "none":
        return NONE
    layers = _layers(settings["adapters.layers"])
    return f"{settings['adapters.kind']}, {layers}, dim {settings['adapters.dim']}"


def features_text(settings: ConfigData) -> str:
    kind = settings["features.kind"]
    if kind == "none":
        return NONE
    if kind == "bottleneck":
        text_share = settings["features.text_share"]
        image_share = settings["features.image_share"]
        return f"bottleneck, shares {text_share:g} and {image_share:g}"
    return kind


def logits_text(settings: ConfigData) -> str:
    kind = settings["logits.kind"].replace("_", " ")
    if "logits.weight" not in settings:
        return kind
    return f"{kind} ({settings['logits.weight']:g})"


def regularizer_text(settings: ConfigData) -> str:
    if settings["regularizer.kind"] == "none":
        return NONE
    distance = settings["regularizer.kind"].replace("l1", "L1").replace("l2", "L2")
    terms = []
    for name in ("text", "image"):
        weight = settings[f"regularizer.{name}_weight"]
        if weight:
            terms.append(f"{name} {distance} ({weight:g})")
    if settings["regularizer.logits_weight"]:
        terms.append(f"logits ({settings['regularizer.logits_weight']:g})")
    text = " + ".join(terms)
    if settings["regularizer.draw"]:
        text += ", texts drawn"
    if settings["augment.views"] == 2:
        text += ", two views"
    return text


def modulator_text(settings: ConfigData) -> str:
    # A modulator without a regularizer does nothing.
    return NONE if settings["regularizer.kind"] == "none" else settings["modulator.kind"]


def inner_text(settings: ConfigData) -> str:
    return NONE if settings["inner.kind"] == "none" else f"SGD, {settings['inner.order']} order"


def augmentation_text(settings: ConfigData) -> str:
    augmentation = settings["task.augmentation"]
    return NONE if augmentation == "none" else augmentation.replace("_", " ")


def optimizer_text(settings: ConfigData) -> str:
    name = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}[settings["optim.kind"]]
    factors = []
    for section in ("prompts", "adapters", "features", "logits"):
        factor = settings[f"optim.{section}_lr_factor"]
        if factor != 1:
            factors.append(f"{section} lr x {factor:g}")
    return ", ".join([name, *factors])


def _layers(text: str) -> str:
    return f"layers {text.replace('-', ' to ')}"


COLUMNS: dict[str, Callable[[ConfigData], str]] = {
    "prompts": prompts_text,
    "adapters": adapters_text,
    "features": features_text,
    "logits": logits_text,
    "regularizer": regularizer_text,
    "modulator": modulator_text,
    "inner loop": inner_text,
    "task augmentation": augmentation_text,
    "averager": lambda settings: settings["averager.kind"],
    "optimizer": optimizer_text,
}
"""Descriptions of components by column, as functions of all settings."""


def compositions() -> str:
    """Return the table of compositions, in Markdown."""
    rows = []
    for method in METHODS:
        config = configure(method)
        cells = [describe(config.flat()) for describe in COLUMNS.values()]
        if build(config).is_untrained:
            cells[-1] = NONE
            numbers = [NONE] * 3
        else:
            numbers = [f"{n:g}" for n in (config.train.epochs, config.train.batch_size, config.optim.lr)]
        rows.append([f"`{method}`", *cells, *numbers])
    return _table(["method", *COLUMNS, "epochs", "batch", "lr"], rows)


# Table of sizes

_INTERFACES = {
    Adapters,
    Augmentation,
    FeatureFunction,
    Logits,
    Modulator,
    OptimSection,
    Prompts,
    RegularizerSection,
}
_TRIVIAL = {"none", "add", "last"}


def parts_of(config: Config) -> list[object]:
    """Return the classes and functions of a method's components, without interfaces and trivial kinds."""
    parts: dict[object, None] = {}  # a set that keeps the order
    for name in KINDS:
        section = getattr(config, name)
        kind = section.selected_kind
        is_trivial = kind in _TRIVIAL or (name == "logits" and kind == "cosine")
        if is_trivial:
            continue
        for base in type(section).__mro__:
            is_part = base.__module__.startswith("prometar.methods.") and base not in _INTERFACES
            if is_part and base.__name__ != "ComponentSection":
                parts[base] = None
    for term, _ in build(config).regularizer.terms:
        parts[type(term)] = None
        if isinstance(term, TextDistance | ImageDistance):
            parts[term.distance] = None
    return list(parts)


def sizes() -> str:
    """Return the table of sizes, in Markdown."""
    rows = []
    known: set[object] = set()
    for method in METHODS:
        config = configure(method)
        untrained = build(config).is_untrained
        parts = [] if untrained else parts_of(config)
        recipe = files("prometar.config").joinpath("recipes", f"{method}.yaml").read_text("utf-8")
        own = [part for part in parts if part not in known]
        known.update(own)
        names = ", ".join(f"`{_name(part)}`" for part in own) or NONE
        numbers = [_num_lines(parts), _num_lines(own), len(recipe.splitlines())]
        rows.append([f"`{method}`", *map(str, numbers), names])
    return _table(["method", "lines of parts", "of these new", "lines of recipe", "new parts"], rows)


def _num_lines(parts: Iterable[object]) -> int:
    return sum(len(inspect.getsource(part).rstrip().splitlines()) for part in parts)  # type: ignore[arg-type]


def _name(part: object) -> str:
    return str(getattr(part, "__name__", part))


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# Picture. Positions and sizes are in pixels, and y is measured downwards.

_ROW_HEIGHT = 24
_FIRST_ROW = 76
_MARGIN = 12
_BASELINE = 16
"""Distance from the top of a row to the baseline of its text."""
_DARK = "#111827"
_MEDIUM = "#374151"
_GRAY = "#6b7280"
_LIGHT = "#9ca3af"
_STRIPE = "#f9fafb"
"""Background of every second row."""
_GROUPS = {
    "learned": ("#dbeafe", ("prompts", "adapters", "features", "logits")),
    "gradient": ("#dcfce7", ("regularizer", "modulator")),
    "meta phase": ("#fef3c7", ("inner loop", "task augmentation")),
    "update": ("#fae8ff", ("averager", "optimizer")),
}
"""Color and columns of each group of components."""
_WIDTHS = {
    "prompts": 112,
    "adapters": 84,
    "features": 108,
    "logits": 92,
    "regularizer": 152,
    "modulator": 88,
    "inner loop": 104,
    "task augmentation": 124,
    "averager": 80,
    "optimizer": 80,
}
_NAME_WIDTH = 144
_PLAIN = {"cosine", "add", "last", "sgd"}
"""Labels without a box, so that what distinguishes a method stands out."""


def labels_of(config: Config) -> dict[str, str]:
    """Return the label of each component of a method, by column. "" for components that do nothing."""
    settings = config.flat()
    terms = _regularizer_terms(settings)
    labels = {
        "prompts": _prompts_label(settings),
        "adapters": settings["adapters.kind"],
        "features": settings["features.kind"],
        "logits": settings["logits.kind"],
        "regularizer": _regularizer_label(settings["regularizer.kind"], terms),
        "modulator": settings["modulator.kind"] if terms else "none",
        "inner loop": "none" if settings["inner.kind"] == "none" else f"{settings['inner.order']} order",
        "task augmentation": settings["task.augmentation"],
        "averager": settings["averager.kind"],
        "optimizer": settings["optim.kind"],
    }
    return {column: "" if label == "none" else label.replace("_", " ") for column, label in labels.items()}


def _prompts_label(settings: ConfigData) -> str:
    """Return the kind of prompts. For independent prompts, return the towers that have some."""
    if settings["prompts.kind"] != "independent":
        return settings["prompts.kind"]
    towers = [tower for tower in ("text", "vision") if settings[f"prompts.{tower}_depth"] > 0]
    return " + ".join(towers)


def _regularizer_terms(settings: ConfigData) -> list[str]:
    """Return the names of the regularizer's terms whose weights are not 0."""
    if settings["regularizer.kind"] == "none":
        return []
    return [term for term in ("text", "image", "logits") if settings[f"regularizer.{term}_weight"] > 0]


def _regularizer_label(distance: str, terms: list[str]) -> str:
    """Return the label of a regularizer, such as "l1: text, image". The term "logits" uses no distance."""
    if not terms:
        return "none"
    if terms == ["logits"]:
        return "logits"
    return f"{distance}: {', '.join(terms)}"


class _Column(NamedTuple):
    """Place and color of a column."""

    left: int
    width: int
    color: str

    @property
    def middle(self) -> float:
        return self.left + self.width / 2


def _columns() -> dict[str, _Column]:
    """Return the columns by name, from left to right."""
    columns: dict[str, _Column] = {}
    left = _MARGIN + _NAME_WIDTH
    for color, names in _GROUPS.values():
        for name in names:
            columns[name] = _Column(left, _WIDTHS[name], color)
            left += _WIDTHS[name]
    return columns


def picture() -> str:
    """Return the picture of all compositions as SVG: a row per trained method, a column per component."""
    methods = [method for method in METHODS if not build(configure(method)).is_untrained]
    columns = _columns()
    width = _MARGIN * 2 + _NAME_WIDTH + sum(_WIDTHS.values())
    height = _FIRST_ROW + _ROW_HEIGHT * len(methods) + _MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="Helvetica, Arial, sans-serif" font-size="13" role="img">',
        "<title>Components of each method</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        *_head(columns),
    ]
    for number, method in enumerate(methods):
        top = _FIRST_ROW + number * _ROW_HEIGHT
        if number % 2 == 0:
            lines.append(f'<rect x="0" y="{top}" width="{width}" height="{_ROW_HEIGHT}" fill="{_STRIPE}"/>')
        lines += _row(method, columns, top)
    return "\n".join([*lines, "</svg>\n"])


def _head(columns: dict[str, _Column]) -> list[str]:
    """Return the names of groups and columns, in SVG."""
    lines: list[str] = []
    for group, (color, names) in _GROUPS.items():
        left = columns[names[0]].left
        group_width = sum(columns[name].width for name in names)
        lines.append(_box(left, 10, group_width, 24, color, group, bold=True))
        for name in names:
            lines.append(_text(columns[name].middle, 58, name, _MEDIUM, "middle"))
    return lines


def _row(method: str, columns: dict[str, _Column], top: float) -> list[str]:
    """Return the row of a method, in SVG: its name, and per column a box, plain text or a dot."""
    baseline = top + _BASELINE
    lines = [_text(_MARGIN, baseline, method, _DARK, "start", bold=True)]
    for name, label in labels_of(configure(method)).items():
        column = columns[name]
        if not label:
            lines.append(_text(column.middle, baseline, "·", _LIGHT, "middle"))
        elif label in _PLAIN:
            lines.append(_text(column.middle, baseline, label, _GRAY, "middle"))
        else:
            lines.append(_box(column.left, top + 2, column.width, 20, column.color, label))
    return lines


def _box(
    x: float, y: float, width: float, height: float, color: str, label: str, *, bold: bool = False
) -> str:
    """Return a rounded box with a centered label, in SVG. x and y are those of the upper left corner."""
    rect = f'<rect x="{x + 2:g}" y="{y:g}" width="{width - 4:g}" height="{height:g}" rx="4" fill="{color}"/>'
    return rect + _text(x + width / 2, y + height / 2 + 4, label, _DARK, "middle", bold=bold)


def _text(x: float, y: float, label: str, color: str, anchor: str, *, bold: bool = False) -> str:
    """Return text in SVG. `anchor` says which point of the text is at x: "start" or "middle"."""
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" fill="{color}" text-anchor="{anchor}"{weight}>{escape(label)}</text>'


def with_block(text: str, name: str, content: str) -> str:
    """Return Markdown text whose block `name`, from <!-- name --> to <!-- end -->, has other content.

    Raises:
        ValueError: the text has no such block.
    """
    pattern = re.compile(rf"<!-- {name} -->\n.*?<!-- end -->", flags=re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"there is no block <!-- {name} -->")
    block = f"<!-- {name} -->\n\n{content}\n\n<!-- end -->"
    return pattern.sub(lambda found: block, text)


def guide() -> str:
    """Return docs/methods.md with current tables."""
    text = with_block(GUIDE.read_text("utf-8"), "compositions", compositions())
    return with_block(text, "sizes", sizes())


if __name__ == "__main__":
    GUIDE.write_text(guide(), "utf-8")
    PICTURE.write_text(picture(), "utf-8")
