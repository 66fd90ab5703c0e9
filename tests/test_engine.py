"""Requests with any settings, answered together: what each would get alone, and nobody is forgotten."""

from __future__ import annotations

import queue
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from layouts import MASK, VOCAB, write

import unmask
from unmask.denoiser import Query
from unmask.language import LanguageModel
from unmask.language.asked import Asked, asked_generate
from unmask.models.pretrained.cache import Cached
from unmask.rules.named import named_rule
from unmask.sampling.loop import Sampler
from unmask.sampling.processors import LogitBias
from unmask.serving.by_length import ByLength, parted
from unmask.serving.engine import Engine
from unmask.serving.events import Admitted, Event, Failed, Finished, Request, Written
from unmask.serving.limits import Limits
from unmask.serving.runner import Runner, Work
from unmask.serving.within_memory import WithinMemory
from unmask.tasks.instructions import MASK_ID

RULES = (
    "entropy-bound:gamma=0.1",
    "entropy-bound:gamma=1.0",
    "topk:k=2",
    "top1-confidence",
    "independence-test:epsilon=0.02",
    "klass:threshold=0.6",
    "first-hitting",
    "remdm:steps=6",
    "wino",
    "speculative",
)
PROMPTS = ("12+35=", "What is 9 plus 4?", "reverse 1234", "7", "sort 3 1 2")


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    loaded = unmask.load("chat")
    assert isinstance(loaded, LanguageModel)
    return loaded


def mixed(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Settings of requests that have little in common."""
    draw = random.Random(seed)
    settings = []
    for number in range(count):
        length = draw.choice((4, 8, 12))
        settings.append(
            {
                "prompts": draw.choice(PROMPTS),
                "rule": RULES[number % len(RULES)],
                "max_new_tokens": length,
                "block_length": draw.choice((None, None, 4, 2)),
                "temperature": draw.choice((0.0, 0.7, 1.0)),
                "top_p": draw.choice((None, 0.9)),
                "top_k": draw.choice((None, None, 5)),
                "stop": draw.choice(((), ("4",), ("=", "13"))),
                "seed": draw.randrange(1000),
                "n": draw.choice((1, 1, 2)),
                "processor": draw.choice((None, None, LogitBias({21: 2.0}))),
            }
        )
    return settings


class Listener:
    """Collects what it is told, from another thread."""

    def __init__(self) -> None:
        self.told: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def __call__(self, events: Sequence[Event]) -> None:
        for event in events:
            self.told.put(event)

    def until(self, *kinds: type, count: int = 1, timeout: float = 60.0) -> list[Event]:
        """All events up to so many of some kinds."""
        events: list[Event] = []
        while sum(isinstance(event, kinds) for event in events) < count:
            events.append(self.told.get(timeout=timeout))
        return events


def request(name: str, asked: Sequence[Asked], watch: bool = False, candidates: int = 0) -> tuple[Request, Listener]:
    listener = Listener()
    return Request(name, "chat", asked, listener, watch, candidates), listener


@pytest.fixture
def engine(model):
    running = Engine({"chat": Runner(model)}, Limits(rows=12))
    running.start()
    yield running
    running.stop()
    assert not running.alive


def same(found: Any, offline: Any) -> None:
    """All but the time it took."""
    for name in ("prompt", "text", "tokens", "steps", "nfe", "new_tokens", "finish_reason", "stream"):
        assert getattr(found, name) == getattr(offline, name)
    assert found.log_probs == pytest.approx(offline.log_probs, abs=1e-4)


def test_every_answer_is_what_it_is_alone(model, engine):
    settings = mixed(50)
    sent = []
    for number, one in enumerate(settings):
        sent.append(request(str(number), asked_generate(model, **one), watch=number % 2 == 0, candidates=number % 3))
        engine.submit(sent[-1][0])
    for one, (asked, listener) in zip(settings, sent, strict=True):
        events = listener.until(Finished, Failed, count=len(asked.asked))
        assert not any(isinstance(event, Failed) for event in events)
        finished = {event.index: event for event in events if isinstance(event, Finished)}
        offline = model.generate(**one)
        assert sorted(finished) == list(range(len(offline)))
        for index, answer in enumerate(offline):
            same(finished[index].completion, answer)
            assert finished[index].evaluations >= answer.nfe
            turns = [event for event in events if isinstance(event, Written) and event.index == index]
            assert bool(turns) == asked.watch
            if asked.watch:
                texts = [
                    event.text for event in events if isinstance(event, Written | Finished) and event.index == index
                ]
                assert "".join(texts) == answer.text
                assert turns[0].change.nfe >= 1
                assert all(len(turn.change.candidates) in (0, len(turn.change.tokens)) for turn in turns)
                written = {
                    p: t for turn in turns for p, t in zip(turn.change.positions, turn.change.tokens, strict=True)
                }
                gap = [at for at, token in enumerate(asked.asked[index].row) if token == model.mask_id]
                assert tuple(written[at] for at in gap[: answer.new_tokens]) == answer.tokens
    assert engine.load("chat") == (0, 0)


def test_the_first_turn_is_told_of_within_two_evaluations(model):
    runner = Runner(model)
    running = Engine({"chat": runner}, Limits(rows=12))
    hosts = [
        request(str(n), asked_generate(model, "12+35=", rule="top1-entropy", max_new_tokens=24, seed=n))
        for n in range(4)
    ]
    for asked, _ in hosts:
        running.submit(asked)
    for _ in range(3):
        running.turn("chat")
    asked, listener = request("late", asked_generate(model, "7", rule="topk:k=2", max_new_tokens=8), watch=True)
    running.submit(asked)
    before = runner.passes
    running.turn("chat")
    events = listener.until(Written)
    assert runner.passes - before <= 2
    assert [type(event) for event in events] == [Admitted, Written]


def test_sequences_of_one_rule_start_together_and_one_that_cannot_start_harms_no_other(model):
    runner = Runner(model)
    options: dict[str, Any] = {"rule": "entropy-bound:gamma=0.1", "max_new_tokens": 8}
    asked = [
        asked_generate(model, prompt, temperature=temperature, top_p=top_p, seed=3, **options)[0]
        for prompt, temperature, top_p in (("7", 0.0, None), ("12+35=", 1.0, 0.9), ("What is 9 plus 4?", 0.7, None))
    ]
    nothing = replace(asked[1], settings=replace(asked[1].settings, forbidden=tuple(range(model.vocab_size))))
    works = [Work(number, one, one.canvas(model)) for number, one in enumerate([*asked, nothing])]
    assert runner.join(works[:3]) == []
    assert [len(state.x) for pool in runner._pools for state in pool.everyone()] == [3]
    ((refused, error),) = Runner(model).join(works)
    assert refused is works[3]
    assert "every token of the vocabulary is forbidden" in str(error)
    while len(runner):
        runner.step()
    assert runner.passes == max(work.canvas.nfe for work in works[:3])
    for one, work in zip(asked, works[:3], strict=True):
        own = one.settings
        draw: dict[str, Any] = {"temperature": own.temperature, "top_p": own.top_p, "seed": 3}
        offline = model.generate(one.prompt.text, **draw, **options)[0]
        same(work.canvas.completion(one.prompt.text, 0.0, one.stream), offline)


@pytest.mark.parametrize("rule", ["top1-entropy", "independence-test:epsilon=0.0001"])
def test_a_cancelled_request_frees_its_row_within_two_evaluations(model, rule):
    class Rows:
        """The model, and how many rows it is asked about."""

        def __init__(self) -> None:
            self.rows: list[int] = []
            self.vocab_size, self.mask_id, self.tokenizer = model.vocab_size, model.mask_id, model.tokenizer
            self.device = model.device

        def __call__(self, query):
            self.rows.append(len(set(query.sequence.tolist())))
            return model(query)

    rows = Rows()
    running = Engine({"chat": Runner(rows)}, Limits(rows=8))
    sent = [
        request(
            str(n),
            asked_generate(model, "12+35=", rule=rule, max_new_tokens=24, temperature=1.0, seed=n, end_last=False),
        )
        for n in range(6)
    ]
    for asked, _ in sent:
        running.submit(asked)
    running.turn("chat")
    assert rows.rows[-1] == 6
    for asked, _ in sent[:5]:
        running.cancel(asked)
    running.turn("chat")
    assert rows.rows[-1] == 1
    assert running.load("chat") == (0, 1)
    while running.lanes["chat"].scheduler.busy:
        running.turn("chat")
    assert [type(event) for event in sent[0][1].until(Admitted)] == [Admitted]
    assert sent[0][1].told.empty()
    assert any(isinstance(event, Finished) for event in sent[5][1].until(Finished))


def test_who_waits_too_long_is_told(model):
    now = [0.0]
    running = Engine({"chat": Runner(model)}, Limits(rows=1, seconds=10.0), clock=lambda: now[0])
    asked = asked_generate(model, "12+35=", rule="top1-entropy", max_new_tokens=16, temperature=1.0)
    (first, one), (second, two) = request("a", asked), request("b", asked)
    running.submit(first)
    now[0] = 5.0
    running.submit(second)
    running.turn("chat")
    now[0] = 11.0
    running.turn("chat")
    assert one.until(Failed)[-1] == Failed("timeout", "the request took longer than 10 s")
    now[0] = 16.0
    running.turn("chat")
    two.until(Failed)
    while running.lanes["chat"].scheduler.busy:
        running.turn("chat")
    assert one.told.empty()
    assert two.told.empty()
    assert not running.lanes["chat"].sequences


def test_one_whose_logits_are_none_fails_alone_and_an_error_of_the_model_is_survived(model):
    class Spoilt:
        """The model, which fails now and then."""

        def __init__(self) -> None:
            self.vocab_size, self.mask_id, self.tokenizer = model.vocab_size, model.mask_id, model.tokenizer
            self.device, self.broken = model.device, False

        def __call__(self, query):
            if self.broken:
                raise RuntimeError("out of memory")
            return model(query)

    spoilt = Spoilt()
    running = Engine({"chat": Runner(spoilt)}, Limits(rows=2))
    running.start()
    options: dict[str, Any] = {"rule": "top1-entropy", "max_new_tokens": 8}
    nothing = LogitBias({token: -float("inf") for token in range(model.vocab_size)})
    good, bad = request("good", asked_generate(model, "7", **options)), None
    bad = request("bad", asked_generate(model, "7", processor=nothing, **options))
    running.submit(bad[0])
    running.submit(good[0])
    failed = bad[1].until(Failed)[-1]
    assert isinstance(failed, Failed)
    assert failed.kind == "model"
    assert "no mass" in failed.message or "logits" in failed.message
    same(good[1].until(Finished)[-1].completion, model.generate("7", **options)[0])  # pyright: ignore
    spoilt.broken = True
    broken = request("broken", asked_generate(model, "7", **options))
    running.submit(broken[0])
    assert "out of memory" in str(broken[1].until(Failed)[-1])
    spoilt.broken = False
    after = request("after", asked_generate(model, "7", **options))
    running.submit(after[0])
    after[1].until(Finished)
    running.stop()


def test_whoever_is_not_finished_at_the_end_is_told(model):
    running = Engine({"chat": Runner(model)}, Limits(rows=1))
    one = request("a", asked_generate(model, ["7", "8"], rule="top1-entropy", max_new_tokens=8))
    running.submit(one[0])
    running.stop()
    running.start()
    running._thread.join()
    assert one[1].until(Failed)[-1] == Failed("shutdown", "the server is shutting down")


def test_rules_that_take_back_release_no_text_before_the_end(model, engine):
    asked, listener = request(
        "a", asked_generate(model, "12+35=", rule="remdm:steps=8,rate=0.5", max_new_tokens=8), True
    )
    engine.submit(asked)
    *turns, finished = listener.until(Finished)
    assert isinstance(finished, Finished)
    assert all(turn.text == "" for turn in turns if isinstance(turn, Written))
    assert finished.text == finished.completion.text != ""


@pytest.mark.parametrize("places", [None, 0, 2])
def test_a_cache_serves_the_rules_that_ask_once_and_changes_nothing(tmp_path, places):
    """Nor does it with little memory: none, or two places, which are too narrow for the longest sequences."""
    layout = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    network = unmask.load(write(tmp_path, "dream", **layout), shift=False, block_causal=4).network
    model = LanguageModel(network, VOCAB, MASK, max_length=64)
    cached = Cached(model, "block-causal", 3)
    memory = None if places is None else places * 20 * cached.position_bytes
    kept = cached if memory is None else WithinMemory(cached, memory)
    running = Engine({"chat": Runner(model, kept)}, Limits(rows=3))
    sent, most = [], 0
    for number in range(12):
        options: dict[str, Any] = {"rule": RULES[number % 5], "max_new_tokens": 8, "temperature": 1.0, "seed": number}
        prompt = [[(number * at) % 30 for at in range(1, 4 + number)]]
        sent.append((prompt, options, *request(str(number), asked_generate(model, prompt, block_length=4, **options))))
        running.submit(sent[-1][2])
    running.cancel(sent[2][2])
    while running.lanes["chat"].scheduler.busy:
        running.turn("chat")
        stored = sum(part.numel() * part.element_size() for pair in cached.kept.kept.kept for part in pair)
        assert memory is None or stored <= memory
        most = max(most, len(cached.row_of))
    assert most == (3 if places is None else places)
    for number, (prompt, options, _, listener) in enumerate(sent):
        if number == 2:
            assert listener.told.empty()
            continue
        finished = listener.until(Finished)[-1]
        assert isinstance(finished, Finished)
        same(finished.completion, model.generate(prompt, block_length=4, **options)[0])
    assert cached.row_of == {}
    assert len(cached.opened) == (3 if places is None else 0)


def test_who_has_a_place_is_evicted_where_free_places_are_in_the_way_and_is_computed_anew(tmp_path):
    layout = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    network = unmask.load(write(tmp_path, "dream", **layout), shift=False, block_causal=4).network
    model = LanguageModel(network, VOCAB, MASK, max_length=64)
    cached = Cached(model, "block-causal", 8)
    within = WithinMemory(cached, 30 * cached.position_bytes)

    def ask(**lengths: int) -> list[str]:
        """Asks about sequences of these lengths, and returns those that have a place."""
        rows = [torch.tensor([*range(1, length - 2), MASK, MASK, MASK]) for length in lengths.values()]
        numbers = [ord(name) for name in lengths]
        state = Sampler(model, named_rule("top1-entropy").rule).start(rows, seed=0, slots=numbers)
        query = Query(state.x, state.pending, state.valid, state.slot, block=state.block)
        assert (within(query) - model(query))[:, :MASK].abs().max() < 1e-4
        return [chr(slot) for slot in cached.row_of]

    assert ask(a=8, b=8, c=8) == ["a", "b", "c"]
    assert ask(a=8, b=8, c=8, d=8) == ["a", "b", "c"]
    within.forget([ord("b"), ord("c")])
    computed = cached.known[cached.row_of[ord("a")]]
    assert computed > 0
    assert ask(a=8, e=13) == ["a", "e"]
    assert len(cached.opened) == 2
    assert ask(a=8, e=13, f=40) == ["a", "e"]
    within.forget([ord(name) for name in "ae"])
    assert len(cached.opened) == 0
    assert ask(f=40) == []


def test_short_and_long_sequences_are_asked_about_apart_and_get_the_same(model):
    class Noted:
        """The model, and the shapes it is asked about."""

        def __init__(self) -> None:
            self.shapes: list[tuple[int, ...]] = []
            self.vocab_size, self.mask_id, self.device = model.vocab_size, model.mask_id, model.device

        def __call__(self, query):
            self.shapes.append(tuple(query.x.shape))
            return model(query)

    rows = [[*range(1, 6)] * (length // 5) + [model.mask_id] * 3 for length in (30, 5, 5, 30, 5, 5, 5, 30, 10)]
    state = Sampler(model, named_rule("top1-entropy").rule).start([torch.tensor(row) for row in rows], seed=0)
    query = Query(state.x, state.pending, state.valid, state.slot, block=state.block)
    noted = Noted()
    found = ByLength(noted)(query)
    assert noted.shapes == [(5, 8), (4, 33)]
    assert (found - model(query))[:, :MASK_ID].abs().max() < 1e-3
    assert parted([8] * 40) == [(0, 40)]
    assert parted([8] * 4 + [9]) == [(0, 5)]
    assert parted([30] * 50 + [33] * 50) == [(0, 100)]  # it would save 150 positions of 3,300
    assert parted([1] * 10 + [50] * 10 + [200]) == [(0, 10), (10, 20), (20, 21)]
