"""Turns the body of a request into the answers that it wants. Every refusal names the field at fault."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..draws.categorical import check_draw
from ..draws.streams import derive
from ..language import LanguageModel
from ..language.arguments import stop_strings
from ..language.asked import Asked, Settings, asked_generate, asked_infill
from ..rules.named import NamedRule
from ..sampling.draw import Processor
from ..sampling.processors import Chain, Choices, LogitBias
from .bodies import Answer, ChatBody, Choice, CompletionBody, Draw, Message, UnmaskBody
from .named import rule_of
from .refusals import Refused, blaming
from .served import Served

_GAP = re.compile(r"\[MASK(:\d+)?\]")


@dataclass(frozen=True)
class Wanted:
    """The answers that a request wants.

    Attributes:
        asked: The answers; those to the same prompt follow each other.
        rule: The rule.
        seed: The seed, given or drawn at random.
        candidates: How many of the most probable tokens to report for each token.
        chosen: Whether each answer must be one of several given choices.
    """

    asked: Sequence[Asked]
    rule: NamedRule
    seed: int
    candidates: int = 0
    chosen: bool = False


def seed_of(body: Draw) -> int:
    """Returns the seed of a request, or a random seed if it has none."""
    return secrets.randbelow(2**31) if body.seed is None else body.seed


def new_tokens(model: LanguageModel, body: Draw) -> int:
    """Returns the number of masks of an answer."""
    asked = body.max_tokens
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        if asked not in (None, body.max_completion_tokens):
            raise Refused("give max_tokens or max_completion_tokens", "max_completion_tokens")
        asked = body.max_completion_tokens
    if asked is None:
        asked = model.usual_new_tokens
        if body.block_length is not None:
            asked = max(body.block_length, asked - asked % body.block_length)
    return asked


def processor_of(served: Served, body: Answer) -> Processor | None:
    """Returns the processor that applies the request's logit bias, or `None`."""
    if not body.logit_bias:
        return None
    vocabulary = served.denoiser.vocab_size
    bias = {}
    for key, value in body.logit_bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < vocabulary):
            raise Refused(f"logit_bias names tokens by their ids 0..{vocabulary - 1}, got {key!r:.40}", "logit_bias")
        bias[int(key)] = value
    return LogitBias(bias)


def wanted_completion(served: Served, body: CompletionBody, others: Sequence[Served]) -> Wanted:
    """Returns the answers that a request to `POST /v1/completions` wants.

    Raises:
        Refused: If the request cannot be answered.
    """
    if body.suffix is None and body.spans is None:
        prompt = body.prompt
        prompts = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else list(prompt)
        return _continued(served, body, prompts, others, "prompt", body.logprobs or 0)
    return _filled(served, body, others)


def wanted_chat(served: Served, body: ChatBody, others: Sequence[Served]) -> Wanted:
    """Returns the answers that a request to `POST /v1/chat/completions` wants.

    Raises:
        Refused: If the request cannot be answered.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise Refused("top_logprobs goes with logprobs: true", "top_logprobs")
    return _continued(served, body, [_chat(body.messages)], others, "messages", body.top_logprobs or 0)


def wanted_unmasking(served: Served, body: UnmaskBody, others: Sequence[Served]) -> Wanted:
    """Returns the answers that a request to `POST /v1/unmask` wants.

    Raises:
        Refused: If the request cannot be answered.
    """
    given = [name for name in ("prompt", "messages", "text") if getattr(body, name) is not None]
    if len(given) != 1:
        raise Refused("give one of prompt, messages and text", given[-1] if given else "prompt")
    body = body if body.temperature is not None else body.model_copy(update={"temperature": 0.0})
    if not isinstance(served.denoiser, LanguageModel):
        return _puzzle(served, body, others)
    if body.text is not None:
        for name in ("max_tokens", "block_length", "end_last", "stop"):
            if getattr(body, name) is not None:
                raise Refused(f"{name} does not go with text, whose gaps say what is to be written", name)
        named, seed = rule_of(body, served, others), seed_of(body)
        with blaming("text"):
            asked = asked_infill(served.language, body.text, rule=named.rule, seed=seed, **_draw(body))
        return Wanted(asked, named, seed)
    prompt = body.prompt if body.messages is None else _chat(body.messages)
    return _continued(served, body, [prompt], others, given[0], 0)


def _draw(body: Draw) -> dict[str, Any]:
    temperature = 1.0 if body.temperature is None else body.temperature
    return {"temperature": temperature, "top_p": body.top_p, "top_k": body.top_k}


def _chat(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    return [message.model_dump(exclude={"name"}) for message in messages]


def _continued(
    served: Served, body: Draw, prompts: list[Any], others: Sequence[Served], param: str, candidates: int
) -> Wanted:
    """Answers that come after their prompts."""
    with blaming("model"):
        model = served.language
    named, seed = rule_of(body, served, others), seed_of(body)
    most = new_tokens(model, body)
    processor = processor_of(served, body) if isinstance(body, Answer) else None
    blocks, choice, choices = body.block_length, None, ()
    if isinstance(body, Answer) and isinstance(body.response_format, Choice):
        choice = body.response_format
        if body.stop or blocks is not None:
            raise Refused("stop and block_length do not go with a choice", "stop" if body.stop else "block_length")
        choices, blocks = _choices(model, choice, most), 1
        most = max(map(len, choices))
    with blaming("stop"):
        stops = stop_strings(body.stop)
    with blaming(
        param, block_length="block_length", max_new_tokens="max_tokens", masks="max_tokens", end_last="end_last"
    ):
        asked = asked_generate(
            model,
            prompts,
            rule=named.rule,
            max_new_tokens=most,
            block_length=blocks,
            seed=seed,
            stop=stops,
            processor=processor,
            end_last=False if choice is not None and body.end_last is None else body.end_last,
            n=(body.n or 1) if isinstance(body, Answer) else 1,
            **_draw(body),
        )
    largest = max(max(one.row) for one in asked)
    if largest >= model.vocab_size:
        raise Refused(f"the token id {largest} is outside the vocabulary 0..{model.vocab_size - 1}", param)
    if choice is not None:
        asked = [_choosing(one, choices) for one in asked]
    return Wanted(asked, named, seed, candidates, choice is not None)


def _choices(model: LanguageModel, choice: Choice, most: int) -> tuple[tuple[int, ...], ...]:
    """Returns the tokens of each choice; those that are shorter than the longest get an end token."""
    assert model.tokenizer is not None
    with blaming("response_format"):
        stop_strings(choice.choices)
    found = [tuple(model.tokenizer(one, add_special_tokens=False)["input_ids"]) for one in choice.choices]
    longest = max(map(len, found))
    if not all(found) or longest > most:
        raise Refused(f"a choice has {longest} tokens, and max_tokens is {most}", "response_format")
    if not model.end_ids and any(len(one) < longest for one in found):
        raise Refused("this model has no end token, so all choices must have as many tokens", "response_format")
    if any(token == model.mask_id or token in model.end_ids for one in found for token in one):
        raise Refused("a choice holds the mask or an end token", "response_format")
    return tuple(one if len(one) == longest else (*one, model.end_ids[0]) for one in found)


def _choosing(asked: Asked, choices: tuple[tuple[int, ...], ...]) -> Asked:
    """Returns what is asked, restricted to the given choices and written one position at a time, left to right."""
    one = Choices(len(asked.prompt.tokens), choices)
    own = asked.settings.processor
    return replace(asked, settings=replace(asked.settings, processor=one if own is None else Chain((own, one))))


def _filled(served: Served, body: CompletionBody, others: Sequence[Served]) -> Wanted:
    """Returns the answers that fill gaps: before a suffix, or at the given spans."""
    where = "suffix" if body.suffix is not None else "spans"
    for name in ("block_length", "end_last", "stop", "response_format"):
        if getattr(body, name) is not None:
            raise Refused(f"{name} does not go with {where}: a gap is filled as a whole", name)
    if not isinstance(body.prompt, str):
        raise Refused(f"with {where}, prompt is one text", "prompt")
    with blaming("model"):
        model = served.language
    text = body.prompt + (body.suffix or "")
    if _GAP.search(text):
        raise Refused("prompt and suffix hold [MASK], which would be another gap; use spans", "prompt")
    if body.suffix is not None:
        if body.spans is not None:
            raise Refused("give suffix or spans", "spans")
        spans = [(len(body.prompt), len(body.prompt), new_tokens(model, body))]
    else:
        spans = [(start, stop, size) for start, stop, size in body.spans or ()]
        if body.max_tokens is not None:
            raise Refused("max_tokens does not go with spans, which say how many tokens are missing", "max_tokens")
    named, seed, copies = rule_of(body, served, others), seed_of(body), body.n or 1
    with blaming(where, masks="max_tokens" if body.suffix is not None else "prompt", surrogate="prompt"):
        asked = asked_infill(
            model,
            [text] * copies,
            rule=named.rule,
            spans=[spans] * copies,
            seed=seed,
            processor=processor_of(served, body),
            whole_text=body.suffix is None,
            **_draw(body),
        )
    return Wanted(asked, named, seed, body.logprobs or 0)


def _puzzle(served: Served, body: UnmaskBody, others: Sequence[Served]) -> Wanted:
    """A Sudoku."""
    for name in ("prompt", "messages", "max_tokens", "block_length", "end_last", "stop"):
        if getattr(body, name) is not None:
            raise Refused(f"{name} does not apply to a model of Sudokus: give text, 81 characters", name)
    named, seed = rule_of(body, served, others), seed_of(body)
    draw = _draw(body)
    with blaming("top_k"):
        check_draw(draw["temperature"], draw["top_k"], draw["top_p"])
    with blaming("text"):
        assert body.text is not None
        settings = Settings(rule=named.rule, forbidden=(0,), whole=True, **draw)
        asked = served.puzzle(body.text, 0, settings)
    return Wanted([replace(asked, stream=derive(seed, asked.row, 0))], named, seed)
