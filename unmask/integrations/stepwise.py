"""Sampling inside the loop of another library, which evaluates the model and passes on the logits.

Pipelines and servers that evaluate the model themselves pass on the logits of one block at a time. The state between
two evaluations is `unmask.sampling.state.State`. A step is a turn of the rule whose only query is answered with these
logits; a rule that makes several queries in a turn is refused.
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
    """Returns a rule, after checking that one evaluation of the current sequences per turn is enough for it.

    Raises:
        ValueError: If the rule needs several evaluations in a turn, or evaluates several states of a sequence.
    """
    if not rule.asks_once:
        raise ValueError(
            f"{rule} asks for several evaluations in one turn or evaluates several states of a sequence at once, but"
            " this loop makes one evaluation of each sequence"
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
        rule: The unmasking rule.
        x: The tokens of the block, with the mask token where a token is to be drawn.
        vocab_size: Number of token ids.
        mask_id: Id of the mask token.
        streams: One 64-bit integer per sequence. It must be another one in each block of a sequence, because positions
            are counted from the beginning of the block, and a stream has one uniform for each position.
        fixed: True at positions that must not change, such as those of a prompt that contains the mask token.
        padding: True at positions that are not part of the sequence, such as a tail that is cut off.

    Raises:
        ValueError: If the number of streams is not that of the sequences, a token is outside the vocabulary, or the
            rule needs more than one evaluation in a turn.
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
    """Makes one turn of the rule with logits that were computed elsewhere.

    Args:
        state: The state that `begin` or the previous step returned.
        rule: The unmasking rule.
        x: The current tokens, which the other library may have changed. Positions that it has masked again are drawn
            anew.
        logits: The model's logits for these tokens.
        temperature: The temperature of the draw; 0 takes the argmax.
        settings: How tokens are drawn, for all sequences or for each; default: from all tokens but the mask token.
        fixed: True at positions that must not change, masked or not.

    Returns:
        The next state, whose `x` are the new tokens, and what was unmasked.

    Raises:
        ValueError: If a setting is out of range, or the shapes of tokens and logits do not fit the block.
        LogitsError: If the logits of a candidate are not a distribution.
        RuleError: If the rule asks for a second evaluation.
    """
    if x.shape != state.x.shape or tuple(logits.shape[:2]) != tuple(x.shape) or logits.ndim != 3:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} and tokens of shape {tuple(x.shape)} do not fit a block of shape"
            f" {tuple(state.x.shape)}"
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
        raise RuleError(f"{rule} asked for a second evaluation in one turn, but this loop makes only one")
    return turn.end()
