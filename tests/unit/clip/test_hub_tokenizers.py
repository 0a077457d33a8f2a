"""Tokenizers of the Hugging Face hub: reading one from a folder, and errors if there is none."""

import json
from pathlib import Path

import pytest
from open_clip import factory

from prometar.clip import openclip
from prometar.config.settings import configure
from prometar.errors import UserError, WorkError
from prometar.methods.composition import build
from prometar.step.prompted_clip import build_model, prompt_texts
from tests.support import families


def test_without_transformers_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openclip, "find_spec", lambda name: None)
    message = r"timm/ViT-B-16-SigLIP2, which requires transformers\. Run pip install '\.\[transformers\]'"
    with pytest.raises(UserError, match=message):
        openclip.require_backbone("ViT-B-16-SigLIP2", "random")


def test_a_tokenizer_that_cannot_be_fetched_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network\nmore lines")

    monkeypatch.setattr(openclip, "find_spec", lambda name: object())
    monkeypatch.setattr("open_clip.get_tokenizer", refuse)
    with pytest.raises(WorkError, match=r"download the tokenizer of ViT-B-16-SigLIP \(no network\)\. Run"):
        openclip.clip_without_weights("ViT-B-16-SigLIP")


def test_a_real_one_is_read_with_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "cat", "many"]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": "[CLS]", "unk_token": "[UNK]"}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "auto_map": {"AutoTokenizer": [None, "code.T"]}}
            | special
        )
    )
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = families.CONFIGS["tiny-siglip"]
    text = {**config["text_cfg"], "hf_tokenizer_name": str(tmp_path)}
    text["tokenizer_kwargs"] = {"strip_sep_token": True}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-real", {**config, "text_cfg": text})
    backbone = openclip.load_backbone("tiny-real", "random")
    assert backbone.tokenize(["a photo of"]).tolist() == [[2, 4, 5, 6, *[0] * 8]]
    assert backbone.clip.num_start == 1
    assert backbone.token_ids("a photo of").tolist() == [4, 5, 6]
    longest = " ".join(["cat"] * 10)  # with start and end, as many tokens as the model accepts
    assert len(backbone.token_ids(longest)) == 10
    with pytest.raises(UserError, match=r"accepts 12 tokens per text, but 'cat cat .* would be cut"):
        backbone.tokenize(["a photo of", f"{longest} cat"])
    assert not (tmp_path / "ran").exists(), "the tokenizer's code was executed"


def test_a_context_that_is_too_few_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    families.register(monkeypatch)
    backbone = openclip.load_backbone("tiny-siglip", "random")
    method = build(configure("coop"))
    texts = prompt_texts(["cat", "dog"], method.prompts, init="a photo of a", template="{}")
    build_model(backbone.clip, method, backbone.tokenize(texts))
    with pytest.raises(UserError, match="have fewer than"):
        build_model(backbone.clip, method, backbone.tokenize(["cat .", "dog ."]))
