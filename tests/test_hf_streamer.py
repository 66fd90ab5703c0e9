"""What reads along with `model.generate(..., custom_generate=generate)`: streamers, which always end, and criteria."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from decoders import byte_level
from transformers import LlamaConfig, LlamaForCausalLM, TextIteratorStreamer
from transformers.generation import (
    BaseStreamer,
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StopStringCriteria,
)

from unmask.integrations.transformers import generate

TOKENIZER = byte_level()
VOCAB, END, MASK = len(TOKENIZER), 1, 2
LETTERS = frozenset(
    token for token in range(VOCAB) if len(text := str(TOKENIZER.decode([token]))) == 1 and " " <= text <= "~"
)
PROMPT = torch.tensor([TOKENIZER.encode("some words")])
REMASKS = "remdm:steps=16"
DEADLINE = 60.0
"""Seconds after which whoever still reads from a streamer counts as one who waits for ever."""


@pytest.fixture(scope="module")
def llama() -> Any:
    """Writes visible letters, and now and then an end."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=END,
    )
    config.is_causal, config.mask_token_id = False, MASK
    model = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(12 if weight.ndim > 1 else 1)
        model.lm_head.weight[END] = 0.0
    return model


def call(model: Any, ids: torch.Tensor = PROMPT, **settings: Any) -> torch.Tensor:
    usual = {"rule": "entropy-bound:gamma=0.3", "max_new_tokens": 24, "do_sample": True, "top_k": 0, "seed": 5}
    forbidden = [token for token in range(VOCAB) if token not in LETTERS and token != END]
    return model.generate(ids, custom_generate=generate, **{**usual, "forbidden": forbidden, **settings})


def answer(out: torch.Tensor) -> list[int]:
    return out[0, PROMPT.shape[1] :].tolist()


class Recorder(BaseStreamer):
    """Notes what it is given, how many evaluations were over by then, and how often it was ended."""

    def __init__(self, fails: bool = False) -> None:
        self.tokens: list[int] = []
        self.when: list[int] = []
        self.prompts, self.ends, self.evaluations, self.fails = 0, 0, 0, fails

    def step(self, *_: Any) -> None:
        self.evaluations += 1

    def put(self, value: torch.Tensor) -> None:
        assert not self.ends
        if value.ndim == 2:  # the library gives it the prompt
            self.prompts += 1
            return
        if self.fails:
            raise BrokenPipeError("nobody reads")
        self.tokens += value.tolist()
        self.when.append(self.evaluations)

    def end(self) -> None:
        self.ends += 1


@pytest.mark.parametrize("rule", ["left-to-right", "entropy-bound:gamma=0.3", "all"])
def test_a_thread_reads_the_answer_while_it_is_written(llama: Any, rule: str):
    wanted = str(TOKENIZER.decode(answer(call(llama, rule=rule)), skip_special_tokens=True))
    streamer = TextIteratorStreamer(TOKENIZER, skip_prompt=True, timeout=DEADLINE, skip_special_tokens=True)
    writer = threading.Thread(target=call, args=(llama,), kwargs={"rule": rule, "streamer": streamer}, daemon=True)
    writer.start()
    assert "".join(streamer) == wanted
    writer.join(DEADLINE)
    assert not writer.is_alive()


def test_tokens_are_given_as_they_become_final(llama: Any):
    for rule in ("left-to-right", "entropy-bound:gamma=0.3"):
        streamer = Recorder()
        out = answer(call(llama, rule=rule, streamer=streamer, on_step=streamer.step))
        assert (streamer.tokens, streamer.prompts, streamer.ends) == (out, 1, 1)
        if rule == "left-to-right":
            assert streamer.when == list(range(len(out)))
        else:
            assert streamer.when[0] < streamer.when[-1] == streamer.evaluations - 1


def test_a_function_around_ours_changes_nothing(llama: Any):
    def wrapped(*given: Any, **settings: Any) -> Any:
        return generate(*given, rule="left-to-right", **settings)

    streamer = Recorder()
    out = llama.generate(PROMPT, custom_generate=wrapped, max_new_tokens=8, streamer=streamer)
    assert (streamer.tokens, streamer.ends) == (answer(out), 1)


def test_of_a_rule_that_masks_again_nothing_is_final_before_the_end(llama: Any):
    streamer = Recorder()
    out = answer(call(llama, rule=REMASKS, streamer=streamer, on_step=streamer.step))
    assert streamer.tokens == out
    assert set(streamer.when) == {streamer.evaluations}
    assert streamer.ends == 1


def raising(error: BaseException) -> Callable[..., None]:
    def step(*_: Any) -> None:
        raise error

    return step


class Fails(StoppingCriteria):
    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        raise LookupError("of the caller's")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"rule": "entropybound"}, ValueError),
        ({"repetition_penalty": 1.3}, ValueError),
        ({"max_new_tokens": 500}, ValueError),
        ({"on_step": raising(OSError("in the middle"))}, OSError),
        ({"on_step": raising(KeyboardInterrupt())}, KeyboardInterrupt),  # how a run is cancelled
        ({"stopping_criteria": [Fails()]}, LookupError),
        ({"streamer": Recorder(fails=True)}, BrokenPipeError),
        ({"ids": PROMPT.repeat(2, 1)}, ValueError),
    ],
)
def test_a_streamer_is_ended_whatever_happens(llama: Any, settings: dict[str, Any], error: type[BaseException]):
    streamer = settings.get("streamer", Recorder())
    with pytest.raises(error):
        call(llama, **{"streamer": streamer, **settings})
    assert (streamer.prompts, streamer.ends) == (1, 1)


def test_who_reads_in_another_thread_is_let_go_by_an_error(llama: Any):
    streamer = TextIteratorStreamer(TOKENIZER, skip_prompt=True, timeout=DEADLINE)
    seen: list[BaseException] = []

    def write() -> None:
        try:
            call(llama, streamer=streamer, on_step=raising(KeyboardInterrupt()))
        except BaseException as error:
            seen.append(error)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    assert "".join(streamer) == ""
    writer.join(DEADLINE)
    assert isinstance(seen[0], KeyboardInterrupt)


@pytest.mark.parametrize("rule", ["left-to-right", "entropy-bound:gamma=0.3"])
def test_an_answer_ends_where_a_stop_string_does(llama: Any, rule: str):
    free = answer(call(llama, rule=rule))
    text = str(TOKENIZER.decode(free))
    stop = text[6:9]
    assert text.index(stop) == 6
    streamer = Recorder()
    criteria = [StopStringCriteria(TOKENIZER, stop)]
    out = answer(call(llama, rule=rule, stopping_criteria=criteria, streamer=streamer))
    assert out == free[:9] == streamer.tokens  # the library keeps a stop string too
    other = [StopStringCriteria(TOKENIZER, "never said so")]
    assert answer(call(llama, rule=rule, stopping_criteria=other)) == free


class Watch(StoppingCriteria):
    """Notes what it is asked about, and never stops."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        assert input_ids.shape[0] == 1
        assert scores is None
        self.asked.append(input_ids[0].tolist())
        return torch.zeros(1, dtype=torch.bool)


def test_a_criterion_is_asked_about_each_beginning_of_the_answer(llama: Any):
    watch = Watch()
    out = call(llama, stopping_criteria=[watch])[0].tolist()
    assert torch.equal(call(llama), torch.tensor([out]))
    counts = [len(asked) for asked in watch.asked]
    assert all(asked == out[: len(asked)] for asked in watch.asked), "nothing but what is written without a gap"
    assert counts == sorted(counts)
    text = out.index(END) if END in out else len(out)
    assert sorted(set(counts)) == list(range(PROMPT.shape[1] + 1, text + 1))


def test_rows_end_each_by_itself(llama: Any):
    ids = torch.cat([PROMPT, PROMPT.flip(-1)])
    mask = torch.ones_like(ids)
    mask[1, :3], ids[1, :3] = 0, 0
    letter = answer(call(llama))[4]
    criteria = [EosTokenCriteria([END, letter])]
    out = call(llama, ids, attention_mask=mask, stopping_criteria=criteria)
    free = call(llama, ids, attention_mask=mask)
    width = ids.shape[1]
    for row, whole in zip(out[:, width:].tolist(), free[:, width:].tolist(), strict=True):
        ends = [place for place, token in enumerate(whole) if token in (END, letter)]
        count = ends[0] + 1 if ends else len(whole)
        assert row[:count] == whole[:count]
        assert set(row[count:]) <= {0}


class Event(StoppingCriteria):
    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return self.event.is_set()


def test_a_clock_an_event_and_a_length_end_an_answer(llama: Any):
    free = answer(call(llama, rule="left-to-right"))
    late = [MaxTimeCriteria(0.0, initial_timestamp=0.0)]
    assert answer(call(llama, rule="left-to-right", stopping_criteria=late)) == free[:1]
    assert answer(call(llama, rule="left-to-right", max_time=3600.0)) == free
    given, steps = Event(), Recorder()

    def step(*_: Any) -> None:
        steps.step()
        if steps.evaluations == 4:
            given.event.set()

    assert answer(call(llama, rule="left-to-right", stopping_criteria=[given], on_step=step)) == free[:5]
    short = [MaxLengthCriteria(PROMPT.shape[1] + 3)]
    assert answer(call(llama, stopping_criteria=short)) == answer(call(llama, max_new_tokens=3))
