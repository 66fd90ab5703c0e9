"""Masked diffusion language models in lm-evaluation-harness (extra `eval`).

    import lm_eval
    from unmask.integrations.lm_eval import UnmaskLM

    model = UnmaskLM("path/to/checkpoint", "entropy-bound:gamma=0.1")
    lm_eval.simple_evaluate(model=model, tasks=["gsm8k"], limit=20)
    print(model.costs())

After this import `simple_evaluate(model="unmask", model_args={"pretrained": ..., "rule": ...})` works as well, and the
command `unmask eval` does the same. Answers are generated with the package's sampling loop, in batches across requests;
log-likelihoods are estimates of `unmask.nelbo`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as error:
    raise ImportError(
        "unmask.integrations.lm_eval needs lm-evaluation-harness >= 0.4.13: pip install 'unmask[eval]'"
    ) from error

from ..draws.streams import derive
from ..evaluation.store import Store
from ..language.arguments import checked_text
from ..language.chats import chat_text, system_in_user
from ..language.prompts import Prompt, encode_text, surroundings
from ..language.whole_blocks import WholeBlocks, in_blocks
from ..likelihood.nelbo import nelbo
from ..rules.named import NamedRule
from ..rules.usual import suited_rule
from ..sampling.sample import sample

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from ..language import LanguageModel

Tokens = Sequence[int]
Share = Callable[[Sequence[Any]], Iterable[tuple[int, dict[str, Any]]]]
"""Has others answer pieces of work, by `UnmaskLM.answer` of a model like this one; tells the place of each in the list,
in any order, and its answers."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draw:
    """The generation settings of a request.

    Attributes:
        max_new_tokens: Number of masks after the prompt.
        stop: Texts that end the answer.
        temperature: The temperature of the draw.
        top_k: Draw from the `top_k` most probable tokens; `None`: from all tokens.
        top_p: Draw from the smallest set of tokens with at least this probability in total; `None`: from all tokens.
    """

    max_new_tokens: int
    stop: tuple[str, ...]
    temperature: float
    top_k: int | None
    top_p: float | None


class UnmaskLM(TemplateLM):
    """A language model with a sampling rule, with the interface of lm-evaluation-harness.

    An answer depends on its prompt, the settings and the seed, but not on other requests or on the batches. (Equal
    requests get different streams, in their order.) If a prompt is too long for the model, its beginning is cut off;
    such prompts are counted. So are prompts that contain the text of the mask token: it is encoded with other tokens,
    and is not a gap.

    Args:
        pretrained: A language model, or a name or folder for `unmask.load`.
        rule: The unmasking rule, or its name; default: `unmask.default_rule`, priced for `temperature`, or for 0.
        temperature: The temperature of the draw, which replaces that of each task; 0 takes the argmax.
        max_new_tokens: Length of the answers, which replaces that of each task.
        block_length: Fill answers in blocks of so many tokens; default: the model's own block length, or one canvas.
        guidance: Scale of classifier-free guidance, see `LanguageModel.generate`.
        end_last: Whether end tokens are unmasked last, see `LanguageModel.generate`.
        seed: The seed of all random streams.
        batch_size: Requests per batch; apart from rounding, it changes no answer.
        strata: Number of evaluations per replicate of a log-likelihood; a continuation with fewer tokens takes one per
            token.
        replicates: Number of independent repetitions of each of these estimates.
        check_greedy: Whether log-likelihood requests are also answered at temperature 0, for the harness's `is_greedy`;
            if not, that is reported as false.
        store: A file in which every answer is stored, so that an interrupted evaluation continues from it.
        identity: What the answers depend on besides the settings here, such as the model's weights. Stored answers of
            another identity are not used.
        device: The device for a model that is loaded here.
        dtype: The type of its weights and activations, such as `bfloat16`.
        mask_id: Id of the mask token, for a model that is loaded here and does not name it.
        revision: Branch, tag or commit, for a model on the hub that is loaded here.
        token: Access token of the hub, as in `unmask.load`.
        local_files_only: Use the downloaded copy of a model, without contacting the hub.
        on_answer: Called with the number of requests just answered.
        share: Has others answer; the model here is then needed for its tokenizer and its lengths only.
        **settings: Settings of the rule, such as `gamma`.

    Raises:
        ValueError: If a setting is out of range, the rule or one of its settings is unknown, or the model is not a
            language model.
        AdapterError: If the model cannot be loaded.
    """

    def __init__(
        self,
        pretrained: LanguageModel | str | Path,
        rule: str | NamedRule | None = None,
        *,
        temperature: float | None = None,
        max_new_tokens: int | None = None,
        block_length: int | None = None,
        guidance: float | None = None,
        end_last: bool | None = None,
        seed: int = 0,
        batch_size: int | str = 8,
        strata: int = 16,
        replicates: int = 2,
        check_greedy: bool = True,
        store: str | Path | None = None,
        identity: Any = None,
        device: str = "cpu",
        dtype: str = "float32",
        mask_id: int | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        on_answer: Callable[[int], None] | None = None,
        share: Share | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        kind = getattr(torch, dtype, None)
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            raise ValueError(f"unknown dtype {dtype!r}; use a floating-point type, such as float32 or bfloat16")
        options = {"revision": revision, "token": token, "local_files_only": local_files_only}
        self.model = _language_model(pretrained, device=device, dtype=kind, mask_id=mask_id, **options)
        if not isinstance(rule, NamedRule):
            rule = suited_rule(rule, self.model.source, 0.0 if temperature is None else temperature, **settings)
        self.rule = rule
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be an integer >= 1, got {batch_size!r}")
        self.batch_size, self.seed, self.on_answer, self.share = int(batch_size), seed, on_answer, share
        self.temperature, self.max_new_tokens = temperature, max_new_tokens
        self.how = {"block_length": block_length, "guidance": guidance, "end_last": end_last}
        self.strata, self.replicates, self.check_greedy = strata, replicates, check_greedy
        named = str(pretrained) if isinstance(pretrained, (str, Path)) else None
        named = named if revision is None else f"{named}@{revision}"
        self._identity = [named, dtype, mask_id, identity, str(self.rule), self.how, seed]
        self._kept = Store(None if store is None else Path(store))
        self._answered: list[tuple[str | None, dict[str, Any]]] = []
        self._chat = self._merged = False

    # What the harness needs of any model.

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.model.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """The name of the tokenizer, under which the harness caches prompts."""
        return str(getattr(self.tokenizer, "name_or_path", "")).replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        """The token that stands for an empty context, which is an end token.

        Raises:
            ValueError: If the model has no end token.
        """
        if not self.model.end_ids:
            raise ValueError("this model has no end-of-text token, and the task has requests without a context")
        return self.model.end_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context: the tokenizer's own beginning token, or else an end token."""
        return self._around[0][-1] if self._around[0] else self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Returns the token ids of a text, by default with the special tokens before it that a prompt has."""
        return list(self._prompt(string, not self._chat if add_special_tokens is None else add_special_tokens).tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns a chat as text, up to where the answer begins.

        If the template has no system role, the system message is put before the user's first message.

        Raises:
            ValueError: If the template refuses this chat as well.
        """
        self._chat = True  # the text of the template already has the special tokens
        options = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return chat_text(self.tokenizer, chat_history, **options)
        except ValueError:
            if (merged := system_in_user(chat_history)) is None:
                raise
        text = chat_text(self.tokenizer, merged, **options)
        if not self._merged:
            _LOG.warning("the chat template has no system role: system messages are put before the user's first")
        self._merged = True
        return text

    def _prompt(self, text: str, special: bool) -> Prompt:
        """Encodes a text as `LanguageModel.generate` does, or without special tokens, but never with a mask token."""
        if special:
            prompt = encode_text(text, self.tokenizer)
        else:
            prompt = Prompt(text, tuple(self.tokenizer(checked_text(text), add_special_tokens=False)["input_ids"]))
        return replace(prompt, tokens=self._without_mask(prompt.tokens))

    @cached_property
    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return surroundings(self.tokenizer)

    @property
    def _suffix(self) -> tuple[int, ...]:
        """The special tokens after a text, such as BERT's `[SEP]`; none after a chat."""
        return () if self._chat else self._around[1]

    @cached_property
    def _mask_as_text(self) -> tuple[str, tuple[int, ...]]:
        """The text of the mask token, and other tokens that encode this text."""
        mask, tokenizer = self.model.mask_id, self.tokenizer
        name = tokenizer.convert_ids_to_tokens(mask) or ""
        tokens = tokenizer(name, add_special_tokens=False, split_special_tokens=True)["input_ids"] if name else []
        if mask in tokens:
            tokens = [] if tokenizer.unk_token_id is None else [tokenizer.unk_token_id]
        return name, tuple(tokens)

    def _without_mask(self, tokens: Tokens) -> tuple[int, ...]:
        if self.model.mask_id not in tokens:
            return tuple(tokens)
        return tuple(
            one for token in tokens for one in (self._mask_as_text[1] if token == self.model.mask_id else [token])
        )

    def _holds_mask(self, request: Instance) -> bool:
        name = self._mask_as_text[0]
        return bool(name) and any(name in text for text in request.args if isinstance(text, str))

    def get_model_info(self) -> dict[str, Any]:
        """Returns the settings that the harness writes into its results."""
        return {"rule": str(self.rule), "seed": self.seed, "temperature": self.temperature, **self.how}

    # Generation.

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers prompts; see `LM.generate_until` of the harness.

        Raises:
            ValueError: If a task has a generation setting that is not supported, or answers leave no room for a prompt.
        """
        copies: Counter[tuple[Tokens, Draw]] = Counter()
        keys: list[str] = []
        jobs: dict[Draw, dict[str, tuple[Prompt, int, bool]]] = defaultdict(dict)
        for request in requests:
            context, asked = request.arguments
            draw = self._draw(asked)
            prompt, cut = self._fitting(self._prompt(context, not self._chat), draw.max_new_tokens)
            stream = derive(self.seed, prompt.tokens, copies[prompt.tokens, draw])
            copies[prompt.tokens, draw] += 1
            key = self._key(
                "generate", prompt.tokens, *([prompt.suffix] if prompt.suffix else []), stream, asdict(draw)
            )
            keys.append(key)
            if key not in self._kept:
                jobs[draw][key] = (prompt, stream, cut)
            elif self.on_answer is not None:
                self.on_answer(1)
        pieces = []
        for draw, waiting in jobs.items():
            # The longest prompts come first, so that a batch that does not fit into memory fails at once.
            for part in _chunks(sorted(waiting, key=lambda key: -len(waiting[key][0].tokens)), self.batch_size):
                pieces.append(("generate", draw, {key: waiting[key] for key in part}))
        self._carry_out(pieces)
        for request, key in zip(requests, keys, strict=True):
            self._answered.append((request.task_name, {**self._kept[key], "masked": self._holds_mask(request)}))
            self.cache_hook.add_partial("generate_until", request.args, self._kept[key]["text"])
        return [self._kept[key]["text"] for key in keys]

    def _carry_out(self, pieces: Sequence[Any]) -> None:
        """Answers pieces of work, here or elsewhere, and keeps the answers."""
        here = ((number, self.answer(piece)) for number, piece in enumerate(pieces))
        for _, found in here if self.share is None else self.share(pieces):
            for key, value in found.items():
                self._kept[key] = value
            if self.on_answer is not None:
                self.on_answer(len(found))

    def answer(self, piece: Any) -> dict[str, dict[str, Any]]:
        """Answers a piece of work, which is one batch; returns the answers by their keys."""
        kind, *arguments = piece
        return self._generate(*arguments) if kind == "generate" else self._score(*arguments)

    def _generate(self, draw: Draw, batch: Mapping[str, tuple[Prompt, int, bool]]) -> dict[str, dict[str, Any]]:
        begin = time.perf_counter()
        completions = self.model.generate(
            [prompt for prompt, _, _ in batch.values()],
            rule=self.rule.rule,
            max_new_tokens=draw.max_new_tokens,
            temperature=draw.temperature,
            stop=draw.stop,
            top_k=draw.top_k,
            top_p=draw.top_p,
            streams=[stream for _, stream, _ in batch.values()],
            batch_size=self.batch_size,
            **self.how,
        )
        seconds = (time.perf_counter() - begin) / len(batch)
        return {
            key: {
                "text": completion.text,
                "nfe": completion.nfe,
                "new_tokens": completion.new_tokens,
                "seconds": seconds,
                "finish_reason": completion.finish_reason,
                "cut": cut,
            }
            for (key, (_, _, cut)), completion in zip(batch.items(), completions, strict=True)
        }

    def _draw(self, asked: Mapping[str, Any]) -> Draw:
        settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(asked)))
        until, longest = settings.pop("until"), int(settings.pop("max_gen_toks"))
        sampled, temperature = settings.pop("do_sample"), float(settings.pop("temperature", 0.0))
        top_k, top_p = settings.pop("top_k", None), settings.pop("top_p", None)
        if settings:
            raise ValueError(f"the generation setting {', '.join(sorted(settings))} is not supported")
        if self.temperature is not None:
            temperature = self.temperature
        return Draw(
            max_new_tokens=self.max_new_tokens or longest,
            stop=tuple(text for text in until if text),
            temperature=temperature,
            top_k=int(top_k) if top_k and sampled else None,
            top_p=float(top_p) if top_p and sampled else None,
        )

    def _fitting(self, prompt: Prompt, new: int) -> tuple[Prompt, bool]:
        """Cuts the beginning of a prompt that does not fit, and returns the prompt and whether it was cut."""
        room = math.inf if self.model.max_length is None else self.model.max_length - new - len(prompt.suffix)
        if room < 1:
            raise ValueError(
                f"answers of {new} tokens leave no room for a prompt in a model of {self.model.max_length} tokens; make"
                " them shorter with max_new_tokens"
            )
        if len(prompt.tokens) <= room:
            return prompt, False
        return replace(prompt, tokens=prompt.tokens[-int(room) :]), True

    # Likelihoods.

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Scores continuations by `-nelbo` in nats, an estimate of a lower bound of their log-likelihood.

        See `LM.loglikelihood` of the harness.
        """
        scores = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        begin = len(self._answered) - len(requests)
        for index, request in enumerate(requests):
            answer = {**self._answered[begin + index][1], "masked": self._holds_mask(request)}
            self._answered[begin + index] = (request.task_name, answer)
        return scores

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._window(context, scored) for _, context, scored in requests]
        found = self._scores([(context, scored) for context, scored, _ in pairs], self.check_greedy)
        for score, (_, _, cut) in zip(found, pairs, strict=True):
            self._answered.append((None, {**score, "cut": cut, "masked": False}))
        return [(score["log_likelihood"], score["greedy"]) for score in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Scores whole texts in windows of the model's maximum length, each without the windows before it as context.

        The scores are as in `loglikelihood`.
        """
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        before, after = ((), ()) if self._chat else self._around
        room = None if self.model.max_length is None else max(1, self.model.max_length - len(before) - len(after))
        parts = [list(_chunks(tokens, room or max(1, len(tokens)))) for tokens in texts]
        found = iter(self._scores([(list(before), part) for windows in parts for part in windows], False))
        totals = []
        for request, windows in zip(requests, parts, strict=True):
            scores = [next(found) for _ in windows]
            totals.append(sum(score["log_likelihood"] for score in scores))
            cost = {name: sum(score[name] for score in scores) for name in ("nfe", "seconds")}
            self._answered.append((request.task_name, {**cost, "cut": False, "masked": self._holds_mask(request)}))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def _window(self, context: list[int], scored: list[int]) -> tuple[list[int], list[int], bool]:
        limit = None if self.model.max_length is None else self.model.max_length - len(self._suffix)
        if not scored:
            raise ValueError("a request is for the likelihood of a continuation without tokens")
        if limit is None or len(context) + len(scored) <= limit:
            return context, scored, False
        if len(scored) > limit:
            raise ValueError(
                f"a continuation of {len(scored)} tokens does not fit a model of {self.model.max_length} tokens"
            )
        return context[len(context) + len(scored) - limit :], scored, True

    def _scores(self, pairs: list[tuple[list[int], list[int]]], greedy: bool) -> list[dict[str, Any]]:
        """Returns the log-likelihood of each continuation given its context, and whether the model would write it.

        The latter is at temperature 0. A block-causal model is scored as it generates: block by block, each given those
        before it.
        """
        size = self.model.block_causal
        if size is None:
            return self._each(pairs, greedy)
        parts = [list(in_blocks(context, scored, size)) for context, scored in pairs]
        found = iter(self._each([part for one in parts for part in one], greedy))
        return [_joined([next(found) for _ in one]) for one in parts]

    def _each(self, pairs: list[tuple[list[int], list[int]]], greedy: bool) -> list[dict[str, Any]]:
        keys: list[str] = []
        waiting: dict[str, tuple[list[int], list[int]]] = {}
        for context, scored in pairs:
            around = [self._suffix] if self._suffix else []
            key = self._key("score", context, scored, *around, [self.strata, self.replicates, greedy])
            keys.append(key)
            if key not in self._kept:
                waiting[key] = (context, scored)
            elif self.on_answer is not None:
                self.on_answer(1)
        # With fewer tokens than strata, several evaluations would have the same number of masks.
        jobs: dict[int, list[str]] = defaultdict(list)
        for key in sorted(waiting, key=lambda key: -sum(map(len, waiting[key]))):
            jobs[min(self.strata, len(waiting[key][1]))].append(key)
        pieces = []
        for strata, group in jobs.items():
            for part in _chunks(group, self.batch_size):
                pieces.append(("score", {key: waiting[key] for key in part}, strata, greedy))
        self._carry_out(pieces)
        return [self._kept[key] for key in keys]

    def _score(
        self, batch: Mapping[str, tuple[list[int], list[int]]], strata: int, greedy: bool
    ) -> dict[str, dict[str, Any]]:
        begin = time.perf_counter()
        device = self.model.device
        rows = [torch.tensor([*context, *scored, *self._suffix], device=device) for context, scored in batch.values()]
        width = max(map(len, rows))
        maskable = torch.zeros(len(rows), width, dtype=torch.bool, device=device)
        for row, (context, scored) in enumerate(batch.values()):
            maskable[row, len(context) : len(context) + len(scored)] = True
        streams = [derive(self.seed, context, scored) for context, scored in batch.values()]
        denoiser = self.model if self.model.block_causal is None else WholeBlocks(self.model)
        estimate = nelbo(
            denoiser,
            rows,
            maskable=maskable,
            strata=strata,
            replicates=self.replicates if strata > 1 else 1,
            streams=streams,
            batch_size=self.batch_size,
        )
        nfe, same = [estimate.evaluations] * len(rows), [False] * len(rows)
        if greedy:
            masked = [torch.where(maskable[row, : len(x)], self.model.mask_id, x) for row, x in enumerate(rows)]
            own = sample(denoiser, masked, self.rule.rule, streams=streams, temperature=0.0)
            same = [tokens == x.tolist() for tokens, x in zip(own.sequences, rows, strict=True)]
            nfe = [count + more for count, more in zip(nfe, own.nfe.tolist(), strict=True)]
        seconds = (time.perf_counter() - begin) / len(rows)
        return {
            key: {
                "log_likelihood": -float(estimate.nelbo[row]),
                "standard_error": None if self.replicates < 2 or strata < 2 else float(estimate.standard_error[row]),
                "greedy": same[row],
                "nfe": nfe[row],
                "seconds": seconds,
            }
            for row, key in enumerate(batch)
        }

    # Costs.

    def costs(self) -> dict[str, dict[str, Any]]:
        """Returns the costs of the answers so far, by task.

        Only tokens up to the end token are counted. Seconds are those of the calls to the model, each divided equally
        among the requests of its batch; for answers from a store, the time that it took to make them.
        """
        found: dict[str, dict[str, Any]] = {}
        for task in dict.fromkeys(name for name, _ in self._answered):
            answers = [answer for name, answer in self._answered if name == task]
            nfe, seconds = (sum(answer[name] for answer in answers) for name in ("nfe", "seconds"))
            row: dict[str, Any] = {
                "requests": len(answers),
                "nfe_mean": nfe / len(answers),
                "seconds": seconds,
                "prompts_cut": sum(answer["cut"] for answer in answers),
                "prompts_with_mask": sum(answer["masked"] for answer in answers),
            }
            if all("new_tokens" in answer for answer in answers):
                new = sum(answer["new_tokens"] for answer in answers)
                row["new_tokens_mean"] = new / len(answers)
                row["tokens_per_evaluation"] = new / nfe if nfe else None
                row["tokens_per_second"] = new / seconds if seconds else None
                row["finished"] = sum(answer["finish_reason"] != "length" for answer in answers)
            found[str(task)] = row
        return found

    def _key(self, kind: str, *parts: Any) -> str:
        content = json.dumps([self._identity, kind, *parts], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


register_model("unmask")(UnmaskLM)  # not as a decorator, which would hide the class's type


def _language_model(pretrained: LanguageModel | str | Path, **options: Any) -> LanguageModel:
    from ..language import LanguageModel

    if isinstance(pretrained, LanguageModel):
        return pretrained
    from ..models.registry import load

    model = load(pretrained, **options)
    if not isinstance(model, LanguageModel):
        raise ValueError(f"{pretrained} is not a language model: it has no tokenizer for the texts of the tasks")
    return model


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the score of a continuation from the scores of its parts, each given the parts before it."""
    errors = [part["standard_error"] for part in parts if part["standard_error"] is not None]
    return {
        "log_likelihood": sum(part["log_likelihood"] for part in parts),
        "standard_error": math.hypot(*errors) if errors else None,
        "greedy": all(part["greedy"] for part in parts),
        "nfe": sum(part["nfe"] for part in parts),
        "seconds": sum(part["seconds"] for part in parts),
    }


def _chunks(items: Sequence[Any], size: int) -> list[Any]:
    return [items[start : start + size] for start in range(0, len(items), size)]
