"""`model.generate(..., custom_generate=generate)` for models of the Transformers library.

    model.config.is_causal = False  # a masked model on a causal class: LLaDA, Dream, adapted Llama and Qwen
    from unmask.integrations.transformers import generate

    model.generate(ids, custom_generate=generate, rule="entropy-bound:gamma=0.1", max_new_tokens=64)

Settings of `generate` are supported if they have a meaning for a masked model, and refused if not:

- supported: `max_new_tokens`, `max_length`, `do_sample`, `temperature`, `top_k`, `top_p` (with the library's defaults,
  such as `top_k=50` if `do_sample` is set and `top_k` is not), `num_return_sequences`, `eos_token_id`, `pad_token_id`,
  `attention_mask` (padding on any side), `suppress_tokens`, `return_dict_in_generate`;
- ignored, because the library always adds them: an empty cache, `use_cache`, `logits_to_keep=1`, `position_ids`;
- adapted: `sequence_bias` and `bad_words_ids` of single tokens, and logits processors with `any_order = True`;
- stopping criteria, such as `StopStringCriteria`: they get the text from the left up to the first mask. Each is called
  for one sequence, once with each beginning of the answer, and after every evaluation with the longest one, so that it
  may also depend on a clock (`max_time`) or an event. If one of them is true, the answer ends;
- a `streamer`, for one sequence: it gets the final tokens from the left, one at a time, and is always ended, even by an
  exception. With a rule that may change tokens, no token is final before the end. If the library refuses a call before
  this function is called, the streamer is not ended: give a `TextIteratorStreamer` a `timeout`;
- refused: beams, penalties and other logits processors; `min_p`, `typical_p` and other truncations besides `top_k` and
  `top_p`; stopping criteria that need scores; prompts as embeddings; caches with content; output of scores, attentions
  or hidden states; causal models;
- never drawn: ids for which the tokenizer has no token, as in a padded vocabulary. The tokenizer is `vocabulary`, or
  the one in the folder from which the model was loaded; an error is raised if the latter cannot be read;
- not available: the library passes on neither `tokenizer` nor `synced_gpus`, so it refuses `stop_strings` itself: use
  `stopping_criteria=[StopStringCriteria(tokenizer, "...")]`. For chats use `LanguageModel.generate`.

For classes without `generate`, such as `ModernBertForMaskedLM`, use `unmask.load` or `LanguageModel.of`.
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
"""Settings of `generate` that truncate the distribution in a way that is not supported here."""


@dataclass
class UnmaskOutput(ModelOutput):
    """The result of `generate` with `return_dict_in_generate=True`.

    Attributes:
        sequences: Prompts and answers, followed by padding tokens after the end of an answer.
        nfe: Number of evaluations of each sequence.
        new_tokens: Number of tokens of each answer, up to its end token.
        seconds: Seconds from the start of a sequence's batch until the sequence was finished.
        log_probs: Log-probability of each new token under the marginal that was used for planning, in nats; 0 after the
            end.
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
        model: The model. The library's `generate` passes this argument and all others up to `generation_config`.
        input_ids: The prompts.
        logits_processor: The logits processors, from the settings and from the caller of `generate`.
        stopping_criteria: The stopping criteria, from the settings and from the caller of `generate`.
        generation_config: The settings of `generate`.
        rule: The unmasking rule, or its name with settings, such as `"entropy-bound:gamma=0.1"`. Default:
            `unmask.default_rule`, without a profile of the model.
        block_length: Fill answers in blocks of so many tokens, from left to right; default: one canvas.
        seed: The seed of the random streams; row `r` gets the stream `derive(seed, r)`. Default: a number from
            PyTorch's global generator.
        mask_id: The mask token; default: that of the model's configuration.
        shift: Whether position `i` is predicted by output `i - 1`, as in Dream.
        guidance: Scale of classifier-free guidance, see `LanguageModel.generate`.
        end_last: Whether end tokens are unmasked last, see `LanguageModel.generate`.
        forbidden: Token ids that are never drawn.
        vocabulary: The model's tokenizer; ids for which it has no token are never drawn. (`generate` does not pass on
            its argument `tokenizer`.) Default: the tokenizer in the folder from which the model was loaded, if there is
            one.
        on_step: Called after each step, with the state of the batch and the step's information.
        streamer: Gets the tokens of the answer as they become final, and is always ended. Default: the streamer that
            `generate` was called with, which `generate` does not pass on.
        **model_kwargs: The arguments that `generate` would pass to the model.

    Returns:
        Prompts and answers, as `generate` returns them: each row is the given prompt, the answer up to its end token,
        and padding up to the length of the longest answer. With `return_dict_in_generate`, an `UnmaskOutput`.

    Raises:
        AdapterError: If the tokenizer in the model's folder cannot be read.
        ValueError: If a setting is not supported or out of range. The message names it.
    """
    with _Feed(_streamer_of_caller() if streamer is None else streamer) as feed:
        config = generation_config
        valid = _prompts(model, input_ids, model_kwargs)
        _refuse(config)
        if feed.streamer is not None and len(input_ids) != 1:
            raise ValueError(
                f"a streamer takes one sequence, not {len(input_ids)}: call generate for each of them, or leave the"
                " streamer out"
            )
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
    """Gives a streamer the tokens of an answer as they become final, and ends it at the end of a `with` block.

    Args:
        streamer: The streamer; `None`: nothing is done.
    """

    def __init__(self, streamer: BaseStreamer | None) -> None:
        self.streamer, self.given = streamer, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.streamer is not None:
            self.streamer.end()

    def turn(self, canvas: Canvas) -> None:
        """Passes on the tokens that a turn has made final, for a rule that does not change tokens."""
        if self.streamer is not None:
            self.put(canvas.final())

    def put(self, tokens: Sequence[int]) -> None:
        """Passes on those of the answer's tokens that are new, one at a time, as the library does."""
        assert self.streamer is not None
        for token in tokens[self.given :]:
            self.given += 1
            self.streamer.put(torch.tensor([token]))


def _streamer_of_caller() -> BaseStreamer | None:
    """Returns the streamer that the library's `generate` was called with, if it called this module.

    The library passes the prompt to the streamer, but the streamer itself only to its own loops, which end it. If it
    were not ended here, its reader would wait forever. So it is read from the local variables of the library's call.
    """
    code, frame = inspect.unwrap(vars(GenerationMixin)["generate"]).__code__, inspect.currentframe()
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get("streamer")


class _Until:
    """Tells whether an answer is complete by stopping criteria.

    Args:
        prompt: The given prompt, which comes before the answer.
        criteria: The criteria.
    """

    def __init__(self, prompt: Int[Tensor, " length"], criteria: Sequence[StoppingCriteria]) -> None:
        self.prompt, self.criteria = prompt, criteria

    def __call__(self, answer: Sequence[int]) -> bool:
        """Returns whether one of the criteria is true for an answer."""
        written: Any = torch.cat([self.prompt, self.prompt.new_tensor(answer)]).unsqueeze(0)
        return any(bool(torch.as_tensor(criterion(written, None)).all()) for criterion in self.criteria)


def _nameless(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, ends: list[int]) -> list[int]:
    """Returns the ids that are neither tokens of the tokenizer nor end tokens; none if no tokenizer is found."""
    commit = getattr(model.config, "_commit_hash", None)
    known = _tokenizer_beside(str(model.name_or_path), commit) if tokenizer is None else tokenizer
    ids = [] if known is None else nameless_ids(known, model.config.get_text_config().vocab_size)
    return [token for token in ids if token not in ends]


@lru_cache(maxsize=4)
def _tokenizer_beside(name: str, commit: str | None) -> PreTrainedTokenizerBase | None:
    """Returns the tokenizer in the folder, or in the hub's cache, from which a model was loaded; `None` without one."""
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
            f"{error}; it is needed to find the model's ids that are not tokens: repair its files, or give"
            " vocabulary=tokenizer"
        ) from error


def _prompts(model: PreTrainedModel, input_ids: Tensor, given: dict[str, Any]) -> Bool[Tensor, "batch length"]:
    """Returns where the prompts are not padding, after checking the arguments that are meant for the model."""
    rest = dict(given)
    mask = rest.pop("attention_mask", None)  # None stands for all ones
    valid = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    if valid.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask of shape {tuple(valid.shape)} does not fit prompts of shape {tuple(input_ids.shape)}"
        )
    cache = rest.pop("past_key_values", None)
    if cache is not None and cache.get_seq_length() > 0:
        raise ValueError(
            "past_key_values holds a prefix, which is not supported: the keys of a bidirectional model depend on what"
            " follows; leave it out"
        )
    positions = rest.pop("position_ids", None)
    if positions is not None and not torch.equal(positions.expand_as(valid)[valid], (valid.cumsum(-1) - 1)[valid]):
        raise ValueError("position_ids other than 0, 1, 2, ... from each prompt's first token are not supported")
    if rest.pop("logits_to_keep", 1) != 1:
        raise ValueError("logits_to_keep is not supported: the sampler computes logits where masks are; leave it out")
    rest.pop("use_cache", None)
    if unused := sorted(name for name, value in rest.items() if value is not None):
        raise ValueError(f"{', '.join(unused)}: not supported by unmask.integrations.transformers.generate")
    if model.config.is_encoder_decoder:
        raise ValueError(f"{type(model).__name__} is a sequence-to-sequence model; masked models have no decoder")
    if getattr(model.config, "is_causal", True) is not False:
        raise ValueError(
            f"{type(model).__name__} has causal attention; set model.config.is_causal = False if it was trained as a"
            " masked model, with bidirectional attention"
        )
    return valid


def _refuse(config: GenerationConfig) -> None:
    """Refuses settings that are not supported, such as beams and the output of scores."""
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
    """Returns the maximum length of a sequence, the tokens that end an answer, and the other stopping criteria.

    The library makes criteria from its settings; a criterion of the same class that its caller gave replaces them.
    """
    lengths, ends, others = list[int](), list[int](), list[StoppingCriteria]()
    for criterion in criteria:
        if isinstance(criterion, ConfidenceCriteria):
            raise ValueError(
                f"{type(criterion).__name__} asks for the scores of the next token, but masked models do not write from"
                " left to right. Use criteria that read the text, max_new_tokens, max_time or eos_token_id"
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
    """Adapts a `LogitsProcessor` of the library that declares, with `any_order = True`, that it needs no order.

    It is called with the whole sequence, including masks, instead of the tokens that were generated so far.

    Attributes:
        processor: The library's processor.
    """

    processor: LogitsProcessor

    def __call__(self, logits: Tensor, position: Tensor, x: Tensor) -> Float[Tensor, "rows vocab"]:
        """Returns the processed logits."""
        return torch.as_tensor(self.processor(x, logits))  # pyright: ignore[reportArgumentType]


def _processed(processors: LogitsProcessorList, config: GenerationConfig) -> tuple[list[int], Processor | None]:
    """Returns the tokens that must not be drawn, and a processor for the other logits processors, if there are any.

    Processors made from `temperature`, `top_k` and `top_p` are skipped, as the sampler applies these settings itself. A
    bias of single tokens (`sequence_bias`, `bad_words_ids`) needs no order.

    Raises:
        ValueError: If a processor truncates the distribution in another way, or needs an order from left to right.
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
            case LogitNormalization():  # the sampler normalises logits itself
                pass
            case _ if getattr(processor, "any_order", False):
                adapted.append(AnyOrder(processor))
            case _ if type(processor) in CUTS:
                raise ValueError(
                    f"{CUTS[type(processor)]} ({type(processor).__name__}) truncates the distribution, which only top_k"
                    " and top_p do here. A processor with any_order = True acts before planning, which then depends on"
                    " the truncation, too"
                )
            case _:
                raise ValueError(
                    f"{type(processor).__name__} works on the next token and what was written before it, but masked"
                    " models do not write from left to right. Use temperature, top_k, top_p, suppress_tokens,"
                    " forbidden, a bias of single tokens, or a processor with any_order = True"
                )
    return tokens, Chain(tuple(adapted)) if adapted else None
