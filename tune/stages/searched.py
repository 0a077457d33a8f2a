"""What can be wrong with the settings that a study searches; no data and no weights are needed to tell."""

from __future__ import annotations

from prometar.errors import UserError
from prometar.methods.composition import build
from tune.study_spec import StudySpec

_PARTS = {"prompts", "regularizer", "modulator", "inner", "task", "averager"}


def require_space(spec: StudySpec) -> None:
    """Every range must hold the reference; its values must be settings that a run takes and the method uses.

    Raises:
        UserError: one that does not.
    """
    spec.reference()
    for key, entry in spec.space.ranges.items():
        beside = {other: values[0] for other, values in entry.when.items()}
        methods = [build(spec.config.override({**beside, key: value})) for value in entry.tried]
        part = key.split(".")[0]
        if part in _PARTS and len(methods) > 1 and all(method == methods[0] for method in methods):
            name, method = spec.space.name, spec.config.method
            raise UserError(
                f"the space {name} searches {key}, which {method} does not use with these settings: "
                "choose another --space"
            )
