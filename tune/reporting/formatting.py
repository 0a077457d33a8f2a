"""How the reports write numbers, settings, times and intervals."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev

from prometar.metrics import Interval
from tune.space.spaces import Choice, Range
from tune.stages.budget import counted

NONE = "–"


def number(value: float | None) -> str:
    """Two decimals; a dash for none."""
    return NONE if value is None else f"{value:.2f}"


def signed(value: float | None) -> str:
    """Two decimals with a sign; the minus is the typographic one."""
    return NONE if value is None else f"{value:+.2f}".replace("-", "−")


def chance(probability: float | None) -> str:
    """Two decimals, but never a certainty that no measurement gives.

    Example:
        >>> chance(0.8), chance(0.999), chance(0.001)
        ('0.80', '>0.99', '<0.01')
    """
    if probability is None:
        return NONE
    if probability > 0.99:
        return ">0.99"
    if probability < 0.01:
        return "<0.01"
    return f"{probability:.2f}"


def setting(value: object) -> str:
    """A setting's value, short."""
    if value is None:
        return NONE
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation.

    Example:
        >>> spread([60.0, 62.0]), spread([60.0]), spread([])
        ('61.00 ± 1.41', '60.00', '–')
    """
    if not values:
        return NONE
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def duration(seconds: float | None) -> str:
    """
    Example:
        >>> duration(75), duration(3725), duration(4.2)
        ('1 min 15 s', '1 h 2 min', '4.2 s')
    """
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def hours(value: float | None) -> str:
    """
    Example:
        >>> hours(0.0), hours(0.0123), hours(3.14159), hours(2345.6)
        ('0', '0.012', '3.1', '2346')
    """
    if value is None:
        return NONE
    if value == 0:
        return "0"
    return f"{value:.2g}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def range_of(entry: Range) -> str:
    """What a setting is drawn from, and when."""
    if isinstance(entry, Choice):
        text = " | ".join(map(str, entry.choices))
    else:
        text = f"{setting(entry.low)} … {setting(entry.high)}{', log' if entry.log else ''}"
    conditions = [f"{key} is {' or '.join(map(str, values))}" for key, values in entry.when.items()]
    return text + (f"; only where {' and '.join(conditions)}" if conditions else "")


def listed(names: Iterable[object]) -> str:
    """
    Example:
        >>> listed(["a"]), listed(["a", "b", "c"])
        ('a', 'a, b and c')
    """
    texts = [str(name) for name in names]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def interval(difference: Interval, unit: str, level: str = "95") -> str:
    """A mean difference with its interval of `level` percent and how many `unit`s it rests on."""
    low, high = signed(difference.low), signed(difference.high)
    measured = f"{signed(difference.mean)}, {level} % interval {low} to {high}"
    return f"{measured}, n = {counted(difference.n, unit)}"


def bounds(difference: Interval | None) -> str:
    """A mean difference with its 95 % interval, short.

    Example:
        >>> bounds(Interval(1.0, -0.5, 2.5, 3)), bounds(None)
        ('+1.00 (−0.50 to +2.50)', '–')
    """
    if difference is None:
        return NONE
    return f"{signed(difference.mean)} ({signed(difference.low)} to {signed(difference.high)})"


def shown(difference: Interval | None, *, first: str, second: str) -> str:
    """What an interval of first − second shows, in a word or two."""
    if difference is None:
        return "no interval"
    if not difference.excludes_zero:
        return "no difference shown"
    return f"{first if difference.mean > 0 else second} is better"
