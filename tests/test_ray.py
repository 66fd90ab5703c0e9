"""Work and requests that Ray spreads: the same rows and answers as on one machine, whatever dies."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
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
from test_shards import OPTIONS, SHARDS, files_in, prompts_file, wait_for

from unmask import load
from unmask.errors import UnmaskError
from unmask.fleet.cluster import Cluster
from unmask.fleet.over_ray import OverRay, Sent, _Worker
from unmask.fleet.replicas import NAME, Replicas, Serving, application, configuration, deploy
from unmask.fleet.shards import Shards
from unmask.language import LanguageModel

RAY = ["--engine", "ray", "--workers", "2"]


@pytest.fixture(scope="module")
def cluster():
    """A cluster with no more slots than two workers take."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


def workers() -> list[psutil.Process]:
    """The processes of the workers, which are below this one."""
    below = psutil.Process().children(recursive=True)
    return [one for one in below if any("ray::MapWorker" in part for part in one.cmdline())]


def generate(prompts: Path, out: Path, *arguments: str) -> dict:
    options = ["--input", str(prompts), "--output", str(out), *OPTIONS, *SHARDS, *arguments, "--json"]
    said = run("generate", "chat", *options)
    return json.loads(said[said.index("{\n") :])  # Ray, which goes on here after the command, may print before it


def test_workers_that_are_killed_lose_and_double_nothing(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prompts = prompts_file(tmp_path, 204)
    generate(prompts, tmp_path / "alone")
    killed = []
    write = Shards.write

    def writing(shards: Shards, number: int, rows: list) -> None:
        write(shards, number, rows)
        if len(list(shards.folder.glob("part-*"))) == 4:
            victim = workers()[0]
            victim.kill()
            killed.append(victim.pid)

    monkeypatch.setattr(Shards, "write", writing)
    report = generate(prompts, tmp_path / "shared", *RAY)
    assert killed
    assert report["rows_before"] == 0
    assert files_in(tmp_path / "shared") == files_in(tmp_path / "alone")


@pytest.mark.slow
def test_a_run_whose_driver_was_killed_goes_on(cluster: str, tmp_path: Path):
    prompts, out = prompts_file(tmp_path, 120), tmp_path / "shared"
    generate(prompts, tmp_path / "alone")
    command = [sys.executable, "-m", "unmask", "generate", "chat", "--input", str(prompts), "--output", str(out)]
    process = subprocess.Popen([*command, *OPTIONS, *SHARDS, *RAY, "--address", cluster])
    wait_for(lambda: len(list(out.glob("part-*"))) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    report = generate(prompts, out)  # and without Ray, to the same rows
    assert 24 <= report["rows_before"] < 120
    assert files_in(out) == files_in(tmp_path / "alone")


@pytest.mark.parametrize("address", ["127.0.0.1:6", "ray://127.0.0.1:6", "nonsense"])
def test_a_cluster_that_cannot_be_reached_is_said_at_once(address: str):
    with pytest.raises(UnmaskError, match=rf"cannot reach a Ray cluster at {re.escape(address)} \(.*check the address"):
        Cluster(address)._connect()


def test_what_a_worker_cannot_do_is_said_in_a_line(cluster: str):
    def no_folder():
        raise UnmaskError("no model at '/only/here'")

    def no_extra():
        raise ImportError("transformers is missing")

    with pytest.raises(UnmaskError, match=r"^worker on \S+: no model at '/only/here'$"):
        list(OverRay(Cluster(workers=1))(no_folder, [(0, "piece")]))
    (found,) = _Worker(no_extra)({"number": [0], "piece": [Sent("")]})["found"]
    done, said = found.what
    assert not done
    assert re.match(r"worker on \S+: transformers is missing; install the same extras on every machine", said)


def test_no_room_for_a_worker_is_said(cluster: str):
    with pytest.raises(UnmaskError, match="no machine of the cluster has room for a worker of 1 cores and 1 GPUs"):
        list(OverRay(Cluster(gpus=1.0))(lambda: lambda piece: piece, [(0, "piece")]))


RETRYABLE = (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError, HTTPError)


@pytest.fixture(scope="module")
def address(cluster: str):
    """Two replicas on this machine, behind a proxy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deploy(Serving(("chat",), local=True), Replicas(2))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


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


@pytest.mark.slow
def test_ten_thousand_rows_survive_every_fault(tmp_path: Path):
    from benchmarks.ray import faults

    found = faults(tmp_path, 10_000)
    assert found["worker_killed"] == {"status": 0, "equal": True}
    assert found["driver_killed"]["rows_before"] > 0
    assert found["driver_killed"]["equal"]
    if isinstance(found["disk_full"], dict):  # where a small file system can be mounted
        assert "No space left on device" in found["disk_full"]["said"]
        assert found["disk_full"]["equal"]
