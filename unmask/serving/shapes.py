"""Answers in the format of OpenAI's completions and chats, whole or in chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from .asking import Wanted
from .events import Finished, Request, Written
from .served import Served

Form = Literal["completion", "chat"]
_OBJECT = {
    ("completion", False): "text_completion",
    ("completion", True): "text_completion",
    ("chat", False): "chat.completion",
    ("chat", True): "chat.completion.chunk",
}

_Token = tuple[int, float, tuple[tuple[int, float], ...]]
"""A token, its log-probability, and the most probable ones with theirs."""


def finish_reason(event: Finished, chosen: bool) -> str:
    """Returns why an answer ended, in OpenAI's terms: an end token, a stop string and a choice are all `stop`."""
    return "stop" if chosen or event.completion.finish_reason in ("end", "stop") else "length"


def usage(wanted: Wanted, finished: Sequence[Finished], mask_id: int) -> dict[str, Any]:
    """Counts the tokens of the prompts, once for each answer, and of the answers up to where they end."""
    prompt = sum(token != mask_id for asked in wanted.asked for token in asked.row)
    new = sum(event.completion.new_tokens for event in finished)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "unmask": {
            "nfe": sum(event.completion.nfe for event in finished),
            "evaluations": sum(event.evaluations for event in finished),
            **wanted.rule.as_json(),
            "seed": wanted.seed,
            "seconds": max((event.completion.seconds for event in finished), default=0.0),
            "queued": max((event.waited for event in finished), default=0.0),
        },
    }


class Shapes:
    """The responses to one request.

    Args:
        form: The kind of response.
        served: The model.
        wanted: The answers that the request wants.
        request: The request, as the engine knows it.
        logprobs: Whether to report log-probabilities.
        top: How many of the most probable tokens to report for each token.
    """

    def __init__(
        self, form: Form, served: Served, wanted: Wanted, request: Request, logprobs: bool, top: int = 0
    ) -> None:
        self.form: Form = form
        self.served, self.wanted, self.request = served, wanted, request
        self.logprobs, self.top = logprobs, top
        self.created = int(time.time())
        self._tokens: list[dict[int, _Token]] = [{} for _ in wanted.asked]
        self._gaps = [
            [at for at, token in enumerate(asked.row) if token == served.denoiser.mask_id] for asked in wanted.asked
        ]
        self._said = [0] * len(wanted.asked)
        self._offset = [0] * len(wanted.asked)

    def head(self, chunk: bool) -> dict[str, Any]:
        """Returns the fields that every response begins with."""
        return {
            "id": self.request.name,
            "object": _OBJECT[self.form, chunk],
            "created": self.created,
            "model": self.served.name,
        }

    def whole(self, finished: Sequence[Finished]) -> dict[str, Any]:
        """Returns the response that holds all answers."""
        choices = []
        for event in finished:
            text = event.completion.text
            choice: dict[str, Any] = {"index": event.index}
            if self.form == "chat":
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            else:
                choice["text"] = text
            choice["logprobs"] = self._logprobs(event.index, self._counted(event)) if self.logprobs else None
            choice["finish_reason"] = finish_reason(event, self.wanted.chosen)
            choices.append(choice)
        return {**self.head(False), "choices": choices, "usage": self.usage(finished)}

    def usage(self, finished: Sequence[Finished]) -> dict[str, Any]:
        """Returns what the answers cost."""
        return usage(self.wanted, finished, self.served.denoiser.mask_id)

    def note(self, event: Written) -> None:
        """Remembers what was written, for log-probabilities."""
        change, tokens = event.change, self._tokens[event.index]
        candidates = change.candidates or ((),) * len(change.tokens)
        for at, token, log_prob, most in zip(
            change.positions, change.tokens, change.log_probs, candidates, strict=True
        ):
            tokens[at] = (token, log_prob, most[: self.top])

    def chunks(self, event: Written | Finished) -> Iterator[dict[str, Any]]:
        """Yields the chunks of a stream for one event."""
        whole = self.wanted.asked[event.index].settings.whole  # a text with gaps is released at the end
        if isinstance(event, Written):
            self.note(event)
            if event.text and not whole:
                yield self._chunk(event.index, event.text, min(event.final, len(self._gaps[event.index])))
            return
        text = event.completion.text if whole else event.text
        count = self._counted(event)
        if text or (self.logprobs and count > self._said[event.index]):
            yield self._chunk(event.index, text, count)
        yield self._chunk(event.index, "", None, finish_reason(event, self.wanted.chosen))

    def opening(self) -> Iterator[dict[str, Any]]:
        """Yields the chunks that a stream begins with."""
        if self.form == "chat":
            for index in range(len(self.wanted.asked)):
                delta = {"role": "assistant", "content": ""}
                yield {**self.head(True), "choices": [self._choice(index, delta)]}

    def _chunk(self, index: int, text: str, count: int | None, reason: str | None = None) -> dict[str, Any]:
        logprobs = self._logprobs(index, count) if self.logprobs and count is not None else None
        delta = {"content": text} if text or reason is None else {}
        choice = self._choice(index, delta if self.form == "chat" else text, logprobs, reason)
        return {**self.head(True), "choices": [choice]}

    def _choice(self, index: int, said: Any, logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        name = "delta" if self.form == "chat" else "text"
        return {"index": index, name: said, "logprobs": logprobs, "finish_reason": reason}

    def _counted(self, event: Finished) -> int:
        """Counts the tokens of the text: without the end token, and up to the start of a stop string."""
        done = event.completion
        if done.finish_reason == "end":
            return done.new_tokens - 1
        if done.finish_reason == "length":
            return done.new_tokens
        length = 0
        for count, token in enumerate(done.tokens):
            if length >= len(done.text):
                return count
            length += len(self.served.token_text(token))
        return done.new_tokens

    def _logprobs(self, index: int, count: int) -> dict[str, Any]:
        """Returns the log-probabilities of the tokens not reported yet, up to `count`."""
        known = self._tokens[index]
        tokens = [known[at] for at in self._gaps[index][self._said[index] : count] if at in known]
        self._said[index] = max(self._said[index], count)
        text = self.served.token_text
        if self.form == "chat":
            return {"content": [self._entry(*one) for one in tokens], "refusal": None}
        offsets = []
        for token, _, _ in tokens:
            offsets.append(self._offset[index])
            self._offset[index] += len(text(token))
        return {
            "tokens": [text(token) for token, _, _ in tokens],
            "token_logprobs": [log_prob for _, log_prob, _ in tokens],
            "top_logprobs": [{text(a): p for a, p in most} for _, _, most in tokens] if self.top else None,
            "text_offset": offsets,
        }

    def _entry(self, token: int, log_prob: float, most: Sequence[tuple[int, float]]) -> dict[str, Any]:
        return {**self._named(token, log_prob), "top_logprobs": [self._named(*one) for one in most]}

    def _named(self, token: int, log_prob: float) -> dict[str, Any]:
        text = self.served.token_text(token)
        return {"token": text, "logprob": log_prob, "bytes": list(text.encode(errors="replace"))}
