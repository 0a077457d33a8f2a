"""Prompt files on a hub: what is pushed is the file and its card, what is loaded is checked as any file."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prometar.cli.app import main
from prometar.errors import UserError, WorkError
from prometar.inference import load
from prometar.inference.hub import FILE, PromptRepo
from prometar.inference.prompt_file import read_prompts
from prometar.inference.publish import publish
from prometar.runs import export_run
from prometar.training import session as session_module
from tests.contracts.inference.test_export import train
from tests.support.hub_models import READ_ONLY, TOKEN, Hub, Repo, serve_hub

IMAGES = list(np.random.default_rng(0).integers(0, 256, (4, 70, 90, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def prompts(small_dtd: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("run")
    train(folder, "coop", data__name="dtd", data__root=str(small_dtd))
    export_run(folder, folder / "mine.safetensors")
    yield folder / "mine.safetensors"
    session_module._IMAGES.clear()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serve_hub() as served:
        _use(served.url, monkeypatch, tmp_path)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def _use(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What HF_ENDPOINT and HF_HOME say to a process when it starts."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


def with_card(prompts: Path, **changes: Any) -> bytes:
    """The prompt file with another card."""
    with safe_open(prompts, framework="pt") as file:
        metadata = file.metadata()
    card = {**json.loads(metadata["card"]), **changes}
    path = prompts.with_name("changed.safetensors")
    save_file(load_file(prompts), path, {**metadata, "card": json.dumps(card)})
    return path.read_bytes()


def test_what_is_pushed_is_loaded(
    hub: Hub, prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(prompts), "me/dtd", "--license", "mit"]) == 0
    assert f"written: {hub.url}/me/dtd" in capsys.readouterr().out
    repo = hub.repos["me/dtd"]
    assert repo.private, "nobody has asked for more"
    first = repo.refs["main"]
    assert repo.commits[first].keys() == {FILE, "README.md"}
    assert repo.commits[first][FILE] == prompts.read_bytes()

    wanted = load(prompts).predict(IMAGES)
    assert np.array_equal(load("hf://me/dtd").predict(IMAGES).probabilities, wanted.probabilities)
    assert main(["push", str(prompts), "me/dtd", "--license", "other"]) == 0
    assert len(repo.commits) == 2, "a push over an earlier one is a new commit"
    repo.commit({FILE: b"something else"})
    pinned = load(f"hf://me/dtd@{first}").predict(IMAGES)
    assert np.array_equal(pinned.probabilities, wanted.probabilities)
    with pytest.raises(UserError, match="is not a safetensors file"):
        load("hf://me/dtd")
    hub.broken = 503  # a commit that is in the cache needs no hub
    assert load(f"hf://me/dtd@{first}").classnames == wanted.classnames


def test_the_card_of_a_repository(hub: Hub, prompts: Path) -> None:
    assert main(["push", str(prompts), "me/dtd", "--public", "--license", "cc-by-4.0"]) == 0
    repo = hub.repos["me/dtd"]
    assert not repo.private
    readme = repo.commits[repo.refs["main"]]["README.md"].decode()
    _, head, body = readme.split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "cc-by-4.0"
    assert 'load("hf://me/dtd").predict' in body
    _, card = read_prompts(prompts)
    n, base = card["images"]["base"], card["figures"]["base"]
    assert f"| base | {base:.2f} | {n} |" in body
    assert "| Data set | dtd |" in body
    assert "| Seed | 1 |" in body
    blocks = [json.loads(part.split("```")[0]) for part in body.split("```json\n")[1:]]
    assert blocks[0] == card["classnames"]
    assert blocks[1]["optim"] == card["config"]["optim"]


def test_a_hostile_card_is_text_in_the_readme(hub: Hub, prompts: Path, tmp_path: Path) -> None:
    evil = "x\n---\n```\n<script>alert(1)</script> [a](http://b) | `c`"
    _, card = read_prompts(prompts)
    config = {**card["config"], "data": {**card["config"]["data"], "name": evil}}
    path = tmp_path / "evil.safetensors"
    path.write_bytes(
        with_card(
            prompts,
            classnames=[evil.replace("\n", " "), "y"],
            config=config,
            figures={evil: 50.0, "base": "<b>"},
        )
    )
    assert main(["push", str(path), "me/evil"]) == 0
    repo = hub.repos["me/evil"]
    readme = repo.commits[repo.refs["main"]]["README.md"].decode()
    assert readme.count("\n---\n") == 1, "the YAML ends where it should"
    assert readme.count("\n```\n") == 4, "as many blocks end as there are"
    outside = re.sub(r"\n```(python|json)\n.*?\n```\n", "", readme, flags=re.DOTALL)
    assert "<" not in outside
    assert "[a]" not in outside
    assert "50.00" in outside


def test_what_load_refuses_is_not_pushed(hub: Hub, prompts: Path, tmp_path: Path) -> None:
    leaves, _ = read_prompts(prompts)
    name, leaf = next(iter(leaves.items()))
    with safe_open(prompts, framework="pt") as file:
        metadata = file.metadata()
    path = tmp_path / "bad.safetensors"
    for bad in (
        {},
        {**leaves, "more": leaf.clone()},
        {**leaves, name: leaf * float("nan")},
        {**leaves, name: leaf.int()},
    ):
        save_file(bad, path, metadata)
        messages = []
        for use in (load, lambda path: publish(path, PromptRepo.parse("me/bad"))):
            with pytest.raises(UserError) as caught:
                use(path)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    assert not hub.requests


def test_a_number_of_images_beyond_all_is_not_known(hub: Hub, prompts: Path, tmp_path: Path) -> None:
    path = tmp_path / "many.safetensors"
    path.write_bytes(with_card(prompts, images={"base": 10**400}))
    assert main(["push", str(path), "me/many"]) == 0


def test_a_prompt_file_of_a_hub_is_a_strangers(hub: Hub, prompts: Path) -> None:
    """The promises of docs/security.md, and no request but for the file itself."""
    _, card = read_prompts(prompts)
    for changes, message in (
        ({"name": "hf-hub:a/b", "pretrained": "openai"}, "names of hubs and folders are not taken"),
        ({"name": "mini", "pretrained": "hf-hub:a/b"}, "its card names a file of weights"),
        ({"name": "mini", "pretrained": "/dev/zero"}, "its card names a file of weights"),
    ):
        config = {**card["config"], "backbone": {**card["config"]["backbone"], **changes}}
        hub.repos["them/bad"] = Repo(private=False)
        hub.repos["them/bad"].commit(
            {FILE: with_card(prompts, config=config), "evil.py": b"raise SystemExit"}
        )
        with pytest.raises(UserError, match=message):
            load("hf://them/bad")
    own = {**card["config"], "prompts": {"kind": "evil:Prompts"}}
    hub.repos["them/bad"].commit({FILE: with_card(prompts, config=own)})
    with pytest.raises(UserError, match="names code that is not prometar's"):
        load("hf://them/bad")
    assert {request.split(" ")[1] for request in hub.requests} == {f"/them/bad/resolve/main/{FILE}"}
    hub.claimed_bytes = 2**30 + 1
    hub.requests.clear()
    hub.repos["them/bad"].commit({FILE: b"large"})
    with pytest.raises(WorkError, match="no prompts have so many"):
        load("hf://them/bad")
    assert not [request for request in hub.requests if request.startswith("GET")]


def test_what_is_wrong_with_a_name_is_one_line(
    hub: Hub, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "hf://me", "hf://me/a/b", "hf://", "hf://me/../x", "hf://me/a@", "hf://me/a@../x", "hf://me/a?b",
        "hf://http://x/y", "hf:// me/a", "hf://datasets/me/a", "hf://me/a@v\n1",
    ):  # fmt: skip
        with pytest.raises(UserError, match="is no name on the hub"):
            load(name)
    assert not hub.requests
    with pytest.raises(UserError, match="me/none is not there, or is private"):
        load("hf://me/none")
    hub.repos["me/a"] = Repo(private=True)
    hub.repos["me/a"].commit({"README.md": b""})
    with pytest.raises(UserError, match=r"me/a holds no prompts\.safetensors"):
        load("hf://me/a")
    with pytest.raises(UserError, match="me/a@v9: there is no such revision"):
        load("hf://me/a@v9")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="me/a is not there, or is private"):
        load("hf://me/a")


def test_wrong_usage_of_push(
    hub: Hub,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*args: str, status: int = 2) -> str:
        assert main(["push", *args]) == status
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        return said

    (tmp_path / "other.safetensors").write_bytes(b"{}")
    assert "there is no prompts file" in fails(str(tmp_path / "none.safetensors"), "me/a")
    assert "is not a safetensors file" in fails(str(tmp_path / "other.safetensors"), "me/a")
    assert "is no name on the hub" in fails(str(prompts), "a")
    assert "leave @v1 out" in fails(str(prompts), "me/a@v1")
    assert "expected an identifier" in fails(str(prompts), "me/a", "--license", "MIT\nx: y")
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token to write hf://me/a with" in fails(str(prompts), "me/a")
    assert not hub.requests

    monkeypatch.setenv("HF_TOKEN", READ_ONLY)
    assert "the hub refuses this token for hf://me/a (403)" in fails(str(prompts), "me/a")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repos |= {"me/public": Repo(private=False), "me/private": Repo(private=True)}
    assert "is public: pass --public" in fails(str(prompts), "me/public")
    assert "is private: leave --public out" in fails(str(prompts), "me/private", "--public")
    assert not any(repo.commits for repo in hub.repos.values())
    hub.repos["me/model"] = Repo(private=True)
    mine = hub.repos["me/model"].commit({"README.md": b"mine", ".gitattributes": b""})
    assert "holds no prompts, but README.md" in fails(str(prompts), "me/model")
    assert hub.repos["me/model"].refs["main"] == mine
    hub.broken = 500
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries again
    assert "the hub failed over hf://me/b (500)" in fails(str(prompts), "me/b", status=1)


def test_without_a_network_one_line_says_so(
    prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _use("http://127.0.0.1:9", monkeypatch, tmp_path)  # nobody listens
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert main(["push", str(prompts), "me/a"]) == 1
    assert "cannot exchange hf://me/a with the hub (ConnectError: " in capsys.readouterr().err
    with pytest.raises(WorkError, match="cannot reach the hub for hf://me/a, which is not here either"):
        load("hf://me/a")


def test_names_are_shown_as_they_are_written() -> None:
    assert str(PromptRepo.parse("hf://me/a@v1")) == "hf://me/a@v1"
    assert PromptRepo.parse("me/a") == PromptRepo("me/a")
