"""What a turn did to each sequence of a batch, told to its canvas; and which positions of the state that lets go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

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
    # A device is waited for three times, not once for each of these.
    mine = info.sequence
    columns = (mine, state.slot[mine], state.nfe[mine], state.evaluations[mine], info.tokens)
    numbers = torch.cat(columns).tolist()
    rows, slots, nfe, evaluations = (numbers[at * len(mine) : (at + 1) * len(mine)] for at in range(4))
    token = numbers[4 * len(mine) :]
    log_prob, entropy = torch.stack([info.log_prob.double(), info.entropy.double()]).tolist()
    chosen, *masked = torch.stack([info.chosen, *([] if info.erased is None else [info.erased])]).cpu()
    counts, position = chosen.sum(-1).tolist(), chosen.nonzero()[:, 1].tolist()
    erased = [tuple(row.nonzero().squeeze(-1).tolist()) for row in masked[0]] if masked else [()] * len(rows)
    candidates: list[tuple[tuple[int, float], ...]] = []
    if info.top_tokens is not None and info.top_log_prob is not None:
        pairs = zip(info.top_tokens.tolist(), info.top_log_prob.tolist(), strict=True)
        candidates = [tuple(zip(*pair, strict=True)) for pair in pairs]
    found, start = [], 0
    for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
        part = slice(start, start + count)
        start += count
        found.append(
            Change(
                row=row,
                slot=slots[place],
                nfe=nfe[place],
                evaluations=evaluations[place],
                positions=tuple(position[part]),
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
