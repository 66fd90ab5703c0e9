"""Judges: autoregressive models that measure how probable a sample is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import AdapterError
from ..folders import model_folder
from ..likelihood.nelbo import causal_likelihood
from ..models.networks.checkpoint import FORMAT, load_checkpoint, read_checkpoint, read_config
from ..models.networks.transformer import Transformer
from ..tasks.task import Task

Judge = Callable[[Int[Tensor, "samples length"]], Float[Tensor, " samples"]]


def load_judge(folder: Path | str, task: Task, device: torch.device | str = "cpu") -> Judge:
    """Loads a judge of a task's samples.

    The folder holds one of two things:

    - A causal checkpoint of this package, trained with `objective: causal` on the same vocabulary. Its measure is the
      mean of `-log p(x_i | x_<i)` over the tokens of a sample, in nats per token (per character for text by
      characters).
    - A causal language model of the Transformers library with its tokenizer (it needs the extra `train`). Its input is
      the text of `task.show` after its beginning-of-text token, and its measure is in nats per character of that text.

    Args:
        folder: The folder, the name of a model of the hub (`owner/name`), or `"judge"`, the causal character model that
            ships with the package.
        task: The task of the samples.
        device: The device of the judge.

    Returns:
        A function from complete samples to this measure, in float64 on the CPU. It raises `ValueError` for samples with
        masks, with more tokens than the judge can take, or with characters that its tokenizer does not know.

    Raises:
        AdapterError: If the folder holds another kind of model, cannot be read, or its vocabulary is not the task's.
    """
    with model_folder(folder) as found:
        return _load(found, task, torch.device(device))


def _load(folder: Path, task: Task, device: torch.device) -> Judge:
    config = read_config(folder)
    if config.get("format") == FORMAT:
        score = _own(folder, task, device)
    elif "model_type" in config:
        score = _foreign(folder, config, task, device)
    else:
        raise AdapterError(
            f"{folder / 'config.json'} was written neither by this package nor by the Transformers library; a judge is"
            " a checkpoint trained with 'objective: causal', or a folder of AutoModelForCausalLM"
        )

    def judge(tokens: Int[Tensor, "samples length"]) -> Float[Tensor, " samples"]:
        if bool((tokens == task.mask_id).any()):
            raise ValueError("a judge takes complete samples; these contain the mask token")
        with torch.no_grad():
            return score(tokens.to(device)).cpu()

    return judge


def _own(folder: Path, task: Task, device: torch.device) -> Judge:
    checkpoint = read_checkpoint(folder)
    if checkpoint.objective != "causal":
        raise AdapterError(f"{folder} holds a masked model; a judge must be trained with 'objective: causal'")
    network = load_checkpoint(folder, device=device)
    assert isinstance(network, Transformer)
    ids = checkpoint.ids()
    for name in ("vocab_size", "mask_id"):
        if ids[name] != getattr(task, name):
            raise AdapterError(
                f"{folder} has {name} {ids[name]}, but the task {task.name} has {getattr(task, name)}: the judge must"
                " be trained on the same vocabulary"
            )
    vocabulary = (checkpoint.task or {}).get("settings", {}).get("vocabulary")
    if vocabulary is not None and vocabulary != getattr(task, "vocabulary", None):
        raise AdapterError(
            f"{folder} was trained on other characters than the task {task.name} has: the judge must be trained on the "
            "same vocabulary"
        )
    length = ids["length"]

    def score(tokens: Int[Tensor, "samples length"]) -> Float[Tensor, " samples"]:
        if tokens.shape[1] > length:
            raise ValueError(f"this judge takes {length} tokens, but the samples have {tokens.shape[1]}")
        # A causal model ignores the tokens after a position, so a shorter sample is padded on the right.
        x = F.pad(tokens, (0, length - tokens.shape[1]), value=task.mask_id)
        return causal_likelihood(network, x, x != task.mask_id).per_token

    return score


def _foreign(folder: Path, config: dict[str, object], task: Task, device: torch.device) -> Judge:
    from transformers import AutoModelForCausalLM

    from ..models.pretrained.hf import check_kind, pretrained, tokenizer_of
    from ..models.pretrained.limits import longest

    check_kind(folder, config, "causal")
    model = pretrained(AutoModelForCausalLM, folder).to(device)  # pyright: ignore[reportArgumentType]
    tokenizer = tokenizer_of(folder)
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if begin is None:
        raise AdapterError(f"the tokenizer of {folder} has no token that begins a text (bos_token or eos_token)")
    size: Any = model.get_input_embeddings()
    if begin >= size.num_embeddings:
        raise AdapterError(
            f"the tokenizer of {folder} begins a text with token {begin}, but its model has only"
            f" {size.num_embeddings} tokens"
        )
    limit = longest(model)

    def score(tokens: Int[Tensor, "samples length"]) -> Float[Tensor, " samples"]:
        texts = [task.show(row) for row in tokens]
        read = [[begin, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
        for text, ids in zip(texts, read, strict=True):
            if tokenizer.unk_token_id in ids[1:]:
                raise ValueError(f"the judge's tokenizer does not know every character of {text!r}")
            if max(ids) >= size.num_embeddings:
                raise ValueError(f"the judge's tokenizer has a token for {text!r:.60} that its model does not know")
            if limit is not None and len(ids) > limit:
                raise ValueError(f"this judge takes {limit} tokens, but a sample has {len(ids)}")
        # Padded on the right, to which a causal model does not attend.
        width = max(map(len, read))
        x = torch.tensor([ids + [begin] * (width - len(ids)) for ids in read], device=device)
        seen = (torch.arange(width) < torch.tensor([[len(ids)] for ids in read])).to(device)
        logits = model(input_ids=x, attention_mask=seen.long()).logits[:, :-1]
        nats = F.cross_entropy(logits.float().transpose(1, 2), x[:, 1:], reduction="none").double() * seen[:, 1:]
        return nats.sum(1).cpu() / torch.tensor([len(text) for text in texts])

    return score
