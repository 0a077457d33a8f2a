"""`prometar push`: a prompt file on the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    prompts: Annotated[Path, typer.Argument(help="FILE.safetensors that `prometar export` wrote.")],
    repository: Annotated[str, typer.Argument(help="owner/name. It is created if it does not exist.")],
    public: Annotated[bool, typer.Option("--public", help="Create a public repository [private].")] = False,
) -> None:
    """Upload a prompt file to the Hugging Face Hub.

    `prometar.load("hf://owner/name")` loads it from there.
    """
    from prometar.inference import hub

    print(f"written: {hub.push(prompts, repository, public=public)}")
