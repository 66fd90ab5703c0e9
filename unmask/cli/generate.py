"""`unmask generate`, `unmask infill` and `unmask chat`: language models that unmask, on the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from ..files.jsonl import read_prompts
from ..folders import EMBEDDED
from ..language import Completion, LanguageModel
from ..models.pretrained.cache import CACHES
from ..models.registry import load
from ..rules.named import NamedRule
from ..sampling.result import StepInfo
from ..sampling.state import State
from . import common

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MASK_SHOWN = "░"

Model = Annotated[str, typer.Argument(help="Embedded model, checkpoint folder, or owner/name in the hub's cache.")]
Input = Annotated[
    Path | None, typer.Option("--input", help='JSON Lines: {"prompt": ...} or {"messages": [...]} each; - is stdin.')
]
Field = Annotated[
    str | None,
    typer.Option(help="Where a prompt is in each object of --input: question, turns.0, or instruction,input (joined)."),
]
NewTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Masks after each prompt; default: 32, less for models of under 80 tokens."),
]
Block = Annotated[
    int | None, typer.Option("--block-length", help="Tokens per block, from left to right; default: all as one.")
]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Text that ends an answer; may be repeated.")]
TopK = Annotated[int | None, typer.Option("--top-k", help="Draw among so many most probable tokens.")]
TopP = Annotated[float | None, typer.Option("--top-p", help="Draw among the fewest tokens of this mass.")]
Guidance = Annotated[float | None, typer.Option(help="Classifier-free guidance; doubles the work.")]
Cache = Annotated[str, typer.Option(help=f"Keys and values to keep: {', '.join(CACHES)}; prefix and dual are inexact.")]
Refresh = Annotated[
    int | None, typer.Option("--cache-refresh", help="Compute everything in every so many evaluations of a block.")
]
EndLast = Annotated[
    bool | None, typer.Option(help="Write a text before it is ended (default where the rule can), or not.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts per batch; changes no answer, rounding apart.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, ...")]
Dtype = Annotated[str, typer.Option(help=f"Of the weights: {', '.join(DTYPES)}.")]
Shift = Annotated[
    bool | None, typer.Option(help="Of an adapted Llama or Qwen: output i - 1 predicts position i, or not.")
]
BlockCausal = Annotated[
    int | None, typer.Option("--block-causal", help="Of an adapted Llama or Qwen: block length of its attention.")
]

MaskId = Annotated[
    int | None, typer.Option("--mask-id", min=0, help="Id of the mask token, if the model's files do not name it.")
]


def generate(
    model: Model = "chat",
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt; may be repeated.")] = None,
    input: Input = None,
    field: Field = None,
    encoding: common.Encoding = None,
    chat: Annotated[bool, typer.Option(help="Ask as a message of a chat; else texts are continued.")] = False,
    max_new_tokens: NewTokens = None,
    block_length: Block = None,
    rule: common.Rule = "entropy-bound",
    gamma: common.Gamma = None,
    k: common.K = None,
    threshold: common.Threshold = None,
    steps: common.StepsOption = None,
    proxy: common.Proxy = None,
    temperature: common.Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    stop: Stop = None,
    guidance: Guidance = None,
    cache: Cache = "none",
    cache_refresh: Refresh = None,
    end_last: EndLast = None,
    seed: common.Seed = 0,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    shift: Shift = None,
    block_causal: BlockCausal = None,
    mask_id: MaskId = None,
    json: common.Json = False,
) -> None:
    """Answer prompts with a language model.

    NFE is the number of evaluations an answer took part in, new tokens are those up to the end of the text. With
    --json, a list with one object per prompt.
    """
    settings = {"gamma": gamma, "k": k, "threshold": threshold, "steps": steps, "proxy": proxy}
    named = common.rule_from(rule, model, temperature, **settings)
    prompts: list[Any] = list(prompt or ())
    if input is not None:
        prompts += read_prompts(input, "prompt", field, encoding)
    if not prompts:
        raise ValueError("nothing to answer: give -p TEXT, or --input FILE")
    _check_field(input, field, encoding)
    if chat:
        prompts = [[{"role": "user", "content": one}] if isinstance(one, str) else one for one in prompts]
    network = language_model(model, device, dtype, shift, block_causal, mask_id)
    with common.progress(quiet=json) as bar:
        task = bar.add_task("evaluations", total=None)
        completions = network.generate(
            prompts,
            rule=named.rule,
            max_new_tokens=max_new_tokens or network.usual_new_tokens,
            block_length=block_length,
            temperature=temperature,
            seed=seed,
            stop=stop or (),
            top_k=top_k,
            top_p=top_p,
            guidance=guidance,
            cache=cache,
            cache_refresh=cache_refresh,
            end_last=end_last,
            batch_size=batch_size,
            on_step=lambda state, info: bar.advance(task),
        )
    _show(completions, named, json)


def infill(
    model: Model = "chat",
    text: Annotated[
        list[str] | None, typer.Option("--text", "-t", help="A text with [MASK:n] where n tokens are missing.")
    ] = None,
    input: Annotated[Path | None, typer.Option("--input", help='JSON Lines, {"text": ...} each; - is stdin.')] = None,
    field: Field = None,
    encoding: common.Encoding = None,
    rule: common.Rule = "entropy-bound",
    gamma: common.Gamma = None,
    k: common.K = None,
    threshold: common.Threshold = None,
    steps: common.StepsOption = None,
    proxy: common.Proxy = None,
    temperature: common.Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: common.Seed = 0,
    batch_size: BatchSize = 8,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    shift: Shift = None,
    mask_id: MaskId = None,
    json: common.Json = False,
) -> None:
    """Fill gaps in texts with a language model: in "The [MASK:12] sat on" twelve tokens are missing."""
    settings = {"gamma": gamma, "k": k, "threshold": threshold, "steps": steps, "proxy": proxy}
    named = common.rule_from(rule, model, temperature, **settings)
    texts = [*(text or ()), *(read_prompts(input, "text", field, encoding) if input is not None else ())]
    if not texts:
        raise ValueError("nothing to fill in: give -t TEXT, or --input FILE")
    _check_field(input, field, encoding)
    network = language_model(model, device, dtype, shift, mask_id=mask_id)
    with common.progress(quiet=json) as bar:
        job = bar.add_task("evaluations", total=None)
        completions = network.infill(
            texts,
            rule=named.rule,
            temperature=temperature,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
            batch_size=batch_size,
            on_step=lambda state, info: bar.advance(job),
        )
    _show(completions, named, json)


def chat(
    model: Model = "chat",
    max_new_tokens: NewTokens = None,
    block_length: Block = None,
    rule: common.Rule = "entropy-bound",
    gamma: common.Gamma = None,
    temperature: common.Temperature = 0.0,
    seed: common.Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    shift: Shift = None,
    mask_id: MaskId = None,
) -> None:
    """Talk with a language model; the answer is shown while it unmasks.

    /rule NAME, /gamma NATS, /reset (forget what was said) and /quit are commands; so is the end of the input.
    """
    named = common.rule_from(rule, model, temperature, gamma=gamma)
    network = language_model(model, device, dtype, shift, mask_id=mask_id)
    canvas_length = max_new_tokens or network.usual_new_tokens
    history: list[dict[str, str]] = []
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
        forgotten = fit(network, history, canvas_length)
        if forgotten:
            common.out.print(f"[dim]({forgotten} earlier messages no longer fit)[/]", highlight=False)
        options = {"temperature": temperature, "seed": seed, "block_length": block_length}
        answer = _live(network, history, named, canvas_length, options)
        history.append({"role": "assistant", "content": answer.text})
        note = f"{answer.nfe} evaluations, {answer.new_tokens} tokens, {answer.seconds:.2f} s, {answer.finish_reason}"
        common.out.print(Text(answer.text))
        common.out.print(f"[dim]{note}[/]", highlight=False)


def language_model(
    model: str,
    device: str,
    dtype: str,
    shift: bool | None,
    block_causal: int | None = None,
    mask_id: int | None = None,
) -> LanguageModel:
    """Loads a language model for a command.

    Raises:
        AdapterError: If it cannot be loaded.
        ValueError: If it has no tokenizer, or there is no such type or device.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    if model in EMBEDDED:
        common.one_thread()
    where = common.device_named(device)
    loaded = load(model, device=where, dtype=DTYPES[dtype], shift=shift, block_causal=block_causal, mask_id=mask_id)
    if not isinstance(loaded, LanguageModel):
        raise ValueError(f"the model {model!r} has no tokenizer, so it is not one for text; try chat")
    return loaded


def _check_field(input: Path | None, field: str | None, encoding: str | None) -> None:
    if input is None and (field is not None or encoding is not None):
        raise ValueError(f"{'--field' if field is not None else '--encoding'} goes with --input FILE")


def fit(model: LanguageModel, history: list[dict[str, str]], max_new_tokens: int) -> int:
    """Drops the oldest turns of a chat until it and the answer fit the model; returns how many messages went."""
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
        named = common.rule_from(value, model, temperature)
    elif word == "/gamma":
        try:
            gamma = float(value)
        except ValueError:
            raise ValueError(f"/gamma takes a number of nats, got {value!r}") from None
        named = common.rule_from(named.name, model, temperature, **{**named.settings, "gamma": gamma})
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


def _show(completions: list[Completion], named: NamedRule, json: bool) -> None:
    if json:
        common.print_json([{**one.as_json(), "rule": str(named)} for one in completions])
        return
    for one in completions:
        common.out.print(Text(one.text))
        note = f"{one.nfe} evaluations, {one.new_tokens} tokens, {one.seconds:.2f} s, {one.finish_reason}"
        common.out.print(f"[dim]{note}[/]", highlight=False)
