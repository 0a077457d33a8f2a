"""What can be wrong with the settings that a study searches; no data and no weights are needed to tell."""

from __future__ import annotations

from prometar.errors import UserError
from prometar.methods.composition import build
from prometar.methods.prompts import NoPrompts
from tune.space.fitting import is_used
from tune.study_spec import StudySpec


def require_space(spec: StudySpec) -> None:
    """Every range must hold the reference; its values must be settings that a run takes and the method uses.

    Raises:
        UserError: one that does not; nothing is trained.
    """
    config, space = spec.config, spec.space
    if isinstance(build(config).prompts, NoPrompts):
        raise UserError(f"{config.method} trains nothing, so there is nothing to search")
    if not space.ranges:
        raise UserError(f"the space {space.name} has nothing that the method uses: choose another --space")
    spec.reference()  # raises for a value outside its range
    for key, entry in space.ranges.items():
        if not is_used(key, entry, space.ranges, config):
            raise UserError(
                f"the space {space.name} searches {key}, which {config.method} does not use with these "
                "settings: choose another --space"
            )
