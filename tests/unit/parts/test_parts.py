"""Parts of one's own: found, given their settings, checked, told apart, sent."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prometar.clip.model import Clip
from prometar.clip.openclip import load_backbone
from prometar.config.settings import Config, configure, dump_config, load_config, parse, parse_assignments
from prometar.errors import UserError, WorkError
from prometar.methods.composition import (
    AUGMENTATIONS,
    AVERAGERS,
    INNER_LOOPS,
    MODULATORS,
    PROMPTS,
    REGULARIZERS,
    build,
)
from prometar.methods.probing import probe
from prometar.methods.regularizers import ImageDistance, LogitsDivergence, TextDistance
from prometar.parts import identity, pieces, reference, sending
from prometar.parts.sending import Sent, install, sources_of


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_backbone("mini", None).clip


KINDS = {
    "prompts": PROMPTS, "regularizer": REGULARIZERS, "modulator": MODULATORS, "inner": INNER_LOOPS,
    "task": AUGMENTATIONS, "averager": AVERAGERS,
}  # fmt: skip


@pytest.mark.parametrize("section", KINDS)
def test_settings_know_every_kind_that_can_be_built(section: str) -> None:
    assert tuple(KINDS[section]) == getattr(Config(), section).KINDS


def test_a_function_is_a_distance_in_both_towers(mine: Path, clip: Clip) -> None:
    config = configure("promptsrc", {"regularizer.kind": "mine:huber"})
    method = probe(config, clip)
    huber = importlib.import_module("mine").huber
    assert method.regularizer.terms == (TextDistance(huber), ImageDistance(huber), LogitsDivergence())
    assert method.regularizer.weights == (25.0, 10.0, 1.0)


def test_args_are_typed_by_the_fields_and_completed_by_their_defaults(mine: Path, tmp_path: Path) -> None:
    values = parse_assignments(["regularizer.kind=mine:Huber"])
    assert configure("prometar", values).regularizer.args == {"delta": 1.0}
    config = configure("prometar", values | parse_assignments(["regularizer.args.delta=2"]))
    assert config.flat()["regularizer.args.delta"] == 2.0
    assert build(config).regularizer.terms[0] == TextDistance(importlib.import_module("mine").Huber(2.0))
    path = tmp_path / "best.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


def test_a_setting_that_is_a_set_is_written_in_one_order(mine: Path) -> None:
    mine.write_text(
        f"{mine.read_text()}\n\n@dataclass(frozen=True)\nclass Some(Huber):\n"
        "    towers: frozenset[str] = frozenset('abcdefghijk')\n    rows: set[int] | None = None\n"
    )
    config = configure("prometar", {"regularizer.kind": "mine:Some", "regularizer.args.rows": [3, 1, 2]})
    assert config.regularizer.args == {"delta": 1.0, "towers": list("abcdefghijk"), "rows": [1, 2, 3]}
    assert build(config).regularizer.terms[0].distance.rows == {1, 2, 3}  # type: ignore[attr-defined]


def test_another_part_forgets_the_settings_of_the_one_before(mine: Path) -> None:
    config = configure("prometar", {"regularizer.kind": "mine:Huber", "regularizer.args.delta": 2})
    assert config.override({"regularizer.kind": "l1"}) == Config()
    assert config.override({"regularizer.kind": "mine:Huber"}) == config


def test_a_configuration_without_own_parts_is_written_as_before() -> None:
    assert "args" not in dump_config(Config())


def test_a_term_has_its_own_weight(mine: Path, clip: Clip) -> None:
    values = {"regularizer.kind": "mine:Spread", "regularizer.args.weight": 3}
    regularizer = probe(configure("prometar", values), clip).regularizer
    assert [term.name for term in regularizer.terms] == ["spread"]
    assert regularizer.weights == (1.0,)
    assert regularizer.terms[0].weight == 3.0  # type: ignore[attr-defined]


def test_a_modulator_takes_its_place(mine: Path, clip: Clip) -> None:
    method = probe(configure("prometar", {"modulator.kind": "mine:Half"}), clip)
    assert method.modulator.constant == 0.5


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"regularizer.kind": "mine:hubber"}, "mine.py has no 'hubber'"),
    ({"regularizer.kind": "nothere:huber"}, "there is no module 'nothere': is its folder on PYTHONPATH?"),
    ({"regularizer.kind": "statistics:mean"}, "a part needs a file of its own"),
    ({"regularizer.kind": "l3"}, "kind 'l3' is none of none, l1, l2, cosine, and no package.module:Name"),
    ({"regularizer.kind": "../x.py:f"}, "no package.module:Name"),
    ({"regularizer.kind": "mine:total"}, "must make one distance a row, (N,) of two (N, E) tensors"),
    ({"regularizer.kind": "mine:broken"}, "mine:broken fails: RuntimeError: "),
    ({"regularizer.kind": "mine:Mute"}, "mine:Mute is no distance and no Term: it cannot be called"),
    ({"regularizer.kind": "mine:Plain"}, "must be a function or a class with @dataclass(frozen=True)"),
    (
        {"regularizer.kind": "mine:Spread", "regularizer.args.weight": True},
        "the args of regularizer mine:Spread: weight: true is no number",
    ),
    ({"regularizer.kind": "mine:Spread"}, "the args of regularizer mine:Spread: weight: a value is needed"),
    (
        {"regularizer.kind": "mine:Spread", "regularizer.args.weight": 1, "regularizer.args.name": "ce"},
        "mine:Spread: a term cannot be called 'ce', as another loss is: rename it",
    ),
    (
        {"regularizer.kind": "mine:Spread", "regularizer.args.weight": 1,
         "regularizer.args.name": "logits", "regularizer.logits_weight": 1.0},
        "mine:Spread: a term cannot be called 'logits', as another loss is: rename it",
    ),
    ({"regularizer.args.delta": 1}, "args are settings of a part of your own, and l1 is built in"),
    ({"regularizer.kind": "mine:huber", "regularizer.args.delta": 1}, "delta: it has no such setting"),
    ({"regularizer.kind": "mine:Huber", "regularizer.args.delta": "x"}, "delta: Input should be a valid"),
    ({"regularizer.kind": "mine:Huber", "regularizer.args.delta": float("nan")}, "finite number"),
    ({"modulator.kind": "mine:Mute"}, "mine:Mute is no Modulator: it has no __call__, constant, init"),
    ({"inner.kind": "mine:huber"}, "mine:huber is no InnerLoop: it has no lr, outer_weight, second_order"),
    ({"averager.kind": "mine:huber"}, "mine:huber"),
    ({"prompts.kind": "mine:Wide"}, "mine:Wide: text.0 must be (P, "),
    ({"optim.args.x": 1}, "only sections that choose a part have args"),
    ({"regularizer.args": 1}, "set one of the part's settings, regularizer.args.NAME"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "message"), WRONG, ids=lambda v: str(v)[:40])
def test_what_is_wrong_with_a_part_is_one_line(
    mine: Path, clip: Clip, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        probe(configure("prometar", values), clip)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


PROMPTS = """
    num_context: int = 0
    templates: tuple[str, ...] = ()
    conditional: bool = False

    def init(self, clip, init_tokens, generator):
        return {"vision.0": torch.zeros(2, clip.vision.width)}

    def tokens(self, leaves):
        return leaves

    def seeing(self, tokens, frozen_BE):
        return tokens
"""
MODULATOR = """
    constant: float | None = None

    def init(self, tokens, generator):
        return {}

    def __call__(self, gate, task, regularizer):
        return task
"""
INNER = """
    lr: float = 0.1
    outer_weight: float = 0.1
    second_order: bool = False

    def __call__(self, prompts, gradient):
        return prompts
"""
TASK = """
    of_images: bool = False

    def draw(self, num_query, num_support, rng):
        return Mix(torch.ones(num_query), torch.zeros(num_query, dtype=torch.long))

    def mixed_images(self, query, partners, mix):
        return query
"""
TERM = """
    name: str = "own"
    uses_text: bool = False
    uses_images: bool = False

    def __call__(self, views):
        return views.image_BE.mean()
"""
BASES = {
    "prompts.kind": PROMPTS, "modulator.kind": MODULATOR, "inner.kind": INNER, "task.augmentation": TASK,
    "regularizer.kind": TERM, "averager.kind": "",
}  # fmt: skip
HEAD = """
from dataclasses import dataclass
import numpy as np
import torch
from prometar.methods.meta_tasks import Mix

SEEN = []

@dataclass(frozen=True)
class Base:{}    pass

@dataclass(frozen=True)
class Wrong(Base):
    {}
"""
INIT = "def init(self, clip, init_tokens, generator): return"
TENSORS = "must return a dict of tensors by name"
DRAW = "def draw(self, num_query, num_support, rng): return"
BAD_CALLS = [
    ("prompts.kind", f"{INIT} None", f"init {TENSORS}, found NoneType"),
    ("prompts.kind", f"{INIT} {{0: torch.zeros(2)}}", f"init {TENSORS}, found 0: Tensor"),
    ("prompts.kind", f"{INIT} {{'vision.0': torch.zeros(2, clip.vision.width).double()}}",
     f"init {TENSORS}, each of clip.working_dtype (torch.float32): vision.0 is torch.float64"),
    ("prompts.kind", f"{INIT} {{'vision.0': torch.randn(2, clip.vision.width)}}",
     "init must draw from the generator that it is given alone"),
    ("prompts.kind", "def tokens(self, leaves): return None", f"tokens {TENSORS}, found NoneType"),
    ("prompts.kind", "def tokens(self, leaves): return {'vision.0': 3}", "found 'vision.0': int"),
    ("modulator.kind", "def init(self, tokens, generator): return None", f"init {TENSORS}, found NoneType"),
    ("modulator.kind", "def init(self, tokens, generator): return {'a': torch.rand(3)}", "must draw from"),
    ("modulator.kind", "constant: str = 'much'", "constant must be a number, found 'much'"),
    ("modulator.kind", "def __call__(self, gate, task, regularizer): pass", f"__call__ {TENSORS}"),
    ("inner.kind", "lr: str = 'much'", "lr must be a number, found 'much'"),
    ("inner.kind", "outer_weight: None = None", "outer_weight must be a number, found None"),
    ("averager.kind", "def __call__(self, average, prompts, epoch, epochs): pass", f"__call__ {TENSORS}"),
    ("task.augmentation", f"{DRAW} 3", "draw must return a methods.meta_tasks.Mix or None, found 3"),
    ("task.augmentation", f"{DRAW} Mix(1, 2)", "fails: AttributeError: 'int' object has no attr"),
    ("task.augmentation", f"{DRAW} Mix(torch.ones(2), torch.tensor([0, 3]))",
     "partner must be one index a query image, of 3 support images, found [0, 3]"),
    ("task.augmentation", f"{DRAW} Mix(torch.ones(2), torch.tensor([0]))", "of 3 support images, found [0]"),
    ("task.augmentation", f"{DRAW} Mix(torch.rand(2), torch.tensor([0, 1]))", "draw must draw from the gen"),
    ("task.augmentation", f"{DRAW} None if SEEN.append(0) or len(SEEN) % 2 else Mix(0, 0)",
     "draw must draw from the gen"),
    ("regularizer.kind", "def __call__(self, views): return views.frozen_image_BE.mean()",
     "fails: AttributeError: 'NoneType' object has no attribute 'mean' (mine.py, line "),
]  # fmt: skip


@pytest.mark.parametrize(("key", "wrong", "message"), BAD_CALLS, ids=lambda v: str(v)[:40])
def test_what_a_small_call_shows_is_one_line(
    mine: Path, clip: Clip, key: str, wrong: str, message: str
) -> None:
    config = {"prompts.kind": "independent", "regularizer.logits_weight": 0.0, key: "mine:Wrong"}
    mine.write_text(HEAD.format(BASES[key] or "\n", wrong))
    with pytest.raises(UserError) as caught:
        probe(configure("prometar", config), clip)
    assert str(caught.value).startswith("mine:Wrong")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raised",
    [
        "torch.OutOfMemoryError('CUDA out of memory.')",
        "torch.AcceleratorError('CUDA error: device-side assert triggered')",
        "RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `a`')",
    ],
)
def test_what_a_gpu_refuses_is_no_mistake_of_the_code_and_ends_its_worker(
    mine: Path, clip: Clip, raised: str
) -> None:
    """Told as the part's, it would leave the worker to the next trial, and be tried with no larger share."""
    mine.write_text(HEAD.format(BASES["regularizer.kind"], f"def __call__(self, views): raise {raised}"))
    with pytest.raises(RuntimeError) as caught:
        probe(configure("prometar", {"regularizer.kind": "mine:Wrong"}), clip)
    assert "CUDA" in str(caught.value)


@pytest.mark.parametrize("key", [key for key, base in BASES.items() if base])
def test_what_is_right_passes(mine: Path, clip: Clip, key: str) -> None:
    mine.write_text(HEAD.format(BASES[key], "pass"))
    probe(configure("prometar", {key: "mine:Wrong"}), clip)


def test_a_module_that_fails_is_told_with_the_line(mine: Path) -> None:
    mine.write_text("import torch\n\nraise RuntimeError('no luck')\n")
    with pytest.raises(UserError, match=r"mine:f fails: RuntimeError: no luck \(mine\.py, line 3\)"):
        reference.load("mine:f")


@pytest.mark.parametrize("said", ["", "'bye'"])
def test_a_module_that_ends_the_process_is_one_that_fails(mine: Path, said: str) -> None:
    mine.write_text(f"\n\nraise SystemExit({said})\n")
    with pytest.raises(UserError, match=r"^mine:f fails: SystemExit: (bye)? \(mine\.py, line 3\)$"):
        reference.load("mine:f")


def test_a_module_that_a_part_lacks_when_it_is_called_is_told_with_the_line(mine: Path, clip: Clip) -> None:
    mine.write_text("def lazy(a, b):\n    import nothere\n")
    with pytest.raises(
        UserError, match=r"mine:lazy fails: ModuleNotFoundError: .*'nothere' \(mine\.py, line 2\)"
    ):
        probe(configure("promptsrc", {"regularizer.kind": "mine:lazy"}), clip)


def test_reading_a_configuration_imports_nothing(mine: Path) -> None:
    mine.write_text("raise SystemExit('imported')\n")
    tree = {"regularizer": {"kind": "mine:huber", "args": {"delta": 1}}}
    config = parse(tree, where="a file")
    assert config.own == {"regularizer": "mine:huber"}
    assert "mine" not in sys.modules
    with pytest.raises(UserError, match=r"a file names code that is not prometar's \(mine:huber\)"):
        config.refuse_own("a file")
    assert config.refuse_own("a file", trusted=True) is config
    assert Config().refuse_own("a file") == Config()


def test_installed_packages_name_parts_by_entry_points(mine: Path, tmp_path: Path) -> None:
    info = tmp_path / "mine-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[prometar.parts]\nregularizer.huber = mine:Huber\n")
    (info / "RECORD").write_text("mine.py,,\n")
    reference._installed.cache_clear()
    identity.installed_as.cache_clear()
    try:
        config = configure("prometar", {"regularizer.kind": "huber", "regularizer.args.delta": 3})
        assert build(config).regularizer.terms[0].distance.delta == 3.0  # type: ignore[attr-defined]
        assert config.own == {"regularizer": "mine:Huber"}
        assert identity.identities(config.own.values()) == {"mine": "mine 1.2"}
        assert sources_of(config.own.values()) == (Sent("mine", "mine 1.2", {}),)
        install([Sent("mine", "mine 1.2", {})])
        with pytest.raises(WorkError, match=r"the study has mine 1\.1, and a worker's machine mine 1\.2"):
            install([Sent("mine", "mine 1.1", {})])
    finally:
        reference._installed.cache_clear()
        identity.installed_as.cache_clear()


def test_what_is_installed_is_not_read_for_code_of_ones_own(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "packages_distributions", lambda: pytest.fail("it takes a second"))
    identity.installed_as.cache_clear()
    assert identity.identities(["mine:huber"])["mine"].startswith("sha256 ")
    del sys.modules["mine"]  # as a worker that is sent it
    identity.installed_as.cache_clear()
    assert identity.installed_as("mine") is None


def test_code_is_told_apart_by_the_digest_of_its_file(mine: Path) -> None:
    before = identity.identities(["mine:huber"])
    assert before["mine"].startswith("sha256 ")
    identity.require_same("a run", ["mine:huber"], before)
    mine.write_text(mine.read_text() + "\n# changed\n")
    del sys.modules["mine"]  # as in a new process
    assert identity.identities(["mine:huber"]) != before
    with pytest.raises(UserError, match="a run was made with another mine"):
        identity.require_same("a run", ["mine:huber"], before)


def test_what_is_recorded_and_sent_is_what_this_process_imported(mine: Path) -> None:
    """A notebook goes on with the code of its first study, whatever is edited since."""
    before = mine.read_bytes()
    reference.load("mine:huber")
    mine.write_text("def huber(a, b):\n    return 0\n")
    for asked in (identity.identities, sources_of):
        with pytest.raises(
            UserError, match=r"^mine\.py has changed since this process imported it: restart P"
        ):
            asked(["mine:huber"])
    assert reference.load("mine:huber").__code__.co_argcount == 2  # what runs already goes on
    mine.write_bytes(before)
    assert sources_of(["mine:huber"])[0].files == {"mine.py": before}


def test_a_package_is_told_apart_by_all_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "pack" / "deep"
    package.mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text("")
    (package / "parts.py").write_text("from pack.deep.help import SCALE\n\ndef f(a, b):\n    return SCALE\n")
    (package / "help.py").write_text("SCALE = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = identity.identities(["pack.deep.parts:f"])
    (package / ".ipynb_checkpoints").mkdir()
    (package / ".ipynb_checkpoints" / "help-checkpoint.py").write_text("SCALE = 2\n")
    assert identity.identities(["pack.deep.parts:f"]) == before
    (package / "help.py").write_text("SCALE = 3\n")
    with pytest.raises(UserError, match=r"^pack/deep/help\.py has changed since this process imported it"):
        identity.identities(["pack.deep.parts:f"])
    _forget("pack")
    assert identity.identities(["pack.deep.parts:f"]) != before
    (sent,) = sources_of(["pack.deep.parts:f"])
    assert set(sent.files) == {"pack/__init__.py", "pack/deep/help.py", "pack/deep/parts.py"}
    _forget("pack")


def _forget(top: str) -> None:
    """As in a new process."""
    for name in [name for name in sys.modules if name.partition(".")[0] == top]:
        del sys.modules[name]


def test_modules_of_a_bare_folder_are_told_apart_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `__init__.py` nothing says what belongs together; a package in it does."""
    references = ["bare.one:f", "bare.two:f", "bare.pack.three:f"]
    (tmp_path / "bare" / "pack").mkdir(parents=True)
    for name in ("one", "two", "pack/three"):
        (tmp_path / "bare" / f"{name}.py").write_text("def f(a, b):\n    return 1\n")
    (tmp_path / "bare" / "pack" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = identity.identities(references)
    assert list(before) == ["bare.one", "bare.pack", "bare.two"]
    (tmp_path / "bare" / "two.py").write_text("def f(a, b):\n    return 2\n# more\n")
    _forget("bare")
    assert {k for k, v in identity.identities(references).items() if before[k] != v} == {"bare.two"}
    sent = sources_of(references)
    shutil.rmtree(tmp_path / "bare")
    try:
        install(sent)
        assert [reference.load(each)(0, 0) for each in references] == [1, 2, 1]
        assert identity.identities(references) == {each.piece: each.code for each in sent}
    finally:
        sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, sending._Loader)]
        _forget("bare")


WORKER = """
import sys
from prometar.parts import identity, sending
from prometar.parts.reference import load
sent = [sending.Sent("pack", "", {"pack/__init__.py": b"", "pack/part.py": b"from pack.help import X",
                                  "pack/help.py": b"X = 41"})]
sending.install(sent)
assert load("pack.part:X") == 41
digest = identity.identities(["pack.part:X"])
sending.install(sent)  # a worker that is used again
assert "pack.part" in sys.modules
sent[0].files["pack/help.py"] = b"X = 42"
sending.install(sent)
assert load("pack.part:X") == 42
assert identity.identities(["pack.part:X"]) != digest
"""


def test_a_worker_imports_what_it_was_sent() -> None:
    subprocess.run([sys.executable, "-c", WORKER], check=True, timeout=60)


def test_what_is_sent_has_the_identity_of_what_is_here(mine: Path) -> None:
    mine.write_bytes(f"# coding: latin-1\n{mine.read_text()}\nNAME = 'Gr\u00fcn'\n".encode("latin-1"))
    (sent,) = sources_of(["mine:huber"])
    assert sent.files == {"mine.py": mine.read_bytes()}
    mine.unlink()
    try:
        install([sent])
        assert identity.identities(["mine:huber"]) == {"mine": sent.code}
        assert reference.load("mine:huber")(torch.ones(2, 3), torch.ones(2, 3)).shape == (2,)
        assert reference.load("mine:NAME") == "Gr\u00fcn"
    finally:
        sys.meta_path[:] = [f for f in sys.meta_path if not isinstance(f, sending._Loader)]


def test_parts_that_come_with_the_project_are_everywhere() -> None:
    assert sources_of(["prometar.methods.regularizers:l1"]) == ()
