"""The peers by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .case import Case
from .loops import bd3lms, d2cache, diffusers, dllm, dream, fast_dllm, info_gain, llada, mdlm, rnd1, uni_d2, wino


@dataclass(frozen=True)
class Peer:
    """A published loop.

    Attributes:
        repository: Where it is published.
        cases: Imports it from a clone, and returns the ways to run it.
    """

    repository: str
    cases: Callable[[Path], list[Case]]


PEERS = {
    "llada": Peer("ML-GSAI/LLaDA", llada.cases),
    "fast-dllm": Peer("NVlabs/Fast-dLLM", fast_dllm.cases),
    "dream": Peer("Dream, in ZHZisZZ/dllm", dream.cases),
    "dllm": Peer("ZHZisZZ/dllm", dllm.cases),
    "d2cache": Peer("Kamichanw/d2Cache", d2cache.cases),
    "rnd1": Peer("RadicalNumerics/RND1", rnd1.cases),
    "wino": Peer("Feng-Hong/WINO-DLLM", wino.cases),
    "diffusers": Peer("huggingface/diffusers", diffusers.cases),
    "uni-d2": Peer("nkalyanv99/UNI-D2", uni_d2.cases),
    "info-gain": Peer("yks23/Information-Gain-Sampler", info_gain.cases),
    "mdlm": Peer("kuleshov-group/mdlm", mdlm.cases),
    "bd3lms": Peer("kuleshov-group/bd3lms", bd3lms.cases),
}
