"""result.json of a run's folder: its figures, every epoch's record, and what made them."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from prometar.errors import UserError
from prometar.io.files import read_bytes, write_atomically

FILE = "result.json"
EpochRecord = dict[str, int | float]
Percent = Annotated[float, Field(ge=0, le=100)]

STRICT = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)
"""Of records of figures: nothing is read as what it is not, and every number is finite."""
HISTORY = TypeAdapter(tuple[EpochRecord, ...], config=STRICT)


class RunResult(BaseModel):
    """What a finished run found.

    Args:
        result: The last epoch's record. history: Every epoch's.
        accuracies: Percent by set of classes. images: How many each was measured on.
        objective: What the run trained on and was scored by.
        classnames: What it was trained on, by label. template: Around the names.
        run: The digest of everything that decides its outcome. data, weights: Those of the data set's splits,
            and of the backbone as it ran.
        environment: Versions of what it ran on. code: sha256 of the source files of custom components.
        cpus, gpus: What it held while it ran, where that was told.
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

    def described(self) -> dict[str, Any]:
        """As plain data."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def write(self, folder: Path) -> None:
        """Raises a WorkError where nothing can be written."""
        write_atomically(folder / FILE, json.dumps(self.described(), indent=1).encode())


def read_result(folder: Path) -> RunResult:
    """Raises a UserError where it is missing or damaged."""
    path = folder / FILE
    try:
        return RunResult.model_validate_json(read_bytes(path))
    except (OSError, ValidationError):
        raise UserError(
            f"{path} is missing or damaged: the command that trained the run writes it again"
        ) from None
