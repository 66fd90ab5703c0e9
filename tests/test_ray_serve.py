"""Replicas of the server behind the proxy of Ray Serve: the same answers, also while one of them is killed."""

from __future__ import annotations

import json
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import ray
import yaml
from httpx2 import HTTPError
from ray import serve
from ray.serve.schema import ServeDeploySchema
from test_cli import run

from unmask import load
from unmask.fleet.replicas import NAME, Replicas, Serving, application, configuration, deploy
from unmask.language import LanguageModel

RETRYABLE = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError, HTTPError)


@pytest.fixture(scope="module")
def address():
    """Two replicas on this machine, behind a proxy."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_raylet_start_wait_time_s": "120"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deploy(Serving(("chat",), local=True), Replicas(2))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def expected(prompts: list[str]) -> dict[str, str]:
    model = load("chat")
    assert isinstance(model, LanguageModel)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    found = model.generate(chats, rule="entropy-bound:gamma=0.1", max_new_tokens=8)
    return {prompt: one.text for prompt, one in zip(prompts, found, strict=True)}


def ask(client: openai.OpenAI, prompt: str) -> str | Exception:
    """The answer of a stream that came to its end, or what was raised."""
    try:
        stream = client.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": prompt}],
            max_tokens=8,
            temperature=0,
            stream=True,
            extra_body={"rule": "entropy-bound:gamma=0.1"},
        )
        parts, reason = [], None
        for chunk in stream:
            parts.append(chunk.choices[0].delta.content or "")
            reason = chunk.choices[0].finish_reason or reason
        assert reason is not None, "the stream ended before its answer"
        return "".join(parts)
    except RETRYABLE as error:
        return error


def replicas() -> list[psutil.Process]:
    below = psutil.Process().children(recursive=True)
    return [one for one in below if any("ServeReplica" in part for part in one.cmdline())]


def killed_meanwhile(address: str, count: int) -> tuple[int, list[Exception]]:
    """Asks many times while a replica is killed; returns how many answers were right, and the refusals."""
    prompts = [f"{n % 19}+{n % 7}=" for n in range(count)]
    right = expected(sorted(set(prompts)))
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    answered = threading.Semaphore(0)

    def asked(prompt: str) -> str | Exception:
        found = ask(client, prompt)
        answered.release()
        return found

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(asked, prompt) for prompt in prompts]
        for _ in range(count // 4):
            answered.acquire()
        replicas()[0].kill()
        found = [job.result() for job in jobs]
    refused = [one for one in found if isinstance(one, Exception)]
    for prompt, one in zip(prompts, found, strict=True):
        assert isinstance(one, Exception) or one == right[prompt]
    return count - len(refused), refused


def test_while_a_replica_is_killed_no_answer_is_wrong(address: str):
    right, refused = killed_meanwhile(address, 24)
    assert right >= 12, refused
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    assert isinstance(ask(client, "1+1="), str)
    assert [one.id for one in client.models.list()] == ["chat"]


@pytest.mark.slow
def test_two_hundred_streams_while_a_replica_is_killed(address: str):
    right, refused = killed_meanwhile(address, 200)
    assert right >= 150, refused


def test_a_configuration_file_is_one_of_serve(tmp_path: Path):
    path = tmp_path / "serve.yaml"
    options = ["--engine", "ray", "--replicas", "2", "--max-replicas", "8", "--replica-gpus", "0.5", "--device", "cuda"]
    run("serve", "chat", "sudoku", *options, "--host", "0.0.0.0", "--write-config", str(path))
    found = yaml.safe_load(path.read_text())
    schema = ServeDeploySchema.model_validate(found)
    (app,) = schema.applications
    assert (app.name, app.import_path) == (NAME, "unmask.fleet.replicas:application")
    serving = Serving.read(app.args)  # pyright: ignore[reportArgumentType]
    assert serving.models == ("chat", "sudoku")
    assert serving.loading == {"device": "cuda", "dtype": "float32"}
    assert not serving.local
    assert found == json.loads(json.dumps(configuration(serving, Replicas(2, 8, 1, 0.5), "0.0.0.0", 8000)))
    assert application(app.args)  # pyright: ignore[reportArgumentType]
    assert "UNMASK_API_KEY" not in path.read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [({"models": []}, "models is a list of names"), ({"models": ["chat"], "row": 3}, "unknown argument 'row'")],
)
def test_a_wrong_configuration_is_refused(args: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        application(args)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--replicas", "2"], "--replicas goes with --engine ray"),
        (["--engine", "k8s"], "unknown engine 'k8s'"),
        (
            ["--engine", "ray", "--replicas", "3", "--max-replicas", "2", "--write-config", "x.yaml"],
            "2 replicas at most",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: list[str], words: str, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        run("serve", "chat", *options)
