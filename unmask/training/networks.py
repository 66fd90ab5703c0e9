"""Makes, describes and saves the networks that a training configuration can name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoiser import NetworkDenoiser
from ..folders import model_folder
from ..models.networks.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from ..models.networks.transformer import Transformer
from ..models.pretrained.bidirectional import load_bidirectional
from ..models.pretrained.llada import new_llada, save_llada
from ..models.pretrained.masked_lm import HFMaskedDenoiser, MaskedLM, adopt_masked_lm, new_masked_lm, save_masked_lm
from ..tasks.instructions import InstructionTask
from ..tasks.named import saved_settings
from ..tasks.task import Task
from .config import LLaDAConfig, NetworkConfig, TrainConfig

Network = Transformer | MaskedLM

FREQUENCY_EXAMPLES = 4096
"""Number of training examples whose tokens are counted for `frequencies: true`."""


def build_network(config: TrainConfig, task: Task) -> Network:
    """Makes the network of a configuration, with its weights before training.

    Random weights are a function of the configuration's seed; PyTorch's global generator is left as it was.

    Args:
        config: The configuration.
        task: The task, which gives the vocabulary, mask token and length.

    Raises:
        ValueError: If the sizes do not fit each other, the task, or the network whose weights it starts from.
        AdapterError: If a pretrained model cannot be loaded, or its vocabulary is not the task's.
    """
    chosen = config.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if isinstance(chosen, NetworkConfig):
            network = Transformer(chosen.transformer(task, config.objective == "causal"))
            if chosen.start is not None:
                start_from(network, chosen.start, task)
            elif chosen.frequencies:
                network.frequency.data.copy_(log_frequencies(task, config.seed))
            return network
        ids = task_ids(task)
        if isinstance(chosen, LLaDAConfig):
            network = new_llada(chosen.sizes, **ids, pad_id=getattr(task, "pad_id", None))
            if chosen.start is not None:
                start_llada_from(network, chosen.start)
            if config.device == "cpu" or not torch.accelerator.is_available():
                network.model.set_attn_implementation("eager")  # on a CPU fused attention takes 1.3 times as long
            return network
        if chosen.config is not None:
            return new_masked_lm(chosen.config, **ids)
        return adopt_masked_lm(Path(str(chosen.pretrained)), **ids)


def log_frequencies(task: Task, seed: int) -> Float[Tensor, " vocab"]:
    """Returns the log-frequency of each token among the maskable tokens of the training split, in nats.

    It is estimated from `FREQUENCY_EXAMPLES` random examples. Every token is counted once more than it occurs, so that
    no token is impossible.

    Args:
        task: The task.
        seed: The seed of the random examples.
    """
    examples, generator = task.examples("train"), torch.Generator().manual_seed(seed)
    counts = torch.ones(task.vocab_size)
    for index in torch.randint(len(examples), (FREQUENCY_EXAMPLES,), generator=generator).tolist():
        tokens, maskable = examples[index]
        counts += torch.bincount(tokens[maskable], minlength=task.vocab_size)
    return (counts / counts.sum()).log()


def start_from(network: Transformer, model: str, task: Task) -> None:
    """Copies the weights of another model of the same sizes, perhaps for shorter sequences (see `NetworkConfig`).

    Args:
        network: The network, which is changed.
        model: Name of an embedded model, or folder of a checkpoint.
        task: The task of the network.

    Raises:
        ValueError: If the model differs in more than the length, or in length where that cannot be changed, or has
            other characters than the task.
        AdapterError: If there is no such model, or it cannot be read.
    """
    with model_folder(model) as folder:
        old, about = load_checkpoint(folder), read_checkpoint(folder).task or {}
    if not isinstance(old, Transformer):
        raise ValueError(f"network.start: {model} is a {type(old).__name__}, expected a Transformer")
    sizes = network.config
    differ = [
        f"{field.name} {getattr(old.config, field.name)!r} for {getattr(sizes, field.name)!r}"
        for field in dataclasses.fields(sizes)
        if field.name not in ("length", "causal") and getattr(old.config, field.name) != getattr(sizes, field.name)
    ]
    if differ:
        raise ValueError(f"network.start: {model} does not fit, it has {', '.join(differ)}")
    vocabulary = about.get("settings", {}).get("vocabulary")
    if vocabulary is not None and vocabulary != getattr(task, "vocabulary", vocabulary):
        raise ValueError(f"network.start: {model} knows the characters {vocabulary!r}, the task has others")
    weights = old.state_dict()
    more = sizes.length - old.config.length
    if more:
        if sizes.rows != 1 or sizes.channels != 1 or sizes.positions or more < 0:
            raise ValueError(
                f"network.start: {model} is for {old.config.length} tokens and cannot be made one for {sizes.length};"
                " only a network for a line, without learned positions, can be lengthened"
            )
        for name in weights:
            if name.endswith(".bias"):  # one row per distance, from the farthest on one side to that on the other
                first, last = weights[name][:1].expand(more, -1), weights[name][-1:].expand(more, -1)
                weights[name] = torch.cat([first, weights[name], last])
    network.load_state_dict(weights)


def start_llada_from(network: MaskedLM, model: str) -> None:
    """Copies the weights of another model of the same sizes into a network of LLaDA's architecture.

    Args:
        network: The network, which is changed.
        model: Name of an embedded model, or folder of a checkpoint.

    Raises:
        ValueError: If the two differ in their sizes or in their token ids.
        AdapterError: If there is no such model, or it cannot be read.
    """
    with model_folder(model) as folder:
        old = load_bidirectional(folder)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    pairs = {name: (getattr(old.model.config, name), getattr(network.model.config, name)) for name in names}
    pairs["mask_id"] = (old.mask_id, network.mask_id)
    if differ := [f"{name} {theirs} for {ours}" for name, (theirs, ours) in pairs.items() if theirs != ours]:
        raise ValueError(f"network.start: {model} does not fit, it has {', '.join(differ)}")
    network.model.load_state_dict(old.model.state_dict())


def task_ids(task: Task) -> dict[str, int]:
    """Returns `vocab_size`, `mask_id` and `length` of a task: number of token ids, mask token, tokens per sequence."""
    return {name: getattr(task, name) for name in ("vocab_size", "mask_id", "length")}


def as_denoiser(network: Network, task: Task) -> NetworkDenoiser:
    """Wraps a network as a denoiser, for sampling and for estimates of the likelihood."""
    if isinstance(network, MaskedLM):
        return HFMaskedDenoiser(network)
    return NetworkDenoiser(network, **task_ids(task), wants_time=network.config.time)


def save_network(folder: Path, network: Network, config: TrainConfig, task: Task, training: dict[str, Any]) -> None:
    """Writes a network as a checkpoint that `unmask.load` reads.

    Args:
        folder: The folder; made if missing.
        network: The network.
        config: The configuration it was trained with.
        task: The task it was trained on.
        training: How it was trained, stored in `config.json`.
    """
    settings = saved_settings(task, config.task.settings)
    about: dict[str, Any] = {"task": {"name": config.task.name, "settings": settings}}
    about |= {"objective": config.objective, "schedule": config.schedule}
    if isinstance(config.network, LLaDAConfig):
        assert isinstance(network, MaskedLM)
        about = {**task_ids(task), **about, "training": training}
        save_llada(folder, network, about, end_id=getattr(task, "end_id", None))
        if isinstance(task, InstructionTask):
            task.save_tokenizer(folder)
    elif isinstance(network, MaskedLM):
        save_masked_lm(folder, network, {**task_ids(task), **about, "training": training})
    else:
        save_checkpoint(folder, network, training, **about)


def describe(network: Network) -> str:
    """Returns a description of a network for its model card."""
    parameters = sum(weight.numel() for weight in network.parameters())
    if isinstance(network, MaskedLM):
        name = type(network.model).__name__
        return f"`{name}` of the Transformers library, {parameters:,} parameters; its sizes are in `config.json`."
    sizes = network.config
    blocks = f"one block applied {sizes.depth} times" if sizes.recurrent else f"{sizes.depth} blocks"
    return (
        f"`unmask.models.networks.transformer.Transformer`, {parameters:,} parameters: {blocks}, width {sizes.width},\n"
        f"{sizes.heads} heads, MLPs of hidden size {sizes.mlp}{', conditioned on time' if sizes.time else ''}."
    )
