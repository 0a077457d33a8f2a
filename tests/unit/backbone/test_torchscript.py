"""TorchScript archives: their tensors are read, their code is not run, and damage is one line."""

import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prometar.backbone.openclip import load_clip
from prometar.backbone.torchscript import read_torchscript
from prometar.backbone.weight_files import read_weights
from prometar.errors import UserError


class Attention(nn.Module):
    """What OpenAI's archives hold of a block's attention, a view into another storage included."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.randn(12, 4).half())
        self.out_proj = nn.Linear(4, 4)
        self.register_buffer("transposed", torch.randn(5, 3).t())
        self.register_buffer("part", torch.arange(10)[2:7:2])

    def forward(self, x: Tensor) -> Tensor:
        return x


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x


class Tree(nn.Module):
    """Modules nested as in CLIP's archives: numbered blocks, named parts, plain attributes beside tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = Outer(nn.Conv2d(3, 4, 2, bias=False))
        self.resblocks = nn.Sequential(Attention(), Attention())
        self.register_buffer("input_resolution", torch.tensor(224))
        self.logit_scale = nn.Parameter(torch.ones([]))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.sizes = [1, 2]
        self.scale = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return x


class Hostile(nn.Module):
    """A module that an archive's loader builds by running the archive's own code, which writes a file."""

    __annotations__ = {"target": str}  # the compiler takes types, not their names

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, Tensor, bool]:
        return self.target, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, Tensor, bool]) -> None:
        self.target, self.weight, self.training = state
        self.weight = self.weight + torch.from_file(self.target, True, 2)  # makes the file


def archive(path: Path, module: nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the format
        torch.jit.save(torch.jit.script(module), str(path))
    return path


def rewritten(source: Path, path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of an archive with other contents; None leaves a file out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            content = change(info.filename.split("/", 1)[1], old.read(info))
            if content is not None:
                new.writestr(info.filename, content, zipfile.ZIP_STORED)
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(0)
    module = Tree()
    return archive(tmp_path_factory.mktemp("tree") / "tree.pt", module), dict(module.state_dict())


def test_the_tensors_are_those_of_the_state_dict(tree: tuple[Path, dict[str, Tensor]]) -> None:
    path, state = tree
    found = read_torchscript(path)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_an_archives_code_is_not_run(tmp_path: Path) -> None:
    written = tmp_path / "written"
    path = archive(tmp_path / "hostile.pt", Outer(Hostile(str(written))))
    written.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the format
        torch.jit.load(str(path))
    assert written.exists(), "torch's own loader runs it: the archive is hostile indeed"
    written.unlink()
    with pytest.raises(UserError, match="builds a module by code of its own, which is not run"):
        read_weights(path)
    assert not written.exists()


def _pickled(*opcodes: bytes) -> Callable[[str, bytes], bytes]:
    return lambda name, content: b"".join(opcodes) if name == "data.pkl" else content


MODULE = b"\x80\x02c__torch__\nT\n)\x81"
BOMBS = {
    "a call": (_pickled(b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R."), "it calls 'os system'"),
    "an object": (_pickled(b"\x80\x02cos\nsystem\n)\x81."), "an object of another kind"),
    "an opcode": (_pickled(b"\x80\x02(cos\nsystem\no."), "an opcode OBJ"),
    "a strange escape": (_pickled(b"\x80\x02S'\\q'\n."), "an opcode STRING"),
    "a far memo": (_pickled(MODULE, b"r\xff\xff\xff\xff0."), "an opcode POP"),
    "no module": (_pickled(b"\x80\x02}."), "it holds no module"),
    "early end": (_pickled(b"\x80\x02"), "pickle exhausted"),
    "empty stack": (_pickled(b"\x80\x02."), "its structure is damaged"),
    "nothing": (_pickled(b""), "pickle exhausted"),
    "a nest of pairs": (
        _pickled(b"\x80\x02)", b"q\x00h\x00\x86" * 100, b")\x81."), "another kind than a module: tuple"
    ),
    "a large structure": (_pickled(MODULE, b"N" * 3_000_000, b"."), "larger than the archive allows"),
    "a storage left out": (lambda name, content: None if name == "data/0" else content, "There is no item"),
    "short storages": (lambda name, content: content[: 1 + 9**9 * (name[:5] != "data/")], "tensors need"),
    "big-endian": (lambda name, content: b"big" if name == "byteorder" else content, "little-endian"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_a_hostile_structure_is_one_line(
    kind: str, tree: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    change, message = BOMBS[kind]
    with pytest.raises(UserError, match=message) as caught:
        read_weights(rewritten(tree[0], tmp_path / "x.pt", change))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


def test_a_tensor_may_not_reach_beyond_its_numbers_nor_repeat_them(tmp_path: Path) -> None:
    class One(nn.Module):
        def __init__(self, tensor: Tensor) -> None:
            super().__init__()
            self.register_buffer("x", tensor)

        def forward(self, x: Tensor) -> Tensor:
            return x

    path = archive(tmp_path / "wide.pt", One(torch.zeros(1).expand(1_000_000, 1_000_000)))
    with pytest.raises(UserError, match="reaches beyond its 1 numbers"):
        read_weights(path)


def test_modules_that_contain_themselves_end(tree: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    circle = _pickled(MODULE, b"q\x00}X\x01\0\0\0ah\x00sb.")
    assert read_torchscript(rewritten(tree[0], tmp_path / "x.pt", circle)) == {}


def test_compressed_files_are_refused(tree: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(tree[0]) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            new.writestr(info.filename, b"\0" * 2**20 if info.filename.endswith("data/0") else old.read(info))
    with pytest.raises(UserError, match="is compressed, or larger than the archive allows"):
        read_weights(path)


@pytest.mark.parametrize("kind", ["torchscript", "state dict", "old state dict"])
def test_fuzzed_files_are_one_line_or_tensors(
    kind: str, tree: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    """300 files with some bytes changed, left out or repeated: tensors come of each, or a `UserError`."""
    source, path = tree[0], tmp_path / "x.pt"
    if kind != "torchscript":
        source = tmp_path / "state.pt"
        torch.save({"a": torch.randn(3, 4), "b.c": torch.ones(2).half()}, source,
                   _use_new_zipfile_serialization=kind == "state dict")  # fmt: skip
    whole, rng = source.read_bytes(), random.Random(0)
    said = []
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = rng.randrange(len(content))
            match rng.randrange(4):
                case 0:
                    content[place] = rng.randrange(256)
                case 1:
                    del content[place : place + rng.choice((1, 4, 64))]
                case 2:
                    content[place:place] = content[place : place + 8]
                case _:
                    content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            read_weights(path)
        except UserError as error:
            said.append(str(error))
    assert len(said) > 30
    assert [line for line in said if len(line.splitlines()) != 1] == []


@pytest.mark.parametrize("content", [b"", b"\0", b"PK\x05\x06" + b"\0" * 18, b"PK\x03\x04", pickle.dumps({})])
def test_files_that_are_hardly_there(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_clip("mini", str(tmp_path / "x.pt"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_archives(share: float, tree: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    whole = tree[0].read_bytes()
    (tmp_path / "x.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError):
        read_weights(tmp_path / "x.pt")
