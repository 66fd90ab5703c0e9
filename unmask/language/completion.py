"""What a language model answers, and what the answer cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Completion:
    """The answer to one prompt.

    Attributes:
        prompt: The prompt as text; a chat as the template wrote it; decoded where token ids were given.
        text: What the answer adds to the prompt, without special tokens, cut before a stop string; of an infilling the
            whole text.
        tokens: The answer's token ids, up to and including the end token or the last token of a stop string; of an
            infilling those of the gaps, in order of position.
        log_probs: Log-probability of each of those tokens, in nats, under the model's marginal at the time of its
            unmasking (temperature 1).
        steps: The evaluation each was unmasked in, from 1.
        nfe: Evaluations the sequence took part in. With guidance each is of two states.
        new_tokens: Number of `tokens`: what is after the end token counts neither here nor there.
        seconds: From the start of the sequence's batch until the sequence was finished.
        finish_reason: `"end"`: an end token was drawn; `"stop"`: a stop string was; `"length"`: the canvas is full.
        stream: The random stream that answered.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    steps: tuple[int, ...]
    nfe: int
    new_tokens: int
    seconds: float
    finish_reason: Literal["end", "stop", "length"]
    stream: int

    def as_json(self) -> dict[str, Any]:
        """Returns plain data, ready for `json.dumps`."""
        return asdict(self)
