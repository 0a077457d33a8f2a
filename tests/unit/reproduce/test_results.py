"""Accuracies of the table, published accuracies and the paired comparison."""

from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prometar.comparison.finished_runs import FinishedRun
from prometar.config.settings import Config
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.dataset import Dataset, FolderSource, Item
from prometar.metrics import harmonic_mean, t_interval
from tests.support.reproductions import PUBLISHED_BACKBONE, fill, make_grid
from tune.reproduce import results
from tune.reproduce.grid import Grid
from tune.reproduce.published import incomparable_reason, published_h
from tune.reproduce.results import AccuracySummary, Row, collect, compare_methods

Table = tuple[list[Row], list[str]]
percents = st.floats(0.01, 100)


def build_table(grid: Grid, runs: list[FinishedRun], **incomparable: str) -> Table:
    return results.build_table(grid, collect(grid, runs), incomparable=incomparable)


def row(table: Table, dataset: str, method: str) -> dict[str, AccuracySummary]:
    (found,) = [found for name, label, found in table[0] if (name, label) == (dataset, method)]
    return dict(found)


def half(config: Config, name: str) -> float:
    return 50.0


@given(st.lists(st.tuples(percents, percents), min_size=1, max_size=4))
def test_base_new_and_h(pairs: list[tuple[float, float]]) -> None:
    grid = make_grid("base-to-new", ("coop",), seeds=tuple(range(len(pairs))), datasets=("dtd",))
    runs = fill(grid, lambda config, name: pairs[config.train.seed][name == "new"])
    found = row(build_table(grid, runs), "dtd", "coop")
    assert found == row(build_table(grid, runs[::-1]), "dtd", "coop") or len(pairs) > 1
    base, new = (list(values) for values in zip(*pairs, strict=True))
    by_seed = [harmonic_mean({"base": b, "new": n}) for b, n in pairs]
    for name, values in (("base", base), ("new", new), ("H", by_seed)):
        assert found[name].n == len(pairs)
        assert found[name].sd == (pytest.approx(stdev(values)) if len(pairs) > 1 else None)
        assert found[name].interval == t_interval(values)
    assert found["base"].mean == pytest.approx(mean(base))
    assert found["H"].mean == pytest.approx(2 / (1 / mean(base) + 1 / mean(new))), "H of the averages"


def test_an_average_is_taken_seed_by_seed() -> None:
    grid = make_grid("base-to-new", ("coop",), seeds=(1, 2), datasets=("dtd", "eurosat"))
    values = {("dtd", 1): 60.0, ("dtd", 2): 70.0, ("eurosat", 1): 90.0, ("eurosat", 2): 80.0}
    runs = fill(grid, lambda config, _: values[config.data.name, config.train.seed])
    base = row(build_table(grid, runs), "average", "coop")["base"]
    assert (base.mean, base.sd) == (75.0, 0.0), "75 in both seeds"


def test_what_is_missing_is_no_part_of_an_average() -> None:
    grid = make_grid("base-to-new", ("coop", "ivlp"), seeds=(1, 2), datasets=("dtd", "eurosat", "food101"))
    runs = [run for run in fill(grid, half) if run.config.data.name != "food101"]
    table = build_table(grid, runs)
    assert row(table, "food101", "coop") == {}
    assert row(table, "average of 2", "coop")["base"].n == 2
    lost = [run for run in runs if (run.config.data.name, run.config.method) != ("dtd", "ivlp")]
    assert row(build_table(grid, lost), "average of 2", "ivlp") == {}, "never over fewer datasets than others"
    fewer = [run for run in runs if run.folder.name != "final-dtd-16shots-coop-seed2"]
    assert row(build_table(grid, fewer), "average of 2", "coop")["base"].n == 1


def test_one_source_and_its_targets() -> None:
    grid = make_grid("domain-generalisation", ("coop",), seeds=(1, 2))
    order = ["all", *grid.datasets]
    runs = fill(grid, lambda config, name: 10.0 * order.index(name) + config.train.seed)
    table = build_table(grid, runs)
    assert [name for name, _, _ in table[0]] == ["imagenet", *grid.datasets, "average"]
    assert row(table, "imagenet", "coop")["accuracy"].mean == 1.5
    assert row(table, "imagenet_r", "coop")["accuracy"].mean == 41.5
    assert row(table, "average", "coop")["accuracy"].mean == 26.5, "without the source"
    tests = {"imagenet_r": runs[0].result.tests["imagenet_r"]}
    part = replace(runs[0], result=runs[0].result.model_copy(update={"tests": tests}))
    table = build_table(grid, [part, runs[1]])
    counts = {name: found["accuracy"].n for name, _, found in table[0]}
    assert (counts["imagenet"], counts["imagenet_a"], counts["imagenet_r"]) == (2, 1, 2)


def test_shots_are_columns_and_what_learns_nothing_is_in_all_of_them() -> None:
    grid = make_grid("few-shot", ("zero-shot", "coop"), seeds=(1, 2), datasets=("dtd",), shots=(1, 4))
    table = build_table(grid, fill(grid, lambda config, _: config.data.shots + 10.0 * config.train.seed))
    assert grid.columns == ("1 shot", "4 shots")
    assert [row(table, "dtd", "coop")[c].mean for c in grid.columns] == [16.0, 19.0]
    assert [row(table, "dtd", "zero-shot")[c].mean for c in grid.columns] == [11.0, 11.0]
    assert row(table, "dtd", "zero-shot")["4 shots"].sd is None
    assert "zero-shot is not trained, so a single run represents all seeds." in table[1]


def whole(name: str) -> Dataset:
    """A benchmark's list of images, each of a class in turn."""
    benchmark = BENCHMARKS[name]
    train, val, test = (
        tuple(Item(f"{split}/{k}", label := k % benchmark.num_classes, str(label)) for k in range(size))
        for split, size in benchmark.sizes.items()
    )
    return Dataset(name, name, train, val, test, FolderSource("nowhere"), "{}")


def test_other_images_or_recipes_have_no_published_accuracy() -> None:
    config = Config().override({**PUBLISHED_BACKBONE, "data.shots": 16})
    dtd = whole("dtd")
    assert published_h(dtd, config) is not None
    assert published_h(dtd, config.model_copy(update={"method": "mine.yaml"})) is None
    assert published_h(dtd, config.override({"data.shots": 4})) is None
    other = replace(dtd, test=dtd.test[1:])
    reason = "test 1691 of 1692"
    assert incomparable_reason(other) == reason
    assert published_h(other, config) is None
    grid = make_grid("base-to-new", ("coop",), datasets=("dtd", "eurosat"))
    table = build_table(grid, fill(grid, half), dtd=reason)
    assert {cell.published for cell in row(table, "dtd", "coop").values()} == {None}
    assert None not in {cell.published for cell in row(table, "eurosat", "coop").values()}
    assert f"Not comparable with published accuracies: dtd ({reason})." in table[1]


def test_other_sources_have_no_published_accuracy() -> None:
    grid = make_grid("cross-dataset", ("maple",), datasets=("dtd", "eurosat"))
    on_dtd = grid.config.override({"data.name": "dtd"})
    another = replace(grid, source="dtd", datasets=("eurosat",), configs={("maple", "dtd", 16): on_dtd})
    for other in (grid, another):
        table = build_table(other, fill(other, lambda config, name: 50.0))
        assert (row(table, "eurosat", "maple")["accuracy"].published is None) == (other is not grid)


def test_only_comparable_accuracies_are_shown_as_published() -> None:
    methods = ("zero-shot", "coop", "vpt", "prometar")
    grid = make_grid("base-to-new", methods, datasets=("dtd",))
    table = build_table(grid, fill(grid, half))
    coop = row(table, "dtd", "coop")
    assert (coop["base"].published, coop["new"].published) == (79.44, 41.18)
    assert coop["H"].published == 54.24, "the harmonic mean of the published ones"
    assert row(table, "dtd", "prometar")["base"].published is None, "H alone was published by dataset"
    assert row(table, "dtd", "vpt")["base"].published is None
    assert any("Sources of published accuracies: CLIP" in note for note in table[1])
    for other in (
        make_grid("base-to-new", methods, datasets=("dtd",), shots=(4,)),
        make_grid("base-to-new", methods, datasets=("dtd",), settings={"train.epochs": 3}),
        make_grid("base-to-new", methods, datasets=("dtd",), settings={"backbone.pretrained": None}),
    ):
        table = build_table(other, fill(other, half))
        assert all(cell.published is None for cell in row(table, "dtd", "coop").values())


SHALLOW = {"prompts.text_length": 2, "prompts.vision_length": 2, "train.epochs": 5}
OF_MAPLES_README = {**SHALLOW, "prompts.text_depth": 12, "prompts.vision_depth": 12, "optim.lr": 0.0035}


@pytest.mark.parametrize(
    ("method", "settings", "published", "file"),
    [
        ("ivlp", {}, 77.51, "PromptSRC, IVLP/vit_b16_c2_ep20_batch4_4+4ctx"),
        ("ivlp", OF_MAPLES_README, 77.9, "multimodal-prompt-learning, IVLP/vit_b16_c2_ep5_batch4_2+2ctx"),
        ("ivlp", SHALLOW, None, ""),
        ("vpt", {}, 76.68, "multimodal-prompt-learning, VPT/vit_b16_c2_ep5_batch4_4"),
        ("coop", {}, 71.66, "2109.01134"),
    ],
)
def test_a_published_accuracy_is_cited_with_its_configuration(
    method: str, settings: dict[str, Any], published: float | None, file: str
) -> None:
    grid = make_grid("base-to-new", (method,), settings=settings)
    runs = fill(grid, half)
    table = build_table(grid, runs)
    assert row(table, "average", method)["H"].published == published
    assert any(file in note for note in table[1] if note.startswith("Sources")) == bool(file)
    part = build_table(grid, [run for run in runs if run.config.data.name != "dtd"])
    assert row(part, "average of 10", method)["H"].published is None


def test_a_protocols_own_settings_are_named_and_compare() -> None:
    grid = make_grid("cross-dataset", ("maple", "promptsrc"))
    assert grid.configs["maple", "imagenet", 16].train.epochs == 2
    table = build_table(grid, fill(grid, half))
    assert row(table, "imagenet", "maple")["accuracy"].published == 70.72
    (note,) = [note for note in table[1] if note.startswith("The published settings of maple differ")]
    assert note.endswith("`prometar methods maple` shows them.")
    assert not any(note.startswith("Settings of") for note in table[1])


def test_published_accuracies_are_shown_only_with_the_published_settings() -> None:
    changed = make_grid("cross-dataset", ("maple",), settings={"train.epochs": 5})
    table = build_table(changed, fill(changed, half))
    assert row(table, "imagenet", "maple")["accuracy"].published is None
    assert "Settings of maple that differ from the published ones: train.epochs=5." in table[1]


def test_a_change_on_one_dataset_hides_its_published_accuracy_and_that_of_the_average() -> None:
    # CoOp was published with 50 epochs on ImageNet, and with 200 on other datasets.
    grid = make_grid("base-to-new", ("coop",), settings={"train.epochs": 50})
    table = build_table(grid, fill(grid, half))
    assert row(table, "imagenet", "coop")["base"].published == 76.47
    assert row(table, "dtd", "coop")["base"].published is None
    assert row(table, "average", "coop")["base"].published is None
    assert "Settings of coop that differ from the published ones: train.epochs=50." in table[1]


GAIN = {"zero-shot": -5.0, "coop": 0.0, "prometar": 4.0}


def value(config: Config, name: str) -> float:
    """DTD takes 20 points from all methods, and the second seed gives all of them one."""
    return 60.0 + GAIN[config.method] - 20 * ("dtd" in (config.data.name, name)) + (config.train.seed == 2)


def test_methods_are_paired_by_dataset_and_seed_without_the_source() -> None:
    grid = make_grid("cross-dataset", tuple(GAIN), seeds=(1, 2), datasets=("dtd", "eurosat"))
    differences, notes = compare_methods(grid, collect(grid, fill(grid, value)))
    assert ({each.reference for each in differences}, notes) == ({"prometar"}, [])
    found = {each.method: each.by_dataset for each in differences}
    assert found["coop"] == {"dtd": (-4.0, -4.0), "eurosat": (-4.0, -4.0)}
    assert found["zero-shot"] == {"dtd": (-9.0, -10.0), "eurosat": (-9.0, -10.0)}, "one run, for every seed"
    coop = make_grid("base-to-new", ("zero-shot", "coop"), datasets=("dtd",))
    differences, _ = compare_methods(coop, collect(coop, fill(coop, value)))
    assert differences[0].reference == "zero-shot"
