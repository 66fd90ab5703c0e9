"""`unmask doctor`: what this torch build's random numbers do to a categorical draw, and whether ours is exact here."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from . import common

if TYPE_CHECKING:
    from ..numerics.smoothing import Floor

SEQUENCES = 64
"""How many sequences of its task a model is shown."""

QUICK = 0.1
"""What `--quick` multiplies the effort by."""

_SIGNIFICANT = 1e-6
_RATE = 0.35
"""Probability of a rare class in steps of the lattice: where a test of a given number of uniforms sees most."""


def doctor(
    device: Annotated[str, typer.Option(help="Where to draw: cpu, cuda, cuda:1, …")] = "cpu",
    seed: common.Seed = 0,
    effort: Annotated[
        float, typer.Option(min=0.001, help="Multiplies the number of draws; 1 takes under a minute on one core.")
    ] = 1.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="A tenth of the draws, in a few seconds: finds gross errors.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Check this model instead: does label smoothing hide what it is certain of?")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="With --model: task with sequences, NAME or NAME:key=value; default: its own.")
    ] = None,
    smoothing: Annotated[float | None, typer.Option(help="With --model: label smoothing ε to undo first.")] = None,
    json: common.Json = False,
) -> None:
    """Measure what this torch build's random numbers really do, and verify that our draw is exact where others fail.

    With --model, look instead for a floor of that model's entropies, which label smoothing in its training leaves.

    pvalue: exact binomial test, one large class against many rare ones (0.35 of the smallest step of a float32 uniform,
    or of the half-precision one); "expected" is what exact probabilities give. effective_temperature: of the tokens of
    one ancestral step (a Zipf law over 32,768 tokens, 1/1000 unmasked), from the exact law of noise with the measured
    resolution; 1 is exact. ceiling_nats: the highest noise reachable, or the highest seen where none shows.
    ancestral: unigram entropy of whole ancestral runs against an oracle's own; p-value towards lower entropy.
    """
    if model is not None:
        floor = _floor(model, task, smoothing, seed)
        if json:
            common.print_json({"model": model, "undone": smoothing, **asdict(floor), "verdict": str(floor)})
        else:
            common.out.print(str(floor), highlight=False, soft_wrap=True)
        return
    if task is not None or smoothing is not None:
        raise ValueError(f"{'--task' if task is not None else '--smoothing'} goes with --model NAME")
    where = _device(device)
    if where.type == "cpu":
        common.one_thread()
    effort *= QUICK if quick else 1
    started = time.perf_counter()
    with common.progress(quiet=json) as bar:
        job = bar.add_task("measuring", total=9)
        rand = _rand(where, seed)
        bar.advance(job)
        draws = []
        for part in _draws(where, seed, effort, {name: row["bits"] for name, row in rand.items()}):
            draws.extend(part)
            bar.advance(job)
        ancestral = []
        for check in _ancestral(where, seed, effort):
            ancestral.append(check)
            bar.advance(job)
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "device": str(where),
        "device_name": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
        "seed": seed,
        "effort": effort,
        "significance": _SIGNIFICANT,
        "rand": rand,
        "draws": draws,
        "ancestral": ancestral,
        "seconds": time.perf_counter() - started,
    }
    report["verdict"] = _verdict(report)
    if json:
        common.print_json(report)
        return
    _print(report)


def _floor(model: str, task: str | None, smoothing: float | None, seed: int) -> Floor:
    from ..numerics.smoothing import entropy_floor
    from .profile import sequences_of

    common.one_thread()
    denoiser, _, rows, _ = sequences_of(model, task, None, "validation", smoothing)
    x, maskable = rows(range(SEQUENCES))
    return entropy_floor(denoiser, x, maskable=maskable, seed=seed)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.rand(1, device=device, dtype=torch.float64, generator=torch.Generator(device))
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        names = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        reason = str(error).splitlines()[0].split(". ")[0]
        raise ValueError(
            f"cannot draw float64 numbers on device {name!r}; usable here: {', '.join(names)} ({reason})"
        ) from None
    return device


def _rand(device: torch.device, seed: int) -> dict[str, dict[str, Any]]:
    from ..numerics import DTYPES, uniform_bits

    rows = {}
    for name, dtype in DTYPES.items():
        generator = torch.Generator(device).manual_seed(seed)
        low, high = math.inf, -math.inf
        for _ in range(16):
            u = torch.rand(1 << 18, dtype=dtype, device=device, generator=generator).double()
            low, high = min(low, float(u.min())), max(high, float(u.max()))
        bits = uniform_bits(dtype, device, seed)
        rows[name] = {"numbers": 1 << 22, "smallest": low, "largest": high, "bits": bits, "limit": 1 - 2.0**-bits}
    return rows


@dataclass(frozen=True)
class _Size:
    classes: int
    trials: int

    def times(self, factor: float) -> _Size:
        return _Size(self.classes, max(16, round(self.trials * factor)))


def _draws(device: torch.device, seed: int, effort: float, bits: dict[str, int]):
    """Yields rows of the table, draw by draw; forms of one dtype share their uniforms."""
    from ..draws.race import LEAST
    from ..numerics import ceiling, race_exponential, race_multinomial, race_rand, race_unmask

    # An accelerator is some hundred times faster; all sizes are for one CPU core.
    speed = effort * (16 if device.type != "cpu" else 1)
    for name, forms, resolution, size in (
        ("float16", ("gumbel",), bits["float16"], _Size(256, 1 << 14)),
        ("bfloat16", ("gumbel",), bits["bfloat16"], _Size(64, 1 << 14)),
        ("float32", ("gumbel", "gumbel+1e-10", "ratio+1e-10"), 24, _Size(1 << 20, 1 << 11).times(speed)),
        ("float64", ("gumbel", "gumbel+1e-10", "ratio+1e-10"), 24, _Size(1 << 20, 1 << 8).times(speed)),
    ):
        dtype = getattr(torch, name)
        named = {f"{form} {name}": (form, dtype) for form in forms}
        races = race_rand(named, _RATE * 2.0**-resolution, size.classes, size.trials, device, seed)
        yield [
            _row(draw, race, bits[name], ceiling(named[draw][0], dtype, device), "largest value of rand")
            for draw, race in races.items()
        ]
    rare, size = _RATE * 2.0**-24, _Size(1 << 20, 1 << 7).times(speed)
    race = race_exponential(rare, size.classes, size.trials, torch.float32, device, seed)
    # A value that comes back again and again is a floor of the clock; a smaller float is not.
    floor = race.repeated >= 3
    resolution = round(race.largest_noise / math.log(2)) if floor else 53
    source = "smallest value of exponential_" + ("" if floor else " seen; no floor")
    yield [_row("exponential_ float32", race, resolution, race.largest_noise, source)]
    multinomial = race_multinomial(rare, size.classes, size.trials, device, seed)
    yield [_row("multinomial float32", multinomial, resolution, race.largest_noise, "as exponential_, which it races")]
    size = _Size(1 << 16, 1 << 13).times(speed)
    ours = race_unmask(rare, size.classes, size.trials, device, seed)
    yield [_row("unmask", ours, 53, -math.log(LEAST), "the smallest of its clocks")]


def _row(name: str, race: Any, bits: int, ceiling: float, source: str) -> dict[str, Any]:
    from ..numerics import ancestral_step_temperature

    return {
        "name": name,
        "pvalue": race.pvalue,
        "effective_temperature": ancestral_step_temperature(bits),
        "ceiling_nats": ceiling,
        "ceiling_source": source,
        "bits": bits,
        "draws": race.trials,
        "rare_probability": race.rare,
        "rare_classes": race.classes,
        "rare_expected": race.expected,
        "rare_expected_at_24_bits": race.expected_on_lattice(24),
        "rare_expected_at_these_bits": race.expected_on_lattice(bits),
        "rare_drawn": race.count,
        "seconds": race.seconds,
    }


def _ancestral(device: torch.device, seed: int, effort: float):
    from ..numerics import ancestral_entropy_check

    sequences = max(4, round(64 * effort))
    for name in ("gumbel-float32", "unmask"):
        check = ancestral_entropy_check(name, sequences=sequences, device=device, seed=seed)
        yield {
            "name": check.name,
            "entropy": check.entropy,
            "truth": check.truth,
            "z": check.z,
            "pvalue": check.pvalue,
            "sequences": check.sequences,
            "length": check.length,
            "vocab": check.vocab,
            "steps": check.steps,
            "numbers": check.numbers,
            "seconds": check.seconds,
        }


def _verdict(report: dict[str, Any]) -> str:
    """One sentence: whether ours passes, and which others do not."""
    rows = [(row["name"], row["pvalue"]) for row in report["draws"]]
    rows += [(f"{row['name']} in an ancestral run", row["pvalue"]) for row in report["ancestral"]]
    ours = [pvalue for name, pvalue in rows if name.startswith("unmask")]
    failed = [name for name, pvalue in rows if pvalue < _SIGNIFICANT and not name.startswith("unmask")]
    passed = all(pvalue >= _SIGNIFICANT for pvalue in ours)
    others = f"where these fail: {', '.join(failed)}" if failed else "and so do all others at this effort"
    if passed:
        return f"unmask's draw passes on {report['device']}, {others}."
    return f"unmask's draw FAILS on {report['device']} (p < {_SIGNIFICANT:g}): please report this output."


def _print(report: dict[str, Any]) -> None:
    common.out.print(
        f"torch {report['torch']} on {report['device']}, seed {report['seed']}, {report['seconds']:.0f} s",
        highlight=False,
    )
    rand = common.table("torch.rand", "smallest seen", "largest seen", "bits", "1 - largest possible")
    for name, row in report["rand"].items():
        rand.add_row(
            name, f"{row['smallest']:.3g}", f"{row['largest']:.9g}", str(row["bits"]), f"{1 - row['limit']:.3g}"
        )
    common.out.print(rand)
    draws = common.table("draw", "ceiling, nats", "effective T", "rare: expected", "drawn", "p-value")
    for row in report["draws"]:
        seen = "≥ " if "seen" in row["ceiling_source"] or "as exp" in row["ceiling_source"] else ""
        draws.add_row(
            row["name"],
            f"{seen}{row['ceiling_nats']:.2f}",
            f"{row['effective_temperature']:.3f}",
            f"{row['rare_expected']:.1f}",
            str(row["rare_drawn"]),
            f"{row['pvalue']:.2g}",
        )
    common.out.print(draws)
    runs = common.table("ancestral run", "entropy, nats", "truth", "z", "p-value")
    for row in report["ancestral"]:
        runs.add_row(
            row["name"], f"{row['entropy']:.3f}", f"{row['truth']:.3f}", f"{row['z']:+.2f}", f"{row['pvalue']:.2g}"
        )
    common.out.print(runs)
    common.out.print(report["verdict"], highlight=False, soft_wrap=True)
