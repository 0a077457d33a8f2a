"""Frozen text features cached on disk: equal to computed ones, and recomputed if corrupt."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from prometar.clip.features import cached_text_features, frozen_text_features
from prometar.clip.model import Clip
from prometar.clip.openclip import tokenize
from prometar.clip.weights import weights_digest
from tests.support.tiny import backbone

NAMES = ("banded", "polka-dotted", "sports_car")
TEMPLATES = ("a photo of a {}.", "{} texture.")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROMETAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text-features"


def get(clip: Clip, names: Sequence[str] = NAMES, templates: Sequence[str] = TEMPLATES) -> tuple[Tensor, int]:
    """Return the features, and 1 if they were computed, or 0 if they were cached."""
    counted = Mock(side_effect=tokenize)
    return cached_text_features(clip, weights_digest(clip), counted, names, templates), counted.call_count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_second_time_gives_the_same_bits_without_computing(folder: Path, dtype: torch.dtype) -> None:
    clip = backbone(dtype).clip
    first, computed = get(clip)
    assert computed == 1
    torch.testing.assert_close(first, frozen_text_features(clip, tokenize, NAMES, TEMPLATES), rtol=0, atol=0)
    again, computed = get(clip)
    assert computed == 0
    assert again.dtype == first.dtype
    assert torch.equal(again, first)
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


def test_whatever_decides_the_features_has_an_entry_of_its_own(folder: Path) -> None:
    clip = backbone().clip
    others = [
        backbone(torch.float64).clip,
        replace(clip, text=replace(clip.text, num_heads=4)),
        replace(clip, text=replace(clip.text, activation="gelu")),
        replace(clip, token_embedding=clip.token_embedding * 2),
        replace(clip, ln_final_bias=clip.ln_final_bias + 1e-6),
    ]
    get(clip)
    assert get(clip, NAMES[::-1])[1] == 1
    assert get(clip, NAMES[:2])[1] == 1
    assert get(clip, NAMES, TEMPLATES[:1])[1] == 1
    assert all(get(other)[1] == 1 for other in others)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "no safetensors": lambda path: path.write_bytes(b"\xff" * 500),
    "other tensors": lambda path: save_file({"else": torch.ones(2)}, path),
    "another shape": lambda path: save_file({"features": torch.zeros(2, 24)}, path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_corrupt_entry_is_computed_again_and_replaced(folder: Path, damage: str) -> None:
    clip = backbone().clip
    expected, _ = get(clip)
    (path,) = folder.iterdir()
    DAMAGES[damage](path)
    features, computed = get(clip)
    assert computed == 1
    assert torch.equal(features, expected)
    assert get(clip)[1] == (damage == "a folder")  # a folder cannot be replaced
