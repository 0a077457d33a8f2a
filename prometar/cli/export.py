"""`prometar export`: a run's prompts as one file."""

from pathlib import Path
from typing import Annotated

import typer

from prometar.cli.options import TrustOption
from prometar.errors import UserError


def export(
    run: Annotated[Path, typer.Argument(help="A folder that `prometar train` or `reproduce` wrote.")],
    to: Annotated[
        Path, typer.Option(help="FILE.safetensors (a card FILE.json beside it), FILE.onnx or FILE.pt2.")
    ],
    format: Annotated[
        str,
        typer.Option(
            help="prompts; or a program that runs without prometar: onnx (pip install '.[onnx]') or torch."
        ),
    ] = "prompts",
    classes_as_input: Annotated[
        bool, typer.Option("--classes-as-input", help="A program takes text features as its second input.")
    ] = False,
    trust_parts: TrustOption = False,
) -> None:
    """Write a finished run's prompts, or the run as a program.

    Prompts are for `prometar.load(FILE).predict(images)`.
    """
    if format == "prompts" and classes_as_input:
        raise UserError("--classes-as-input belongs to --format onnx or torch: prompts take any classes")
    from prometar.runs import export_program, export_run

    if format == "prompts":
        print(f"written: {to} and {export_run(run, to, trust_parts=trust_parts)}")
    else:
        export_program(run, to, format, classes_as_input=classes_as_input, trust_parts=trust_parts)
        print(f"written: {to}")
