"""Sampling inside somebody else's loop: their logits come in, the tokens to fix go out.

Pipelines and servers that evaluate the model themselves hand over the logits of one block at a time. The state between
two evaluations is `unmask.sampling.state.State`, and a step is a turn of the rule whose one question is answered with
logits that are there already. A rule that asks a second question in a turn is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..draws.streams import Purpose, as_streams, uniforms
from ..errors import RuleError
from ..sampling.batch import temperatures
from ..sampling.conversation import AnyRule
from ..sampling.draw import Draw, Settings
from ..sampling.result import StepInfo
from ..sampling.state import State
from ..sampling.turn import Turn


def check_rule(rule: AnyRule) -> AnyRule:
    """Returns a rule that needs no evaluations but those it is handed.

    Raises:
        ValueError: If it asks for several, or for other states than the sequences as they stand.
    """
    if not rule.asks_once:
        raise ValueError(
            f"{rule} asks for several evaluations in one turn or evaluates several states of a sequence at once, and"
            " this loop makes one evaluation of each"
        )
    return rule


def begin(
    rule: AnyRule,
    x: Int[Tensor, "batch length"],
    vocab_size: int,
    mask_id: int,
    streams: Iterable[int],
    *,
    fixed: Bool[Tensor, "batch length"] | None = None,
    padding: Bool[Tensor, "batch length"] | None = None,
) -> State:
    """Returns the state of a block before its first step.

    Args:
        rule: What to unmask when.
        x: The tokens of the block, the mask token where one is to be drawn.
        vocab_size: Number of token ids.
        mask_id: Id of the mask token.
        streams: One 64-bit integer per sequence, another one in each of its blocks: positions count from the block's
            beginning, and a stream gives a position one uniform.
        fixed: Positions that stay as they are, such as a prompt's that hold the mask token as text.
        padding: Positions that are not part of the sequence, such as a tail that is cut off.

    Raises:
        ValueError: If the streams do not fit the batch, a token is outside the vocabulary, or the rule asks for more
            evaluations than one.
    """
    check_rule(rule)
    ids = as_streams(streams, x.device)
    if len(ids) != len(x):
        raise ValueError(f"{len(ids)} streams for a batch of {len(x)} sequences")
    if bool(((x < 0) | (x >= vocab_size)).any()):
        raise ValueError(f"tokens must be in the vocabulary 0..{vocab_size - 1}")
    valid = torch.ones_like(x, dtype=torch.bool) if padding is None else ~padding
    pending = (x == mask_id) & valid if fixed is None else (x == mask_id) & valid & ~fixed
    position = torch.arange(x.shape[1], device=x.device)
    none = torch.zeros_like(ids)
    return State(
        slot=torch.arange(len(x), device=x.device),
        x=x.clone(),
        valid=valid,
        pending=pending,
        editable=pending,
        block=torch.zeros_like(x),
        visits=torch.zeros_like(x),
        streams=ids,
        token_noise=uniforms(ids.unsqueeze(-1), position, Purpose.TOKEN),
        order_noise=uniforms(ids.unsqueeze(-1), position, Purpose.ORDER),
        memory=rule.start(pending.sum(-1)),
        draw=Draw.of(temperatures(1.0, len(x), x.device), [Settings.of(vocab_size, mask_id)]),
        nfe=none,
        evaluations=none,
        more=none.bool(),
        mask_id=mask_id,
    )


def advance_block(
    state: State,
    rule: AnyRule,
    x: Int[Tensor, "batch length"],
    logits: Float[Tensor, "batch length vocab"],
    *,
    temperature: float | Float[Tensor, " batch"],
    settings: Settings | Sequence[Settings] | None = None,
    fixed: Bool[Tensor, "batch length"] | None = None,
) -> tuple[State, StepInfo]:
    """Makes one turn of the rule on logits that were computed elsewhere.

    Args:
        state: What `begin` or the step before returned.
        rule: What to unmask when.
        x: The tokens now: the loop's owner may have changed them since. What he has masked again is drawn anew.
        logits: The model's, for these tokens.
        temperature: The temperature of the draw; 0 takes the argmax.
        settings: How tokens are drawn, for all or for each sequence; default: from all but the mask token.
        fixed: Positions that stay as they are, masked or not.

    Returns:
        The next state, whose `x` are the tokens to go on with, and what was unmasked.

    Raises:
        ValueError: If a setting is out of range, or the shapes of tokens and logits do not go together.
        LogitsError: If the logits of a candidate are no distribution.
        RuleError: If the rule asks for a second evaluation.
    """
    if x.shape != state.x.shape or tuple(logits.shape[:2]) != tuple(x.shape) or logits.ndim != 3:
        raise ValueError(
            f"logits {tuple(logits.shape)} and tokens {tuple(x.shape)} do not go with a block of"
            f" {tuple(state.x.shape)} tokens"
        )
    vocab = logits.shape[-1]
    pending = (x == state.mask_id) & state.valid
    pending = pending if fixed is None else pending & ~fixed
    given = settings if isinstance(settings, Sequence) else [settings or Settings.of(vocab, state.mask_id)]
    state = state.mask(pending & (state.x != state.mask_id))
    draw = Draw.of(temperatures(temperature, len(x), x.device), given)
    turn = Turn(rule, replace(state, x=x.clone(), pending=pending, draw=draw), vocab)
    if turn.query is not None:
        row, position = turn.query.where.nonzero(as_tuple=True)
        turn.tell(logits[turn.live[row], position])
    if turn.query is not None:
        raise RuleError(f"{rule} asked for a second evaluation in one turn, and this loop makes one")
    return turn.end()
