"""Tiny folders with one thing wrong, made from a number: for tests that loading refuses them in its own words.

Run as a program it tries many of them in a process of its own, with a limit on its memory:
`python tests/folders.py FIRST COUNT SCRATCH` prints a JSON object for each.
"""

from __future__ import annotations

import faulthandler
import json
import random
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from layouts import write, write_text_model
from transformers import (
    BertConfig,
    BertForMaskedLM,
    EsmConfig,
    EsmForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

import unmask
from unmask.errors import UnmaskError
from unmask.evaluation.judge import load_judge
from unmask.language import LanguageModel
from unmask.models.networks.checkpoint import save_checkpoint
from unmask.models.networks.transformer import Transformer, TransformerConfig
from unmask.rules.named import named_rule
from unmask.tasks.named import named_task

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _foreign(folder: Path, make: Callable[[int], PreTrainedModel]) -> Path:
    """A model of the library with the tokenizer of the instructions."""
    write_text_model(folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    make(len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])).save_pretrained(folder)
    return folder


def _own(folder: Path) -> Path:
    config = TransformerConfig(vocab_size=13, mask_id=12, length=8, width=16, depth=1, heads=2)
    save_checkpoint(folder, Transformer(config), task={"name": "arithmetic", "settings": {}})
    return folder


def _dream(folder: Path) -> Path:
    from test_vocabulary import write_dream

    return write_dream(folder, folder.parent / "ran")


MAKERS: dict[str, Callable[[Path], Path]] = {
    "llada": write_text_model,
    "llada-shards": lambda folder: write(folder, "llada", shards=3),
    "dream": _dream,
    "qwen2": lambda folder: _foreign(
        folder,
        lambda size: Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=size, intermediate_size=24, num_key_value_heads=2, max_position_embeddings=64, **SMALL
            )
        ),
    ),
    "bert": lambda folder: _foreign(
        folder,
        lambda size: BertForMaskedLM(
            BertConfig(vocab_size=size, intermediate_size=24, max_position_embeddings=32, **SMALL)
        ),
    ),
    "roberta": lambda folder: _foreign(
        folder,
        lambda size: RobertaForMaskedLM(
            RobertaConfig(vocab_size=size, intermediate_size=24, max_position_embeddings=32, **SMALL, **IDS)
        ),
    ),
    "modernbert": lambda folder: _foreign(
        folder,
        lambda size: ModernBertForMaskedLM(
            ModernBertConfig(vocab_size=size, intermediate_size=24, max_position_embeddings=32, **SMALL, **IDS)
        ),
    ),
    "esm": lambda folder: _foreign(
        folder,
        lambda size: EsmForMaskedLM(
            EsmConfig(vocab_size=size, intermediate_size=24, max_position_embeddings=32, **SMALL, pad_token_id=0)
        ),
    ),
    "judge": lambda folder: _foreign(
        folder,
        lambda size: GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=32)),
    ),
    "own": _own,
}

VALUES: list[Any] = [None, True, False, "x", "", "2", -1, 0, 1, 2, 3, 7, 31, 1.5, -0.5, 1e308, 10**6, 2**31, 10**10]
VALUES += [2**63, [], [1], [[]], {}, {"a": 1}, [None], "gelu", "sdpa", "../x", float("nan")]


def mutate(folder: Path, chance: random.Random) -> str:
    """Changes one thing of a folder; returns what."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    texts = [path for path in files if path.suffix == ".json"]
    path = chance.choice([*(texts or files), *[path for path in texts if path.name == "config.json"] * 3])
    if chance.random() < 0.65 and (places := _places_in(path)):
        content, where = json.loads(path.read_text()), chance.choice(places)
        owner: Any = content
        for key in where[:-1]:
            owner = owner[key]
        if chance.random() < 0.3:
            del owner[where[-1]]
            done = "removed"
        else:
            old = owner[where[-1]]
            number = isinstance(old, int) and not isinstance(old, bool)
            values = [old + 1, old * 2, old // 2, old * 1000] if number and chance.random() < 0.4 else VALUES
            owner[where[-1]] = value = chance.choice(values)
            done = f"= {value!r}"
        path.write_text(json.dumps(content))
        return f"{path.name}: {'.'.join(map(str, where))} {done}"
    path = chance.choice([*files, *texts])
    content = path.read_bytes()
    kind = chance.choice(["cut", "empty", "gone", "swapped", "noise", "flipped", "folder", "latin", "copied", "deep"])
    if kind == "cut":
        path.write_bytes(content[: chance.randrange(len(content) + 1)])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind in ("gone", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    elif kind in ("swapped", "copied"):
        other = chance.choice(files)
        if kind == "swapped":
            path.write_bytes(other.read_bytes())
            other.write_bytes(content)
        else:
            name = chance.choice(["adapter_config.json", "generation_config.json", "merges.txt", "vocab.txt"])
            (folder / name).write_bytes(content)
        kind = f"{kind} with {other.name}"
    elif kind == "noise":
        path.write_bytes(chance.randbytes(chance.randrange(1, 400)))
    elif kind == "flipped" and content:
        place = chance.randrange(min(len(content), 600))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :])
    elif kind == "latin":
        path.write_bytes(content[:20] + b"\xe9\xff" + content[20:])
    elif kind == "deep":
        path.write_bytes(b"[" * 100_000)
    return f"{path.name}: {kind}"


def _places_in(path: Path) -> list[tuple[Any, ...]]:
    try:
        return list(_places(json.loads(path.read_text())))
    except (ValueError, RecursionError):
        return []  # an earlier change


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a JSON document are; of long lists and dictionaries, the first twenty."""
    if not isinstance(value, (dict, list)):
        return
    for key in list(value)[:40] if isinstance(value, dict) else range(min(len(value), 5)):
        yield (*at, key)
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key], (*at, key))


def try_folder(kind: str, folder: Path) -> str:
    """Loads a folder, uses what was loaded, and returns `"works"` or the refusal.

    Raises:
        AssertionError: If it was refused by an exception that is not ours to raise, or in several lines.
    """
    try:
        if kind == "judge":
            task = named_task("arithmetic")
            tokens = torch.zeros((1, 3), dtype=torch.int64)
            load_judge(folder, task)(tokens)
            return "works"
        model = unmask.load(folder, shift=True if kind == "qwen2" else None)
        if isinstance(model, LanguageModel):
            model.generate("1+1=", rule="topk:k=1", max_new_tokens=2)
            model.infill("1+[MASK:2]=2", rule="all")
        else:
            x = torch.full((1, 8 if kind == "own" else 4), model.mask_id)
            x[0, 0] = int(model.mask_id == 0)
            unmask.sample(model, x, named_rule("all").rule, seed=0)
        return "works"
    except (UnmaskError, ValueError, OSError) as error:
        return _refusal(error)


def _refusal(error: Exception) -> str:
    assert type(error).__module__ in ("builtins", "unmask.errors"), f"{type(error)}: {error}"
    assert str(error).strip(), type(error)
    assert "\n" not in str(error), str(error)
    assert len(str(error)) < 1500, str(error)
    return f"{type(error).__name__}: {error}"


def attempt(seed: int, pristine: dict[str, Path], scratch: Path) -> tuple[str, str]:
    """Makes and tries one folder; returns what was wrong with it, and what became of it."""
    chance = random.Random(seed)
    kind = sorted(pristine)[seed % len(pristine)]
    folder = scratch / "mutated"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(pristine[kind], folder)
    done = "; ".join(mutate(folder, chance) for _ in range(1 if seed % 3 else 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f"{kind}: {done}", try_folder(kind, folder)


def pristine_folders(scratch: Path) -> dict[str, Path]:
    """Writes a folder of every kind, with nothing wrong."""
    shutil.rmtree(scratch / "pristine", ignore_errors=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {name: make(scratch / "pristine" / name) for name, make in MAKERS.items()}


def main() -> None:
    """See the module."""
    import resource

    first, count, scratch = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    faulthandler.enable()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    pristine = pristine_folders(scratch)
    for seed in range(first, first + count):
        faulthandler.dump_traceback_later(60, exit=True)
        print(json.dumps({"seed": seed}), flush=True)
        try:
            wrong, found = attempt(seed, pristine, scratch)
        except BaseException as error:
            text = f"{type(error).__module__}.{type(error).__name__}: {error}"
            print(json.dumps({"seed": seed, "failed": text}), flush=True)
        else:
            print(json.dumps({"seed": seed, "wrong": wrong, "found": found}), flush=True)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
