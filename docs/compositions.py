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


def prompts_text(s: ConfigData) -> str:
    """Describe the prompts, given all settings by dotted key."""
    kind = s["prompts.kind"]
    if kind == "none":
        texts = {
            "template": "the dataset's own template",
            "init": f"`{s['prompts.init']} {{}}.`",
            "ensemble": "60 templates",
        }
        return f"{NONE} ({texts[s['prompts.frozen_text']]})"
    if kind == "shared":
        layers = _layers(s["prompts.layers"])
        return f"{s['prompts.length']} tokens per tower from one shared space, {layers}"
    length = s["prompts.text_length"]
    if kind == "conditional":
        return f"text {length} x 1, shifted by a network whose input is the image"
    if kind == "class_aware":
        return f"text {length} x 1, and class-aware text prompts in layer {s['prompts.layer']}"
    depth = s["prompts.text_depth"]
    text = f"text {length} x {depth}"
    if kind == "coupled":
        return f"{text}, vision {length} x {depth} coupled to text"
    vision_depth = s["prompts.vision_depth"]
    vision = f"vision {s['prompts.vision_length']} x {vision_depth}"
    if vision_depth == 0:
        return text
    if depth == 0:
        return vision
    return f"{text}, {vision}"


def adapters_text(s: ConfigData) -> str:
    if s["adapters.kind"] == "none":
        return NONE
    return f"{s['adapters.kind']}, {_layers(s['adapters.layers'])}, dim {s['adapters.dim']}"


def features_text(s: ConfigData) -> str:
    if s["features.kind"] == "bottleneck":
        return f"bottleneck, shares {s['features.text_share']:g} and {s['features.image_share']:g}"
    return NONE if s["features.kind"] == "none" else s["features.kind"]


def logits_text(s: ConfigData) -> str:
    kind = s["logits.kind"].replace("_", " ")
    return f"{kind} ({s['logits.weight']:g})" if "logits.weight" in s else kind


def regularizer_text(s: ConfigData) -> str:
    if s["regularizer.kind"] == "none":
        return NONE
    distance = s["regularizer.kind"].replace("l1", "L1").replace("l2", "L2")
    terms = []
    for name in ("text", "image"):
        weight = s[f"regularizer.{name}_weight"]
        if weight:
            terms.append(f"{name} {distance} ({weight:g})")
    if s["regularizer.logits_weight"]:
        terms.append(f"logits ({s['regularizer.logits_weight']:g})")
    text = " + ".join(terms)
    if s["regularizer.draw"]:
        text += ", texts drawn"
    if s["augment.views"] == 2:
        text += ", two views"
    return text


def modulator_text(s: ConfigData) -> str:
    # A modulator without a regularizer does nothing.
    return NONE if s["regularizer.kind"] == "none" else s["modulator.kind"]


def inner_text(s: ConfigData) -> str:
    return NONE if s["inner.kind"] == "none" else f"SGD, {s['inner.order']} order"


def augmentation_text(s: ConfigData) -> str:
    return NONE if s["task.augmentation"] == "none" else s["task.augmentation"].replace("_", " ")


def optimizer_text(s: ConfigData) -> str:
    name = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}[s["optim.kind"]]
    factors = []
    for section in ("prompts", "adapters", "features", "logits"):
        factor = s[f"optim.{section}_lr_factor"]
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
    "averager": lambda s: s["averager.kind"],
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
    parts: dict[object, None] = {}
    for name in KINDS:
        section = getattr(config, name)
        if section.selected_kind in _TRIVIAL or (name, section.selected_kind) == ("logits", "cosine"):
            continue
        for each in type(section).__mro__:
            is_part = each.__module__.startswith("prometar.methods.") and each not in _INTERFACES
            if is_part and each.__name__ != "ComponentSection":
                parts[each] = None
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


# Picture

_ROW_HEIGHT = 24
_FIRST_ROW = 76
_MARGIN = 12
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
    """Return the label of each component of a method, by column. "" for those that do nothing."""
    s = config.flat()
    terms = ("text", "image", "logits") if s["regularizer.kind"] != "none" else ()
    used = [term for term in terms if s[f"regularizer.{term}_weight"]]
    towers = [tower for tower in ("text", "vision") if s.get(f"prompts.{tower}_depth")]
    prompts = " + ".join(towers) if s["prompts.kind"] == "independent" else s["prompts.kind"]
    labels = {
        "prompts": prompts,
        "adapters": s["adapters.kind"],
        "features": s["features.kind"],
        "logits": s["logits.kind"],
        "regularizer": f"{s['regularizer.kind']}: {', '.join(used)}" if used else "none",
        "modulator": s["modulator.kind"] if used else "none",
        "inner loop": inner_text(s).removeprefix("SGD, "),
        "task augmentation": s["task.augmentation"],
        "averager": s["averager.kind"],
        "optimizer": s["optim.kind"],
    }
    if used == ["logits"]:
        labels["regularizer"] = "logits"
    for name, label in labels.items():
        labels[name] = "" if label in ("none", NONE) else label.replace("_", " ")
    return labels


def picture() -> str:
    """Return the picture of all compositions as SVG: a row per trained method, a column per component."""
    methods = [method for method in METHODS if not build(configure(method)).is_untrained]
    width = _MARGIN * 2 + _NAME_WIDTH + sum(_WIDTHS.values())
    height = _FIRST_ROW + _ROW_HEIGHT * len(methods) + _MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="Helvetica, Arial, sans-serif" font-size="13" role="img">',
        "<title>Components of each method</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    x_of: dict[str, int] = {}
    color_of: dict[str, str] = {}
    x = _MARGIN + _NAME_WIDTH
    for group, (color, columns) in _GROUPS.items():
        group_width = sum(_WIDTHS[column] for column in columns)
        lines.append(_box(x, 10, group_width, 24, color, group, bold=True))
        for column in columns:
            lines.append(_text(x + _WIDTHS[column] / 2, 58, column, "#374151", "middle"))
            x_of[column] = x
            color_of[column] = color
            x += _WIDTHS[column]
    for number, method in enumerate(methods):
        y = _FIRST_ROW + number * _ROW_HEIGHT
        if number % 2 == 0:
            lines.append(f'<rect x="0" y="{y}" width="{width}" height="{_ROW_HEIGHT}" fill="#f9fafb"/>')
        lines.append(_text(_MARGIN, y + 16, method, "#111827", "start", bold=True))
        for column, label in labels_of(configure(method)).items():
            if label in _PLAIN:
                middle = x_of[column] + _WIDTHS[column] / 2
                lines.append(_text(middle, y + 16, label, "#6b7280", "middle"))
            elif label:
                lines.append(_box(x_of[column], y + 2, _WIDTHS[column], 20, color_of[column], label))
            else:
                lines.append(_text(x_of[column] + _WIDTHS[column] / 2, y + 16, "·", "#9ca3af", "middle"))
    return "\n".join([*lines, "</svg>\n"])


def _box(
    x: float, y: float, width: float, height: float, color: str, label: str, *, bold: bool = False
) -> str:
    rect = f'<rect x="{x + 2:g}" y="{y:g}" width="{width - 4:g}" height="{height:g}" rx="4" fill="{color}"/>'
    return rect + _text(x + width / 2, y + height / 2 + 4, label, "#111827", "middle", bold=bold)


def _text(x: float, y: float, label: str, color: str, anchor: str, *, bold: bool = False) -> str:
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
