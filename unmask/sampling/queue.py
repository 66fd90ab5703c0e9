"""Any number of sequences through a fixed number of slots: who is finished leaves, who waits takes the place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..draws.streams import derive
from .loop import Sampler
from .pool import Pool
from .result import Result, StepInfo
from .state import State


@dataclass(frozen=True)
class Job:
    """A sequence for the queue with settings of its own.

    Attributes:
        x: Its tokens.
        sampler: Its denoiser and rule, and how its tokens are drawn.
        stream: Its random stream.
        temperature: The temperature of the draw.
        blocks: Window length for semi-autoregressive sampling.
    """

    x: Sequence[int] | Int[Tensor, " length"]
    sampler: Sampler
    stream: int
    temperature: float = 1.0
    blocks: int | None = None


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
    changes nothing but the time.

    Args:
        sampler: Denoiser and rule.
        x: The sequences, read as slots become free. If lengths differ, the denoiser must know what padding is.
        slots: How many are worked on at once.
        seed: Gives sequence `i` of the queue the stream `derive(seed, i)`. Pass either this or `streams`.
        streams: One 64-bit integer per sequence, read along with them.
        temperature: The temperature of the draw.
        blocks: Window length for semi-autoregressive sampling.
        on_step: Called after each turn with the state of the batch and what was done.

    Yields:
        The number of a sequence in the queue, and the result of a batch of that one.

    Raises:
        ValueError: If an argument is out of range, or there are fewer streams than sequences.
    """
    if (seed is None) == (streams is None):
        raise ValueError("pass either seed=... (sequence i gets the stream derive(seed, i)) or streams=..., one each")
    _slots(slots)

    def jobs() -> Iterator[Job]:
        ids = None if streams is None else iter(streams)
        for number, tokens in enumerate(x):
            own = derive(seed, number) if seed is not None else next(ids or iter(()), None)
            if own is None:
                raise ValueError(f"there are {number} streams, and more sequences")
            yield Job(tokens, sampler, own, temperature, blocks)

    return run_jobs(jobs(), slots, on_step)


def _slots(slots: int) -> None:
    if isinstance(slots, bool) or not isinstance(slots, int) or slots < 1:
        raise ValueError(f"slots must be an integer >= 1, got {slots!r}")


def run_jobs(
    jobs: Iterable[Job], slots: int, on_step: Callable[[State, StepInfo], None] | None = None
) -> Iterator[tuple[int, Result]]:
    """`stream` for sequences with settings of their own, different rules among them.

    Args:
        jobs: The sequences, read as slots become free; all must have one denoiser.
        slots: How many are worked on at once.
        on_step: Called after each turn with the state of its batch and what was done.

    Yields:
        The number of a job, and the result of a batch of that one.

    Raises:
        ValueError: If an argument is out of range.
    """
    _slots(slots)
    queue, pool, read = iter(jobs), None, 0
    working: dict[int, tuple[Tensor, list[float]]] = {}  # tokens at the start, bounds of the turns
    while True:
        fresh = list(islice(queue, slots - len(working)))
        for numbers, group in _alike(fresh, read):
            first = group[0]
            pool = Pool(first.sampler.denoiser) if pool is None else pool
            tokens = [torch.as_tensor(job.x) for job in group]
            working |= {number: (row, []) for number, row in zip(numbers, tokens, strict=True)}
            temperature: Float[Tensor, " batch"] = torch.tensor(
                [job.temperature for job in group], dtype=torch.float64, device=tokens[0].device
            )
            pool.join(
                first.sampler,
                first.sampler.start(
                    tokens,
                    streams=[job.stream for job in group],
                    temperature=temperature,
                    blocks=first.blocks,
                    slots=numbers,
                ),
            )
        read += len(fresh)
        if pool is None or not working:
            return
        left = pool.leave()
        for one in left:
            yield int(one.slot), _result(one, *working.pop(int(one.slot)))
        if left:
            continue
        for batch, info in pool.evaluate():
            for slot, nats in zip(batch.state.slot[info.sequence].tolist(), info.bound.tolist(), strict=True):
                working[slot][1].append(nats)
            if on_step is not None and len(info.sequence):
                on_step(batch.state, info)


def _alike(jobs: Sequence[Job], first: int) -> list[tuple[list[int], list[Job]]]:
    """Neighbours that can be started as one batch, with their numbers."""
    groups: list[tuple[list[int], list[Job]]] = []
    for number, job in enumerate(jobs, first):
        if groups and groups[-1][1][0].sampler is job.sampler and groups[-1][1][0].blocks == job.blocks:
            groups[-1][0].append(number)
            groups[-1][1].append(job)
        else:
            groups.append(([number], [job]))
    return groups


def _result(one: State, tokens: Tensor, bounds: list[float]) -> Result:
    """The result of the only sequence of a state, without the padding of its neighbours."""
    result = Result.of(one.narrow(len(tokens)), tokens.unsqueeze(0), int(one.nfe), [], None)
    return replace(result, bounds=(tuple(bounds),))
