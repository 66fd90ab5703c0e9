"""`unmask generate`, `unmask infill` and `unmask chat`: masked language models on the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from ..files.jsonl import read_prompts
from ..language import Completion, LanguageModel
from ..models.pretrained.cache import CACHES
from ..rules.named import NamedRule
from ..rules.usual import usual_rule
from ..sampling.result import StepInfo
from ..sampling.state import State
from . import common
from .engines import HERE, EngineOptions
from .groups import NEWEST, USUAL, FromHub, RuleOptions
from .jobs import SCREEN, Job, Output
from .loading import ON_CPU, Loading

MASK_SHOWN = "░"

ABLE = {
    "chat": "A tiny model that knows sums of numbers below 100 and the multiplication table, and nothing else. Ask it"
    " 12+35= or What is 7 times 8?",
    "working": "A tiny model that knows small problems in several steps, and nothing else; it often errs. Ask it"
    " Ann has 7, buys 5, eats 3. or Make 24 of 9 3 5.",
}
"""What the embedded models that one can talk with are able to do."""

Model = Annotated[str, typer.Argument(help=common.MODEL)]
Input = Annotated[
    Path | None, typer.Option("--input", help='JSON Lines: {"prompt": ...} or {"messages": [...]} each; - is stdin.')
]
Field = Annotated[
    str | None,
    typer.Option(help="Where a prompt is in each object of --input: question, turns.0, or instruction,input (joined)."),
]
NewTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Masks after each prompt; default: 32, or fewer if the model takes under 80 tokens."),
]
Block = Annotated[
    int | None,
    typer.Option("--block-length", help="Tokens per block, from left to right; default: the model's, or all as one."),
]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Text that ends an answer; may be repeated.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="Draw among this many of the most probable tokens.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Draw among the fewest tokens with this probability.")]
Guidance = Annotated[float | None, typer.Option(help="Scale of classifier-free guidance; doubles the work.")]
Cache = Annotated[
    str | None,
    typer.Option(
        help=f"Keys and values to keep: {', '.join(CACHES)}; prefix and dual are inexact. Default: block-causal for a"
        " model whose attention is so, or none."
    ),
]
Refresh = Annotated[
    int | None, typer.Option("--cache-refresh", help="With a cache: compute all anew after this many evaluations.")
]
EndLast = Annotated[
    bool | None, typer.Option(help="Write end tokens after the text (default if the rule can), or not.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts per batch; changes no answer, rounding apart.")]


def generate(
    model: Model = "chat",
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt; may be repeated.")] = None,
    input: Input = None,
    field: Field = None,
    encoding: common.Encoding = None,
    chat: Annotated[bool, typer.Option(help="Send prompts as chat messages; else continue the texts.")] = False,
    max_new_tokens: NewTokens = None,
    block_length: Block = None,
    choice: RuleOptions = USUAL,
    temperature: common.Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    stop: Stop = None,
    guidance: Guidance = None,
    cache: Cache = None,
    cache_refresh: Refresh = None,
    end_last: EndLast = None,
    seed: common.Seed = 0,
    batch_size: BatchSize = 8,
    loading: Loading = ON_CPU,
    hub: FromHub = NEWEST,
    output: Output = SCREEN,
    engine: EngineOptions = HERE,
    json: common.Json = False,
) -> None:
    """Answer prompts with a language model.

    NFE is the number of evaluations an answer took part in; new tokens are those up to the end of the text. --json
    prints a list with one object per prompt. With --output the answers go into a folder, in shards that an interrupted
    run goes on from; with --engine ray, workers on this machine or a cluster make them, the same to the last bit.
    """
    model = hub.pinned(model)
    named = choice.named(model, temperature)
    prompts: list[Any] = list(prompt or ())
    if input is not None:
        prompts += read_prompts(input, "prompt", field, encoding)
    if not prompts:
        raise ValueError("nothing to answer: give -p TEXT, or --input FILE")
    _check_field(input, field, encoding)
    if chat:
        prompts = [[{"role": "user", "content": one}] if isinstance(one, str) else one for one in prompts]
    settings: dict[str, Any] = {
        "rule": named.rule,
        "max_new_tokens": max_new_tokens,
        "block_length": block_length,
        "temperature": temperature,
        "stop": stop or (),
        "top_k": top_k,
        "top_p": top_p,
        "guidance": guidance,
        "cache": cache,
        "cache_refresh": cache_refresh,
        "end_last": end_last,
    }
    Job("generate", model, loading, named, settings, seed, batch_size, output, engine).answer(prompts, json)


def infill(
    model: Model = "chat",
    text: Annotated[
        list[str] | None, typer.Option("--text", "-t", help="A text with [MASK:n] where n tokens are missing.")
    ] = None,
    input: Annotated[Path | None, typer.Option("--input", help='JSON Lines, {"text": ...} each; - is stdin.')] = None,
    field: Field = None,
    encoding: common.Encoding = None,
    choice: RuleOptions = USUAL,
    temperature: common.Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: common.Seed = 0,
    batch_size: BatchSize = 8,
    loading: Loading = ON_CPU,
    hub: FromHub = NEWEST,
    output: Output = SCREEN,
    engine: EngineOptions = HERE,
    json: common.Json = False,
) -> None:
    """Fill gaps in texts with a language model: in "The [MASK:12] sat on" twelve tokens are missing.

    With --output and --engine it works as unmask generate does.
    """
    model = hub.pinned(model)
    named = choice.named(model, temperature)
    texts = [*(text or ()), *(read_prompts(input, "text", field, encoding) if input is not None else ())]
    if not texts:
        raise ValueError("nothing to fill in: give -t TEXT, or --input FILE")
    _check_field(input, field, encoding)
    settings = {"rule": named.rule, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    Job("infill", model, loading, named, settings, seed, batch_size, output, engine).answer(texts, json)


def chat(
    model: Model = "chat",
    max_new_tokens: NewTokens = None,
    block_length: Block = None,
    choice: RuleOptions = USUAL,
    temperature: common.Temperature = 0.0,
    seed: common.Seed = 0,
    loading: Loading = ON_CPU,
    hub: FromHub = NEWEST,
) -> None:
    """Talk with a language model; the answer is shown while it unmasks.

    The commands are /rule NAME, /gamma NATS (of the rule, or else of entropy-bound), /reset (start a new chat) and
    /quit; the end of the input also quits.
    """
    model = hub.pinned(model)
    named = choice.named(model, temperature)
    network = loading.model(model)
    canvas_length = max_new_tokens or network.usual_new_tokens
    history: list[dict[str, str]] = []
    if model in ABLE:
        common.out.print(ABLE[model], highlight=False, soft_wrap=True)
    common.out.print(f"{escape(model)}, {named}; /rule, /gamma, /reset, /quit", highlight=False, soft_wrap=True)
    for line in _lines():
        if line.startswith("/"):
            word, _, value = line.partition(" ")
            if word == "/quit":
                return
            try:
                named = _command(word, value.strip(), named, model, temperature, history)
            except ValueError as error:
                common.out.print(f"[yellow]{escape(str(error))}[/]", highlight=False, soft_wrap=True)
            continue
        history.append({"role": "user", "content": line})
        options = {"temperature": temperature, "seed": seed, "block_length": block_length}
        try:
            forgotten = fit(network, history, canvas_length)
            if forgotten:
                common.out.print(f"[dim]({forgotten} earlier messages no longer fit)[/]", highlight=False)
            answer = _live(network, history, named, canvas_length, options)
        except ValueError as error:  # a line that does not fit, for one; the next one may
            history.pop()
            common.out.print(f"[yellow]{escape(str(error))}[/]", highlight=False, soft_wrap=True)
            continue
        history.append({"role": "assistant", "content": answer.text})
        common.out.print(Text(answer.text))
        common.out.print(f"[dim]{common.cost(answer)}[/]", highlight=False)


def _check_field(input: Path | None, field: str | None, encoding: str | None) -> None:
    if input is None and (field is not None or encoding is not None):
        raise ValueError(f"{'--field' if field is not None else '--encoding'} goes with --input FILE")


def fit(model: LanguageModel, history: list[dict[str, str]], max_new_tokens: int) -> int:
    """Drops the oldest turns of a chat until it and the answer fit the model; returns how many messages it dropped."""
    dropped = 0
    while model.max_length is not None and len(history) > 1:
        if len(model.encode([history])[0]) + max_new_tokens <= model.max_length:
            break
        del history[:2]
        dropped += 2
    return dropped


def canvas(model: LanguageModel, tokens: Sequence[int], before: Sequence[int] = ()) -> str:
    """Returns the text of an answer that is being written after some tokens, with `░` for masks."""
    text, run, seen = "", [], list(before)
    for token in [*tokens, model.mask_id]:
        if token != model.mask_id:
            run.append(token)
            continue
        text += model.decode(run, after=seen) + MASK_SHOWN
        seen, run = [*seen, *run], []
    return text[: -len(MASK_SHOWN)]


def _live(
    model: LanguageModel, history: list[dict[str, str]], named: NamedRule, max_new_tokens: int, options: dict[str, Any]
) -> Completion:
    shown = len(model.encode([history])[0])
    with Live(console=common.out, transient=True, auto_refresh=False) as live:

        def show(state: State, info: StepInfo) -> None:
            tokens = state.x[0, : shown + max_new_tokens].tolist()
            live.update(Text(canvas(model, tokens[shown:], tokens[:shown])), refresh=True)

        on_step: Callable[[State, StepInfo], None] | None = show if common.out.is_terminal else None
        (answer,) = model.generate(
            [history], rule=named.rule, max_new_tokens=max_new_tokens, on_step=on_step, **options
        )
    return answer


def _command(
    word: str, value: str, named: NamedRule, model: str, temperature: float, history: list[dict[str, str]]
) -> NamedRule:
    if word == "/reset":
        history.clear()
        return named
    if word == "/rule":
        named = usual_rule(value, model, temperature)
    elif word == "/gamma":
        try:
            gamma = float(value)
        except ValueError:
            raise ValueError(f"/gamma takes a number of nats, got {value!r}") from None
        if "gamma" in named.settings:
            named = usual_rule(named.name, model, temperature, **{**named.settings, "gamma": gamma})
        else:
            named = usual_rule("entropy-bound", model, temperature, gamma=gamma)
    else:
        raise ValueError(f"unknown command {word}; there are /rule NAME, /gamma NATS, /reset and /quit")
    common.out.print(f"[dim]{escape(str(named))}[/]", highlight=False, soft_wrap=True)
    return named


def _lines() -> Any:
    while True:
        try:
            line = common.out.input("[bold]> [/]") if sys.stdin.isatty() else sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            return
        if not line and not sys.stdin.isatty():
            return
        if line.strip():
            yield line.strip()
