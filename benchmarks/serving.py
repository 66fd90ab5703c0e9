"""What a server does under load, for docs/serving.md.

    python -m benchmarks.serving load memory       # measure some parts, or without names all of them
    python -m benchmarks.serving render            # the page's table again, from the saved figures

The server is a process of its own (`unmask serve chat`); its clients are in this one. Figures go to
docs/results/serving-PART.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from unmask.cli.common import keep_memory
from unmask.language import LanguageModel
from unmask.models.registry import load as load_model
from unmask.sampling.processors import LogitBias

from .pages import fill

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "serving.md"
ROWS = 64
RULES = (
    "entropy-bound:gamma=0.1",
    "entropy-bound:gamma=1.0",
    "topk:k=2",
    "top1-confidence",
    "klass:threshold=0.6",
    "first-hitting",
    "remdm:steps=6",
    "independence-test:epsilon=0.02",
)
PROMPTS = ("12+35=", "What is 9 plus 4?", "reverse 1234", "sort 3 1 2", "7")
LENGTHS = (4, 8, 16)
NO_END = {"96": -100}
"""A bias that keeps the embedded model from ending an answer."""


def mixed(count: int, seed: int) -> list[dict[str, Any]]:
    """Requests that have little in common, half of them filling all of their canvas."""
    draw = random.Random(seed)
    return [
        {
            "prompt": draw.choice(PROMPTS),
            "rule": RULES[number % len(RULES)],
            "max_tokens": draw.choice(LENGTHS),
            "temperature": draw.choice((0.0, 0.7, 1.0)),
            "top_p": draw.choice((0.9, 1.0)),
            "seed": draw.randrange(10**6),
            **({"logit_bias": NO_END} if draw.random() < 0.5 else {}),
        }
        for number in range(count)
    ]


def offline(model: LanguageModel, body: dict[str, Any]) -> str:
    """What a request is answered without a server."""
    bias = {int(token): value for token, value in body.get("logit_bias", {}).items()}
    own = {key: body[key] for key in ("rule", "temperature", "top_p", "seed")}
    (one,) = model.generate(
        body["prompt"], max_new_tokens=body["max_tokens"], processor=LogitBias(bias) if bias else None, **own
    )
    return one.text


class Server:
    """A server in a process of its own.

    Attributes:
        pid: The process.
    """

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port, self.pid = port, process.pid

    async def post(self, body: dict[str, Any], path: str = "/v1/completions") -> tuple[int, dict[str, Any]]:
        """Status and body of the response to one request, on a connection of its own."""
        reader, writer = await self.send(body, path)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # pyright: ignore
            return int(head.split()[1]), json.loads(await reader.readexactly(length))
        finally:
            writer.close()

    async def send(
        self, body: dict[str, Any], path: str = "/v1/completions"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Sends a request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return reader, writer

    def counted(self) -> dict[str, float]:
        """What the server counts."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as response:
            lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def processor(self) -> float:
        """Seconds of the processor that it has taken so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident(self) -> int:
        """Bytes of memory that are resident."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def serving(port: int = 8931) -> Iterator[Server]:
    """Runs a server until the end of a block."""
    command = [sys.executable, "-m", "unmask", "serve", "chat", "--port", str(port), "--rows", str(ROWS)]
    process = subprocess.Popen([*command, "--queue", "6000"], stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz").close()
                break
            time.sleep(0.2)
        yield Server(port, process)
    finally:
        process.terminate()
        process.wait(60)


async def timed(call: Awaitable[tuple[int, dict[str, Any]]]) -> tuple[float, dict[str, Any]]:
    """Seconds until an answer, and the answer."""
    began = time.perf_counter()
    status, answer = await call
    assert status == 200, answer
    return time.perf_counter() - began, answer


async def at_once(server: Server, bodies: list[dict[str, Any]]) -> tuple[float, list[tuple[float, dict[str, Any]]]]:
    """All requests at once: seconds until the last answer, and each answer with its own seconds."""
    began = time.perf_counter()
    answers = await asyncio.gather(*(timed(server.post(body)) for body in bodies))
    return time.perf_counter() - began, answers


def load_part(count: int = 500) -> dict[str, Any]:
    """All at once, one by one, and offline."""
    model, bodies = load_model("chat"), mixed(count, 0)
    assert isinstance(model, LanguageModel)
    with serving() as server:
        asyncio.run(at_once(server, bodies[:8]))
        before = server.processor()
        seconds, answers = asyncio.run(at_once(server, bodies))
        between, began = server.processor(), time.perf_counter()
        for body in bodies:
            asyncio.run(server.post(body))
        one_by_one, after = time.perf_counter() - began, server.processor()
    texts = [answer["choices"][0]["text"] for _, answer in answers]
    different = sum(text != offline(model, body) for text, body in zip(texts, bodies, strict=True))
    classes = {}
    for length in LENGTHS:
        own = [spent for (spent, _), body in zip(answers, bodies, strict=True) if body["max_tokens"] == length]
        classes[length] = {"median": statistics.median(own), "slowest": max(own), "requests": len(own)}
    return {
        "requests": count,
        "answered": len(answers),
        "names": len({answer["id"] for _, answer in answers}),
        "different": different,
        "seconds": seconds,
        "one_by_one": one_by_one,
        "processor": between - before,
        "processor_one_by_one": after - between,
        "classes": classes,
    }


def overhead_part(count: int = 200, repeats: int = 3) -> dict[str, Any]:
    """The same requests over HTTP, all at once, and offline in batches of as many rows: seconds of the processor.

    Wall-clock would count the clients too, which are other machines in life and share the processor here.
    """
    model = load_model("chat")
    assert isinstance(model, LanguageModel)
    torch.set_num_threads(1)
    keep_memory()  # as the command does
    rule, length = "top1-entropy", 24
    prompts = [f"{number}+{number * 7 % 90}=" for number in range(10, 10 + count)]
    own = {"rule": rule, "max_tokens": length, "temperature": 0, "seed": 0, "logit_bias": NO_END}
    bodies = [{"prompt": prompt, **own} for prompt in prompts]
    processor = LogitBias({int(token): float(bias) for token, bias in NO_END.items()})
    spent: dict[str, list[float]] = {"http": [], "offline": []}
    with serving() as server:
        asyncio.run(at_once(server, bodies[:40]))
        for _ in range(repeats):
            before = server.processor()
            asyncio.run(at_once(server, bodies))
            spent["http"].append(server.processor() - before)
            before = time.process_time()
            model.generate(prompts, rule=rule, max_new_tokens=length, batch_size=ROWS, processor=processor)
            spent["offline"].append(time.process_time() - before)
    ratios = [http / alone for http, alone in zip(spent["http"], spent["offline"], strict=True)]
    return {"requests": count, "rule": rule, **spent, "ratio": statistics.median(ratios)}


def disconnect_part(count: int = 100) -> dict[str, Any]:
    """Clients that hang up after the first evaluations of a stream."""

    async def clients(server: Server) -> None:
        async def one(number: int) -> None:
            body = {"prompt": "7", "rule": RULES[number % len(RULES)], "max_tokens": 32, "n": 2, "stream": True}
            reader, writer = await server.send({**body, "temperature": 1, "logit_bias": NO_END})
            await reader.readuntil(b"data: ")
            await asyncio.sleep(0.01 * (number % 10))
            writer.transport.abort()

        await asyncio.gather(*(one(number) for number in range(count)))

    with serving() as server:
        asyncio.run(clients(server))
        counted = server.counted()
        while sum(counted[f'unmask_{name}_sequences{{model="chat"}}'] for name in ("queue", "running")):
            time.sleep(0.1)
            counted = server.counted()
        freed = {
            bound: counted.get(f'unmask_freed_after_evaluations_bucket{{le="{bound}",model="chat"}}', 0.0)
            for bound in ("0.0", "1.0", "2.0", "+Inf")
        }
        asyncio.run(at_once(server, mixed(20, 1)))
    return {"clients": count, "freed": freed}


def memory_part(count: int = 5000, wave: int = 250) -> dict[str, Any]:
    """Resident memory over many requests."""
    bodies = [{**body, "max_tokens": min(8, body["max_tokens"])} for body in mixed(count, 2)]
    resident = []
    with serving() as server:
        for start in range(0, count, wave):
            asyncio.run(at_once(server, bodies[start : start + wave]))
            resident.append(server.resident())
    # After the first fifth, in which everything has been used once.
    settled = resident[count // wave // 5 - 1 :]
    return {"requests": count, "resident": resident, "growth": settled[-1] / settled[0] - 1}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "load": load_part,
    "overhead": overhead_part,
    "disconnect": disconnect_part,
    "memory": memory_part,
}


def path(part: str) -> Path:
    """Where the figures of a part are kept."""
    return ROOT / "docs" / "results" / f"serving-{part}.json"


def table(found: dict[str, dict[str, Any]]) -> str:
    """What was measured, a line each."""
    load, overhead, disconnect, memory = (found[part] for part in PARTS)
    slowest = max(one["slowest"] / one["median"] for one in load["classes"].values())
    faster, freed = load["one_by_one"] / load["seconds"], disconnect["freed"]
    cheaper = load["processor_one_by_one"] / load["processor"]
    count, http, alone = overhead["requests"], overhead["http"], overhead["offline"]
    first, last = memory["requests"] // 5, memory["requests"]
    lines = {
        "requests at once": f"{load['requests']}",
        "of these answered": f"{load['answered']}",
        "of these with another text than offline": f"{load['different']}",
        "seconds, all at once": f"{load['seconds']:.1f}",
        "seconds, one by one": f"{load['one_by_one']:.1f}, {faster:.1f} times as many",
        "seconds of the processor, all at once": f"{load['processor']:.1f}",
        "seconds of the processor, one by one": f"{load['processor_one_by_one']:.1f}, {cheaper:.1f} times as many",
        "slowest request of a length, by their median, at most": f"{slowest:.2f}",
        f"seconds of the processor for {count} requests alike, over HTTP": f"{min(http):.1f} to {max(http):.1f}",
        f"the same offline, in batches of {ROWS}": f"{min(alone):.1f} to {max(alone):.1f}",
        "ratio of these, median": f"{overhead['ratio']:.2f}",
        f"sequences at work of {disconnect['clients']} clients that hang up": f"{freed['+Inf']:.0f}",
        "of these gone within two evaluations": f"{freed['2.0']:.0f}",
        f"growth of resident memory from request {first} to {last}": f"{memory['growth']:.1%}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in lines.items())])


def render() -> None:
    """Fills the page's table from the saved figures."""
    fill(PAGE, {"serving": table({part: json.loads(path(part).read_text())["figures"] for part in PARTS})})


def main() -> None:
    """Measures the parts that are named, or renders the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; or render")
    names = parser.parse_args().parts
    for part in names or PARTS:
        if part == "render":
            continue
        figures = PARTS[part]()
        about = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
        path(part).write_text(json.dumps({"about": about, "figures": figures}, indent=1) + "\n", encoding="utf-8")
        print(part, json.dumps(figures))
    render()


if __name__ == "__main__":
    main()
