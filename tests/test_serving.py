"""The server as clients see it: OpenAI's own client, unmodified, and the stream of unmasking."""

from __future__ import annotations

import json
import math
import random
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from serving import CHAT, LONG, ONE, serving
from test_engine import PROMPTS, RULES

import unmask
from unmask.rules.named import FAMILIES
from unmask.sampling.processors import LogitBias
from unmask.serving.limits import Limits
from unmask.serving.served import Served
from unmask.tasks.sudoku import demo_puzzles


@pytest.fixture(scope="module")
def server(models):
    with serving(models, Limits(rows=16, slow=2.0)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return server.client()


def test_a_completion_is_the_offline_one(client, model):
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 0.7, "top_p": 0.9, "seed": 3}
    found = client.completions.create(model="chat", prompt=["12+35=", "7"], n=2, extra_body=ONE, **options)
    offline = model.generate(
        ["12+35=", "7"], rule="top1-entropy", max_new_tokens=8, temperature=0.7, top_p=0.9, seed=3, n=2
    )
    assert [choice.text for choice in found.choices] == [one.text for one in offline]
    reasons = {"end": "stop", "stop": "stop", "length": "length"}
    assert [choice.finish_reason for choice in found.choices] == [reasons[one.finish_reason] for one in offline]
    assert found.usage.completion_tokens == sum(one.new_tokens for one in offline)
    assert found.usage.prompt_tokens == 2 * 6 + 2 * 1
    assert found.usage.unmask["nfe"] == sum(one.nfe for one in offline)
    assert found.usage.unmask["rule"] == "top1-entropy"
    assert found.usage.unmask["seed"] == 3


def test_a_chat_is_the_offline_one_and_streams_to_the_same(client, model):
    options: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_completion_tokens": 8, "n": 3}
    whole = client.chat.completions.create(model="chat", messages=CHAT, extra_body=ONE, **options)
    offline = model.generate([CHAT], rule="top1-entropy", max_new_tokens=8, temperature=1.0, seed=5, n=3)
    assert [choice.message.content for choice in whole.choices] == [one.text for one in offline]
    texts, reasons, usage = {}, {}, None
    for chunk in client.chat.completions.create(
        model="chat", messages=CHAT, stream=True, stream_options={"include_usage": True}, extra_body=ONE, **options
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert [texts[index] for index in range(3)] == [one.text for one in offline]
    assert [reasons[index] for index in range(3)] == [choice.finish_reason for choice in whole.choices]
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_text_is_released_from_left_to_right_before_the_end(client):
    chunks = list(
        client.completions.create(
            model="chat",
            prompt="reverse 1234",
            max_tokens=12,
            stream=True,
            temperature=0,
            extra_body={"rule": "left-to-right", **LONG},
        )
    )
    texts = [chunk.choices[0].text for chunk in chunks if chunk.choices]
    assert sum(bool(text) for text in texts) > 2


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(client, model, stream):
    (offline,) = model.generate("12+35=", rule="top1-entropy", max_new_tokens=6, temperature=0.0)
    count = offline.new_tokens - (offline.finish_reason == "end")
    options: dict[str, Any] = {"model": "chat", "temperature": 0, "max_tokens": 6, "stream": stream, "extra_body": ONE}
    found = client.completions.create(prompt="12+35=", logprobs=3, **options)
    parts = [chunk.choices[0].logprobs for chunk in (found if stream else [found]) if chunk.choices]
    parts = [part for part in parts if part is not None]
    assert [token for part in parts for token in part.tokens] == list(offline.text)
    assert [p for part in parts for p in part.token_logprobs] == pytest.approx(offline.log_probs[:count], abs=1e-4)
    assert [at for part in parts for at in part.text_offset] == list(range(count))
    assert all(len(most) == 3 for part in parts for most in part.top_logprobs)
    chat = client.chat.completions.create(messages=CHAT, logprobs=True, top_logprobs=2, **options)
    told = [chunk.choices[0].logprobs for chunk in (chat if stream else [chat]) if chunk.choices]
    content = [one for part in told if part is not None for one in part.content or ()]
    assert (
        "".join(one.token for one in content) == model.generate([CHAT], rule="top1-entropy", max_new_tokens=6)[0].text
    )
    assert all(one.bytes == list(one.token.encode()) and len(one.top_logprobs) == 2 for one in content)
    assert all(math.exp(one.logprob) <= 1 for one in content)


def test_what_is_between_a_prompt_and_a_suffix_is_filled(client, model):
    options: dict[str, Any] = {"model": "chat", "temperature": 0, "seed": 0}
    found = client.completions.create(prompt="12+", suffix="=47", max_tokens=2, extra_body=ONE, **options)
    (offline,) = model.infill("12+[MASK:2]=47", rule="top1-entropy")
    assert "12+" + found.choices[0].text + "=47" == offline.text
    spans = client.completions.create(prompt="12+??=47", extra_body={**ONE, "spans": [[3, 5, 2]]}, **options)
    assert spans.choices[0].text == offline.text
    assert spans.usage.completion_tokens == 2
    streamed = client.completions.create(
        prompt="12+", suffix="=47", max_tokens=2, stream=True, extra_body=ONE, **options
    )
    assert "12+" + "".join(chunk.choices[0].text for chunk in streamed) + "=47" == offline.text


def test_stops_and_biases_are_honoured(client, model):
    options: dict[str, Any] = {
        "model": "chat",
        "prompt": "12+35=",
        "temperature": 0,
        "max_tokens": 6,
        "extra_body": ONE,
    }
    assert client.completions.create(stop="7", **options).choices[0].text == "4"
    assert client.completions.create(stop=["7", "4"], **options).choices[0].text == ""
    (offline,) = model.generate("12+35=", rule="top1-entropy", max_new_tokens=6, processor=LogitBias({22: 50.0}))
    found = client.completions.create(logit_bias={"22": 50}, **options)
    assert found.choices[0].text == offline.text != "47"


@pytest.mark.parametrize("rule", ["all", "top1-confidence", "remdm:steps=4", "independence-test:epsilon=1"])
def test_an_answer_is_one_of_the_choices_whatever_the_rule(client, rule):
    choices = ["47", "4", "12", "123", "99 99"]
    for seed in range(6):
        found = client.completions.create(
            model="chat",
            prompt="12+35=",
            seed=seed,
            temperature=3.0,
            extra_body={"rule": rule, "response_format": {"type": "choice", "choices": choices}},
        )
        assert found.choices[0].text in choices
        assert found.choices[0].finish_reason == "stop"
    sure = client.completions.create(
        model="chat",
        prompt="12+35=",
        temperature=0,
        extra_body={"response_format": {"type": "choice", "choices": ["12", "47", "4"]}},
    )
    assert sure.choices[0].text == "47"


def test_every_evaluation_is_told_of(server, model):
    body = {"prompt": "12+35=", "max_tokens": 8, "rule": "remdm", "settings": {"steps": 6, "rate": 0.4}, "seed": 4}
    events = server.events({**body, "temperature": 1.0})
    start, *steps, end = events
    assert [event["type"] for event in events] == ["start", *["step"] * len(steps), "end"]
    assert (start["prompt_length"], start["rule"], start["seed"]) == (
        6,
        "remdm:steps=6,rate=0.4,strategy=cap,schedule=linear",
        4,
    )
    tokens = [one["id"] for one in start["tokens"]]
    assert [one["text"] for one in start["tokens"]] == [*"12+35=", *[None] * 8]
    for number, step in enumerate(steps):
        assert set(step) == {"type", "evaluation", "seconds", "written", "erased"}
        assert step["evaluation"] >= (steps[number - 1]["evaluation"] if number else 0)
        for one in step["written"]:
            assert one["text"] == model.decode([one["token"]], special=True)
            assert 0 < one["probability"] <= 1
            assert one["entropy"] >= 0
            tokens[one["position"]] = one["token"]
        for position in step["erased"]:
            tokens[position] = None
    (offline,) = model.generate("12+35=", rule="remdm:steps=6,rate=0.4", max_new_tokens=8, temperature=1.0, seed=4)
    assert tuple(tokens[6 : 6 + offline.new_tokens]) == offline.tokens
    assert (end["text"], end["nfe"], end["finish_reason"]) == (offline.text, offline.nfe, offline.finish_reason)


def test_gaps_and_chats_unmask_too(server, model):
    (offline,) = model.infill("12+[MASK:2]=47", rule="top1-entropy")
    start, *_, end = server.events({"text": "12+[MASK:2]=47", **ONE})
    assert [one["text"] for one in start["tokens"]] == [*"12+", None, None, *"=47"]
    assert (end["text"], start["prompt_length"]) == (offline.text, 3)
    *_, end = server.events({"messages": CHAT, "max_tokens": 8, **ONE})
    assert end["text"] == model.generate([CHAT], rule="top1-entropy", max_new_tokens=8)[0].text


def test_a_sudoku_is_solved(server):
    puzzle = "".join(map(str, demo_puzzles()[0].cells))
    start, *steps, end = server.events({"model": "sudoku", "text": puzzle, "rule": "entropy-bound:gamma=0.1"})
    cells = [one["text"] or "." for one in start["tokens"]]
    assert "".join(cells) == puzzle.replace("0", ".")
    for step in steps:
        for one in step["written"]:
            cells[one["position"]] = one["text"]
    assert "".join(cells) == end["text"]
    assert sorted(end["text"][:9]) == list("123456789")


def test_a_request_that_names_no_rule_gets_the_default_and_is_told_what_it_may_lose(server):
    start, *_, end = server.events({"model": "chat", "prompt": "12+35=", "temperature": 0, "max_tokens": 4})
    usual = unmask.default_rule("chat", 0.0)
    assert (start["rule"], start["says"]) == (str(usual), usual.says)
    whole = server.json("/v1/completions", {"prompt": "12+35=", "temperature": 0, "max_tokens": 4})
    assert whole["choices"][0]["text"] == end["text"]
    assert whole["usage"]["unmask"]["rule"] == str(usual)
    named = server.json("/v1/completions", {"prompt": "12+35=", "settings": {"gamma": 0.2}})["usage"]["unmask"]
    assert named["rule"].startswith("entropy-bound:gamma=0.2")
    assert "says" not in named


def test_a_model_says_of_what_its_texts_are(models):
    reactions = Served("rxnmapper", unmask.load("rxnmapper"), "rxnmapper")
    assert [one.about()["kind"] for one in (*models, reactions)] == ["text", "sudoku", "reactions"]
    body = {"text": "CC(=O)OC(C)=O.[MASK:10]>>CC(=O)NCc1ccccc1"}
    with serving([reactions]) as server:
        *_, end = server.events(body)
    assert end["text"] == "CC(=O)OC(C)=O.NCc1ccccc1>>CC(=O)NCc1ccccc1"


def test_a_stream_of_a_client_has_every_evaluation_on_request(client):
    chunks = list(
        client.completions.create(
            model="chat",
            prompt="12+35=",
            stream=True,
            temperature=0,
            max_tokens=4,
            extra_body={**ONE, "unmask": {"events": True}},
        )
    )
    events = [chunk.unmask for chunk in chunks if getattr(chunk, "unmask", None)]
    assert [event["type"] for event in events] == ["start", *["step"] * (len(events) - 2), "end"]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == events[-1]["text"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1000}, "max_tokens"),
    ({"n": 129}, "n"),
    ({"seed": "7"}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"logprobs": 21}, "logprobs"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"5000": 1}}, "logit_bias"),
    ({"echo": True}, "echo"),
    ({"best_of": 2}, "best_of"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"user": "me"}, "user"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"response_format": {"type": "choice", "choices": ["1" * 40]}}, "response_format"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"unmask": {"events": True}}, "unmask"),
    ({"rule": "nothing"}, "rule"),
    ({"rule": "entropy-bound:gamma=x"}, "rule"),
    ({"rule": "speculative:draft=1000000"}, "rule"),
    ({"rule": "dependence-bound:gamma=0.1,profile=/etc"}, "rule"),
    ({"settings": {"name": "topk"}}, "settings"),
    ({"settings": {"gammas": {}}}, "settings"),
    ({"rule": "upstream-gate:budget=dependence-bound:gamma=1+profile=/etc"}, "rule"),
    ({"settings": {"k": 2}}, "settings"),
    ({"block_length": 3, "max_tokens": 8}, "block_length"),
    ({"rule": "first-hitting", "end_last": True}, "end_last"),
    ({"prompt": "a" * 64}, "max_tokens"),
    ({"prompt": [500]}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": "[MASK]", "suffix": "1"}, "prompt"),
    ({"suffix": "1", "stop": "2"}, "stop"),
    ({"spans": [[0, 99, 2]], "max_tokens": None}, "spans"),
    ({"nonsense": 1}, "nonsense"),
    ({"model": "gpt-5"}, "model"),
    ({"model": "sudoku"}, "model"),
]


@pytest.mark.parametrize(("body", "param"), REFUSED, ids=lambda one: one if isinstance(one, str) else "")
def test_what_cannot_be_honoured_is_refused_by_its_name(server, body, param):
    status, _, content = server.ask("/v1/completions", {"model": "chat", "prompt": "7", "max_tokens": 4, **body})
    error = json.loads(content)["error"]
    assert status == (404 if body.get("model") == "gpt-5" else 400)
    assert (error["param"], error["code"]) == (param, None)
    assert error["message"]
    assert error["type"] in ("invalid_request_error", "not_found_error")


def test_values_that_ask_for_nothing_are_taken(client):
    nothing: dict[str, Any] = {"echo": False, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0.0}
    client.completions.create(model="chat", prompt="7", max_tokens=2, **nothing)
    client.chat.completions.create(
        model="chat", messages=CHAT, max_tokens=2, tools=[], store=False, response_format={"type": "text"}
    )


def test_errors_reach_the_client_as_its_own(client, server):
    with pytest.raises(openai.BadRequestError) as bad:
        client.completions.create(model="chat", prompt="7", temperature=-1)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=CHAT)
    with pytest.raises(openai.APITimeoutError):
        server.client(timeout=0.001).completions.create(model="chat", prompt="7")
    assert [one.id for one in client.models.list()] == ["chat", "sudoku"]
    assert client.models.retrieve("chat").unmask["max_length"] == 40


def test_a_client_that_hangs_up_frees_its_rows(models):
    with serving(models[:1], Limits(rows=4)) as server:
        stream = server.client().completions.create(
            model="chat",
            prompt="7",
            n=100,
            max_tokens=32,
            temperature=1,
            stream=True,
            extra_body={**ONE, **LONG},
        )
        next(iter(stream))
        stream.close()
        server.idle()
        connection = server.connection()
        body = {"prompt": "7", "n": 100, "max_tokens": 32, "temperature": 1, **ONE, **LONG}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        while server.engine.load("chat")[0] < 90:
            time.sleep(0.001)
        connection.close()
        server.idle()
        assert server.count("unmask_sequences_total", model="chat", reason="cancelled") > 0
        freed = "unmask_freed_after_evaluations_bucket"
        assert server.count(freed, model="chat", le="2.0") == server.count(freed, model="chat", le="+Inf") > 0
        finished = sum(server.count("unmask_sequences_total", model="chat", reason=one) for one in ("end", "length"))
        assert finished < 150


def test_fifty_requests_at_once_are_what_each_is_alone(server, model):
    draw = random.Random(1)
    bodies = []
    for number in range(50):
        bodies.append(
            {
                "prompt": draw.choice(PROMPTS),
                "rule": RULES[number % len(RULES)],
                "max_tokens": draw.choice((4, 8, 12)),
                "temperature": draw.choice((0.0, 0.7, 1.0)),
                "top_p": draw.choice((0.9, 1.0)),
                "stop": draw.choice(([], ["4"], ["=", "13"])),
                "seed": draw.randrange(1000),
                "n": draw.choice((1, 1, 2)),
                "stream": number % 3 == 0,
            }
        )

    def answer(body: dict[str, Any]) -> list[str]:
        if not body["stream"]:
            return [choice["text"] for choice in server.json("/v1/completions", body)["choices"]]
        texts = [""] * body["n"]
        for event in server.events(body, "/v1/completions"):
            for choice in event["choices"]:
                texts[choice["index"]] += choice["text"]
        return texts

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(answer, bodies))
    for body, answered in zip(bodies, answers, strict=True):
        own = {key: body[key] for key in ("rule", "temperature", "top_p", "stop", "seed", "n")}
        offline = model.generate(body["prompt"], max_new_tokens=body["max_tokens"], **own)
        assert answered == [one.text for one in offline]


def test_upkeep(server):
    assert server.json("/healthz") == {"status": "ok"}
    assert server.json("/readyz") == {"status": "ready"}
    rules = server.json("/v1/rules")["data"]
    assert [one["name"] for one in rules] == list(FAMILIES)
    own = {one["name"]: [key for key, setting in one["settings"].items() if setting["own"]] for one in rules}
    assert own["auto"] == own["tempered-bound"] == ["temperature", "profile"]
    assert own["entropy-bound"] == []
    status, headers, page = server.ask("/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'self'" in headers["content-security-policy"]
    server.events({"prompt": "7", "max_tokens": 2})
    counted = server.ask("/metrics")[2].decode()
    for name in (
        "requests_total",
        "queue_sequences",
        "nfe_per_token_count",
        "tokens_per_second_count",
        "batch_sequences_count",
        "request_seconds_count",
    ):
        assert f"unmask_{name}" in counted
    schema = server.json("/openapi.json")
    assert {"/v1/completions", "/v1/chat/completions", "/v1/unmask", "/v1/models"} <= set(schema["paths"])
    assert page
