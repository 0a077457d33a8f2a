"""Result of a run: result.json in its folder."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prometar.errors import UserError
from prometar.io.files import read_bytes, write_atomically

FILE = "result.json"
EpochRecord = dict[str, int | float]
Percent = Annotated[float, Field(ge=0, le=100)]

STRICT = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)
"""Configuration of records: no conversions, and only finite numbers."""


class RunResult(BaseModel):
    """Result of a finished run.

    Args:
        result: Record of the last epoch. history: Records of all epochs.
        accuracies: Percent by set of classes. images: Number of test images of each set.
        objective: Images it was trained on and scores it was measured by.
        classnames: Classes of the training, by label. template: Text around a class name.
        run: Digest of everything that determines the result. data, weights: Digests of the dataset's splits
            and of the backbone in its precision.
        environment: Versions and machine. code: sha256 of the source files of custom components.
        cpus, gpus: Allocated resources; None if unknown.
        tests: Percent on all classes of other datasets and the digests of their splits, by name.
    """

    model_config = STRICT

    result: EpochRecord
    accuracies: dict[str, Percent] = Field(min_length=1)
    images: dict[str, int]
    history: tuple[EpochRecord, ...]
    objective: str
    classnames: tuple[str, ...]
    template: str
    run: str
    data: str
    weights: str
    environment: dict[str, str]
    code: dict[str, str] = Field(default_factory=dict)
    cpus: float | None = None
    gpus: float | None = None
    tests: dict[str, tuple[Percent, str]] = Field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write result.json.

        Raises:
            StorageError: the folder is not writable.
        """
        write_atomically(folder / FILE, self.model_dump_json(indent=1, exclude_defaults=True).encode())


def read_result(folder: Path) -> RunResult:
    """Read result.json.

    Raises:
        UserError: it is missing or corrupt.
    """
    path = folder / FILE
    try:
        return RunResult.model_validate_json(read_bytes(path))
    except (OSError, ValidationError):
        raise UserError(
            f"{path} is missing or corrupt. Rerun the command that trained the run to write it again."
        ) from None
