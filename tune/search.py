"""Tune hyperparameters of a prompt-learning method: `python tune/search.py --dataset dtd --data-root DIR`.

Without arguments, run a small study on a rendered dataset. Rerun the same command to resume, or with a
larger --trials to extend the study.
"""

if __name__ == "__main__":
    import os
    import sys

    # Python puts tune/ first on sys.path, so tune/config.py would hide a user's config.py.
    _HERE = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.realpath(folder or ".") != _HERE]

import sys
from collections.abc import Iterator
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from prometar.cli.console import TYPER_OPTIONS, Command, run_cli
from tune.config import OPTION_GROUPS, StudyConfig

app = typer.Typer(help=__doc__, **TYPER_OPTIONS)

_CONFIG_HELP = {
    "data-root": "Folder that contains the datasets. Default for benchmarks: $PROMETAR_DATA, or data.",
    "epochs": "Epochs per trial. Default: 5 for rendered datasets, else from --space or --method.",
    "method": "Name of a method, or a recipe FILE.yaml. Default: prometar.",
    "backbone": "mini or an open_clip model. Default: mini for rendered datasets, else ViT-B-16-quickgelu.",
    "pretrained": "open_clip tag, or a .safetensors file. Default: openai for open_clip models.",
}
"""Help for options that set fields of `prometar.config.settings.Config`, which have no descriptions."""


def _parameters() -> Iterator[Parameter]:
    """Yield the command's parameters, generated from `OPTION_GROUPS`.

    Values stay strings, because `StudyConfig` converts and validates them.
    """
    for group, options in OPTION_GROUPS.items():
        for option, field_path in options.items():
            field = _field(field_path)
            name = option.replace("-", "_")
            if field.annotation is bool:
                yield _parameter(
                    f"--{option}", bool | None, name, help=field.description, rich_help_panel=group
                )
                continue
            takes_several = get_origin(field.annotation) is tuple
            kind = list[str] | None if takes_several else str | None
            yield _parameter(
                f"--{option}",
                kind,
                name,
                help=_CONFIG_HELP.get(option, f"{field.description}{_default(field)}"),
                rich_help_panel=group,
                metavar=_metavar(field),
            )
    yield _parameter(
        "--set",
        list[str] | None,
        "settings",
        help="Change any setting.",
        rich_help_panel="Training",
        metavar="KEY=VALUE",
    )
    plan_help = "Check data, weights, memory and settings, and estimate the duration, but start no trial."
    yield _parameter("--plan", bool, "plan", default=False, help=plan_help)


def _parameter(flag: str, kind: object, name: str, default: object = None, **attributes: Any) -> Parameter:
    """Return a keyword parameter that typer shows as the option `flag`.

    Args:
        flag: Option with its dashes, e.g. "--data-root".
        kind: Type of the value.
        name: Name of the parameter, e.g. "data_root".
        default: Default value.
        attributes: Keyword arguments of `typer.Option`.
    """
    annotation = Annotated[kind, typer.Option(flag, **attributes)]  # type: ignore[valid-type]
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _metavar(field: FieldInfo) -> str:
    """Return the placeholder for the value of an option in --help."""
    types = {field.annotation, *get_args(field.annotation)}  # `int | None` also counts as int
    if types & {int, float}:
        return "NUMBER"
    if Path in types:
        return "DIR"
    return "VALUE"


def _default(field: FieldInfo) -> str:
    """Return a space and a sentence that states the default of an option.

    Return "" if the description states the default, or if the default is empty, such as None.
    """
    if not field.default or "Default" in str(field.description):
        return ""
    default = field.default
    if isinstance(default, tuple):
        default = " ".join(default)  # the words that a user would type
    return f" Default: {default}."


def _field(field_path: str) -> FieldInfo:
    """Return the field of `StudyConfig` at a path such as "search.trials"."""
    *sections, name = field_path.split(".")
    model: Any = StudyConfig
    for section in sections:
        model = model.model_fields[section].annotation
    field: FieldInfo = model.model_fields[name]
    return field


@app.command(cls=Command)
def search(*, plan: bool = False, **options: Any) -> None:
    """Tune hyperparameters, then test the selected settings."""
    config = StudyConfig.of(**options)
    from tune.study import Study  # loads torch and Ray, which are not needed for --help

    study = Study(config=config)
    if plan:
        print(study.describe_plan(), flush=True)  # before the estimate, which takes a while
        print(study.estimate())
        print(f"The report will be written to {study.folder.path / 'report.html'}")
    else:
        study.run()


# Typer generates a command's options from its signature, which here comes from `OPTION_GROUPS`.
search.__signature__ = Signature(list(_parameters()))  # type: ignore[attr-defined]


def main(args: list[str] | None = None) -> int:
    """Run the command line. Return the exit status.

    Args:
        args: Arguments. Default: those of this process.
    """
    return run_cli(app, sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    sys.exit(main())
