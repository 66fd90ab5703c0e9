"""Models of the hub, against a server on this machine: what is asked for, what is not, and what is said if it fails."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import NAME, Hub, serving
from huggingface_hub import constants
from layouts import write, write_text_model
from typer.testing import CliRunner

import unmask
from unmask import hub as module
from unmask.cli import app
from unmask.errors import AdapterError
from unmask.hub import HubName, fetch, wanted
from unmask.language import LanguageModel

TEXTS = {"config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one language model, and a cache with nothing in it."""
    with serving(Hub(revisions={"main": write_text_model(tmp_path / "main")})) as served:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield served


def plant(folder: Path) -> None:
    """Puts code, pickles and other weights beside a model, and names the code in its configuration."""
    for name in ("modeling.py", "pytorch_model.bin", "consolidated.safetensors", "README.md", "original/model.pt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"raise SystemExit")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))


def test_what_a_model_needs_is_downloaded_and_nothing_else(hub: Hub):
    plant(hub.revisions["main"])
    model, there = unmask.load(NAME), unmask.load(hub.revisions["main"])
    assert isinstance(model, LanguageModel)
    assert isinstance(there, LanguageModel)
    assert hub.files == {*TEXTS, "model.safetensors"}
    answers = [one.generate("1+1=", rule="all", max_new_tokens=2)[0].text for one in (model, there)]
    assert answers[0] == answers[1]


def test_of_weights_in_several_files_one_set_is_downloaded(hub: Hub, tmp_path: Path):
    hub.revisions["main"] = write(tmp_path / "dream", "dream", shards=2)
    plant(hub.revisions["main"])
    assert unmask.load(NAME).mask_id == 39
    index = json.loads((tmp_path / "dream" / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) == 2
    assert hub.files == {"config.json", "model.safetensors.index.json", *shards}


def test_a_model_that_was_downloaded_is_not_downloaded_again(hub: Hub):
    first = fetch(HubName(NAME))
    hub.asked.clear()
    assert fetch(HubName(NAME)) == first
    assert [one.what for one in hub.asked] == ["list"]


def test_a_new_commit_is_downloaded(hub: Hub, tmp_path: Path):
    first = fetch(HubName(NAME))
    hub.revisions = {"old": hub.revisions["main"]}
    hub.revisions["main"] = write(tmp_path / "dream", "dream")
    assert hub.commit("main") == first.name  # the hash is of the branch's name
    shutil.rmtree(tmp_path / "cache")
    second = fetch(HubName(NAME, "old"))
    assert second.name == hub.commit("old")
    assert unmask.load(f"{NAME}@old").vocab_size != unmask.load(NAME).vocab_size
    assert unmask.load(NAME, revision="old").vocab_size == unmask.load(NAME, revision=second.name).vocab_size


def test_a_file_that_breaks_off_goes_on_where_it_broke(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 256)
    hub.breaks.add("model.safetensors")
    folder = fetch(HubName(NAME))
    asked = [one.range for one in hub.asked if one.method == "GET" and one.what == "model.safetensors"]
    size = (hub.revisions["main"] / "model.safetensors").stat().st_size
    begin = int(str(asked[1]).removeprefix("bytes=").removesuffix("-"))
    assert len(asked) == 2
    assert size // 2 - 256 <= begin <= size // 2
    content = (folder / "model.safetensors").read_bytes()
    assert content == (hub.revisions["main"] / "model.safetensors").read_bytes()


def gate(hub: Hub) -> None:
    hub.gated = True


def break_down(hub: Hub) -> None:
    hub.down = True


def unhinge(hub: Hub) -> None:
    (hub.revisions["main"] / "model.safetensors").unlink()
    index = {"weight_map": {"a": "modeling.py"}}
    (hub.revisions["main"] / "model.safetensors.index.json").write_text(json.dumps(index))
    (hub.revisions["main"] / "modeling.py").write_text("raise SystemExit")


def pickle(hub: Hub) -> None:
    (hub.revisions["main"] / "model.safetensors").rename(hub.revisions["main"] / "pytorch_model.bin")


def adapt(hub: Hub) -> None:
    (hub.revisions["main"] / "adapter_config.json").write_text("{}")


def strip(hub: Hub) -> None:
    (hub.revisions["main"] / "config.json").unlink()


@pytest.mark.parametrize(
    ("model", "options", "change", "said"),
    [
        ("no/model", {}, None, r"neither a folder 'no/model' nor such a model at http://127.*check the name.*HF_TOKEN"),
        (NAME, {"revision": "no"}, None, r"somebody/model has no revision 'no'; give a branch, tag or whole commit"),
        (
            NAME,
            {},
            gate,
            r"only for users who accepted its terms: accept them at http.*/somebody/model.*in HF_TOKEN or as",
        ),
        (NAME, {"token": "hf_wrong"}, None, r"does not accept the token.*make another at http.*/settings/tokens"),
        (NAME, {}, break_down, r"cannot download somebody/model from http.*503.*try again"),
        (
            NAME,
            {},
            pickle,
            r"nothing was downloaded of .*no model.safetensors, only pytorch_model.bin; pickles can run",
        ),
        (NAME, {}, adapt, r"nothing was downloaded of somebody/model: it is an adapter \(adapter_config.json\); merge"),
        (NAME, {}, strip, r"nothing was downloaded of somebody/model: it has no config.json"),
        (NAME, {}, unhinge, r"names 'modeling.py', which is not a safetensors file beside it"),
        ("so--me/model", {}, None, r"'so--me/model' is not a name that a model of the hub can have"),
        (
            NAME,
            {"local_files_only": True},
            None,
            r"no folder 'somebody/model', and no such model was downloaded to .*cache; the hub is contacted only",
        ),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(
    hub: Hub, model: str, options: dict[str, Any], change: Callable[[Hub], None] | None, said: str
):
    if change is not None:
        change(hub)
    with pytest.raises(AdapterError, match=said) as raised:
        unmask.load(model, **options)
    assert "\n" not in str(raised.value)
    assert "hf_wrong" not in str(raised.value)
    assert not any(one.method == "GET" and one.what.endswith((".safetensors", ".bin", ".py")) for one in hub.asked)


@pytest.mark.parametrize("variable", [True, False])
def test_the_token_opens_a_gated_model(hub: Hub, variable: bool, monkeypatch: pytest.MonkeyPatch):
    hub.gated, hub.token = True, "hf_right"
    if variable:
        monkeypatch.setenv("HF_TOKEN", "hf_right")
    unmask.load(NAME, token=None if variable else "hf_right")
    assert {one.token for one in hub.asked} == {"hf_right"}


@pytest.mark.parametrize("variable", [True, False])
def test_offline_nothing_is_asked(hub: Hub, variable: bool, monkeypatch: pytest.MonkeyPatch):
    folder = fetch(HubName(NAME))
    hub.asked.clear()
    if variable:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(HubName(NAME), local_files_only=not variable) == folder
    assert isinstance(unmask.load(NAME, local_files_only=not variable), LanguageModel)
    assert hub.asked == []


def test_a_hub_that_does_not_answer_is_done_without(hub: Hub):
    folder = fetch(HubName(NAME))
    hub.down = True
    with pytest.warns(UserWarning, match=r"cannot download somebody/model .*which was downloaded before"):
        assert fetch(HubName(NAME)) == folder


def test_what_is_missing_of_a_model_is_named_offline_and_downloaded_online(hub: Hub, tmp_path: Path):
    hub.revisions["main"] = write(tmp_path / "dream", "dream", shards=2)
    folder = fetch(HubName(NAME))
    (shard,) = folder.glob("model-00002-*.safetensors")
    content = shard.read_bytes()
    shard.resolve().unlink()
    shard.unlink()
    with pytest.raises(AdapterError, match=rf"not downloaded completely, {shard.name} is missing: load it once"):
        fetch(HubName(NAME), local_files_only=True)
    hub.asked.clear()
    assert (fetch(HubName(NAME)) / shard.name).read_bytes() == content
    assert hub.files == {shard.name}


def test_a_disk_that_fills_up_is_named(hub: Hub, tmp_path: Path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (hub.revisions["main"] / "model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(AdapterError, match=r"disk of .*cache is full, .*make room, or set HF_HOME to a folder"):
            fetch(HubName(NAME))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (fetch(HubName(NAME)) / "model.safetensors").stat().st_size == size
    assert [one.what for one in hub.asked if one.method == "GET"].count("config.json") == 1  # what was whole is kept


def test_a_disk_without_room_is_named_before(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: full)
    with pytest.raises(AdapterError, match=r"needs .* MB more, but the disk of .*cache has 0.0 MB left; make room"):
        fetch(HubName(NAME))
    assert hub.files == set()


def test_of_a_profile_both_files_come_along(hub: Hub):
    for name in ("profile.json", "profile.safetensors"):
        (hub.revisions["main"] / name).write_bytes(b"{}")
    assert (fetch(HubName(NAME)) / "profile.safetensors").exists()


def test_a_variant_has_files_of_its_own():
    files = ["config.json", "model.safetensors", "model.fp16.safetensors", "model.safetensors.index.bf16.json"]
    assert wanted(files, "fp16") == (["config.json", "model.fp16.safetensors"], None)
    assert wanted(files, "bf16") == (["config.json", files[-1]], files[-1])
    with pytest.raises(AdapterError, match=r"it has no model.int8.safetensors, only model.safetensors, model.fp16"):
        wanted(files, "int8")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a/b", HubName("a/b")),
        ("a/b@main", HubName("a/b", "main")),
        ("a/b@refs/pr/1", HubName("a/b", "refs/pr/1")),
        ("a/b@", None),
        ("./a", None),
        ("../a", None),
        ("/a/b", None),
        ("a/b/c", None),
        ("a", None),
    ],
)
def test_names_are_told_from_folders(text: str, read: HubName | None):
    assert HubName.read(text) == read
    assert read is None or str(read) == text


def test_a_revision_goes_with_a_name_of_the_hub(tmp_path: Path):
    with pytest.raises(ValueError, match=r"two revisions are given: a/b@x and revision='y'"):
        unmask.load("a/b@x", revision="y")
    for model in ("sudoku", write_text_model(tmp_path / "model")):
        with pytest.raises(ValueError, match=r"revision='x' goes with owner/name of a model of the hub, and not with"):
            unmask.load(model, revision="x")


def run(*arguments: str) -> Any:
    """Runs a command and reads its JSON."""
    done = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    return json.loads(done.stdout)


def test_commands_take_a_revision_and_run_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    hub.revisions = {"other": hub.revisions["main"]}
    arguments = ("generate", NAME, "-p", "1+1=", "--max-new-tokens", "2", "--revision", "other")
    online = run(*arguments)
    hub.asked.clear()
    offline = run(*arguments, "--offline")
    assert [one["tokens"] for one in offline] == [one["tokens"] for one in online]
    assert hub.asked == []
    with pytest.raises(ValueError, match=r"--revision goes with owner/name of a model of the hub, and not with 'chat'"):
        run("generate", "chat", "-p", "1+1=", "--revision", "other")


def test_the_harness_takes_a_revision(hub: Hub):
    UnmaskLM = pytest.importorskip("unmask.integrations.lm_eval", exc_type=ImportError).UnmaskLM
    hub.revisions, hub.token = {"other": hub.revisions["main"]}, "hf_any"
    model = UnmaskLM(NAME, "all", revision="other", token="hf_any")
    assert isinstance(model.model, LanguageModel)
    assert {one.token for one in hub.asked} == {"hf_any"}
    hub.asked.clear()
    UnmaskLM(NAME, "all", revision="other", local_files_only=True)
    assert hub.asked == []


def test_the_variables_of_the_hub_are_honoured(hub: Hub, tmp_path: Path):
    hub.token = "hf_right"
    told = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_right", "HF_HUB_OFFLINE": "0"}
    code = f"from unmask.hub import HubName, fetch; print(fetch(HubName({NAME!r})))"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **told}, capture_output=True, text=True)
    assert done.stdout.startswith(str(tmp_path / "home" / "hub")), done.stderr
    assert "100%" in done.stderr
    assert {one.token for one in hub.asked} == {"hf_right"}
