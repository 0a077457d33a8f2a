"""Search hyperparameters of a prompt-learning method: `python tune/search.py --dataset dtd --data-root DIR`.

Without arguments a small study runs on the embedded dataset. Run the same command again to resume a study.
A larger --trials extends it.
"""

if __name__ == "__main__":
    import os
    import sys

    # Python puts tune/ first, where a user's config.py would be ours.
    _HERE = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [place for place in sys.path if os.path.realpath(place or ".") != _HERE]

import sys
from collections.abc import Iterator
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from prometar.cli.console import PLAIN, Command, run_cli
from tune.config import GROUPS, StudyConfig

app = typer.Typer(help=__doc__, **PLAIN)


_OF_RUNS = {
    "data-root": "Folder that contains the datasets. Default: PROMETAR_DATA, or data.",
    "epochs": "Epochs per trial. Default: 5 embedded, else the method's.",
    "method": "Method or recipe file (YAML).",
    "backbone": "mini or an open_clip model. Default: mini for embedded datasets, else ViT-B-16-quickgelu.",
    "pretrained": "open_clip tag or .safetensors file. Default: openai.",
}
"""Descriptions of options whose fields belong to runs."""


def _parameters() -> Iterator[Parameter]:
    """Parameters of the command for typer, generated from `GROUPS`. `StudyConfig` validates the values."""

    def parameter(flag: str, kind: object, name: str, default: object = None, **described: Any) -> Parameter:
        annotation = Annotated[kind, typer.Option(flag, **described)]  # type: ignore[valid-type]
        return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    for group, options in GROUPS.items():
        for name, path in options.items():
            field = _field(path)
            kinds = {field.annotation, *get_args(field.annotation)}
            metavar = "NUMBER" if kinds & {int, float} else "DIR" if Path in kinds else "VALUE"
            yield parameter(
                f"--{name}",
                list[str] | None if get_origin(field.annotation) is tuple else str | None,
                name.replace("-", "_"),
                help=_OF_RUNS.get(name, field.description),
                rich_help_panel=group,
                metavar=metavar,
            )
    yield parameter(
        "--set", list[str] | None, "settings", help="Any setting.", rich_help_panel="Training",
        metavar="KEY=VALUE",
    )  # fmt: skip
    plan = "Check data, weights, memory and settings, and show what the study costs. Run nothing."
    yield parameter("--plan", bool, "plan", default=False, help=plan)


def _field(path: str) -> FieldInfo:
    *sections, name = path.split(".")
    model: Any = StudyConfig
    for section in sections:
        model = model.model_fields[section].annotation
    field: FieldInfo = model.model_fields[name]
    return field


@app.command(cls=Command)
def search(*, plan: bool = False, **options: Any) -> None:
    """Search settings, confirm the best, and test them."""
    config = StudyConfig.of(**options)
    from tune.study import Study  # loads torch and Ray, which --help does not need

    study = Study(config=config)
    if plan:
        print(study.describe_plan(), flush=True)
        print(study.estimate())
    else:
        study.run()


search.__signature__ = Signature(list(_parameters()))  # type: ignore[attr-defined]


def main(args: list[str] | None = None) -> int:
    """Run the command line. Return the exit status."""
    return run_cli(app, sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    sys.exit(main())
