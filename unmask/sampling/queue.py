"""Any number of sequences through a fixed number of slots: who is finished leaves, who waits takes the place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ..draws.streams import derive
from .loop import Sampler, State
from .result import Result, StepInfo


def select(state: State, rows: Int[Tensor, " kept"]) -> State:
    """Some sequences of a state, in the given order. What the state remembers of its last evaluation is not kept."""
    names = [field.name for field in fields(state) if field.name != "past"]
    kept: dict[str, Any] = {name: getattr(state, name)[rows] for name in names}
    return State(**kept)


def split(state: State) -> list[State]:
    """Takes a batch apart into states of one sequence each, without what they remember of their last evaluation."""
    return [select(state, torch.tensor([row], device=state.x.device)) for row in range(len(state.x))]


def join(states: Sequence[State], mask_id: int) -> State:
    """Puts sequences of several states into one, right-padded to a common length.

    Raises:
        ValueError: If a state remembers its last evaluation (`Rule.history`), or there is none.
    """
    if not states or any(state.past is not None for state in states):
        raise ValueError("only states without a past can be joined, and at least one")
    length = max(state.x.shape[1] for state in states)
    columns: dict[str, Any] = {}
    for field in fields(State):
        if field.name == "past":
            continue
        parts = [getattr(state, field.name) for state in states]
        if parts[0].ndim == 2 and field.name != "memory":
            fill = mask_id if field.name == "x" else 0
            parts = [torch.nn.functional.pad(part, (0, length - part.shape[1]), value=fill) for part in parts]
        columns[field.name] = torch.cat(parts)
    return State(**columns)


def stream(
    sampler: Sampler,
    x: Iterable[Sequence[int] | Int[Tensor, " length"]],
    slots: int,
    *,
    seed: int | None = None,
    streams: Iterable[int] | None = None,
    temperature: float = 1.0,
    blocks: int | None = None,
    on_step: Callable[[State, StepInfo], None] | None = None,
) -> Iterator[tuple[int, Result]]:
    """Fills in the masks of a queue of sequences, and yields each as soon as it is finished.

    Every sequence gets the tokens and the evaluations it would get alone, with the same stream; so the number of slots
    changes nothing but the time. A rule that compares with its last evaluation (`Rule.history`) is only refilled when
    all slots are free.

    Args:
        sampler: Denoiser and rule; settings that differ between sequences have no place in such a rule.
        x: The sequences, read as slots become free. If lengths differ, the denoiser must know what padding is.
        slots: How many are worked on at once.
        seed: Gives sequence `i` of the queue the stream `derive(seed, i)`. Pass either this or `streams`.
        streams: One 64-bit integer per sequence, read along with them.
        temperature: Of the draw.
        blocks: Window length for semi-autoregressive sampling.
        on_step: Called after each evaluation of the batch.

    Yields:
        The number of a sequence in the queue, and the result of a batch of that one.

    Raises:
        ValueError: If an argument is out of range, or there are fewer streams than sequences.
    """
    if isinstance(slots, bool) or not isinstance(slots, int) or slots < 1:
        raise ValueError(f"slots must be an integer >= 1, got {slots!r}")
    if (seed is None) == (streams is None):
        raise ValueError("pass either seed=... (sequence i gets the stream derive(seed, i)) or streams=..., one each")
    return _stream(sampler, iter(x), slots, seed, streams, temperature, blocks, on_step)


def _stream(
    sampler: Sampler,
    queue: Iterator[Sequence[int] | Tensor],
    slots: int,
    seed: int | None,
    streams: Iterable[int] | None,
    temperature: float,
    blocks: int | None,
    on_step: Callable[[State, StepInfo], None] | None,
) -> Iterator[tuple[int, Result]]:
    ids = None if streams is None else iter(streams)
    state: State | None = None
    working: list[tuple[int, Tensor, list[float]]] = []  # number, tokens at the start, bounds of the steps
    read = 0
    while True:
        free = slots - len(working)
        if free and not (working and sampler.rule.history):
            fresh = [torch.as_tensor(tokens) for tokens in islice(queue, free)]
            if fresh:
                numbers = range(read, read + len(fresh))
                own = [derive(seed, i) for i in numbers] if seed is not None else list(islice(ids or (), len(fresh)))
                if len(own) != len(fresh):
                    raise ValueError(f"there are {read + len(own)} streams, and more sequences")
                new = sampler.start(fresh, streams=own, temperature=temperature, blocks=blocks)
                working += [(number, tokens, []) for number, tokens in zip(numbers, fresh, strict=True)]
                state = new if state is None else join([state, new], sampler.denoiser.mask_id)
                read += len(fresh)
        if state is None or not working:
            return
        done = state.finished.tolist()
        if all(done) or (any(done) and not sampler.rule.history):
            for row, (number, tokens, bounds) in enumerate(working):
                if done[row]:
                    yield number, _result(select(state, torch.tensor([row], device=state.x.device)), tokens, bounds)
            kept = [row for row, finished in enumerate(done) if not finished]
            working = [working[row] for row in kept]
            state = select(state, torch.tensor(kept, device=state.x.device)) if kept else None
            continue
        state, info = sampler.step(state)
        for row, nats in zip(info.sequence.tolist(), info.bound.tolist(), strict=True):
            working[row][2].append(nats)
        if on_step is not None:
            on_step(state, info)


def _result(one: State, tokens: Tensor, bounds: list[float]) -> Result:
    """The result of the only sequence of a state, without the padding of its neighbours."""
    length = len(tokens)
    narrow = {name: getattr(one, name)[:, :length] for name in ("x", "valid", "pending", "block")}
    result = Result.of(replace(one, **narrow), tokens.unsqueeze(0), int(one.nfe), [], None)
    return replace(result, bounds=(tuple(bounds),))
