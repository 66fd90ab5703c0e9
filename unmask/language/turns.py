"""What a turn did to each sequence of a batch, told to its canvas; and which positions of the state that lets go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from ..sampling.host import to_lists
from ..sampling.result import StepInfo
from ..sampling.state import State
from .canvas import Canvas


@dataclass(frozen=True)
class Change:
    """What one turn did to one sequence.

    Attributes:
        row: Its row of the state.
        slot: Who it is.
        nfe: Evaluations it has taken part in.
        evaluations: States of it that were evaluated.
        positions: Where something was written.
        tokens: What.
        log_probs: Log-probability of each token at temperature 1.
        entropies: Entropy of the marginal of each, in nats.
        candidates: The most probable tokens of each with their log-probabilities, if they were asked for.
        erased: Positions that were masked again after that.
    """

    row: int
    slot: int
    nfe: int
    evaluations: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    entropies: tuple[float, ...]
    candidates: tuple[tuple[tuple[int, float], ...], ...]
    erased: tuple[int, ...]


def changes(state: State, info: StepInfo) -> list[Change]:
    """Returns what a turn did to each sequence that took part in it, in the order of the state.

    Args:
        state: Where the batch stands after the turn.
        info: What the turn did.
    """
    if not len(info.sequence):
        return []
    where = [_true(row) for row in info.chosen.cpu().numpy()]
    rows, nfe, evaluations, slot = to_lists(info.sequence, state.nfe, state.evaluations, state.slot)
    token, log_prob, entropy = to_lists(info.tokens, info.log_prob, info.entropy)
    candidates: list[tuple[tuple[int, float], ...]] = []
    if info.top_tokens is not None and info.top_log_prob is not None:
        pairs = zip(info.top_tokens.tolist(), info.top_log_prob.tolist(), strict=True)
        candidates = [tuple(zip(*pair, strict=True)) for pair in pairs]
    erased = [()] * len(rows) if info.erased is None else [_true(row) for row in info.erased.cpu().numpy()]
    found, start = [], 0
    for place, (row, positions) in enumerate(zip(rows, where, strict=True)):
        part = slice(start, start + len(positions))
        start += len(positions)
        found.append(
            Change(
                row=row,
                slot=slot[row],
                nfe=nfe[row],
                evaluations=evaluations[row],
                positions=positions,
                tokens=tuple(token[part]),
                log_probs=tuple(log_prob[part]),
                entropies=tuple(entropy[part]),
                candidates=tuple(candidates[part]),
                erased=erased[place],
            )
        )
    return found


def settle(state: State, turned: Sequence[tuple[Change, Canvas]]) -> State:
    """Tells canvases what a turn did to them, and lets go of the positions after the end of an answer.

    An end token may be masked again; what comes after it is then to be written after all.

    Args:
        state: Where the batch stands after the turn.
        turned: What the turn did to some of its sequences, and their canvases.
    """
    rows, masks, stopped = [], [], []
    for change, canvas in turned:
        cut = canvas.cut
        canvas.turn(change.nfe, change.positions, change.tokens, change.log_probs, change.erased)
        if canvas.cut != cut or (change.erased and cut < len(canvas.tokens)):
            rows.append(change.row)
            masks.append(canvas.open)
            stopped.append(canvas.stopped is not None)
    if not rows:
        return state
    device, pending = state.pending.device, torch.zeros(len(rows), state.pending.shape[1], dtype=torch.bool)
    for row, mask in zip(pending, masks, strict=True):
        row[mask] = True
    at, over = torch.tensor(rows, device=device), torch.tensor(stopped, device=device)
    return replace(
        state,
        pending=state.pending.index_copy(0, at, pending.to(device)),
        more=state.more.index_copy(0, at, state.more[at] & ~over),
    )


def _true(row: npt.NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(row).tolist())
