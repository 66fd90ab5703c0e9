"""One answer while it is being written: where it ends, what is known of each token, and what of its text is final.

A `Canvas` is told what was written and erased, and says which positions are still worth writing. It knows no tensors
and no batch, so that answers made offline and by a server become of the same turns the same completions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Literal

from .completion import Completion
from .texts import Continuation, shared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Canvas:
    """A prompt and the masks that its answer is written in.

    Args:
        tokens: The prompt, and the mask token where something is to be written.
        mask_id: Id of the mask token.
        tokenizer: The tokenizer; without one, texts are empty.
        ends: Tokens that end an answer.
        stops: Texts that end an answer.
        whole: Whether the text of the answer is the whole sequence, not only what was masked.
        until: Called with the tokens of the answer so far, from the left; the first beginning of the answer that it is
            true of is all of it. It is asked about each beginning once, and after every turn about the longest.

    Attributes:
        tokens: What is written, with the mask token where nothing is.
        gap: The positions that were masked, in order.
        stopped: How many tokens hold the first stop string, or are all by `until`, and their text, once that is known.
        nfe: Evaluations it took part in.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        mask_id: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        ends: Collection[int] = (),
        stops: Sequence[str] = (),
        whole: bool = False,
        until: Callable[[Sequence[int]], bool] | None = None,
    ) -> None:
        self.tokens, self.mask_id, self.tokenizer = list(tokens), mask_id, tokenizer
        self.ends, self.stops, self.whole, self.until = frozenset(ends), tuple(stops), whole, until
        self.gap = [position for position, token in enumerate(self.tokens) if token == mask_id]
        self._gap = frozenset(self.gap)
        self._text = Continuation(tokenizer, self.tokens[: self.gap[0]] if self.gap else self.tokens)
        self.log_prob: dict[int, float] = {}
        self.step: dict[int, int] = {}
        self.nfe = 0
        self.stopped: tuple[int, str] | None = None
        self._ended = {position for position in self.gap if self.tokens[position] in self.ends}
        self._searched, self._released = 0, ""
        self._asked: list[int] = []

    def turn(
        self,
        nfe: int,
        positions: Sequence[int] = (),
        tokens: Sequence[int] = (),
        log_probs: Sequence[float] = (),
        erased: Sequence[int] = (),
    ) -> None:
        """Notes what a turn did, and looks for a stop string in what has been written without a gap.

        Args:
            nfe: Evaluations of the sequence so far.
            positions: Where something was written.
            tokens: What.
            log_probs: Log-probability of each token.
            erased: Positions that were masked again after that.
        """
        self.nfe = nfe
        for position, token, log_prob in zip(positions, tokens, log_probs, strict=True):
            self.tokens[position] = token
            self.log_prob[position], self.step[position] = log_prob, nfe
        for position in erased:
            self.tokens[position] = self.mask_id
        for position in {*positions, *erased}:
            ended = self.tokens[position] in self.ends and position in self._gap
            (self._ended.add if ended else self._ended.discard)(position)
        if self.stops and self.stopped is None:
            written = self.written()
            if len(written) != self._searched:
                self._searched = len(written)
                self.stopped = self._text.stop(written, self.stops)
        if self.until is not None and self.stopped is None:
            self.stopped = self._halt(self.until)

    @property
    def cut(self) -> int:
        """The position from which on nothing is to be written: that of the first end token, or 0 after a stop."""
        return 0 if self.stopped is not None else min(self._ended, default=len(self.tokens))

    @property
    def open(self) -> list[int]:
        """The masks that are still to be written."""
        cut = self.cut
        return [position for position in self.gap if position < cut and self.tokens[position] == self.mask_id]

    def written(self) -> list[int]:
        """The tokens before the first mask and the first end token."""
        run = []
        for position in self.gap:
            token = self.tokens[position]
            if token == self.mask_id or token in self.ends:
                break
            run.append(token)
        return run

    def final(self) -> list[int]:
        """The tokens that stay as they are, from the left, for rules that keep what they have written."""
        if self.open:
            return self.written()
        return [self.tokens[position] for position in self.gap[: self.ending()[1]]]

    def release(self) -> str:
        """Returns the text that has become final since the last call, for rules that keep what they have written.

        What may yet become the beginning of a stop string is kept back, and a character that lacks bytes.
        """
        if self.stopped is not None:
            return self._more(self.stopped[1])
        if not self.open:
            return self._more(self.ending()[2])
        written = self.written()
        text = self._text.text(written)
        kept = len(text) - _held(self._text.text(written, special=True) if self.stops else text, self.stops)
        return self._more(text[: max(0, kept)])

    def _halt(self, until: Callable[[Sequence[int]], bool]) -> tuple[int, str] | None:
        """How many tokens are all that is wanted, and their text; `None` if it is not known yet."""
        before, self._asked = self._asked, self.written()
        first = min(shared(before, self._asked) + 1, len(self._asked))
        for count in range(max(1, first), len(self._asked) + 1):
            if until(self._asked[:count]):
                return count, self._text.text(self._asked[:count])
        return None

    def _more(self, text: str) -> str:
        """What a text adds to what was released; nothing if a decoder has changed its beginning."""
        if not text.startswith(self._released):
            return ""
        more, self._released = text[len(self._released) :], text
        return more

    def ending(self) -> tuple[Literal["end", "stop", "length"], int, str]:
        """Why the answer has ended, how many of its tokens count, and what its gap says."""
        tokens = [self.tokens[position] for position in self.gap]
        if self.stopped is not None:
            return "stop", *self.stopped
        kept = next((place for place, token in enumerate(tokens) if token in self.ends), len(tokens))
        reason = "end" if kept < len(tokens) else "length"
        return reason, min(kept + 1, len(tokens)), self._text.text(tokens[:kept])

    def completion(self, prompt: str, seconds: float, stream: int) -> Completion:
        """What became of it.

        Args:
            prompt: The prompt as text.
            seconds: What it took.
            stream: The random stream that answered.
        """
        reason, count, text = self.ending()
        if self.whole:
            text = Continuation(self.tokenizer).text(self.tokens)
        kept = self.gap[:count]
        return Completion(
            prompt=prompt,
            text=text,
            tokens=tuple(self.tokens[position] for position in kept),
            log_probs=tuple(self.log_prob.get(position, 0.0) for position in kept),
            steps=tuple(self.step.get(position, 0) for position in kept),
            nfe=self.nfe,
            new_tokens=count,
            seconds=seconds,
            finish_reason=reason,
            stream=stream % 2**64,
        )


def _held(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of a text may become something else."""
    broken = len(text) - len(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    starts = (
        size for stop in stops for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])
    )
    return max([broken, *starts])
