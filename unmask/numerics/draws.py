"""The draws in circulation, driven by the real generators of this machine: ceilings and races of rare classes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..draws.categorical import draw
from ..draws.streams import Purpose, as_streams, derive, uniforms
from .laws import HORIZON, binomial_pvalue

_BUFFER = 1 << 16
"""Random numbers made at once: they stay in cache."""

_DISCRETE = 256.0
"""Classes below this many lattice steps are counted atom by atom."""


FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "gumbel": lambda u: -torch.log(-torch.log(u)),
    "gumbel+1e-10": lambda u: -torch.log(-torch.log(u + 1e-10) + 1e-10),
    "ratio+1e-10": lambda u: -torch.log(1e-10 - torch.log(u + 1e-10)),
}
"""Noise as circulated, from a uniform: plain Gumbels; with 1e-10 inside both logarithms; and the negative logarithm of
the divisor in `argmax p / (1e-10 - log(u + 1e-10))` (MDLM, UNI-D2; in float64 BD3-LM and Duo)."""


DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def uniform_bits(dtype: torch.dtype, device: torch.device | str = "cpu", seed: int = 0) -> int:
    """Measures the lattice of `torch.rand` next to 1: the `b` for which all of 2¹⁶ values >= 1/2 are multiples of 2⁻ᵇ.

    `torch.rand` stays below 1, so its largest value is `1 - 2^-b`.
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
    """Returns the highest noise, in nats, that a form of `FORMS` makes of this build's `torch.rand` in `dtype`.

    Evaluated, in `dtype`, at the 64 largest values that `rand` can give. With the 1e-10 added twice the two nearly
    cancel next to `u = 1`: they lower float64's ceiling from 36.74 to 36.08 only (what they cap at `-log 1e-10 = 23.03`
    is `-log u`, the lower end of the noise).

    Raises:
        ValueError: If the form or the dtype is unknown.
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
    """One large class against many rare ones of equal probability, and how often a rare one won.

    Attributes:
        rare: Probability of each rare class.
        classes: How many of them.
        trials: Draws made.
        count: Draws that gave a rare class.
        largest_noise: The highest noise seen, in nats (NaN where the draw does not show it).
        repeated: How many draws shared that highest value: more than one or two means a ceiling.
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
        """Draws of a rare class that the exact probabilities give on average."""
        return self.trials * self.rare * self.classes

    @property
    def pvalue(self) -> float:
        """Exact two-sided binomial test against the exact probabilities."""
        return binomial_pvalue(self.count, self.trials, self.rare * self.classes)

    def expected_on_lattice(self, bits: int) -> float:
        """Draws of a rare class that uniforms of so many bits give on average, the large class taken as continuous."""
        return self.trials * _lattice_wins(self.rare, self.classes, bits)


def _lattice_wins(rare: float, classes: int, bits: int) -> float:
    """Probability that any of many equal rare classes beats one large class, uniforms on a lattice."""
    epsilon, large = 2.0**-bits, 1 - rare * classes
    if rare >= _DISCRETE * epsilon:
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
    """Runs forms that share a dtype on the same draws of `torch.rand`, one uniform per class and trial.

    Every form is a rising function of `u`, so the winner among classes of equal probability is the one with the largest
    uniform: the noise is computed for that one only, in the form's dtype, and the draw is the form's own.

    Args:
        forms: Name of the draw to (form, dtype), one dtype for all.
        rare: Probability of each rare class.
        classes: How many of them, below `1/rare`.
        trials: Draws.
        device: Where `torch.rand` runs.
        seed: The seed of its generator.

    Raises:
        ValueError: If the forms differ in dtype or the probabilities leave nothing to the large class.
    """
    dtypes = {dtype for _, dtype in forms.values()}
    if len(dtypes) != 1:
        raise ValueError("the forms of one race share a dtype")
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
    """Runs the exponential race, `argmax p / Tensor.exponential_()`; the smallest clock among equal classes decides."""
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
    """Runs `torch.multinomial` with one sample per row of float32 probabilities."""
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
    """Runs ours: `unmask.draws.categorical.draw` on float32 logits, with the library's own uniforms."""
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
        raise ValueError(f"{classes} classes of probability {rare} leave nothing to the large one")
    return torch.tensor([math.log1p(-rare * classes), math.log(rare)], dtype=torch.float64, device=device)


def _extremes(
    trials: int,
    classes: int,
    dtype: torch.dtype,
    device: torch.device | str,
    fill: Callable[[Tensor], Tensor],
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The extreme of `classes` numbers per trial, filled into one buffer again and again."""
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
