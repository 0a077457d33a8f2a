"""Result of a run, stored as result.json in the folder of the run."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prometar.errors import UserError
from prometar.io.files import read_bytes, write_atomically

RESULT_FILE = "result.json"
EpochRecord = dict[str, int | float]
Percent = Annotated[float, Field(ge=0, le=100)]

STRICT = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)
"""Pydantic configuration of records: types are not converted, and numbers must be finite."""


class RunResult(BaseModel):
    """Result of a finished run.

    Args:
        result, history: Record of the last epoch, and records of all epochs.
        accuracies, images: Accuracy in percent and number of images by evaluation set.
        objective: Name of the objective, which determines the training images and the score.
        classnames, template: Training classes by label, and the template of their texts.
        run, data, weights: Digests of the run, of the splits of the dataset, and of the backbone.
        environment: Software versions and machine.
        code: sha256 of the source files of custom components.
        cpus, gpus: Allocated resources, or None if unknown.
        tests: By name of a target dataset: accuracy in percent on all its classes, and digest of its splits.
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
            InfrastructureError: the folder is not writable.
        """
        write_atomically(folder / RESULT_FILE, self.model_dump_json(indent=1, exclude_defaults=True).encode())


def read_result(folder: Path) -> RunResult:
    """Read result.json.

    Raises:
        UserError: the file is missing or corrupt.
    """
    path = folder / RESULT_FILE
    try:
        return RunResult.model_validate_json(read_bytes(path))
    except (OSError, ValidationError):
        raise UserError(
            f"{path} is missing or corrupt. Rerun the command that trained the run to write it again."
        ) from None
