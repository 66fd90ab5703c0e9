"""Masked language models of the Transformers library (BERT, ModernBERT, ESM, ...) as denoisers, and training them."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel
from transformers.utils import ModelOutput

from ...denoiser import NetworkDenoiser, Query
from ...draws.categorical import ids
from ...draws.smoothing import without_smoothing
from ...errors import AdapterError
from ...files.writing import flush
from ..networks.checkpoint import FORMAT, read_config
from .hf import check_attention, check_kind, placed, quiet
from .limits import longest, unusable
from .said import mask_id_of
from .sharing import evaluate, sharing_of

KEY = "unmask"
"""The key of `config.json` under which a model trained here describes its training; other programs ignore it."""


_ASKED: ContextVar[tuple[torch.Size, Tensor, Tensor] | None] = ContextVar("asked", default=None)
"""Shape of the batch, and row and column of each hidden state that the output head is applied to."""


def _gather(base: nn.Module, inputs: Any, output: Any) -> Any:
    """Reduces the hidden states that the body of a model passes to its output head to the requested positions."""
    asked = _ASKED.get()
    if asked is not None and isinstance(output, ModelOutput) and "last_hidden_state" in output:
        state, (shape, row, column) = output["last_hidden_state"], asked
        if state.shape[:2] == shape:
            output["last_hidden_state"] = state[row, column].unsqueeze(0)
    return output


class MaskedLM(nn.Module):
    """A masked language model that computes the logits of requested positions.

    The output head, a third of the work where the vocabulary is large, is applied to those positions only. Where an
    architecture's body does not return one hidden state per token (Perceiver), it is applied to all positions, and the
    requested ones are selected afterwards.

    The attention mask hides padding, which the model gets as its own padding token, if it has one.

    Attributes:
        smoothing: The ε of the label smoothing that is undone in the logits, over all the model's token ids (see
            `unmask.draws.smoothing`).

    Args:
        model: The model.
        vocab_size: Number of token ids that are predicted: those from 0 to `vocab_size - 1` of the model's.
        mask_id: Id of the mask token.
        shift: Whether position `i` is predicted by output `i - 1`, and position 0 by output 0, as in models that were
            adapted from autoregressive ones (Dream).
        pad_id: A token that is padding wherever it occurs, so that sequences of one length may contain shorter ones.
        block_causal: Block length of block-causal attention: a position attends to its own block, counted from the
            first position, and to the blocks before it. Default: to all positions. For a Llama or Qwen with
            bidirectional attention.

    Raises:
        ValueError: If `block_causal` is not a whole number >= 1, or the model does not support such an attention mask.
        AdapterError: If the model is a sequence-to-sequence model.
    """

    makes_rows = True
    """Its logits are a new tensor, which the caller may write to."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocab_size: int,
        mask_id: int,
        shift: bool = False,
        pad_id: int | None = None,
        block_causal: int | None = None,
    ) -> None:
        super().__init__()
        if model.config.is_encoder_decoder:
            raise AdapterError(
                f"{type(model).__name__} is a sequence-to-sequence model, whose outputs are written from left to right;"
                " expected a masked language model, such as BertForMaskedLM or ModernBertForMaskedLM"
            )
        if block_causal is not None:
            if isinstance(block_causal, bool) or not isinstance(block_causal, int) or block_causal < 1:
                raise ValueError(f"block_causal must be a whole number of positions >= 1, got {block_causal!r}")
            check_attention(model, "block-causal attention")
        self.block_causal, self.smoothing, self._taken = block_causal, 0.0, 0
        self.model, self.vocab_size, self.mask_id, self.shift = model, vocab_size, mask_id, shift
        pad = getattr(model.config.get_text_config(), "pad_token_id", None) if pad_id is None else pad_id
        self.pad_id, self.hides_pad = mask_id if pad is None else pad, pad_id is not None
        base = model.base_model
        if base is not model and _gather not in base._forward_hooks.values():
            base.register_forward_hook(_gather)

    @property
    def max_length(self) -> int | None:
        """The most tokens of a sequence, or `None` if nothing limits them."""
        return longest(self.model)

    @property
    def padding_invisible(self) -> bool:
        """Whether sequences of different lengths can be evaluated together without affecting each other.

        This is the result of a trial on short sequences, repeated before each batch that is longer than all before it.
        """
        return sharing_of(self.model, self.pad_id).together == "any"

    def answer(self, query: Query, through: Any) -> Float[Tensor, "rows vocab"]:
        """Evaluates a query; sequences that would affect each other are evaluated separately.

        `unmask.models.pretrained.sharing` finds out which sequences can be evaluated together.

        Args:
            query: The tokens and the requested positions.
            through: This network, or its compiled version.

        Raises:
            ValueError: If the model cannot be evaluated. The message names its class and the length.
        """
        return evaluate(through, query)

    def forward(
        self,
        x: Int[Tensor, "batch length"],
        where: Bool[Tensor, "batch length"],
        time: Float[Tensor, " batch"] | None = None,
        valid: Bool[Tensor, "batch length"] | None = None,
        stepwise: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "rows vocab"]:
        """Returns the logits of the tokens at the requested positions.

        Args:
            x: Tokens, the mask token where masked.
            where: True at the requested positions.
            time: Ignored: these models have no timestep conditioning.
            valid: False at padding; default: there is no padding.
            stepwise: True for sequences that are read autoregressively from the block of the first requested position
                on (see `Query.stepwise`). Ignored without block-causal attention; default: no sequence.

        Returns:
            Logits, one row per True in `where`, ordered by batch and position; the mask token's is `-inf`.

        Raises:
            ValueError: If the sequences are longer than `max_length`.
        """
        tokens, seen = self.shown(x, where, valid)
        row, column = self.sources(where)
        if self.block_causal is None:
            look = seen.long()
        else:
            look = self.looks(seen, opened=None if stepwise is None else self.opened(where, stepwise))
        asked = _ASKED.set((where.shape, row, column))
        try:
            logits = self.model(input_ids=tokens, attention_mask=look).logits
        finally:
            _ASKED.reset(asked)
        gathered = logits.shape[:2] == (1, len(row))
        return self.counted(logits[0] if gathered else logits[row, column])

    def shown(
        self,
        x: Int[Tensor, "batch length"],
        where: Bool[Tensor, "batch length"],
        valid: Bool[Tensor, "batch length"] | None,
    ) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
        """Returns the tokens as the model is given them, and the attention mask.

        Args:
            x: Tokens, the mask token where masked.
            where: True at the requested positions; only its shape and device are used.
            valid: False at padding; `None`: there is no padding.

        Returns:
            The tokens with the padding token at padding, and False at padding.

        Raises:
            ValueError: If the sequences are longer than `max_length`.
        """
        seen: Tensor = torch.ones_like(where) if valid is None else valid
        if self.hides_pad:
            seen = seen & x.ne(self.pad_id)
        if x.shape[1] > self._taken:  # reading the limit from a configuration takes longer than what follows
            limit = self.max_length
            if limit is not None and x.shape[1] > limit:
                raise ValueError(
                    f"{type(self.model).__name__} cannot take {x.shape[1]} tokens: it has {limit} positions"
                )
            self._taken = x.shape[1]
        return torch.where(seen, x, self.pad_id), seen

    def sources(self, where: Bool[Tensor, "batch length"]) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
        """Returns row and column of the output that predicts each requested position, in row-major order."""
        row, column = where.nonzero(as_tuple=True)
        return row, (column - 1).clamp(min=0) if self.shift else column

    def opened(self, where: Bool[Tensor, "batch length"], stepwise: Bool[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Returns the position from which on each sequence is read autoregressively; of the others, the length."""
        assert self.block_causal is not None
        first = where.int().argmax(-1)
        start = first.div(self.block_causal, rounding_mode="floor") * self.block_causal
        return torch.where(stepwise, start, where.shape[1])

    def looks(
        self,
        seen: Bool[Tensor, "batch length"],
        position: Int[Tensor, "batch width"] | None = None,
        opened: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch 1 width length"]:
        """Returns the additive attention mask: 0 where a position is attended to, the type's least number elsewhere.

        Args:
            seen: False at positions that are not attended to.
            position: The query positions of each sequence; default: all.
            opened: The position from which on each sequence is read autoregressively; default: none is.
        """
        look = seen.unsqueeze(1)
        own = torch.arange(seen.shape[1], device=seen.device)
        position = own.expand_as(seen) if position is None else position
        if self.block_causal is None:
            look = look.expand(-1, position.shape[1], -1)
        else:
            size = self.block_causal
            look = look & (
                own.div(size, rounding_mode="floor") <= position.unsqueeze(-1).div(size, rounding_mode="floor")
            )
            if opened is not None:
                after = (position >= opened.unsqueeze(-1)).unsqueeze(-1)
                look = look & ~(after & (own > position.unsqueeze(-1)))
        dtype = self.model.dtype
        return (
            torch.zeros(look.shape, dtype=dtype, device=look.device)
            .masked_fill_(~look, torch.finfo(dtype).min)
            .unsqueeze(1)
        )

    def counted(self, logits: Float[Tensor, "rows tokens"]) -> Float[Tensor, "rows vocab"]:
        """Returns the logits of the first `vocab_size` tokens without label smoothing; the mask token's is `-inf`."""
        rows = without_smoothing(logits, self.smoothing)[:, : self.vocab_size]
        mask = ids((self.mask_id,), rows.device)
        # In place where no gradient is needed: these rows are most of the memory of a step.
        return rows.index_fill(-1, mask, -torch.inf) if rows.requires_grad else rows.index_fill_(-1, mask, -torch.inf)


class HFMaskedDenoiser(NetworkDenoiser):
    """A masked language model of the Transformers library as a denoiser, for sequences of any lengths together.

    Apart from rounding, the result for a sequence does not depend on its batch: models that do not ignore padding are
    evaluated on sequences of one length at a time. An ESM with `token_dropout` divides by the share of unmasked tokens,
    so for a sequence that is entirely masked it returns NaN, which samplers refuse.

    Args:
        network: The model; it is put into evaluation mode.
    """

    def __init__(self, network: MaskedLM) -> None:
        super().__init__(network, network.vocab_size, network.mask_id)
        self.masked_lm = network

    @property
    def max_length(self) -> int | None:
        """The most tokens of a sequence, or `None` if nothing limits them."""
        return self.masked_lm.max_length

    @property
    def padding_invisible(self) -> bool:
        """Whether sequences of different lengths are evaluated together (see `MaskedLM`)."""
        return self.masked_lm.padding_invisible

    def evaluate(self, query: Query) -> Float[Tensor, "rows vocab"]:
        with torch.no_grad():
            return self.masked_lm.answer(query, self.network)


def load_masked_lm(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    mask_id: int | None = None,
    **options: Any,
) -> MaskedLM:
    """Loads a masked language model in the Transformers library's format, trained by this package or elsewhere.

    The mask token is the one that this package trained the model with, or else `mask_id`, or else the one that the
    folder names.

    Args:
        folder: A folder with `config.json` and weights in safetensors. No code in it is run.
        device: The device to put the model on.
        dtype: The type of its weights and activations.
        mask_id: Id of the mask token, for a folder that does not name it.
        **options: Options of `from_pretrained`, such as `device_map`.

    Raises:
        AdapterError: If the folder holds another kind of model (sequence-to-sequence, causal, ...), is damaged, lacks
            weights, or does not say which token is the mask.
        ValueError: If `mask_id` is not a token id, or differs from the one that this package trained the model with.
    """
    config = read_config(folder)
    check_kind(folder, config, "masked")
    about = about_of(folder)
    model = placed(AutoModelForMaskedLM, folder, dtype, device, options)
    if about and mask_id not in (None, about["mask_id"]):
        raise ValueError(f"{folder} was trained with the mask {about['mask_id']}, not {mask_id}; leave mask_id out")
    mask_id = int(about["mask_id"]) if about else mask_id_of(folder, config, mask_id)
    tokens = model.config.get_text_config().vocab_size
    vocab_size = about["vocab_size"] if about else tokens
    if not 0 <= mask_id < vocab_size <= tokens:
        raise AdapterError(
            f"{folder}: mask_id {mask_id} and vocab_size {vocab_size} do not fit a model of {tokens} tokens"
        )
    return MaskedLM(model, vocab_size, mask_id)


def about_of(folder: Path) -> dict[str, Any] | None:
    """Returns what a model trained by this package says about its training, and `None` for any other model.

    These are token ids and task as in `unmask.models.networks.checkpoint`.

    Raises:
        AdapterError: If `config.json` cannot be read, or says it in another format.
    """
    about = read_config(folder).get(KEY)
    if about is None:
        return None
    ids = [about.get(name) for name in ("vocab_size", "mask_id", "length")] if isinstance(about, dict) else []
    if not ids or about.get("format") != FORMAT or not all(isinstance(number, int) for number in ids):
        raise AdapterError(f'{folder / "config.json"}: "{KEY}" does not have format {FORMAT!r} with its token ids')
    return about


def new_masked_lm(settings: dict[str, Any], vocab_size: int, mask_id: int, length: int) -> MaskedLM:
    """Makes an untrained model; its weights come from PyTorch's generator.

    The model has one token more than the task: the padding token.

    Args:
        settings: `model_type` and sizes, as in the library's configuration files, but no token ids.
        vocab_size: Number of token ids of the task, the mask token included.
        mask_id: Id of the mask token.
        length: Tokens per sequence.

    Raises:
        ValueError: If there is no such masked language model, or a setting is unknown, does not fit or is a token id,
            or the model cannot take a sequence of `length` tokens that is entirely masked.
    """
    kind = settings["model_type"]
    given = {key: value for key, value in settings.items() if key != "model_type"}
    try:
        known = AutoConfig.for_model(kind)
    except ValueError as error:
        raise ValueError(f"unknown model_type {kind!r}; the Transformers library has {str(error)[-400:]}") from error
    check_kind("network.config", {"model_type": kind, **known.to_dict(), **given}, "masked")
    ours = [key for key in given if key == "vocab_size" or key.endswith("_token_id")]
    if ours:
        raise ValueError(f"{', '.join(ours)}: token ids come from the task, not from network.config")
    fields = known.to_dict()
    if extra := sorted(set(given) - set(fields) - set(known.attribute_map)):
        raise ValueError(f"{', '.join(extra)}: not a setting of {kind}; it has {', '.join(sorted(fields))}")
    ids: dict[str, Any] = {key: None for key in fields if key.endswith("_token_id") and key != "decoder_start_token_id"}
    if "mask_token_id" in ids:
        ids["mask_token_id"] = mask_id
    try:
        config = AutoConfig.for_model(
            kind, **given, **{**ids, "pad_token_id": vocab_size, "vocab_size": vocab_size + 1}
        )
        with quiet():
            model = AutoModelForMaskedLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # the library checks its settings in many ways
        raise ValueError(f"network.config does not describe a {kind}: {error}") from error
    return _checked(MaskedLM(model, vocab_size, mask_id), length)


def adopt_masked_lm(folder: Path, vocab_size: int, mask_id: int, length: int) -> MaskedLM:
    """Loads a model to train it further on a task that has the same token ids.

    Args:
        folder: The folder of the model.
        vocab_size: Number of token ids of the task, the mask token included.
        mask_id: Id of the task's mask token.
        length: Tokens per sequence.

    Raises:
        AdapterError: As `load_masked_lm`, or if the model has another mask token, or fewer tokens than the task.
        ValueError: If the sequences are too long for the model, or it fails on one that is entirely masked.
    """
    loaded = load_masked_lm(folder)
    if loaded.mask_id != mask_id or loaded.vocab_size < vocab_size:
        raise AdapterError(
            f"the vocabulary of {folder} ({loaded.vocab_size} tokens, the mask {loaded.mask_id}) does not fit the"
            f" task's ({vocab_size} tokens, the mask {mask_id})"
        )
    return _checked(MaskedLM(loaded.model, vocab_size, mask_id), length)


def _checked(network: MaskedLM, length: int) -> MaskedLM:
    """Evaluates the hardest sequence, of full length and entirely masked, and returns the network if it succeeds."""
    name, limit = type(network.model).__name__, network.max_length
    if limit is not None and length > limit:
        # RoBERTa and ESM number positions from the padding token's id on, and so need more of them.
        advice = f"max_position_embeddings has to be {length + unusable(network.model)} or more"
        raise ValueError(f"{name} cannot take {length} tokens: it has {limit} positions; {advice}")
    x = torch.full((1, length), network.mask_id)
    try:
        with torch.no_grad():
            logits = network.eval()(x, torch.ones_like(x, dtype=torch.bool))
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"{name} fails on {length} tokens ({error})") from error
    if bool(logits.isnan().any()):
        advice = "; set token_dropout to false" if getattr(network.model.config, "token_dropout", False) else ""
        raise ValueError(f"{name} gives NaN for a sequence that is entirely masked{advice}")
    return network


def save_masked_lm(folder: Path, network: MaskedLM, about: dict[str, Any]) -> None:
    """Writes a model as the library does, each file replaced atomically; `from_pretrained` reads the folder.

    Args:
        folder: The folder; made if missing.
        network: The model.
        about: What is stored under `unmask` in `config.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.tmp"):
        shutil.rmtree(left)
    setattr(network.model.config, KEY, {"format": FORMAT, **about})
    with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".tmp") as temporary:
        with quiet():
            network.model.save_pretrained(temporary)
        # The weights first: so a folder with a new configuration always has the weights that belong to it.
        for file in sorted(Path(temporary).iterdir(), key=lambda path: path.suffix != ".safetensors"):
            flush(file)
            os.replace(file, folder / file.name)
    flush(folder)
