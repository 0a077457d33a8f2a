"""Weights from local files."""

import logging
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from prometar.clip.openclip import load_backbone
from prometar.embedded.weights import load_mini
from prometar.errors import UserError, WorkError


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return load_mini()


def test_a_pt_file_is_rejected_with_a_conversion_that_works(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is like OpenAI's: TorchScript, with model sizes as additional tensors."""
    monkeypatch.chdir(tmp_path)
    module = nn.Module()
    for name, tensor in {**state, "input_resolution": torch.tensor(64)}.items():
        *parents, last = name.split(".")
        parent = module
        for part in parents:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.register_buffer(last, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the format
        torch.jit.save(torch.jit.script(module), "mini.pt")
        expected = r"mini\.pt is not a \.safetensors file .*\. Convert it"
        with pytest.raises(UserError, match=expected) as caught:
            load_backbone("mini", "mini.pt")
        first, second = str(caught.value).split("`")[1::2]
        exec(f"import torch, safetensors.torch\n{first}\n{second}")
    assert load_backbone("mini", "mini.safetensors").digest == load_backbone("mini", None).digest


CONV = "visual.conv1.weight"
WRONG: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "NaN": ({CONV: torch.full((128, 3, 8, 8), torch.nan)}, "visual.conv1.weight is not finite"),
    "int8": ({CONV: torch.ones(128, 3, 8, 8, dtype=torch.int8)}, r"visual.conv1.weight is torch.int8 \(128"),
    "one channel": (
        {CONV: torch.ones(128, 1, 8, 8)},
        r"visual.conv1.weight is float \(128, 1, 8, 8\), expected float \(128, 3, 8, 8\)",
    ),
    "a wrong scale": ({"logit_scale": torch.ones(2)}, r"logit_scale is float \(2,\), expected float \(\)"),
    "no projection": ({"visual.proj": None}, "visual.proj is missing"),
    "a deeper model": (
        {"visual.transformer.resblocks.4.ln_1.weight": torch.ones(128)},
        r"visual\.transformer\.resblocks\.4\.ln_1\.weight is unexpected",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_tensors_are_checked_where_they_enter(kind: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    changes, message = WRONG[kind]
    changed = {name: tensor for name, tensor in {**state, **changes}.items() if tensor is not None}
    save_file(changed, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        load_backbone("mini", str(tmp_path / "weights.safetensors"))
    assert str(caught.value).startswith(str(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize("name", ["hf-hub:someone/something", "local-dir:/tmp", "hf-hub:"])
def test_names_of_hubs_and_folders_are_rejected_unread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*args: object) -> None:
        raise AssertionError("open_clip was called")

    monkeypatch.setattr("open_clip.get_model_config", read)
    with pytest.raises(UserError, match="Use mini or an open_clip name, not a hub or folder"):
        load_backbone(name, "openai")


def test_weights_that_cannot_be_fetched_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create = open_clip.create_model

    def refuse(name: str, *, pretrained: str | None = None, **kwargs: object) -> object:
        if pretrained is None:
            return create(name, **kwargs)
        try:
            try:
                raise OSError("no network\nmore lines")
            except OSError as error:
                raise FileNotFoundError("the file is not in the cache") from error
        except FileNotFoundError as error:
            logging.getLogger("huggingface_hub").warning("Retrying in 1s")
            logging.error("Failed to download")
            raise RuntimeError(f"Failed to download: {error}") from error

    monkeypatch.setattr("open_clip.create_model", refuse)
    file = "timm/vit_base_patch16_clip_224.openai/resolve/main/open_clip_model.safetensors"
    expected = (
        rf"Cannot download the weights 'openai' .*\(no network\)\. Download https://huggingface.co/{file} on "
        r"another machine, and set backbone.pretrained \(--pretrained\) to the file"
    )
    with pytest.raises(WorkError, match=expected):
        load_backbone("ViT-B-16-quickgelu", "openai")
    assert not caplog.records


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_have_one_digest_whether_or_not_they_are_folded(dtype: torch.dtype) -> None:
    """Otherwise, results of methods that change blocks could not be compared with those of other methods."""
    folded = load_backbone("mini", None, dtype)
    plain = load_backbone("mini", None, dtype, folded=False)
    assert plain.clip.vision.blocks[0].ln_1_weight is not None
    assert plain.digest == folded.digest
