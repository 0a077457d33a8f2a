"""`prometar push`: a prompt file on the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    prompts: Annotated[Path, typer.Argument(help="FILE.safetensors that `prometar export` wrote.")],
    name: Annotated[str, typer.Argument(help="owner/name of the repository; it is made if it is missing.")],
    public: Annotated[
        bool, typer.Option("--public", help="Anybody may read it; otherwise it is private.")
    ] = False,
    license: Annotated[str, typer.Option(help="The licence's identifier in the hub's list.")] = "unknown",
) -> None:
    """Put a prompt file and its card on the Hugging Face hub.

    `load("hf://owner/name")` reads it from there.
    """
    from prometar.inference.hub import PromptRepo
    from prometar.inference.publish import publish

    print(f"written: {publish(prompts, PromptRepo.parse(name), public=public, license=license)}")
