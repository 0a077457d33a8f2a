"""Rules that the files of clusters/ must follow."""


def require(holds: bool, problem: str) -> None:
    """Check a rule.

    Raises:
        ValueError: the rule does not hold. The message is `problem`.
    """
    if not holds:
        raise ValueError(problem)
