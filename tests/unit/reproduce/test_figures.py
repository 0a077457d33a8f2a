"""The table's figures, from records alone."""

from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prometar.config.settings import Config
from prometar.data.datasets.benchmarks import BENCHMARKS, OFFICIAL_NOTE
from prometar.data.datasets.dataset import Dataset, Item
from prometar.data.datasets.sources import FolderSource
from prometar.metrics import harmonic_mean, t_interval
from prometar.reproduce import figures
from prometar.reproduce.figures import Row, Table
from prometar.reproduce.grid import Grid, GridResult, GridRun, TargetTest
from prometar.reproduce.published import published, settings_of, unlike_published
from tests.support.reproductions import ask, fill

percents = st.floats(0.01, 100)


def build_table(grid: Grid, results: list[GridResult]) -> Table:
    return figures.build_table(grid, results, uncited={})


def row(table: Table, dataset: str, method: str) -> Row:
    (found,) = [r for r in table.rows if (r.dataset, r.method) == (dataset, method)]
    return found


@given(st.lists(st.tuples(percents, percents), min_size=1, max_size=4))
def test_base_new_and_h(pairs: list[tuple[float, float]]) -> None:
    asked = ask("base-to-new", ("coop",), seeds=tuple(range(len(pairs))), datasets=("dtd",))
    records = fill(asked, lambda r, name: pairs[r.config.train.seed][name == "new"])
    found = row(build_table(asked, records), "dtd", "coop").figures
    base, new = (list(values) for values in zip(*pairs, strict=True))
    by_seed = [harmonic_mean({"base": b, "new": n}) for b, n in pairs]
    for name, values in (("base", base), ("new", new), ("H", by_seed)):
        interval = t_interval(values)
        assert found[name].n == len(pairs)
        assert found[name].sd == (pytest.approx(stdev(values)) if interval else None)
        assert (found[name].low, found[name].high) == (
            (interval.low, interval.high) if interval else (None, None)
        )
    assert found["base"].mean == pytest.approx(mean(base))
    assert found["H"].mean == pytest.approx(2 / (1 / mean(base) + 1 / mean(new))), "H of the averages"


def test_the_order_of_records_does_not_matter() -> None:
    asked = ask("base-to-new", ("zero-shot", "coop"), datasets=("dtd", "eurosat"))
    records = fill(asked, lambda r, name: 10.0 * r.config.train.seed + len(name))
    assert build_table(asked, records) == build_table(asked, records[::-1])


def test_an_average_is_over_data_sets_first_and_seeds_then() -> None:
    asked = ask("base-to-new", ("coop",), seeds=(1, 2), datasets=("dtd", "eurosat"))
    values = {("dtd", 1): 60.0, ("dtd", 2): 70.0, ("eurosat", 1): 90.0, ("eurosat", 2): 80.0}
    table = build_table(asked, fill(asked, lambda r, _: values[r.config.data.name, r.config.train.seed]))
    base = row(table, "average", "coop").figures["base"]
    assert (base.mean, base.sd) == (75.0, 0.0), "75 in both seeds"


def test_what_is_missing_is_no_part_of_an_average() -> None:
    asked = ask("base-to-new", ("coop", "ivlp"), seeds=(1, 2), datasets=("dtd", "eurosat", "food101"))
    records = fill(asked, lambda r, _: 50.0)
    found = [r for r in records if r.run.config.data.name != "food101"]
    table = build_table(asked, found)
    assert row(table, "food101", "coop").figures == {}
    assert row(table, "average of 2", "coop").figures["base"].n == 2
    lost = [r for r in found if (r.run.config.data.name, r.run.config.method) != ("dtd", "ivlp")]
    table = build_table(asked, lost)
    assert row(table, "average of 2", "coop").figures["base"].n == 2
    assert row(table, "average of 2", "ivlp").figures == {}, "never over fewer datasets than its neighbours"
    half = [r for r in found if r.run.name != "final-dtd-16shots-coop-seed2"]
    assert row(build_table(asked, half), "average of 2", "coop").figures["base"].n == 1


def test_one_source_and_its_targets() -> None:
    asked = ask("domain-generalisation", ("coop",), seeds=(1, 2))
    order = ["all", *asked.datasets]
    table = build_table(asked, fill(asked, lambda r, name: 10.0 * order.index(name) + r.config.train.seed))
    assert [r.dataset for r in table.rows] == ["imagenet", *asked.datasets, "average"]
    assert row(table, "imagenet", "coop").figures["accuracy"].mean == 1.5
    assert row(table, "imagenet_r", "coop").figures["accuracy"].mean == 41.5
    assert row(table, "average", "coop").figures["accuracy"].mean == 26.5, "without the source"


def test_shots_are_columns_and_what_learns_nothing_is_in_all_of_them() -> None:
    asked = ask("few-shot", ("zero-shot", "coop"), seeds=(1, 2), datasets=("dtd",), shots=(1, 4))
    table = build_table(asked, fill(asked, lambda r, _: r.config.data.shots + 10.0 * r.config.train.seed))
    assert table.columns == ("1 shot", "4 shots")
    assert [row(table, "dtd", "coop").figures[c].mean for c in table.columns] == [16.0, 19.0]
    assert [row(table, "dtd", "zero-shot").figures[c].mean for c in table.columns] == [11.0, 11.0]
    assert row(table, "dtd", "zero-shot").figures["4 shots"].sd is None
    assert any("Nothing is trained by zero-shot" in note for note in table.notes)


def half(run: GridRun, name: str) -> float:
    return 50.0


def test_a_recipe_of_one_s_own_has_no_published_figure() -> None:
    backbone = {"backbone.name": "ViT-B-16-quickgelu", "backbone.pretrained": "openai"}
    asked = Config().override({**backbone, "data.shots": 16})
    assert published(whole("dtd"), asked) is not None
    assert published(whole("dtd"), asked.model_copy(update={"method": "mine.yaml"})) is None


def test_other_images_than_the_benchmark_s_have_no_published_figure() -> None:
    backbone = {"backbone.name": "ViT-B-16-quickgelu", "backbone.pretrained": "openai"}
    asked, dtd = Config().override({**backbone, "data.shots": 16}), whole("dtd")
    for other in (replace(dtd, note=OFFICIAL_NOTE), replace(dtd, test=dtd.test[1:])):
        assert unlike_published(other)
        assert published(other, asked) is None
    grid = ask("base-to-new", ("coop",), datasets=("dtd", "eurosat"))
    records = fill(grid, half)
    table = figures.build_table(grid, records, uncited={"dtd": OFFICIAL_NOTE})
    assert {f.published for f in row(table, "dtd", "coop").figures.values()} == {None}
    assert None not in {f.published for f in row(table, "eurosat", "coop").figures.values()}
    assert f"Not comparable with published figures: dtd ({OFFICIAL_NOTE})." in table.notes


def whole(name: str) -> Dataset:
    """A benchmark's list of images, each of a class in turn."""
    benchmark = BENCHMARKS[name]
    train, val, test = (
        tuple(Item(f"{split}/{k}", k % benchmark.classes, str(k % benchmark.classes)) for k in range(size))
        for split, size in benchmark.sizes._asdict().items()
    )
    return Dataset(name, name, train, val, test, FolderSource("nowhere"), "{}")


def test_published_figures_stand_beside_the_same_setting_only() -> None:
    methods = ("zero-shot", "coop", "vpt", "prometar")
    asked = ask("base-to-new", methods, datasets=("dtd",))
    table = build_table(asked, fill(asked, half))
    coop = row(table, "dtd", "coop").figures
    assert (coop["base"].published, coop["new"].published) == (79.44, 41.18)
    assert coop["base"].difference == pytest.approx(50 - 79.44)
    assert coop["H"].published == 54.24, "the harmonic mean of the published ones"
    assert row(table, "dtd", "prometar").figures["base"].published is None, "H alone was published by dataset"
    assert row(table, "dtd", "vpt").figures["base"].published is None
    assert any("Published figures are cited, not run here: CLIP" in note for note in table.notes)
    for other in (
        ask("base-to-new", methods, datasets=("dtd",), shots=(4,)),
        ask("base-to-new", methods, datasets=("dtd",), settings={"train.epochs": 3}),
        ask("base-to-new", methods, datasets=("dtd",), settings={"backbone.pretrained": None}),
    ):
        table = build_table(other, fill(other, half))
        assert all(f.published is None for f in row(table, "dtd", "coop").figures.values())


SHALLOW = {"prompts.text_length": 2, "prompts.vision_length": 2, "train.epochs": 5}
OF_MAPLES_README = {**SHALLOW, "prompts.text_depth": 12, "prompts.vision_depth": 12, "optim.lr": 0.0035}


@pytest.mark.parametrize(
    ("method", "settings", "published", "file"),
    [
        ("ivlp", {}, 77.51, "PromptSRC, IVLP/vit_b16_c2_ep20_batch4_4+4ctx"),
        ("ivlp", OF_MAPLES_README, 77.9, "multimodal-prompt-learning, IVLP/vit_b16_c2_ep5_batch4_2+2ctx"),
        ("ivlp", SHALLOW, None, ""),
        ("vpt", {}, 76.68, "multimodal-prompt-learning, VPT/vit_b16_c2_ep5_batch4_4"),
    ],
)
def test_a_published_figure_is_cited_with_its_configuration(
    method: str, settings: dict[str, Any], published: float | None, file: str
) -> None:
    asked = ask("base-to-new", (method,), settings=settings)
    table = build_table(asked, fill(asked, half))
    assert row(table, "average", method).figures["H"].published == published
    assert any(file in note for note in table.notes if "cited" in note) == bool(file)


def test_coop_learns_sixteen_tokens_in_few_shot() -> None:
    asked = ask("few-shot", ("coop", "kgcoop"), datasets=("dtd",), shots=(1,))
    assert asked.configs["coop"].prompts.text_length == 16
    assert asked.configs["kgcoop"].prompts.text_length == 4
    assert (
        "Under this protocol, coop has prompts.text_length=16." in build_table(asked, fill(asked, half)).notes
    )


def test_a_published_average_is_over_the_same_data_sets() -> None:
    asked = ask("base-to-new", ("coop",))
    table = build_table(asked, fill(asked, half))
    assert row(table, "average", "coop").figures["H"].published == 71.66
    fewer = ask("base-to-new", ("coop",), datasets=("dtd", "eurosat"))
    assert row(build_table(fewer, fill(fewer, half)), "average", "coop").figures["H"].published is None
    without = [r for r in fill(asked, half) if r.run.config.data.name != "dtd"]
    assert row(build_table(asked, without), "average of 10", "coop").figures["H"].published is None


def test_a_protocols_own_settings_are_said_and_still_compare() -> None:
    asked = ask("cross-dataset", ("maple", "promptsrc"))
    assert asked.configs["maple"].train.epochs == settings_of("cross-dataset", "maple")["train.epochs"] == 2
    table = build_table(asked, fill(asked, half))
    assert row(table, "imagenet", "maple").figures["accuracy"].published == 70.72
    (note,) = [n for n in table.notes if n.startswith("Under this protocol, maple")]
    assert "prompts.text_depth=3, optim.lr=0.0026, train.epochs=2" in note
    assert not any("Changed settings" in n for n in table.notes)
    changed = ask("cross-dataset", ("maple",), settings={"train.epochs": 5})
    table = build_table(changed, fill(changed, half))
    assert row(table, "imagenet", "maple").figures["accuracy"].published is None
    assert "Changed settings: train.epochs=5." in table.notes
    (note,) = [n for n in table.notes if n.startswith("Under this protocol, maple")]
    assert "train.epochs" not in note


def test_a_failed_run_gives_what_it_has() -> None:
    asked = ask("cross-dataset", ("coop",), seeds=(1, 2), datasets=("dtd", "eurosat"))
    good, bad = fill(asked, half)
    tests = {"dtd": TargetTest(accuracy=40.0, data="")}
    table = build_table(asked, [good, GridResult(bad.run, bad.result, tests, "eurosat is broken")])
    assert row(table, "dtd", "coop").figures["accuracy"].mean == 45.0
    assert row(table, "eurosat", "coop").figures["accuracy"].n == 1
