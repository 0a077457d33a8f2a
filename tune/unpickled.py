"""What Ray Tune pickles, and nobody reads again."""

from __future__ import annotations


class Unpickled:
    """Pickled as nothing: terminals and connections cannot be, and a study's state lies elsewhere."""

    def __getstate__(self) -> dict[str, object]:
        return {}
