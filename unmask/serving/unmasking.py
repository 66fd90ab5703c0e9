"""The stream of unmasking: every evaluation of an answer as an event (see docs/serving.md, which pages build on)."""

from __future__ import annotations

import math
from typing import Any

from ..language.asked import Asked
from .asking import Wanted
from .events import Finished, Request, Written
from .served import Served


def start_event(request: Request, wanted: Wanted, index: int, served: Served) -> dict[str, Any]:
    """The canvas as it is in the beginning."""
    asked: Asked = wanted.asked[index]
    mask_id = served.denoiser.mask_id
    masked = [token == mask_id for token in asked.row]
    tokens = [
        {"id": None, "text": None} if hidden else {"id": token, "text": served.token_text(token)}
        for token, hidden in zip(asked.row, masked, strict=True)
    ]
    return {
        "type": "start",
        "id": request.name,
        "model": served.name,
        **wanted.rule.as_json(),
        "seed": wanted.seed,
        "prompt_length": masked.index(True) if any(masked) else len(masked),
        "tokens": tokens,
    }


def step_event(event: Written, served: Served) -> dict[str, Any]:
    """What an evaluation wrote and erased."""
    change = event.change
    columns = zip(change.positions, change.tokens, change.log_probs, change.entropies, strict=True)
    written = [
        {
            "position": position,
            "token": token,
            "text": served.token_text(token),
            "probability": math.exp(log_prob),
            "entropy": entropy,
        }
        for position, token, log_prob, entropy in columns
    ]
    return {
        "type": "step",
        "evaluation": change.nfe,
        "seconds": event.seconds,
        "written": written,
        "erased": list(change.erased),
    }


def end_event(event: Finished, wanted: Wanted, served: Served) -> dict[str, Any]:
    """The answer, and what it cost."""
    done = event.completion
    return {
        "type": "end",
        "text": served.text(wanted.asked[event.index], done),
        "nfe": done.nfe,
        "evaluations": event.evaluations,
        "new_tokens": done.new_tokens,
        "seconds": done.seconds,
        "finish_reason": done.finish_reason,
    }
