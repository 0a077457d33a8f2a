"""Sentences on a tuned comparison: does the order of the methods survive equal tuning, what is unknown."""

from collections.abc import Iterator, Sequence

from prometar.cli.console import format_count
from tune.tuned.comparison import TunedComparison
from tune.tuned.ranking import ALPHA, NUM_BOOTSTRAP_SAMPLES, Ranking, smallest_friedman_p
from tune.tuned.results import TunedResults

_SETTLED = 0.95  # share of bootstrap samples from which a statement counts as settled


def answer(ranking: Ranking | None) -> str:
    """Answer in a sentence: does the order of the methods survive equal tuning?"""
    if ranking is None:
        return (
            "The order of the methods is unknown. It needs at least two methods, and a dataset on which all "
            "of them have results."
        )
    if ranking.tau is None:
        return "The order of the methods is unknown: before or after tuning, all have the same average rank."
    before = ranking.published.methods
    after = ranking.tuned.methods
    share = f"{ranking.same_first:.0%} of the bootstrap samples"
    if before == after:
        return (
            f"Yes, the order of the methods survives equal tuning: {', '.join(after)}. "
            f"In {share}, the first method is the same before and after."
        )
    if before[0] == after[0]:
        return (
            f"The first method survives equal tuning, the order of the others does not: {before[0]} is first "
            f"at published settings and after tuning. In {share}, the first method is the same before and "
            "after."
        )
    return (
        f"No, the order of the methods does not survive equal tuning: {before[0]} is first at published "
        f"settings, {after[0]} after tuning. In {share}, the first method is the same before and after."
    )


def evidence(ranking: Ranking | None) -> Iterator[str]:
    """Yield sentences that support the answer."""
    if ranking is None:
        return
    drawn = "datasets and seeds" if len(ranking.datasets) > 1 else "seeds of the only dataset"
    if 1 - _SETTLED < ranking.same_first < _SETTLED:
        yield (
            "This is not settled: other seeds or datasets could give another first method before or after "
            "tuning."
        )
    tau = "cannot be computed"
    if ranking.tau is not None and ranking.tau_bounds is not None:
        low, high = ranking.tau_bounds
        tau = f"is {ranking.tau:+.2f} (95% bootstrap interval [{low:+.2f}, {high:+.2f}])"
    yield (
        f"Kendall's tau of the average ranks before and after tuning {tau}. The bootstrap draws {drawn} "
        f"{NUM_BOOTSTRAP_SAMPLES:,} times."
    )
    if ranking.published.p is not None and ranking.tuned.p is not None:
        yield (
            f"Friedman's test that all methods have equal ranks: p = {ranking.published.p:.3f} at published "
            f"settings, p = {ranking.tuned.p:.3f} after tuning."
        )


def limits(comparison: TunedComparison, results: TunedResults) -> Iterator[str]:
    """Yield sentences on what the comparison cannot show."""
    ranking = results.ranking
    if ranking is not None:
        yield from _limits_of_tests(ranking)
        left_out = [name for name in results.datasets if name not in ranking.datasets]
        if left_out:
            yield f"Ranks leave out datasets on which a method has no score: {', '.join(left_out)}."
    if len(comparison.grid.seeds) < 2:
        yield "With a single test seed, gains have no interval. Pass more --seeds."
    trained = [cell for cell in results.cells.values() if cell.method not in results.untrained]
    kept = [cell for cell in trained if cell.keeps_published]
    if kept:
        names = ", ".join(f"{cell.method} on {cell.dataset}" for cell in kept)
        yield f"The search found no settings with a higher validation score than the published ones: {names}."
    if results.untrained:
        yield f"Not trained, so not tuned, and one run stands for all seeds: {', '.join(results.untrained)}."
    yield (
        "Settings were selected on validation images and other seeds. The published settings were chosen by "
        "their authors, in some papers on test images of the benchmarks."
    )


def _limits_of_tests(ranking: Ranking) -> Iterator[str]:
    datasets = format_count(len(ranking.datasets), "dataset")
    num_methods = ranking.num_methods
    if len(ranking.datasets) < 2:
        yield (
            "A single dataset shows the order on this dataset only. Friedman's test needs at least two "
            "datasets."
        )
    elif num_methods < 3:
        yield "Friedman's test needs at least three methods."
    else:
        smallest = smallest_friedman_p(num_methods, len(ranking.datasets))
        if smallest > ALPHA:
            yield (
                f"With {datasets} and {num_methods} methods, Friedman's test cannot show a difference: its "
                f"p is at least {smallest:.2f}, even if the order is the same on every dataset."
            )
    if ranking.difference > num_methods - 1:
        yield (
            f"With {datasets}, the critical difference ({ranking.difference:.2f} ranks) exceeds the largest "
            f"possible difference ({num_methods - 1}). So Nemenyi's test cannot show that two methods differ."
        )
    if ranking.num_seeds < 5:
        seeds = format_count(ranking.num_seeds, "seed")
        yield f"A bootstrap over {seeds} per dataset understates the spread of other seeds."


def summary(comparison: TunedComparison, results: TunedResults, problems: Sequence[str]) -> list[str]:
    """Return the answer, the evidence, the limits and the problems, as lines of the terminal."""
    points = [*evidence(results.ranking), *limits(comparison, results), *problems]
    return [answer(results.ranking), *(f"- {point}" for point in points)]
