"""Why a model is none that the towers compute."""


class Unlike(ValueError):
    """Its text is the reason, to follow "is not supported: "."""
