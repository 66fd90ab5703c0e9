"""`unmask compose`: four-part chorales, from a given voice, around a gap or from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import NetworkDenoiser
from ..evaluation.runner import Answers, answer, mean_ci95
from ..files.writing import check_outputs
from ..models.networks.coconet import LENGTH, MASK_ID, STEPS, VOCAB_SIZE, VOICES
from ..models.registry import load
from ..rules.named import NamedRule
from ..rules.usual import GAMMAS
from ..sampling.loop import Sampler
from ..tasks.music import (
    LOWEST,
    NAMES,
    SPLITS,
    chain_score,
    equal_previous,
    masked_part,
    read_chorales,
    show,
    voices_in_order,
)
from ..tasks.music_files import write_midi, write_piano_roll
from . import common
from .groups import NEWEST, USUAL, FromHub, RuleOptions

GAMMA = 0.01
"""The γ of `entropy-bound` here, in nats; chosen on validation chorales by `python -m benchmarks.music validate`."""


def compose(
    given: Annotated[
        str, typer.Option(help="Voices to take from the piece: some of soprano,alto,tenor,bass, or all, or none.")
    ] = "soprano",
    gap: Annotated[str | None, typer.Option(help="START:STOP, the steps in which to fill in every voice.")] = None,
    piece: Annotated[int | None, typer.Option(help="Number of the piece in its split, from 0 (default 0).")] = None,
    split: Annotated[str, typer.Option(help=f"Split that holds the piece: {', '.join(SPLITS)}.")] = "test",
    data: Annotated[
        Path | None, typer.Option(help="JSON file of chorales, or a MIDI file; default: the shipped ones.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many versions to compose.")] = 1,
    choice: RuleOptions = USUAL,
    temperature: common.Temperature = 1.0,
    seed: common.Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Versions per batch; changes no note.")] = 8,
    model: Annotated[str, typer.Option(help=common.MODEL)] = "music",
    score: Annotated[bool, typer.Option(help="Judge each version: one evaluation per composed token.")] = True,
    midi: Annotated[Path | None, typer.Option(help="Write MIDI here; several versions are numbered.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw a piano roll here; several versions are numbered.")] = None,
    hub: FromHub = NEWEST,
    json: common.Json = False,
) -> None:
    """Compose four-part chorales of 64 sixteenth notes with a masked model that others trained.

    What is given comes from the last 64 steps of a piece. NFE is the number of model evaluations a version took.
    log_likelihood is the mean log-probability of a composed token, in nats, had the same notes been composed one at a
    time in a random order. equal_previous is the share of tokens equal to the same voice's previous step,
    voices_in_order that of steps with soprano >= alto >= tenor >= bass.
    """
    model = hub.pinned(model)
    named = choice.named(model, temperature, {**GAMMAS, "entropy-bound": GAMMA})
    voices = _voices(given)
    masked = masked_part(voices, None if gap is None else _gap(gap))
    if bool(masked.all()):
        if piece is not None or data is not None:
            raise ValueError("--piece and --data go with something given, and here everything is composed")
        prompt = torch.full((LENGTH,), MASK_ID)
    else:
        piece = 0 if piece is None else piece
        prompt = torch.where(masked, MASK_ID, _window(data, split, piece))
    paths = {"midi": _numbered("--midi", midi, count, data), "png": _numbered("--png", png, count, data)}
    common.one_thread()
    denoiser = _chorale_model(model)
    prompts = prompt.expand(count, -1)
    scores: Float[Tensor, " versions"] | None = None
    with common.progress(quiet=json) as bar:
        composing = bar.add_task("composing", total=count)
        answers = answer(
            Sampler(denoiser, named.rule),
            prompts,
            seed=seed,
            temperature=temperature,
            batch_size=batch_size,
            on_batch=lambda done: bar.advance(composing, done),
        )
        if score:
            judging = bar.add_task("judging", total=count * int(masked.sum()))
            scores = chain_score(denoiser, prompts, answers.tokens, on_batch=lambda done: bar.advance(judging, done))
    nfe, ci95 = mean_ci95(answers.nfe)
    versions = _versions(answers, scores)
    report: dict[str, Any] = {
        "rule": named.name,
        "settings": named.settings,
        "temperature": temperature,
        "seed": seed,
        "batch_size": batch_size,
        "given": list(voices),
        "gap": gap,
        "split": None if piece is None else split,
        "piece": piece,
        "masked": int(masked.sum()),
        "count": count,
        "nfe_mean": nfe,
        "nfe_ci95": ci95,
        **{name: _mean(versions, name) for name in ("log_likelihood", "equal_previous", "voices_in_order")},
        "forward_passes": answers.forward_passes,
        "seconds": answers.seconds,
        "versions": versions,
    }
    for index, (tokens, version) in enumerate(zip(answers.tokens, versions, strict=True)):
        if midi is not None:
            write_midi(tokens, paths["midi"][index])
            version["midi"] = str(paths["midi"][index])
        if png is not None:
            title = f"{named}, temperature {temperature:g}, seed {seed}: {version['nfe']} evaluations"
            write_piano_roll(tokens, paths["png"][index], ~masked, title)
            version["png"] = str(paths["png"][index])
    if json:
        common.print_json(report)
    else:
        _print(report, answers.tokens, named)


def _voices(text: str) -> tuple[str, ...]:
    if text in ("all", "none"):
        return NAMES if text == "all" else ()
    return tuple(part.strip() for part in text.split(","))


def _gap(text: str) -> tuple[int, int]:
    try:
        first, stop = map(int, text.split(":"))
    except ValueError:
        raise ValueError(f"a gap is START:STOP, two whole numbers, got {text!r}") from None
    return first, stop


def _window(data: Path | None, split: str, piece: int) -> Int[Tensor, " 256"]:
    """The last 64 steps of a piece."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    chorales = read_chorales(data)[split]
    if not 0 <= piece < len(chorales):
        raise ValueError(f"there is no piece {piece}: {split} has {len(chorales)} pieces, counted from 0")
    return chorales[piece].window()


def _chorale_model(name: str) -> NetworkDenoiser:
    denoiser = load(name)
    found, expected = (denoiser.vocab_size, denoiser.mask_id, denoiser.length), (VOCAB_SIZE, MASK_ID, LENGTH)
    if found != expected:
        raise ValueError(
            f"the model {name!r} is not one of chorales: its vocabulary, mask id and length are {found}, not {expected}"
        )
    return denoiser


def _numbered(option: str, path: Path | None, count: int, data: Path | None) -> list[Path]:
    """One path per version, checked now, so that one that cannot be written is an error before the work."""
    if path is None:
        return []
    paths = [path] if count == 1 else [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]
    for one in paths:
        check_outputs({option: one}, [data])
    return paths


def _versions(answers: Answers, scores: Float[Tensor, " versions"] | None) -> list[dict[str, Any]]:
    repeated, ordered = equal_previous(answers.tokens).tolist(), voices_in_order(answers.tokens).tolist()
    pitches = (answers.tokens.reshape(-1, VOICES, STEPS) + LOWEST).tolist()
    return [
        {
            "nfe": int(answers.nfe[index]),
            "bound": float(answers.bound[index]),
            "log_likelihood": None if scores is None else float(scores[index]),
            "equal_previous": repeated[index],
            "voices_in_order": ordered[index],
            "stream": stream,
            "pitches": dict(zip(NAMES, pitches[index], strict=True)),
        }
        for index, stream in enumerate(answers.streams)
    ]


def _mean(versions: list[dict[str, Any]], name: str) -> float | None:
    values = [version[name] for version in versions]
    return None if None in values else sum(values) / len(values)


def _print(report: dict[str, Any], tokens: Int[Tensor, "versions 256"], named: NamedRule) -> None:
    origin = "" if report["piece"] is None else f", piece {report['piece']} of {report['split']}"
    settings = f"{named}, temperature {report['temperature']:g}, seed {report['seed']}"
    common.out.print(
        f"{settings}{origin}: {report['masked']} of {LENGTH} tokens composed\n", highlight=False, soft_wrap=True
    )
    common.out.print(show(tokens[0]), highlight=False, soft_wrap=True)
    table = common.table("\nversion", "\nNFE", "log-likelihood\nper token", "equal to\nprevious", "voices\nin order")
    for number, version in enumerate(report["versions"], start=1):
        likelihood = version["log_likelihood"]
        table.add_row(
            str(number),
            str(version["nfe"]),
            "–" if likelihood is None else f"{likelihood:.3f}",
            f"{version['equal_previous']:.1%}",
            f"{version['voices_in_order']:.1%}",
        )
    common.out.print(table)
    for version in report["versions"]:
        for kind in ("midi", "png"):
            if kind in version:
                common.out.print(f"wrote {version[kind]}", highlight=False, soft_wrap=True, markup=False)
