"""Tests commonly used draws with the random generators of this machine: noise ceilings, and races of rare classes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..draws.categorical import draw
from ..draws.streams import Purpose, as_streams, derive, uniforms
from .laws import DISCRETE, HORIZON, binomial_pvalue

_BUFFER = 1 << 16
"""Number of random numbers that are made at once, so that they fit the processor's cache."""


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "gumbel": lambda u: -torch.log(-torch.log(u)),
    "gumbel+1e-10": lambda u: -torch.log(-torch.log(u + 1e-10) + 1e-10),
    "ratio+1e-10": lambda u: -torch.log(1e-10 - torch.log(u + 1e-10)),
}
"""Commonly used forms of the noise, as functions of a uniform.

They are plain Gumbel noise; Gumbel noise with 1e-10 added inside both logarithms; and the negative logarithm of the
divisor in `argmax p / (1e-10 - log(u + 1e-10))` (MDLM, UNI-D2; in float64 BD3-LM and Duo).
"""


DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def uniform_bits(dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0) -> int:
    """Measures the lattice of `torch.rand` near 1: the smallest `b` such that all values >= 1/2 are multiples of 2⁻ᵇ.

    About 2¹⁶ such values are drawn. `torch.rand` stays below 1, so its largest value is `1 - 2^-b`.

    Args:
        dtype: The type of the uniforms.
        device: The device whose generator is measured.
        seed: The seed of the generator.
    """
    generator = torch.Generator(device).manual_seed(seed)
    u = torch.rand(1 << 17, dtype=dtype, device=device, generator=generator)
    distance = 1 - u[u >= 0.5].double()  # exact
    for bits in range(1, 64):
        scaled = distance * 2.0**bits
        if bool((scaled == scaled.round()).all()):
            return bits
    raise AssertionError("float64 values in [1/2, 1) are multiples of 2^-53")


def ceiling(form: str, dtype: torch.dtype, device: torch.device | str = "cpu") -> float:
    """Returns the highest noise, in nats, that a form of `FORMS` can have with `torch.rand` of this build in `dtype`.

    The form is evaluated, in `dtype`, at the 64 largest values that `torch.rand` can give. If 1e-10 is added twice, the
    two nearly cancel near `u = 1`: in float64 they lower the ceiling only from 36.74 to 36.08. (What they limit, to
    `-log 1e-10 = 23.03`, is `-log u`, and so the lower end of the noise.)

    Args:
        form: A key of `FORMS`.
        dtype: The type of the uniforms and of the arithmetic.
        device: The device.

    Raises:
        ValueError: If the form or the type is unknown.
    """
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}; one of {', '.join(FORMS)}")
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}")
    bits = uniform_bits(dtype, device)
    top = (1 - torch.arange(1, 65, dtype=torch.float64) * 2.0**-bits).clamp(min=0.0).to(dtype).to(device)
    noise = FORMS[form](top)
    return float(noise[noise.isfinite()].double().max())


@dataclass(frozen=True)
class RareRace:
    """How often a draw gave one of many rare classes of equal probability, and not the one large class.

    Attributes:
        rare: Probability of each rare class.
        classes: Number of rare classes.
        trials: Number of draws.
        count: Number of draws that gave a rare class.
        largest_noise: The highest noise observed, in nats (NaN if the draw does not show its noise).
        repeated: Number of draws with that highest noise; more than one or two indicates a ceiling.
        seconds: Wall-clock time.
    """

    rare: float
    classes: int
    trials: int
    count: int
    largest_noise: float
    repeated: int
    seconds: float

    @property
    def expected(self) -> float:
        """The expected number of draws of a rare class under the exact probabilities."""
        return self.trials * self.rare * self.classes

    @property
    def pvalue(self) -> float:
        """The p-value of an exact two-sided binomial test against the exact probabilities."""
        return binomial_pvalue(self.count, self.trials, self.rare * self.classes)

    def expected_on_lattice(self, bits: int) -> float:
        """Returns the expected number of draws of a rare class with uniforms of `bits` bits.

        The noise of the large class is treated as continuous.
        """
        return self.trials * _lattice_wins(self.rare, self.classes, bits)


def _lattice_wins(rare: float, classes: int, bits: int) -> float:
    """Returns the probability that any of many equal rare classes beats one large class, with uniforms on a lattice."""
    epsilon, large = 2.0**-bits, 1 - rare * classes
    if rare >= DISCRETE * epsilon:
        return rare * classes
    last = math.ceil(HORIZON * rare / epsilon)
    m = torch.arange(last + 1, dtype=torch.float64)
    m = m[m * epsilon < 1]
    reach = (large * torch.log1p(-m * epsilon) / rare).exp()  # P(the large class rings after atom m)
    survive = (classes * torch.log1p(-m * epsilon)).exp()  # P(no rare class has rung by atom m)
    return float(((survive[:-1] - survive[1:]) * reach[1:]).sum())


def race_rand(
    forms: dict[str, tuple[str, torch.dtype]],
    rare: float,
    classes: int,
    trials: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> dict[str, RareRace]:
    """Tests forms of noise on the same draws of `torch.rand`, with one uniform per class and trial.

    Every form is an increasing function of `u`, so among classes of equal probability the one with the largest uniform
    wins. The noise is computed for that class only, in the type of the forms.

    Args:
        forms: For each name of a draw, its form (a key of `FORMS`) and type; the type is the same for all.
        rare: Probability of each rare class.
        classes: Number of rare classes, below `1/rare`.
        trials: Number of draws.
        device: The device on which `torch.rand` runs.
        seed: The seed of its generator.

    Returns:
        The result of each draw, by its name.

    Raises:
        ValueError: If the forms have different types, or the rare classes leave no probability to the large one.
    """
    dtypes = {dtype for _, dtype in forms.values()}
    if len(dtypes) != 1:
        raise ValueError("the forms of one race must have the same dtype")
    (dtype,) = dtypes
    logits = _two_levels(rare, classes, device)
    generator = torch.Generator(device).manual_seed(seed)
    started = time.perf_counter()
    largest = _extremes(
        trials, classes, dtype, device, lambda buffer: buffer.uniform_(generator=generator).amax(-1), torch.maximum
    )
    large = torch.rand(trials, dtype=dtype, device=device, generator=generator)
    seconds = time.perf_counter() - started
    races = {}
    for name, (form, _) in forms.items():
        noise = FORMS[form](torch.stack([large, largest], -1))
        winner = (logits.to(dtype) + noise).argmax(-1)
        top = noise[:, 1].double()
        races[name] = RareRace(
            rare, classes, trials, int(winner.sum()), float(top.max()), int((top == top.max()).sum()), seconds
        )
    return races


def race_exponential(
    rare: float,
    classes: int,
    trials: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> RareRace:
    """Tests the exponential race, `argmax p / Tensor.exponential_()`; of equal classes, that with the smallest clock
    wins.

    The arguments are those of `race_rand`.
    """
    generator = torch.Generator(device).manual_seed(seed)
    started = time.perf_counter()
    smallest = _extremes(
        trials, classes, dtype, device, lambda buffer: buffer.exponential_(generator=generator).amin(-1), torch.minimum
    )
    large = torch.empty(trials, dtype=dtype, device=device).exponential_(generator=generator)
    p = _two_levels(rare, classes, device).exp().to(dtype)
    winner = (p / torch.stack([large, smallest], -1)).argmax(-1)
    seconds = time.perf_counter() - started
    noise = -smallest.double().log()
    repeated = int((noise == noise.max()).sum())
    return RareRace(rare, classes, trials, int(winner.sum()), float(noise.max()), repeated, seconds)


def race_multinomial(
    rare: float, classes: int, trials: int, device: torch.device | str = "cpu", seed: int = 0
) -> RareRace:
    """Tests `torch.multinomial` with one sample per row of float32 probabilities; for the arguments see `race_rand`."""
    generator = torch.Generator(device).manual_seed(seed)
    p = torch.full((classes + 1,), rare, dtype=torch.float32, device=device)
    p[0] = 1 - rare * classes
    started = time.perf_counter()
    rows = max(1, (1 << 20) // classes)
    count = 0
    for start in range(0, trials, rows):
        part = p.expand(min(rows, trials - start), -1)
        count += int((torch.multinomial(part, 1, generator=generator) > 0).sum())
    return RareRace(rare, classes, trials, count, math.nan, 0, time.perf_counter() - started)


def race_unmask(rare: float, classes: int, trials: int, device: torch.device | str = "cpu", seed: int = 0) -> RareRace:
    """Tests `unmask.draws.categorical.draw` on float32 logits, with the library's own uniforms.

    The arguments are those of `race_rand`.
    """
    logits = torch.full((classes + 1,), math.log(rare), dtype=torch.float32, device=device)
    logits[0] = math.log1p(-rare * classes)
    stream = as_streams([derive(seed, "doctor")], device)
    started = time.perf_counter()
    u = uniforms(stream, torch.arange(trials, device=device), Purpose.TOKEN)
    rows = max(1, (_BUFFER if torch.device(device).type == "cpu" else 1 << 26) // (classes + 1))
    count = sum(int((draw(logits.expand(len(part), -1), part) > 0).sum()) for part in u.split(rows))
    return RareRace(rare, classes, trials, count, math.nan, 0, time.perf_counter() - started)


def _two_levels(rare: float, classes: int, device: torch.device | str) -> Tensor:
    if not 0 < rare * classes < 1:
        raise ValueError(f"{classes} classes of probability {rare} leave no probability to the large one")
    return torch.tensor([math.log1p(-rare * classes), math.log(rare)], dtype=torch.float64, device=device)


def _extremes(
    trials: int,
    classes: int,
    dtype: torch.dtype,
    device: torch.device | str,
    fill: Callable[[Tensor], Tensor],
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Returns the extreme of `classes` random numbers for each trial, which are made in parts of limited size.

    Args:
        trials: Number of trials.
        classes: Random numbers per trial.
        dtype: Their type.
        device: Their device.
        fill: Fills a tensor with random numbers, and returns the extreme of each row.
        combine: Returns the extreme of two tensors of extremes.
    """
    buffer_size = _BUFFER if torch.device(device).type == "cpu" else 1 << 26
    width = min(classes, buffer_size)
    rows = max(1, buffer_size // width)
    parts = []
    for start in range(0, trials, rows):
        here = min(rows, trials - start)
        extreme: Tensor | None = None
        for first in range(0, classes, width):
            buffer = torch.empty(here, min(width, classes - first), dtype=dtype, device=device)
            one = fill(buffer)
            extreme = one if extreme is None else combine(extreme, one)
        assert extreme is not None
        parts.append(extreme)
    return torch.cat(parts)
