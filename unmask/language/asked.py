"""The answers that are asked of a language model: for each, a sequence with masks and how to fill it in.

Arguments are checked and prompts encoded here. `LanguageModel.generate` and `infill` make the answers in batches; the
server makes each as it arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..checks import whole
from ..denoiser import Denoiser
from ..draws.categorical import check_draw
from ..draws.streams import prompt_streams
from ..models.pretrained.cache import check_cache, usual_cache
from ..rules.usual import suited_rule
from ..sampling.conversation import REVISITS, AnyRule, LawKind
from ..sampling.draw import Processor
from .arguments import check_answer, checked_prompts, checked_spans, checked_tokens, stop_strings
from .canvas import Canvas
from .prompts import Prompt, Prompts, as_prompts, is_tokens, with_gaps

if TYPE_CHECKING:
    from .model import LanguageModel


@dataclass(frozen=True)
class Settings:
    """How to answer.

    Attributes:
        rule: Decides which positions to unmask at each step.
        temperature: The temperature of the draw; 0 takes the argmax.
        top_k: Draw among the `k` most probable tokens.
        top_p: Draw among the fewest tokens whose probabilities sum to at least this.
        forbidden: Tokens that must not appear.
        processor: Changes logits before planning and drawing.
        last: Tokens that are written after the others.
        ends: Tokens that end an answer.
        stops: Texts that end an answer.
        block_length: Tokens per block.
        guidance: Scale of classifier-free guidance.
        cache: Which keys and values are kept, one of `CACHES`.
        cache_refresh: With a cache, compute everything anew after this many evaluations of a block.
        whole: Whether the text of an answer is the whole sequence, not only what was masked.
    """

    rule: AnyRule
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    forbidden: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    stops: tuple[str, ...] = ()
    block_length: int | None = None
    guidance: float | None = None
    cache: str = "none"
    cache_refresh: int | None = None
    whole: bool = False
    processor: Processor | None = None

    @property
    def draw(self) -> dict[str, Any]:
        """How tokens are drawn, as arguments of `Sampler`."""
        names = ("top_k", "top_p", "forbidden", "last", "processor")
        return {name: getattr(self, name) for name in names}

    @property
    def keeps(self) -> bool:
        """Whether the rule keeps what it has written: it neither masks tokens again nor overwrites them."""
        return self.rule.law not in (*REVISITS, LawKind.NONE)


@dataclass(frozen=True)
class Asked:
    """One answer that is wanted.

    Attributes:
        prompt: The prompt.
        row: The prompt's tokens with the masks of the answer.
        stream: The random stream of the answer.
        settings: How to answer.
        ahead: How many masks to show a block-causal model after the answer, up to the end of its block, as in its
            training. They are not filled in, so an answer may end anywhere. If text follows the answer there are none.
        until: Tells from the tokens of the answer so far whether it is complete (see `Canvas`).
    """

    prompt: Prompt
    row: tuple[int, ...]
    stream: int
    settings: Settings
    ahead: int = 0
    until: Callable[[Sequence[int]], bool] | None = None

    def canvas(self, model: Denoiser) -> Canvas:
        """Returns the canvas that the answer is written on; without a tokenizer of the model its texts are empty."""
        own = self.settings
        return Canvas(
            self.row,
            model.mask_id,
            getattr(model, "tokenizer", None),
            ends=own.ends,
            stops=own.stops,
            whole=own.whole,
            until=self.until,
        )


def asked_generate(
    model: LanguageModel,
    prompts: Prompts,
    *,
    rule: AnyRule | str | None,
    max_new_tokens: int,
    block_length: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    stop: str | Sequence[str] | None = (),
    top_k: int | None = None,
    top_p: float | None = None,
    forbidden: Iterable[int] = (),
    processor: Processor | None = None,
    guidance: float | None = None,
    cache: str | None = None,
    cache_refresh: int | None = None,
    end_last: bool | None = None,
    streams: Sequence[int] | None = None,
    n: int = 1,
) -> list[Asked]:
    """Returns the answers that `LanguageModel.generate` is asked for; arguments and errors are described there."""
    whole("max_new_tokens", max_new_tokens)
    whole("n", n)
    banned = check_answer(rule=rule, seed=seed, forbidden=forbidden, streams=streams, guidance=guidance)
    if model.max_length is not None and max_new_tokens > model.max_length:
        raise ValueError(f"max_new_tokens {max_new_tokens} is more than the {model.max_length} that the model takes")
    if block_length is None:
        block_length = model.block_causal
    elif whole("block_length", block_length) and model.block_causal is None and max_new_tokens % block_length:
        raise ValueError(f"block_length {block_length} does not divide max_new_tokens {max_new_tokens}")
    check_draw(temperature, top_k, top_p)
    chosen = _rule(rule, model, temperature)
    cache = usual_cache(model.network, chosen, guidance) if cache is None else cache
    if end_last and not chosen.waits:
        raise ValueError(f"end_last does not go with {rule}, which chooses before it knows what is probable")
    check_cache(cache, cache_refresh, model.block_causal, block_length=block_length, rule=chosen, guidance=guidance)
    stops = stop_strings(stop)
    if stops and model.tokenizer is None:
        raise ValueError("stop strings need a tokenizer")
    encoded = [prompt for prompt in as_prompts(prompts, model.tokenizer, model.mask_id) for _ in range(n)]
    rows = [(*prompt.tokens, *[model.mask_id] * max_new_tokens, *prompt.suffix) for prompt in encoded]
    settings = Settings(
        rule=chosen,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        forbidden=banned,
        processor=processor,
        last=model.end_ids if (chosen.waits if end_last is None else end_last) else (),
        ends=model.end_ids,
        stops=stops,
        block_length=block_length,
        guidance=guidance,
        cache=cache,
        cache_refresh=cache_refresh,
    )
    streams = _streams([prompt.tokens for prompt in encoded], seed, streams)
    return _asked(model, encoded, rows, streams, settings)


def asked_infill(
    model: LanguageModel,
    texts: str | Sequence[str] | Sequence[Sequence[int]],
    *,
    rule: AnyRule | str | None,
    spans: Sequence[Sequence[tuple[int, int, int]]] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    top_k: int | None = None,
    top_p: float | None = None,
    forbidden: Iterable[int] = (),
    processor: Processor | None = None,
    streams: Sequence[int] | None = None,
    whole_text: bool = True,
) -> list[Asked]:
    """Returns the answers that `LanguageModel.infill` is asked for; arguments and errors are described there.

    With `whole_text`, the text of an answer is the whole text; without it, only what is in the gaps.
    """
    banned = check_answer(rule=rule, seed=seed, forbidden=forbidden, streams=streams)
    checked_prompts(texts)
    if isinstance(texts, Tensor):
        texts = texts.reshape(-1, texts.shape[-1] if texts.ndim else 1).tolist()
    given = [texts] if isinstance(texts, str) else list(texts)
    if spans is not None:
        checked_spans(spans, len(given))
    encoded = []
    for index, text in enumerate(given):
        if isinstance(text, str):
            encoded.append(with_gaps(text, model.tokenizer, model.mask_id, None if spans is None else spans[index]))
        elif spans is None and is_tokens(text) and model.mask_id in checked_tokens(text):
            encoded.append(Prompt("" if model.tokenizer is None else model.decode(text, special=True), tuple(text)))
        else:
            raise ValueError(f"text {index} has no gap: token ids hold the mask token where one is missing")
    special = set(model.end_ids) | set([] if model.tokenizer is None else model.tokenizer.all_special_ids)
    check_draw(temperature, top_k, top_p)
    settings = Settings(
        rule=_rule(rule, model, temperature),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        forbidden=tuple({*banned, *(token for token in special if token < model.vocab_size)}),
        processor=processor,
        block_length=model.block_causal,
        whole=whole_text,
    )
    rows = [prompt.tokens for prompt in encoded]
    return _asked(model, encoded, rows, _streams(rows, seed, streams), settings)


def _asked(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    rows: Sequence[tuple[int, ...]],
    streams: Sequence[int],
    settings: Settings,
) -> list[Asked]:
    for index, row in enumerate(rows):
        if model.max_length is not None and len(row) > model.max_length:
            masks = sum(token == model.mask_id for token in row)
            raise ValueError(
                f"prompt {index} has {len(row) - masks} tokens, which with {masks} masks is more than the"
                f" {model.max_length} that the model takes"
            )
    ahead = [0 if settings.whole else _ahead(model, row) for row in rows]
    wanted = zip(prompts, rows, streams, ahead, strict=True)
    return [Asked(prompt, row, stream, settings, masks) for prompt, row, stream, masks in wanted]


def _ahead(model: LanguageModel, row: Sequence[int]) -> int:
    """Returns how many masks follow an answer up to the end of its last block, if the model's length permits."""
    size = model.block_causal
    if size is None or row[-1] != model.mask_id:
        return 0
    masks = -len(row) % size
    return masks if model.max_length is None else min(masks, model.max_length - len(row))


def _streams(rows: Sequence[Sequence[int]], seed: int, streams: Sequence[int] | None) -> list[int]:
    if streams is None:
        return prompt_streams(rows, seed)
    if len(streams) != len(rows):
        raise ValueError(f"{len(streams)} streams for {len(rows)} answers")
    return list(streams)


def _rule(rule: AnyRule | str | None, model: LanguageModel, temperature: float) -> AnyRule:
    """The rule itself, which may be given by its name, or not at all."""
    return suited_rule(rule, model.source, temperature).rule if rule is None or isinstance(rule, str) else rule
