"""`sample`: fills in the masks of a batch, whose sequences may have different rules and settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import Denoiser
from .batch import Tokens, as_batch, stream_ids, temperatures
from .blocks import block_numbers
from .conversation import AnyRule
from .draw import Processor, Settings
from .loop import Sampler, check_run
from .pool import Pool
from .result import Result, StepInfo
from .state import State


def sample(
    denoiser: Denoiser,
    x: Tokens,
    rule: AnyRule | Sequence[AnyRule],
    *,
    seed: int | None = None,
    streams: Iterable[int] | Int[Tensor, " batch"] | None = None,
    temperature: float | Sequence[float] | Float[Tensor, " batch"] = 1.0,
    top_k: int | Sequence[int | None] | None = None,
    top_p: float | Sequence[float | None] | None = None,
    forbidden: Iterable[int] | Sequence[Iterable[int]] = (),
    processor: Processor | Sequence[Processor | None] | None = None,
    blocks: int | Int[Tensor, "batch length"] | None = None,
    max_steps: int | None = None,
    trace: bool = False,
    candidates: int = 0,
    on_step: Callable[[State, StepInfo], None] | None = None,
) -> Result:
    """Fills in the masks of a batch.

    A sequence's tokens and NFE depend on its own tokens, stream and settings only, never on the batch it is in. So the
    sequences may have different rules and settings; all of them share the forward passes.

    Args:
        denoiser: The model.
        x: Token ids with the mask token where something is to be drawn; all other tokens are kept. A matrix, one
            sequence, or a list of sequences of different lengths.
        rule: Decides which positions to unmask at each step: one rule, or one per sequence.
        seed: Gives row `r` the stream `derive(seed, r)`. Pass either this or `streams`.
        streams: One 64-bit integer per sequence.
        temperature: The temperature of the draw; 0 takes the argmax. Planning always uses the denoiser's own
            distribution. One number, or one per sequence.
        top_k: Draw among the `k` most probable tokens; one number or `None`, or one per sequence.
        top_p: Draw among the fewest tokens whose probabilities sum to at least this; one number or `None`, or one per
            sequence.
        forbidden: Token ids that must not appear, or such a list per sequence.
        processor: Changes logits before planning and drawing (see `Processor`); one, or one or `None` per sequence.
        blocks: Window length for semi-autoregressive sampling, counted from each sequence's first mask; or the block
            number of every position.
        max_steps: Stop after this many forward passes; what is still masked stays masked, and the result says so.
        trace: Record which positions each step unmasked.
        candidates: For each unmasked position, also keep this many of its most probable tokens, in the steps'
            information and the trace.
        on_step: Called with the new state and the step's information. With several rules it is called for each of them,
            with the sequences that have this rule (`State.slot` says which).

    Returns:
        Tokens, NFE (number of evaluations) per sequence, forward passes of the batch, and the realised dependence
        bound. The NFE of a sequence without masks is 0.

    Raises:
        ValueError: If an argument is out of range, or token ids are outside the vocabulary.
        LogitsError: If the denoiser returns NaN, `+inf` or a row without mass.
        RuleError: If a rule breaks its contract.
    """
    check_run(max_steps, candidates)
    tau = torch.tensor(temperature, dtype=torch.float64) if isinstance(temperature, Sequence) else temperature
    if not isinstance(rule, Sequence):
        sampler = Sampler(denoiser, rule)
        settings = settings_of(denoiser, None, top_k, top_p, forbidden, processor)
        state = sampler.start(x, seed=seed, streams=streams, temperature=tau, blocks=blocks, settings=settings)
        return sampler.run(state, max_steps=max_steps, trace=trace, candidates=candidates, on_step=on_step)
    tokens, valid = as_batch(x, denoiser)
    batch, device = len(tokens), tokens.device
    if len(rule) != batch:
        raise ValueError(f"{len(rule)} rules for a batch of {batch} sequences")
    settings = settings_of(denoiser, batch, top_k, top_p, forbidden, processor)
    each = temperatures(tau, batch, device)
    numbers = block_numbers(tokens, (tokens == denoiser.mask_id) & valid, blocks)
    ids = stream_ids(seed, streams, batch, device)
    pool = Pool(denoiser)
    for one, rows in _groups(rule):
        sampler, at = Sampler(denoiser, one), torch.tensor(rows, device=device)
        state = sampler.start(
            tokens[at],
            valid=valid[at],
            streams=ids[at],
            temperature=each[at],
            blocks=numbers[at],
            settings=settings if isinstance(settings, Settings) else [settings[row] for row in rows],
            slots=rows,
        )
        pool.join(sampler, state)
    return _run(pool, tokens, max_steps, trace, candidates, on_step)


def _groups(rules: Sequence[AnyRule]) -> list[tuple[AnyRule, list[int]]]:
    """The distinct rules, with the rows that have each."""
    groups: list[tuple[AnyRule, list[int]]] = []
    for row, rule in enumerate(rules):
        for other, rows in groups:
            if other is rule or other == rule:
                rows.append(row)
                break
        else:
            groups.append((rule, [row]))
    return groups


def _run(
    pool: Pool,
    initial: Tensor,
    max_steps: int | None,
    trace: bool,
    candidates: int,
    on_step: Callable[[State, StepInfo], None] | None,
) -> Result:
    """Evaluates a pool until all sequences are finished, and collects one result in the order of the slots."""
    infos, left = [], []
    bounds: list[tuple[Tensor, Tensor]] = []
    while len(pool) and (max_steps is None or pool.passes < max_steps):
        for batch, info in pool.evaluate(candidates):
            if not len(info.sequence):
                continue
            told = replace(info, sequence=batch.state.slot[info.sequence])
            bounds.append((told.sequence, told.bound))
            if trace:
                infos.append(told)
            if on_step is not None:
                on_step(batch.state, info)
        left += pool.leave()
    left += pool.everyone()
    nothing = torch.zeros(1, 0, dtype=torch.float64, device=initial.device)
    state = State.join([replace(one, memory=nothing.expand(len(one.x), 0)) for one in left])
    return Result.of(state.select(state.slot.argsort()), initial, pool.passes, bounds, infos if trace else None)


def settings_of(
    denoiser: Denoiser,
    batch: int | None,
    top_k: int | Sequence[int | None] | None = None,
    top_p: float | Sequence[float | None] | None = None,
    forbidden: Iterable[int] | Sequence[Iterable[int]] = (),
    processor: Processor | Sequence[Processor | None] | None = None,
) -> Settings | list[Settings]:
    """How sequences are drawn: one `Settings` if all are alike, or a list with one per sequence.

    Args:
        denoiser: The model, whose vocabulary the settings refer to.
        batch: The number of sequences, if it is known.
        top_k: Draw among the `k` most probable tokens; one value, or one per sequence.
        top_p: Draw among the fewest tokens whose probabilities sum to at least this; one value, or one per sequence.
        forbidden: Token ids that must not appear, or such a list per sequence.
        processor: Changes logits before planning and drawing; one, or one or `None` per sequence.

    Raises:
        ValueError: If a setting is out of range, or a list of settings is not as long as the batch.
    """
    banned = list(forbidden)  # pyright: ignore[reportArgumentType]
    each: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "forbidden": tuple(banned), "processor": processor}
    many: dict[str, Any] = {name: each[name] for name in ("top_k", "top_p", "processor")}
    many = {name: list(value) for name, value in many.items() if isinstance(value, (Sequence, Tensor))}
    if any(isinstance(one, Iterable) and not (isinstance(one, Tensor) and one.ndim == 0) for one in banned):
        many["forbidden"] = banned
    for name, value in many.items():
        batch = len(value) if batch is None else batch
        if len(value) != batch:
            raise ValueError(f"{name} has {len(value)} values for a batch of {batch} sequences")
    vocab, mask = denoiser.vocab_size, denoiser.mask_id
    if not many:
        return Settings.of(vocab, mask, **each)
    rows = range(batch or 0)
    return [Settings.of(vocab, mask, **{**each, **{name: many[name][row] for name in many}}) for row in rows]
