"""Weights from local .safetensors files."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from prometar.errors import UserError, first_line
from prometar.io.files import size_of


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name.

    Raises:
        UserError: there is no such file, or it is not a safetensors file.
    """
    if size_of(path) is None:
        raise UserError(f"no weights file {path}: pass --pretrained with an existing .safetensors file")
    if path.suffix != ".safetensors":
        load = f"state = torch.jit.load({str(path)!r}, 'cpu').state_dict()"
        save = f"safetensors.torch.save_file(state, {str(path.with_suffix('.safetensors'))!r})"
        raise UserError(
            f"{path} is not a .safetensors file; convert it with `{load}` (torch.load for a file that holds "
            f"a state dict) and `{save}`"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.offset_keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a safetensors file: {first_line(error)}") from None
