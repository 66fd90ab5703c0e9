"""Runs a sampler over many prompts in batches, and records the cost of each answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..draws.streams import prompt_streams
from ..sampling.loop import Sampler
from ..sampling.queue import stream
from ..sampling.result import Result, StepInfo
from ..sampling.state import State


@dataclass(frozen=True)
class Answers:
    """One completed sequence per prompt, in the order of the prompts.

    Attributes:
        tokens: The completed sequences.
        nfe: Number of evaluations of each sequence.
        evaluations: Number of states of each sequence that were evaluated.
        bound: Realised `Σ(ΣH - max H)` of each sequence, in nats.
        streams: The random stream of each sequence.
        forward_passes: Total number of evaluations of a batch.
        seconds: Wall-clock time of the sampling.
    """

    tokens: Int[Tensor, "prompts length"]
    nfe: Int[Tensor, " prompts"]
    evaluations: Int[Tensor, " prompts"]
    bound: Float[Tensor, " prompts"]
    streams: tuple[int, ...]
    forward_passes: int
    seconds: float


def answer(
    sampler: Sampler,
    prompts: Int[Tensor, "prompts length"],
    *,
    seed: int | None = None,
    streams: Sequence[int] | None = None,
    temperature: float,
    batch_size: int,
    fill_id: int | None = None,
    on_batch: Callable[[int], None] | None = None,
    on_step: Callable[[State, StepInfo], None] | None = None,
) -> Answers:
    """Completes every prompt.

    The stream of a prompt is `derive(seed, tokens, copy)`, where `copy` counts equal prompts. So an answer depends
    neither on the prompt's position in a file nor on the other prompts, but equal prompts get different answers.

    Args:
        sampler: Denoiser and rule.
        prompts: Sequences of one length, with masks.
        seed: The seed of the whole run.
        streams: The stream of each prompt, instead of a seed.
        temperature: The temperature of the draw.
        batch_size: Prompts that are sampled at once; a finished one is replaced by the next (see
            `unmask.sampling.queue`).
        fill_id: The token with which shorter prompts are padded; the model is not given it. `None`: there is no
            padding.
        on_batch: Called with the number of prompts just completed.
        on_step: Called after each evaluation of a batch.

    Raises:
        ValueError: If `batch_size` is below 1, neither or both of `seed` and `streams` are given, or there is not one
            stream per prompt.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    if streams is None:
        if seed is None:
            raise ValueError("pass a seed, or one stream per prompt")
        streams = prompt_streams(prompts.tolist(), seed)
    elif seed is not None or len(streams) != len(prompts):
        raise ValueError(f"pass a seed, or one stream per prompt: got {len(streams)} for {len(prompts)} prompts")
    began = time.perf_counter()
    passes = 0
    found: dict[int, Result] = {}

    def count(state: State, info: StepInfo) -> None:
        nonlocal passes
        passes += info.forward_passes
        if on_step is not None:
            on_step(state, info)

    rows = prompts if fill_id is None else [row[row != fill_id] for row in prompts]
    finished = stream(sampler, rows, batch_size, streams=streams, temperature=temperature, on_step=count)
    for number, result in finished:
        found[number] = result
        if on_batch is not None:
            on_batch(1)
    results = [found[number] for number in range(len(prompts))]
    seconds = time.perf_counter() - began
    if not results:
        none = torch.zeros(0)
        return Answers(prompts, none.long(), none.long(), none.double(), (), 0, seconds)
    return Answers(
        tokens=torch.cat([_filled(result.tokens, prompts.shape[1], fill_id) for result in results]),
        nfe=torch.cat([result.nfe for result in results]),
        evaluations=torch.cat([result.evaluations for result in results]),
        bound=torch.cat([result.bound for result in results]),
        streams=tuple(streams),
        forward_passes=passes,
        seconds=seconds,
    )


def _filled(tokens: Int[Tensor, "1 own"], length: int, fill_id: int | None) -> Int[Tensor, "1 length"]:
    return tokens if fill_id is None else torch.nn.functional.pad(tokens, (0, length - tokens.shape[1]), value=fill_id)


def mean_ci95(values: Float[Tensor, " values"]) -> tuple[float, float]:
    """Returns the mean and the half width of its 95 % confidence interval, `1.96 · sd/√n`.

    The half width of a single value is 0; without values, both are NaN.
    """
    values = values.double()
    if not len(values):
        return float("nan"), float("nan")
    spread = float(values.std()) if len(values) > 1 else 0.0
    return float(values.mean()), 1.96 * spread / len(values) ** 0.5
