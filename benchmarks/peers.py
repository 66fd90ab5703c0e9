"""Published loops on an exact oracle, beside the law that they claim; for docs/comparison.md.

    python -m benchmarks.peers llada=CLONE fast-dllm=CLONE d2cache=CLONE rnd1=CLONE uni-d2=CLONE
    python -m benchmarks.peers render       # the page's table again, from the saved figures

A clone is a folder that you have cloned: its loop is imported from there, with a model that looks up the exact
conditionals of a small table. **That runs code of the clone.** What a loop imports besides and does not need for this
(checkpoints, caches, logging) is replaced by empty modules, so that nothing has to be installed. None of that code is
in this package.

For each loop: how far the law of its samples is from the law that it claims (total variation), alone and in a batch,
with what a right loop would show for so few samples; and the processor's time for the same rule here over the loop's.
Figures go to docs/results/peers.json.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unmask import sample
from unmask.denoiser import FullDenoiser, Query
from unmask.oracles import Oracle, exact_law, random_table
from unmask.oracles.oracle import enumerate_completions
from unmask.rules.named import named_rule
from unmask.viewing.progress import progress

from .pages import fill

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "comparison.md", ROOT / "docs" / "results" / "peers.json"
SYMBOLS, LENGTH, SEED = 3, 4, 0
SAMPLES, BATCH = 4000, 50
COSTS = (1, 64, 20_000)
IMPOSSIBLE = -1e4
"""The logit of the mask token: its probability is 0, and loops that multiply the two get 0 and not NaN."""


class Answers(nn.Module):
    """A model that knows the exact conditionals of a table: it looks up the logits of every state.

    Attributes:
        seen: States it has answered, which had a mask.
    """

    def __init__(self, oracle: Oracle, length: int, shift: bool = False) -> None:
        super().__init__()
        self.symbols, self.mask_id, self.length, self.shift = oracle.symbols, oracle.mask_id, length, shift
        states = enumerate_completions(torch.full((length,), oracle.vocab_size), oracle.vocab_size, oracle.vocab_size)
        logits = torch.zeros(*states.shape, oracle.vocab_size, dtype=torch.float64)
        logits[states == oracle.mask_id] = oracle(Query.of(states, oracle.mask_id))
        logits[..., oracle.mask_id] = IMPOSSIBLE
        self.table = nn.Parameter(logits, requires_grad=False)
        self.powers = oracle.vocab_size ** torch.arange(length - 1, -1, -1)
        self.device, self.dtype, self.config = torch.device("cpu"), torch.float64, SimpleNamespace()
        self.seen = 0

    def logits(self, x: Tensor) -> Tensor:
        """The logits of all positions of some states."""
        return self.table[(x * self.powers).sum(-1)]

    def forward(self, input_ids: Tensor, *args: Any, **options: Any) -> SimpleNamespace:
        """The answer in the form that loops expect; shifted, the logits of a position stand at the one before it."""
        x = input_ids[:, 1:] if self.shift else input_ids
        self.seen += int((x == self.mask_id).any(-1).sum())
        logits = self.logits(x)
        return SimpleNamespace(logits=nn.functional.pad(logits, (0, 0, 0, 1)) if self.shift else logits)


@dataclass(frozen=True)
class Case:
    """One way to run a peer's loop.

    Attributes:
        label: Which settings.
        rule: The rule whose law it claims, by name.
        run: Returns so many sequences, given the model.
        batched: Whether it takes more than one sequence at a time.
        shift: Whether it expects the logits of a position at the one before it.
        largest: The largest batch that it is timed with.
    """

    label: str
    rule: str
    run: Callable[[Answers, int], Tensor]
    batched: bool = True
    shift: bool = False
    largest: int = COSTS[-1]


def load(file: Path, name: str) -> ModuleType:
    """Imports one file of a clone.

    Raises:
        SystemExit: If it is not there.
    """
    if not file.is_file():
        raise SystemExit(f"{file} is not there: expected a clone of the peer's repository")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def stand_in(name: str, folder: Path | None = None, **names: Any) -> None:
    """Puts an empty module in the place of one of a clone, with some names; with a folder, its submodules are found."""
    module = ModuleType(name)
    vars(module).update(names)
    if folder is not None:
        module.__path__ = [str(folder)]
    sys.modules[name] = module


def llada(clone: Path) -> list[Case]:
    """ML-GSAI/LLaDA: `generate.py`."""
    module = load(clone / "generate.py", "peer_llada")

    def run(model: Answers, batch: int, remasking: str = "low_confidence", steps: int = LENGTH) -> Tensor:
        prompt, sizes = torch.empty(batch, 0, dtype=torch.int64), {"gen_length": LENGTH, "block_length": LENGTH}
        options = {"temperature": 1.0, "remasking": remasking, "mask_id": model.mask_id}
        return module.generate(model, prompt, steps=steps, **sizes, **options)

    return [
        Case("low confidence, one at a time", "top1-confidence", run),
        Case("low confidence, two at a time", "topk:k=2,proxy=confidence", partial(run, steps=LENGTH // 2)),
        Case("random, one at a time", "uniform", partial(run, remasking="random")),
    ]


def fast_dllm(clone: Path) -> list[Case]:
    """NVlabs/Fast-dLLM: `llada/generate.py`."""
    stand_in("model", clone / "llada" / "model")
    stand_in("model.modeling_llada", LLaDAModelLM=object)
    module = load(clone / "llada" / "generate.py", "peer_fast_dllm")

    def run(model: Answers, batch: int, threshold: float | None = None) -> Tensor:
        prompt, sizes = torch.empty(batch, 0, dtype=torch.int64), {"gen_length": LENGTH, "block_length": LENGTH}
        options = {"temperature": 1.0, "mask_id": model.mask_id, "threshold": threshold}
        return module.generate(model, prompt, steps=LENGTH, **sizes, **options)[0]

    return [
        Case("low confidence, one at a time", "top1-confidence", run, batched=False),
        Case("threshold 0.6", "threshold:threshold=0.6", partial(run, threshold=0.6), batched=False),
    ]


def d2cache(clone: Path) -> list[Case]:
    """Kamichanw/d2Cache: `src/generation/vanilla.py`."""
    source = clone / "src"
    for name in ("src", "src.generation", "src.utils"):
        stand_in(name, clone / name.replace(".", "/"))
    sys.modules["src.utils"].__dict__.update(vars(load(source / "utils" / "common.py", "src.utils.common")))
    vars(sys.modules["src.utils"])["is_adapted_from_ar"] = lambda model: False
    stand_in("src.models", LLaDAModelLM=type("LLaDAModelLM", (), {}), DreamModel=type("DreamModel", (), {}))
    stand_in("src.models.dream")
    stand_in("src.models.dream.generation_utils", top_k_logits=None, top_p_logits=None)
    stand_in("src.third_party", get_token_freq=None)
    stand_in("src.cache", dCache=object)
    module = importlib.import_module("src.generation.vanilla")

    def run(model: Answers, batch: int, **options: Any) -> Tensor:
        os.environ["MASK_TOKEN_ID"] = str(model.mask_id)  # one of its files looks nowhere else
        prompt, sizes = torch.empty(batch, 0, dtype=torch.int64), {"gen_length": LENGTH, "block_length": LENGTH}
        record = module.vanilla_generate(
            model, prompt, **sizes, temperature=1.0, mask_token_id=model.mask_id, **options
        )
        return record[-1].generated_tokens.reshape(batch, LENGTH)

    return [
        Case("maskgit_plus, one at a time", "top1-confidence", run, largest=64),  # 20,000 take it minutes
        Case("entropy, γ = 1", "entropy-bound:gamma=1", partial(run, alg="entropy", gamma=1), largest=64),
        Case("maskgit_plus, γ = 1", "entropy-bound:gamma=1,proxy=confidence", partial(run, gamma=1), largest=64),
        Case("threshold 0.6", "threshold:threshold=0.6", partial(run, threshold=0.6), largest=64),
    ]


def rnd1(clone: Path) -> list[Case]:
    """RadicalNumerics/RND1: `rnd/sampling.py`. It writes behind a first token."""
    module = load(clone / "rnd" / "sampling.py", "peer_rnd1")

    def run(model: Answers, batch: int, gamma: float | None = None) -> Tensor:
        assert batch == 1
        sizes = {"seq_len": LENGTH + 1, "num_steps": LENGTH if gamma is None else 4 * LENGTH}
        ids = {"mask_token_id": model.mask_id, "pad_token_id": -1, "eos_token_id": None, "bos_token_id": 0}
        return module.diffusion_sample(model, **sizes, **ids, greedy=False, eb_gamma=gamma)[:, 1:]

    return [
        Case("entropy, one at a time", "top1-entropy", run, batched=False, shift=True),
        Case("γ = 1", "entropy-bound:gamma=1,proxy=confidence", partial(run, gamma=1), batched=False, shift=True),
    ]


def uni_d2(clone: Path) -> list[Case]:
    """nkalyanv99/UNI-D2: `src/discrete_diffusion/sampling/eb_sampler.py`."""
    base = clone / "src" / "discrete_diffusion"
    stand_in("discrete_diffusion", base)
    stand_in("discrete_diffusion.sampling", base / "sampling")
    stand_in("discrete_diffusion.forward_process", base / "forward_process")
    stand_in("discrete_diffusion.utils", top_k_top_p_filtering=None)
    module = importlib.import_module("discrete_diffusion.sampling.eb_sampler")
    config = SimpleNamespace(sampling=SimpleNamespace(use_float64=True, p_nucleus=1.0))
    sampler = module.EBSampler(config, gamma=1)

    def run(model: Answers, batch: int) -> Tensor:
        told = SimpleNamespace(
            device=model.device,
            num_tokens=LENGTH,
            mask_id=model.mask_id,
            neg_infinity=-1e6,  # as its models say
            prior_sample=lambda count, length: torch.full((count, length), model.mask_id),
            forward=lambda x, sigma: model(x).logits,
        )
        return sampler.generate(told, num_samples=batch, num_steps=None, eps=0.0, inject_bos=False)

    return [Case("γ = 1", "entropy-bound:gamma=1", run)]


PEERS: dict[str, tuple[str, Callable[[Path], list[Case]]]] = {
    "llada": ("ML-GSAI/LLaDA", llada),
    "fast-dllm": ("NVlabs/Fast-dLLM", fast_dllm),
    "d2cache": ("Kamichanw/d2Cache", d2cache),
    "rnd1": ("RadicalNumerics/RND1", rnd1),
    "uni-d2": ("nkalyanv99/UNI-D2", uni_d2),
}


def claimed(oracle: Oracle, rule: str) -> Tensor:
    """The law of a rule over all sequences in lexicographic order, and the rest."""
    law = exact_law(oracle, named_rule(rule).rule, torch.full((LENGTH,), oracle.mask_id))
    q = torch.zeros(oracle.symbols**LENGTH + 1, dtype=torch.float64)
    q[_codes(law.points, oracle.symbols)] = law.log_q.exp()
    q[-1] = law.off_support
    return q


def _codes(x: Tensor, symbols: int) -> Tensor:
    """The number of each sequence in lexicographic order; the number of sequences if it still has a mask."""
    code = (x * symbols ** torch.arange(LENGTH - 1, -1, -1)).sum(-1)
    return code.masked_fill((x >= symbols).any(-1), symbols**LENGTH)


def distance(x: Tensor, law: Tensor, symbols: int) -> float:
    """The total variation between samples and a law."""
    share = torch.bincount(_codes(x, symbols), minlength=len(law)).double() / len(x)
    return 0.5 * float((share - law).abs().sum())


def chance(law: Tensor, samples: int) -> tuple[float, float]:
    """The total variation that so many samples of the law itself show: the mean, and what one in a thousand exceeds."""
    drawn = np.random.default_rng(0).multinomial(samples, law.numpy() / float(law.sum()), size=4000) / samples
    found = 0.5 * np.abs(drawn - law.numpy()).sum(-1)
    return float(found.mean()), float(np.quantile(found, 0.999))


def measured(
    case: Case, samples: int = SAMPLES, tick: Callable[[int], None] = lambda done: None, alone: bool = True
) -> dict[str, Any]:
    """How far the law of a loop is from the one it claims, and its evaluations per sequence.

    Args:
        case: The loop.
        samples: Sequences per law.
        tick: Called with the number of sequences done.
        alone: Whether to draw sequences alone, too, and not only in a batch.
    """
    oracle = random_table(SYMBOLS, LENGTH, SEED)
    model, law = Answers(oracle, LENGTH, case.shift), claimed(oracle, case.rule)
    torch.manual_seed(SEED)
    found: dict[str, Any] = {"label": case.label, "rule": case.rule, "samples": samples}
    sizes = {**({"alone": 1} if alone else {}), **({"batch": BATCH} if case.batched else {})}
    for name, batch in sizes.items():
        parts, model.seen = [], 0
        for _ in range(samples // batch):
            parts.append(case.run(model, batch))
            tick(batch)
        found[name] = distance(torch.cat(parts), law, SYMBOLS)
        found.setdefault("nfe", model.seen / samples)
    found["chance"], found["limit"] = chance(law, samples)
    return found


def costs(case: Case, repeats: int = 7) -> dict[str, float]:
    """The processor's time for the same rule here over that of a loop, by size of the batch, on looked-up logits.

    Both take turns; of each the median counts.
    """
    oracle = random_table(SYMBOLS, LENGTH, SEED)
    model, rule = Answers(oracle, LENGTH, case.shift), named_rule(case.rule).rule
    ours = FullDenoiser(Answers(oracle, LENGTH).logits, oracle.vocab_size, oracle.mask_id)
    ratios = {}
    for batch in (size for size in COSTS if size <= (case.largest if case.batched else 1)):
        x = torch.full((batch, LENGTH), oracle.mask_id)
        calls: dict[str, Callable[[], object]] = {
            "theirs": lambda batch=batch: case.run(model, batch),
            "ours": lambda x=x: sample(ours, x, rule, seed=0),
        }
        spent: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(1 + (10 * repeats if batch == 1 else repeats if batch < 1000 else 3)):
            for name, call in calls.items():
                began = time.process_time()
                call()
                spent[name] += [time.process_time() - began] if turn else []  # the first turn warms up
        ratios[str(batch)] = statistics.median(spent["ours"]) / statistics.median(spent["theirs"])
    return ratios


def version(clone: Path) -> dict[str, str]:
    """Commit and date of a clone."""
    command = ["git", "-C", str(clone), "log", "-1", "--format=%h %cs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    commit, _, date = done.stdout.strip().partition(" ")
    return {"commit": commit or "unknown", "date": date or "unknown"}


def table(report: dict[str, Any]) -> str:
    """The loops, a line each."""
    lines = [
        "| loop | settings | claims | from the claim, alone | in a batch | a right loop | its NFE |"
        f" ours ÷ its time at batch {', '.join(f'{batch:,}' for batch in COSTS)} |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for name in PEERS:
        if name not in report:
            continue
        peer = report[name]
        for case in peer["cases"]:
            far = [
                f"**{case[key]:.3f}**" if case[key] > case["limit"] else f"{case[key]:.3f}" if key in case else "–"
                for key in ("alone", "batch")
                if key in case
            ]
            far += ["–"] * (2 - len(far))
            cost = ", ".join(f"{ratio:.2f}" for ratio in case["cost"].values())
            lines.append(
                f"| {peer['repository']} `{peer['commit']}`, {peer['date']} | {case['label']} | `{case['rule']}`"
                f" | {far[0]} | {far[1]} | {case['chance']:.3f} | {case['nfe']:.2f} | {cost} |"
            )
    return "\n".join(lines)


def write_page(report: dict[str, Any]) -> None:
    """Puts the table between its markers."""
    fill(PAGE, {"peers": table(report)})


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="+", metavar="NAME=CLONE", help=f"names: {', '.join(PEERS)}; or render")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="sequences per law")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, and write nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() and not asked.json else {}
    for one in asked.peers:
        name, _, folder = one.partition("=")
        if one == "render":
            continue
        if name not in PEERS or not folder:
            parser.error(f"unknown peer {one!r}; expected NAME=CLONE with a name of {', '.join(PEERS)}")
        clone = Path(folder).resolve()
        repository, adapter = PEERS[name]
        began, cases = time.perf_counter(), adapter(clone)
        total = sum(asked.samples * (2 if case.batched else 1) for case in cases)
        with progress() as shown:
            job = shown.add_task(repository, total=total)
            found = [
                {**measured(case, asked.samples, partial(shown.advance, job)), "cost": costs(case)} for case in cases
            ]
        report[name] = {"repository": repository, **version(clone), "torch": torch.__version__, "cases": found}
        print(f"{repository}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        if not asked.json:
            RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    if asked.json:
        print(json.dumps(report, indent=1))
        return
    write_page(report)
    print(table(report))


if __name__ == "__main__":
    main()
