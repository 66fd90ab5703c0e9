"""Self-speculation of a block model: its blocks draft a run of tokens, and the model with blocks of one verifies them.

A model with block-causal attention becomes autoregressive if its blocks hold one position each: it then predicts a
position from those before it, as a causal language model does, at one evaluation per token. To save evaluations, the
model with its own blocks *drafts* the next run of masks, all at once, in one evaluation. In a second evaluation the
autoregressive model verifies the draft: for each position of the run it is shown the drafted tokens before that
position, and draws with the position's own uniform number. Tokens are accepted up to the first that differs from the
draft. That one is kept as well, as all tokens before it are settled.

So every token is the one that the autoregressive model draws from the same uniform numbers, whatever was drafted: a bad
draft costs evaluations and changes nothing. Finished blocks, the prompt included, are read with the model's own blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..checks import whole
from ..sampling.conversation import Ask, Conversation, LawKind, Move, Situation
from ..sampling.state import Memory
from ..sampling.view import spread
from .budget import One
from .order import LeftToRight
from .ranked import Rule
from .speaker import Alone


@dataclass(frozen=True)
class SelfSpeculative(Alone):
    """Left to right with attention blocks of one position, verifying what the model's own blocks draft.

    With the same seed the tokens are those of `draft=0`, which drafts nothing, in fewer evaluations if enough drafts
    are accepted: a turn takes two evaluations instead of one. A model without block-causal attention verifies as it is,
    and the tokens are then those of `left-to-right`. The price: the second evaluation of a turn computes one state for
    each drafted token, and one more.

    Args:
        draft: The most tokens that are drafted at once. A run of masks ends at the next known token, and at the end of
            its block.

    Raises:
        ValueError: If `draft` is not a whole number >= 0.

    References:
        S2D2: arXiv:2603.25702, read in its code (phymhan/S2D2, `SDAR/generate_ssd_policy.py`), whose verifier accepts
        with probability `min(1, q/p)` and draws a rejected token again from the rest. Sharing the uniform number is
        another coupling of the same two laws. Its routing, which leaves out verifications and so changes the law, is
        not here.
    """

    draft: int = 8

    def __post_init__(self) -> None:
        whole("draft", self.draft, 0)

    @property
    def rule(self) -> Rule:
        """The rule whose tokens these are, if the model looks at all positions."""
        return Rule(LeftToRight(), One())

    @property
    def law(self) -> LawKind:
        """How the exact law is computed: it is that of the rule inside."""
        return LawKind.SAME

    @property
    def no_law(self) -> str:
        """Empty: the exact law is always computed."""
        return ""

    def start(self, masked: Int[Tensor, " batch"]) -> Memory:
        """Returns the memory: nothing is remembered."""
        return self.rule.start(masked)

    def turn(self, seen: Situation) -> Conversation:
        """Drafts the next run of masks, where it is longer than one, and verifies it."""
        time = self.rule.time(seen)  # refuses a model that is told the time
        run = next_run(seen.candidate, self.draft + 1)
        size, first = run.sum(-1), run.int().argmax(-1)
        last = first + size - 1
        position = torch.arange(run.shape[1], device=run.device)
        drafted = run & (position < last.unsqueeze(-1))
        filled, row = seen.x, (size > 1).nonzero().squeeze(-1)
        if len(row):
            where = drafted[row]
            guess = yield Ask(where, x=seen.x[row], row=row, time=time)
            tokens = seen.draw.tokens(guess.logits, None, guess.row, seen.token_noise[drafted], guess.stats)
            filled = torch.where(drafted, spread(tokens, drafted, seen.mask_id), seen.x)

        # One state for each position of the run, in order: the drafted tokens before it are filled in.
        row, place = run.nonzero(as_tuple=True)
        here = position == place.unsqueeze(-1)
        x = torch.where(position < place.unsqueeze(-1), filled[row], seen.x[row])
        answer = yield Ask(here, x=x, row=row, time=time, unsure=place > first[row], stepwise=True)
        assert answer.stats.top is not None
        token = seen.draw.tokens(answer.logits, None, row, seen.token_noise[row, place], answer.stats)
        # A draft may lead to an impossible state, which the model alone would not reach.
        accepted = (token == filled[row, place]) & answer.stats.top.isfinite()
        going = spread(accepted, run, False) | (position < first.unsqueeze(-1))
        reached = torch.nn.functional.pad(going.int().cumprod(-1).bool()[:, :-1], (1, 0), value=True)
        chosen = run & reached
        return Move(chosen, seen.memory, answer, rows=chosen[run].nonzero().squeeze(-1), tokens=token, together=False)


def next_run(candidate: Bool[Tensor, "rows length"], most: int) -> Bool[Tensor, "rows length"]:
    """Returns the first candidates that stand side by side, at most so many of each row."""
    position = torch.arange(candidate.shape[1], device=candidate.device)
    first = candidate.int().argmax(-1, keepdim=True)
    run = candidate & (candidate | (position < first)).int().cumprod(-1).bool()
    return run & (position < first + most)
