"""Words of lines that people read."""


def counted(n: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "seed"), counted(3, "data set")
        ('1 seed', '3 data sets')
    """
    return f"{n} {noun}{'' if n == 1 else 's'}"
