"""`LanguageModel`: a denoiser with a tokenizer, which takes prompts as text and returns text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..checks import whole
from ..denoiser import NetworkDenoiser, Query
from ..models.pretrained.nameless import nameless_ids
from ..sampling.conversation import AnyRule
from ..sampling.draw import Processor
from ..sampling.result import StepInfo
from ..sampling.state import State
from .arguments import check_watch
from .asked import asked_generate, asked_infill
from .completion import Completion
from .generation import answer_all
from .prompts import Prompts, as_prompts
from .texts import Continuation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_SIZE = 8
"""Prompts per batch where nothing is said."""


class LanguageModel(NetworkDenoiser):
    """A masked language model with its tokenizer: a denoiser that takes sequences of different lengths in one batch.

    Args:
        network: A module with `forward(x, where, time, valid) -> logits[rows, vocab]`.
        vocab_size: Number of token ids, the mask token included.
        mask_id: Id of the mask token.
        tokenizer: Turns text into tokens; without one, prompts must be token ids, and answers have no text. Ids that
            are not its tokens (padding of the vocabulary, for instance) get the logit `-inf`, unless they end a text.
        end_ids: Tokens that end a text.
        max_length: The largest number of tokens of prompt and answer together; `None` if there is no limit.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        vocab_size: int,
        mask_id: int,
        tokenizer: PreTrainedTokenizerBase | None = None,
        end_ids: Iterable[int] = (),
        max_length: int | None = None,
    ) -> None:
        super().__init__(network, vocab_size, mask_id)
        self.tokenizer, self.end_ids, self.max_length = tokenizer, tuple(sorted(set(end_ids))), max_length
        wrong = [token for token in self.end_ids if not 0 <= token < vocab_size]
        if wrong:
            raise ValueError(f"end tokens {wrong} are outside the vocabulary 0..{vocab_size - 1}")
        nameless = [] if tokenizer is None else nameless_ids(tokenizer, vocab_size)
        self.nameless = tuple(token for token in nameless if token not in self.end_ids)
        if len({*self.nameless, mask_id}) == vocab_size:
            raise ValueError(
                f"the tokenizer has no token among the ids 0..{vocab_size - 1} of the model but the mask's"
            )
        self._nameless: dict[torch.device, Tensor] = {}

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        mask_id: int | None = None,
        end_ids: Iterable[int] | None = None,
        shift: bool = False,
        block_causal: int | None = None,
    ) -> LanguageModel:
        """Wraps a model of the Transformers library that is already in memory.

        The configuration of a causal class (`LlamaForCausalLM`, ...) is changed: from then on the model attends in both
        directions.

        Args:
            model: A masked language model, or a causal class that was trained to unmask.
            tokenizer: Its tokenizer.
            mask_id: Id of the mask token; default: the one that its configuration or the tokenizer names.
            end_ids: Tokens that end a text; default: those that its configuration and the tokenizer name.
            shift: Whether position `i` is predicted by output `i - 1`, as in models adapted from autoregressive ones.
            block_causal: Block length of a model trained with block-causal attention: a position attends to its own
                block, counted from the first position, and to the blocks before it; default: to all positions.

        Raises:
            AdapterError: If nothing says which token is the mask.
            ValueError: If `block_causal` is out of range, or the model is not a Llama or Qwen.
        """
        from ..models.pretrained.hf import run_both_ways
        from ..models.pretrained.masked_lm import MaskedLM
        from ..models.pretrained.said import checked_mask, end_ids_of, mask_of_model

        run_both_ways(model)
        mask_id = mask_of_model(model, tokenizer) if mask_id is None else checked_mask(mask_id)
        vocab_size = model.config.get_text_config().vocab_size
        network = MaskedLM(model, vocab_size, mask_id, shift=shift, block_causal=block_causal)
        if end_ids is None:
            generation = getattr(model, "generation_config", None)
            named = {} if generation is None else {"eos_token_id": generation.eos_token_id}
            end_ids = end_ids_of(model.config.to_dict(), tokenizer, network.vocab_size, named)
        return cls(network, network.vocab_size, mask_id, tokenizer, end_ids, network.max_length)

    @property
    def block_causal(self) -> int | None:
        """Block length of the attention, if positions attend only to their own block and those before it."""
        return getattr(self.network, "block_causal", None)

    @property
    def usual_new_tokens(self) -> int:
        """The default length of an answer: 32, or if `max_length` is short, a power of two within two fifths of it."""
        room = 32 if self.max_length is None else max(1, min(32, self.max_length * 2 // 5))
        return 1 << (room.bit_length() - 1)

    @property
    def padding_invisible(self) -> bool:
        """Whether padding changes no logits, so that sequences of different lengths can be evaluated together.

        If not, the sequences of each length are evaluated by themselves: the answers are the same, but take more time.
        """
        return getattr(self.network, "padding_invisible", True)

    def evaluate(self, query: Query) -> Float[Tensor, "rows vocab"]:
        with torch.no_grad():
            answer = getattr(self.network, "answer", None)  # a model of the Transformers library knows its own ways
            if answer is not None:
                return self.named(answer(query, self.network))
            return self.named(self.network(query.x, query.where, None, query.valid))

    def named(self, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
        """Returns logits with `-inf` at the ids that are not tokens of the tokenizer."""
        if not self.nameless:
            return logits
        if logits.device not in self._nameless:
            self._nameless[logits.device] = torch.tensor(self.nameless, device=logits.device)
        ids = self._nameless[logits.device]
        # In place where the rows are known to be nobody else's: they are most of the memory of a step.
        own = getattr(self.network, "makes_rows", False) and not logits.requires_grad
        return logits.index_fill_(-1, ids, -torch.inf) if own else logits.index_fill(-1, ids, -torch.inf)

    def generate(
        self,
        prompts: Prompts,
        *,
        rule: AnyRule | str | None = None,
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
        batch_size: int = BATCH_SIZE,
        streams: Sequence[int] | None = None,
        on_step: Callable[[State, StepInfo], None] | None = None,
        n: int = 1,
    ) -> list[Completion]:
        """Answers prompts.

        An answer ends at its first end token or stop string; nothing after it is filled in. Apart from rounding, an
        answer does not depend on its batch. Prompts of similar lengths share a batch and are padded on the right.

        Args:
            prompts: Texts, which are continued as they are; chats, which go through the chat template; token ids; or
                prompts that are already encoded (`Prompt`).
            rule: Decides which positions to unmask at each step: a rule, or its name with settings, such as
                `"entropy-bound:gamma=0.1"`. Default: `unmask.default_rule` for the model and the temperature.
            max_new_tokens: Number of masks after each prompt.
            block_length: Fill the answer in blocks of this many tokens, from left to right; default: the blocks of the
                model's attention, if it is block-causal, or else one block. Blocks are counted from the start of the
                answer, or, for a block-causal model, from the start of the prompt, as its attention counts them.
            temperature: The temperature of the draw; 0 takes the argmax.
            seed: Prompt `p` gets the stream `derive(seed, tokens of p, copy)`, with `copy` counting equal prompts.
            stop: Texts that end an answer and are not part of it. They are looked for in the answer with its special
                tokens written out: a special token may be a stop string, and no stop string matches across one.
            top_k: Draw among the `k` most probable tokens.
            top_p: Draw among the fewest tokens whose probabilities sum to at least this.
            forbidden: Token ids that must not appear.
            processor: Changes logits before planning and drawing, such as `LogitBias` (`unmask.sampling.processors`).
            guidance: Scale of classifier-free guidance (see `Guided`); each evaluation then evaluates two states.
            cache: Which keys and values of the attention to keep between evaluations (see `Cached`): `"none"`;
                `"prefix"` or `"dual"`, which are approximate and need blocks; or `"block-causal"`, which is exact and
                needs a model with block-causal attention. Default: `"block-causal"` for such models, unless the rule or
                guidance evaluates several states of a sequence; otherwise `"none"`.
            cache_refresh: With `"prefix"` or `"dual"`, compute everything anew after this many evaluations of a block;
                default: only in its first evaluation.
            end_last: Whether positions whose most probable token is an end token wait for all others, the leftmost of
                them going first. If the rule allows it, that one is written together with the last text. Models trained
                on answers padded with end tokens are most certain of those; written early, from the far end, they would
                cut answers short. Default: True wherever the rule looks at the marginals before it chooses.
            batch_size: Prompts per batch.
            streams: The stream of each answer, instead of `seed`.
            on_step: Called with the state of the batch and the step's information.
            n: Answers per prompt, as if the prompt were in the list this many times.

        Returns:
            One completion per prompt, in order; with `n`, the completions of a prompt follow each other.

        Raises:
            ValueError: If an argument is out of range, the block length does not divide the answer, the cache does not
                go with the model or the other settings, a prompt cannot be encoded, or prompt and answer together are
                too long for the model.
        """
        whole("batch_size", batch_size)
        check_watch(on_step)
        asked = asked_generate(
            self,
            prompts,
            rule=rule,
            max_new_tokens=max_new_tokens,
            block_length=block_length,
            temperature=temperature,
            seed=seed,
            stop=stop,
            top_k=top_k,
            top_p=top_p,
            forbidden=forbidden,
            processor=processor,
            guidance=guidance,
            cache=cache,
            cache_refresh=cache_refresh,
            end_last=end_last,
            streams=streams,
            n=n,
        )
        return answer_all(self, asked, batch_size, on_step)

    def infill(
        self,
        texts: str | Sequence[str] | Sequence[Sequence[int]],
        *,
        rule: AnyRule | str | None = None,
        spans: Sequence[Sequence[tuple[int, int, int]]] | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        top_k: int | None = None,
        top_p: float | None = None,
        forbidden: Iterable[int] = (),
        processor: Processor | None = None,
        batch_size: int = BATCH_SIZE,
        streams: Sequence[int] | None = None,
        on_step: Callable[[State, StepInfo], None] | None = None,
    ) -> list[Completion]:
        """Fills gaps in texts: `"The [MASK:12] sat on"` has a gap of twelve tokens; `[MASK]` is a gap of one token.

        Args:
            texts: Texts with gaps, or token ids with the mask token.
            rule: Decides which positions to unmask at each step: a rule, or its name with settings; default: as in
                `generate`.
            spans: For each text, `(start, stop, n)`: replace its characters from `start` to `stop` by `n` tokens.
            temperature: The temperature of the draw; 0 takes the argmax.
            seed: Seed of the random streams, as in `generate`.
            top_k: Draw among the `k` most probable tokens.
            top_p: Draw among the fewest tokens whose probabilities sum to at least this.
            forbidden: Token ids that must not appear; end tokens and other special tokens never do.
            processor: Changes logits before planning and drawing.
            batch_size: Texts per batch.
            streams: The stream of each answer, instead of `seed`.
            on_step: Called with the state of the batch and the step's information.

        Returns:
            One completion per text, in order: `text` is the whole text, `tokens` are the tokens of the gaps.

        Raises:
            ValueError: If an argument is out of range, a text has no gap, or is longer than the model takes.
        """
        whole("batch_size", batch_size)
        check_watch(on_step)
        asked = asked_infill(
            self,
            texts,
            rule=rule,
            spans=spans,
            temperature=temperature,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
            forbidden=forbidden,
            processor=processor,
            streams=streams,
        )
        return answer_all(self, asked, batch_size, on_step)

    def encode(self, prompts: Prompts) -> list[list[int]]:
        """Returns the token ids of prompts; chats go through the chat template and end where the answer begins.

        Raises:
            ValueError: If a prompt cannot be encoded.
        """
        return [list(prompt.tokens) for prompt in as_prompts(prompts, self.tokenizer, self.mask_id)]

    def decode(self, tokens: Iterable[int], *, special: bool = False, after: Iterable[int] = ()) -> str:
        """Returns the text of token ids; `""` without a tokenizer.

        Args:
            tokens: The tokens.
            special: Whether to write special tokens out; if not, they are left out.
            after: Tokens that come before them, such as a prompt's. The result is then the text that `tokens` adds.
        """
        return Continuation(self.tokenizer, list(after)).text(list(tokens), special=special)
