"""Sampling inside somebody else's loop: their logits come in, the tokens to fix go out.

Pipelines and servers that evaluate the model themselves hand over the logits of one block at a time. The state between
two evaluations is `unmask.sampler.State`, the step is the sampling loop's own; only the denoiser is replaced by logits
that are there already.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..categorical import check_draw
from ..denoiser import Query
from ..result import StepInfo
from ..rules.rule import Rule
from ..sampler import Sampler, State


class GivenLogits:
    """A denoiser that answers with logits computed elsewhere.

    Args:
        logits: Of every position of every sequence of the state.
        mask_id: Id of the mask token.
    """

    def __init__(self, logits: Float[Tensor, "batch length vocab"], mask_id: int) -> None:
        self.logits, self.mask_id = logits, mask_id

    @property
    def vocab_size(self) -> int:
        """The last dimension of the logits."""
        return self.logits.shape[-1]

    def __call__(self, query: Query) -> Float[Tensor, "rows vocab"]:
        row, position = query.where.nonzero(as_tuple=True)
        return self.logits[query.sequence[row], position]


def check_rule(rule: Rule) -> Rule:
    """Returns a rule that needs no evaluations but those it is handed.

    Raises:
        ValueError: If it evaluates states of its own.
    """
    if rule.speculates:
        raise ValueError(f"{rule.budget} evaluates several states of a sequence at once, and this loop evaluates one")
    return rule


def begin(
    rule: Rule,
    x: Int[Tensor, "batch length"],
    logits: Float[Tensor, "batch length vocab"],
    mask_id: int,
    streams: Iterable[int],
    *,
    fixed: Bool[Tensor, "batch length"] | None = None,
    padding: Bool[Tensor, "batch length"] | None = None,
    forbidden: Iterable[int] = (),
) -> State:
    """Returns the state of a block before its first step.

    Args:
        rule: What to unmask when.
        x: The tokens of the block, the mask token where one is to be drawn.
        logits: Of the first evaluation; only their shape matters here.
        mask_id: Id of the mask token.
        streams: One 64-bit integer per sequence, another one in each of its blocks: positions count from the block's
            beginning, and a stream gives a position one uniform.
        fixed: Positions that stay as they are, such as a prompt's that hold the mask token as text.
        padding: Positions that are not part of the sequence, such as a tail that is cut off.
        forbidden: Token ids that must not appear.

    Raises:
        ValueError: If the streams do not fit the batch, or a token is outside the vocabulary.
    """
    state = Sampler(GivenLogits(logits, mask_id), check_rule(rule), forbidden=forbidden).start(x, streams=streams)
    if fixed is None and padding is None:
        return state
    valid = state.valid if padding is None else state.valid & ~padding
    pending = state.pending & valid if fixed is None else state.pending & valid & ~fixed
    return replace(state, valid=valid, pending=pending, memory=rule.start(pending.sum(-1)))


def advance_block(
    state: State,
    rule: Rule,
    x: Int[Tensor, "batch length"],
    logits: Float[Tensor, "batch length vocab"],
    mask_id: int,
    *,
    temperature: float | Float[Tensor, " batch"],
    top_k: int | None = None,
    top_p: float | None = None,
    fixed: Bool[Tensor, "batch length"] | None = None,
    forbidden: Iterable[int] = (),
) -> tuple[State, StepInfo]:
    """Makes one step of the sampling loop on logits that were computed elsewhere.

    Args:
        state: What `begin` or the step before returned.
        rule: What to unmask when.
        x: The tokens now: the loop's owner may have changed them since.
        logits: The model's, for these tokens.
        mask_id: Id of the mask token.
        temperature: Of the draw; 0 takes the argmax.
        top_k: Draw among the `k` most probable tokens.
        top_p: Draw among the fewest tokens that hold this mass.
        fixed: Positions that stay as they are, masked or not.
        forbidden: Token ids that must not appear.

    Returns:
        The next state, whose `x` are the tokens to go on with, and what was unmasked.

    Raises:
        ValueError: If a setting is out of range, or the shapes of tokens and logits do not go together.
        LogitsError: If the logits of a candidate are no distribution.
    """
    if x.shape != state.x.shape or tuple(logits.shape[:2]) != tuple(x.shape) or logits.ndim != 3:
        raise ValueError(
            f"logits {tuple(logits.shape)} and tokens {tuple(x.shape)} do not go with a block of"
            f" {tuple(state.x.shape)} tokens"
        )
    check_draw(temperature, None, None)
    pending = (x == mask_id) & state.valid
    if fixed is not None:
        pending = pending & ~fixed
    past = state.past
    if past is not None and not bool(torch.isin(pending.any(-1).nonzero().squeeze(-1), past.sequence).all()):
        past = None  # a sequence was masked again: there is nothing to compare its evaluation with
    tau = torch.as_tensor(temperature, dtype=torch.float64, device=x.device).expand(len(x))
    sampler = Sampler(GivenLogits(logits, mask_id), rule, top_k=top_k, top_p=top_p, forbidden=forbidden)
    return sampler.step(replace(state, x=x.clone(), pending=pending, temperature=tau, past=past))
