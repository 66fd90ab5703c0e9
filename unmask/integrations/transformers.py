"""`model.generate(..., custom_generate=generate)` for models of the Transformers library.

    model.config.is_causal = False  # a masked model on a causal class: LLaDA, Dream, adapted Llama and Qwen
    from unmask.integrations.transformers import generate

    model.generate(ids, custom_generate=generate, rule="entropy-bound:gamma=0.1", max_new_tokens=64)

What a caller of `generate` expects is kept where it means something for a masked model, and refused where it does not:

- kept: `max_new_tokens`, `max_length`, `do_sample`, `temperature`, `top_k`, `top_p` (with the library's defaults, such
  as `top_k=50` where sampling is asked for and `top_k` is not), `num_return_sequences`, `eos_token_id`, `pad_token_id`,
  `attention_mask` (padding on any side), `suppress_tokens`, `return_dict_in_generate`;
- dropped, because the library adds them unasked: the empty cache, `use_cache`, `logits_to_keep=1`, `position_ids`;
- adapted: `sequence_bias` and `bad_words_ids` of single tokens, and processors that say `any_order = True`;
- asked of the text that is written without a gap, from the left: stopping criteria, such as `StopStringCriteria`. Each
  is called for one sequence, with each beginning of the answer once and after every evaluation with the longest, so
  that one may also look at a clock (`max_time`) or an event; where one is true the answer ends;
- fed with what is final, from the left, a token at a time: a `streamer`, for one sequence. It is ended however the call
  ends. With a rule that changes what it has written nothing is final before the end. What the library itself refuses
  before it comes here ends no streamer, as without us: give a `TextIteratorStreamer` a `timeout`;
- refused: beams, penalties and other logits processors, `min_p`, `typical_p` and other cuts besides `top_k` and
  `top_p`, stopping criteria that want scores, prompts as embeddings, caches with content, output of scores, attentions
  or hidden states, causal models;
- forbidden: ids that are not tokens of the tokenizer, as where a vocabulary is padded, if it is given as `vocabulary`
  or lies where the model was loaded from. One that lies there and cannot be read is refused;
- out of reach: the library hands on neither `tokenizer` nor `synced_gpus`, so it refuses `stop_strings` itself: pass
  `stopping_criteria=[StopStringCriteria(tokenizer, "...")]`. `LanguageModel.generate` knows chats.

Classes without `generate`, such as `ModernBertForMaskedLM`, go through `unmask.load` or `LanguageModel.of`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)
from transformers.generation import (
    BaseStreamer,
    ConfidenceCriteria,
    EosTokenCriteria,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitNormalization,
    LogitsProcessor,
    MaxLengthCriteria,
    MinPLogitsWarper,
    SequenceBiasLogitsProcessor,
    StoppingCriteria,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.utils import ModelOutput

from ..draws.streams import derive
from ..errors import AdapterError
from ..folders import EMBEDDED
from ..hub import HubName, cached
from ..language import LanguageModel
from ..language.arguments import check_watch
from ..language.asked import asked_generate
from ..language.canvas import Canvas
from ..language.generation import answer_all
from ..models.pretrained.nameless import nameless_ids
from ..models.pretrained.said import TOKENIZER_FILES
from ..models.pretrained.vocabulary import tokenizer_of
from ..sampling.conversation import AnyRule
from ..sampling.draw import Processor
from ..sampling.processors import Chain, LogitBias
from ..sampling.result import StepInfo
from ..sampling.state import State

CUTS: dict[type, str] = {
    MinPLogitsWarper: "min_p",
    TypicalLogitsWarper: "typical_p",
    EpsilonLogitsWarper: "epsilon_cutoff",
    EtaLogitsWarper: "eta_cutoff",
    TopHLogitsWarper: "top_h",
}
"""Settings of `generate` that cut what is drawn from in a way that draws here do not know."""


@dataclass
class UnmaskOutput(ModelOutput):
    """What `return_dict_in_generate=True` returns.

    Attributes:
        sequences: Prompts and answers, filled up with the padding token behind the end.
        nfe: Evaluations each sequence took part in.
        new_tokens: Tokens of each answer, up to the end token.
        seconds: From the start of a sequence's batch until it was finished.
        log_probs: Log-probability of each new token under the marginal it was planned with, in nats; 0 behind the end.
    """

    sequences: Int[Tensor, "batch length"] | None = None
    nfe: Int[Tensor, " batch"] | None = None
    new_tokens: Int[Tensor, " batch"] | None = None
    seconds: Float[Tensor, " batch"] | None = None
    log_probs: Float[Tensor, "batch new"] | None = None


def generate(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "batch length"],
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    rule: AnyRule | str | None = None,
    block_length: int | None = None,
    seed: int | None = None,
    mask_id: int | None = None,
    shift: bool = False,
    guidance: float | None = None,
    end_last: bool | None = None,
    forbidden: Iterable[int] = (),
    vocabulary: PreTrainedTokenizerBase | None = None,
    on_step: Callable[[State, StepInfo], None] | None = None,
    streamer: BaseStreamer | None = None,
    **model_kwargs: Any,
) -> Int[Tensor, "batch length"] | UnmaskOutput:
    """Answers prompts, called by `model.generate(input_ids, custom_generate=generate, rule=...)`.

    Args:
        model: The model: `generate` passes it, and everything up to `generation_config`.
        input_ids: The prompts.
        logits_processor: What the settings of `generate` and its caller made of the logits.
        stopping_criteria: When its caller wants to stop.
        generation_config: The settings of `generate`.
        rule: What to unmask when: a rule, or its name with settings, such as `"entropy-bound:gamma=0.1"`. Required.
        block_length: Fill answers in blocks of so many tokens, from left to right; default: one canvas.
        seed: The seed of the random streams; row `r` takes `derive(seed, r)`. Default: a number from PyTorch's global
            generator.
        mask_id: The mask token; default: the configuration's.
        shift: Whether position `i` is predicted by output `i - 1`, as in Dream.
        guidance: Scale of classifier-free guidance, see `LanguageModel.generate`.
        end_last: Whether end tokens wait for the others, see `LanguageModel.generate`.
        forbidden: Token ids that must not appear.
        vocabulary: The model's tokenizer, whose tokens may appear, and no ids beyond them (`generate` hands on no
            `tokenizer`). Default: the one that lies where the model was loaded from, if there is one.
        on_step: Called with the state of the batch and the step's information.
        streamer: Is given the tokens of the answer as they become final, and ended in any case. Default: the one that
            `generate` was called with, which does not hand it on.
        **model_kwargs: What `generate` would pass to the model.

    Returns:
        Prompts and answers, as `generate` returns them: each row as it was given, then the answer up to its end token,
        then padding up to the longest answer.

    Raises:
        AdapterError: If the tokenizer that lies beside the model cannot be read.
        ValueError: If something is asked for that has no meaning here; it is named.
    """
    with _Feed(_streamer_of_caller() if streamer is None else streamer) as feed:
        if rule is None:
            raise ValueError('name a rule: model.generate(..., rule="entropy-bound:gamma=0.1")')
        config = generation_config
        valid = _prompts(model, input_ids, model_kwargs)
        _refuse(config)
        if feed.streamer is not None and len(input_ids) != 1:
            raise ValueError(f"a streamer takes one sequence, not {len(input_ids)}: call generate for each, or without")
        length, ends, criteria = _stopping(stopping_criteria, config)
        suppressed, processor = _processed(logits_processor, config)
        denoiser = LanguageModel.of(model, None, mask_id=mask_id, end_ids=ends, shift=shift)
        base = int(torch.randint(2**63 - 1, ())) if seed is None else seed
        check_watch(on_step)
        asked = asked_generate(
            denoiser,
            [row[keep].tolist() for row, keep in zip(input_ids, valid, strict=True)],
            rule=rule,
            max_new_tokens=length - input_ids.shape[1],
            block_length=block_length,
            temperature=float(1.0 if config.temperature is None else config.temperature) if config.do_sample else 0.0,
            top_k=config.top_k or None if config.do_sample else None,
            top_p=config.top_p if config.do_sample else None,
            streams=[derive(base, row) for row in range(len(input_ids))],
            forbidden=[*forbidden, *suppressed, *_nameless(model, vocabulary, ends)],
            processor=processor,
            guidance=guidance,
            end_last=end_last,
        )
        if criteria:
            asked = [replace(one, until=_Until(row, criteria)) for one, row in zip(asked, input_ids, strict=True)]
        completions = answer_all(
            denoiser, asked, len(input_ids), on_step, feed.turn if asked[0].settings.keeps else None
        )
        if feed.streamer is not None:
            feed.put(completions[0].tokens)
    longest = max(one.new_tokens for one in completions)
    pad = config.pad_token_id if config.pad_token_id is not None else (ends[0] if ends else denoiser.mask_id)
    answers = input_ids.new_full((len(completions), longest), pad)
    log_probs = torch.zeros(len(completions), longest, dtype=torch.float64)
    for row, one in enumerate(completions):
        answers[row, : one.new_tokens] = torch.tensor(one.tokens, dtype=answers.dtype)
        log_probs[row, : one.new_tokens] = torch.tensor(one.log_probs, dtype=torch.float64)
    sequences = torch.cat([input_ids, answers], -1)
    if not config.return_dict_in_generate:
        return sequences
    return UnmaskOutput(
        sequences=sequences,
        nfe=torch.tensor([one.nfe for one in completions]),
        new_tokens=torch.tensor([one.new_tokens for one in completions]),
        seconds=torch.tensor([one.seconds for one in completions], dtype=torch.float64),
        log_probs=log_probs,
    )


class _Feed:
    """Gives a streamer the tokens of an answer as they become final, and ends it whatever happens."""

    def __init__(self, streamer: BaseStreamer | None) -> None:
        self.streamer, self.given = streamer, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.streamer is not None:
            self.streamer.end()

    def turn(self, canvas: Canvas) -> None:
        """Gives it what a turn has made final, by a rule that keeps what it has written."""
        if self.streamer is not None:
            self.put(canvas.final())

    def put(self, tokens: Sequence[int]) -> None:
        """Gives it what it has not had yet, a token at a time, as the library does."""
        assert self.streamer is not None
        for token in tokens[self.given :]:
            self.given += 1
            self.streamer.put(torch.tensor([token]))


def _streamer_of_caller() -> BaseStreamer | None:
    """The streamer that the library's `generate` was called with, if it is what called us.

    It gives the streamer the prompt and hands it on to its own loops only, which end it. So does nobody else, and who
    reads from it waits for ever: it is looked up where the library has it.
    """
    code, frame = inspect.unwrap(vars(GenerationMixin)["generate"]).__code__, inspect.currentframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get("streamer")


class _Until:
    """Asks stopping criteria whether an answer is all that is wanted.

    Args:
        prompt: What comes before the answer, as it was given.
        criteria: Those to ask.
    """

    def __init__(self, prompt: Int[Tensor, " length"], criteria: Sequence[StoppingCriteria]) -> None:
        self.prompt, self.criteria = prompt, criteria

    def __call__(self, answer: Sequence[int]) -> bool:
        """Whether one of them says so."""
        written: Any = torch.cat([self.prompt, self.prompt.new_tensor(answer)]).unsqueeze(0)
        return any(bool(torch.as_tensor(criterion(written, None)).all()) for criterion in self.criteria)


def _nameless(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, ends: list[int]) -> list[int]:
    """The ids that are neither tokens of the tokenizer nor ends of texts; none, if no tokenizer is found."""
    commit = getattr(model.config, "_commit_hash", None)
    known = _tokenizer_beside(str(model.name_or_path), commit) if tokenizer is None else tokenizer
    ids = [] if known is None else nameless_ids(known, model.config.get_text_config().vocab_size)
    return [token for token in ids if token not in ends]


@lru_cache(maxsize=4)
def _tokenizer_beside(name: str, commit: str | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the folder, or in the hub's cache, that a model was loaded from."""
    if not name or (name in EMBEDDED and not Path(name).is_dir()):
        return None
    known = None if Path(name).is_dir() else HubName.read(name, commit)
    folder = Path(name) if known is None else cached(known)
    if folder is None or not any((folder / file).is_file() for file in TOKENIZER_FILES):
        return None
    try:
        return tokenizer_of(folder)
    except AdapterError as error:
        raise AdapterError(
            f"{error}; the model has ids that are not tokens, which it would tell: mend it, or give"
            " vocabulary=tokenizer"
        ) from error


def _prompts(model: PreTrainedModel, input_ids: Tensor, given: dict[str, Any]) -> Bool[Tensor, "batch length"]:
    """Where the prompts are no padding; and a check of all that came for the model's own call."""
    rest = dict(given)
    mask = rest.pop("attention_mask", None)  # None stands for all ones
    valid = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    if valid.shape != input_ids.shape:
        raise ValueError(f"attention_mask {tuple(valid.shape)} does not go with prompts {tuple(input_ids.shape)}")
    cache = rest.pop("past_key_values", None)
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError("past_key_values holds a prefix; a masked model sees both sides, so it is computed anew")
    positions = rest.pop("position_ids", None)
    if positions is not None and not torch.equal(positions.expand_as(valid)[valid], (valid.cumsum(-1) - 1)[valid]):
        raise ValueError("position_ids other than 0, 1, 2, ... from each prompt's first token are not supported")
    if rest.pop("logits_to_keep", 1) != 1:
        raise ValueError("logits_to_keep is up to the sampler: logits are computed where masks are")
    rest.pop("use_cache", None)
    if unused := sorted(name for name, value in rest.items() if value is not None):
        raise ValueError(f"{', '.join(unused)}: not supported by unmask.integrations.transformers.generate")
    if model.config.is_encoder_decoder:
        raise ValueError(f"{type(model).__name__} is a sequence-to-sequence model; masked models have no decoder")
    if getattr(model.config, "is_causal", True) is not False:
        raise ValueError(
            f"{type(model).__name__} looks to the left only; set model.config.is_causal = False if it was trained as a"
            " masked model, which sees both sides"
        )
    return valid


def _refuse(config: GenerationConfig) -> None:
    """Refuses what the settings ask for besides one draw per sequence."""
    asked = {
        "num_beams": config.num_beams not in (None, 1),
        "output_scores": config.output_scores,
        "output_logits": config.output_logits,
        "output_attentions": config.output_attentions,
        "output_hidden_states": config.output_hidden_states,
        "prompt_lookup_num_tokens": config.prompt_lookup_num_tokens,
        "penalty_alpha": config.penalty_alpha,
        "dola_layers": config.dola_layers,
    }
    if unsupported := [name for name, wanted in asked.items() if wanted]:
        raise ValueError(f"{', '.join(unsupported)}: not supported by unmask.integrations.transformers.generate")


def _stopping(
    criteria: StoppingCriteriaList, config: GenerationConfig
) -> tuple[int, list[int], list[StoppingCriteria]]:
    """The length of the longest sequence, the tokens that end an answer, and what is to be asked of its text.

    The library makes criteria of its settings, in whose place those of the same class come that its caller gave.
    """
    lengths, ends, others = list[int](), list[int](), list[StoppingCriteria]()
    for criterion in criteria:
        if isinstance(criterion, ConfidenceCriteria):
            raise ValueError(
                f"{type(criterion).__name__} asks for the scores of the next token; masked models do not write from the"
                " left. Take criteria that look at the text, max_new_tokens, max_time or eos_token_id"
            )
        if type(criterion) is EosTokenCriteria:
            ends += criterion.eos_token_id.flatten().tolist()
        elif type(criterion) is MaxLengthCriteria:
            lengths.append(criterion.max_length)
        else:
            others.append(criterion)
    return min(lengths, default=int(config.max_length or 0)), ends, others


@dataclass(frozen=True, eq=False)
class AnyOrder:
    """A `LogitsProcessor` of the library that says of itself, by `any_order = True`, that it needs no order.

    It is called with the whole sequence, masks included, where the library would give what was written so far.
    """

    processor: LogitsProcessor

    def __call__(self, logits: Tensor, position: Tensor, x: Tensor) -> Float[Tensor, "rows vocab"]:
        """Returns what it makes of the logits."""
        return torch.as_tensor(self.processor(x, logits))  # pyright: ignore[reportArgumentType]


def _processed(processors: LogitsProcessorList, config: GenerationConfig) -> tuple[list[int], Processor | None]:
    """The tokens that must not appear, and a processor; what needs an order from left to right is refused by name.

    The warpers that the settings of the draw made are known already. A bias of single tokens (`sequence_bias`,
    `bad_words_ids`) needs no order.
    """
    tokens: list[int] = []
    adapted: list[Processor] = []
    for processor in processors:
        match processor:
            case SuppressTokensLogitsProcessor():
                tokens += processor.suppress_tokens.tolist()
            case SequenceBiasLogitsProcessor() if all(len(ids) == 1 for ids in processor.sequence_bias):
                adapted.append(LogitBias({int(ids[0]): float(bias) for ids, bias in processor.sequence_bias.items()}))
            case TemperatureLogitsWarper(temperature=config.temperature):
                pass
            case TopKLogitsWarper(top_k=config.top_k):
                pass
            case TopPLogitsWarper(top_p=config.top_p):
                pass
            case LogitNormalization():  # of what is drawn from, which changes no draw
                pass
            case _ if getattr(processor, "any_order", False):
                adapted.append(AnyOrder(processor))
            case _ if type(processor) in CUTS:
                raise ValueError(
                    f"{CUTS[type(processor)]} ({type(processor).__name__}) cuts the tail of a draw; draws here are cut"
                    " by top_k and top_p only. A processor with any_order = True acts before planning, which then sees"
                    " the cut too"
                )
            case _:
                raise ValueError(
                    f"{type(processor).__name__} works on the next token and what was written before it; masked models"
                    " do not write from the left. Take temperature, top_k, top_p, suppress_tokens, forbidden, a bias of"
                    " single tokens, or a processor with any_order = True"
                )
    return tokens, Chain(tuple(adapted)) if adapted else None
