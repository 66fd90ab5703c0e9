"""Finds out by trial which sequences a model can evaluate together without affecting each other.

The attention mask tells a masked language model where padding is. Attention respects it; convolutions, Fourier
transforms, pooling, hashing and chunking may not, and then the result for one sequence depends on the lengths of the
others. So every model is tested on a few random tokens before its first evaluation: a sequence alone, and together with
longer ones. If that makes a difference beyond rounding, sequences of different lengths are evaluated separately.

Some differences appear only in long sequences (attention that becomes sparse, positions that are scaled). Therefore the
test is repeated before each batch of different lengths that is longer than all before it, at its length.

The experts of a mixture-of-experts model are left out of the test, because rounding may send a token to other experts.

Some models draw random numbers while they are evaluated (Reformer), or are changed by an evaluation (BigBird switches
its sparse attention off for good at the first short sequence). Such a model gets the same random numbers every time,
and is restored after each evaluation.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from ...denoiser import Query
from .hf import quiet
from .limits import longest, ordinary_tokens
from .undisturbed import Snapshot, at_rest, random_state, seeded, set_random_state, widened, without_experts

Together = Literal["any", "equal", "one"]
"""What can be evaluated together: sequences of any lengths, only those of equal length, or one sequence at a time."""

_LENGTHS = (7, 13, 29)
"""Lengths of the test sequences: primes, so that no chunk, block or stride divides them."""
_ASKED = 8
"""In a long sequence, about so many evenly spaced positions and as many at its end are compared."""
_SEED = 0
"""Seed of the random numbers that some models draw while they are evaluated."""
_FAULTS = (AssertionError, AttributeError, ImportError, LookupError, NotImplementedError, RuntimeError, TypeError)
"""Exceptions of a model that cannot be evaluated, be it a fault of the library or of PyTorch, or a missing kernel."""


class Network(Protocol):
    """A network that is called with tokens, the requested positions, no time, and False at padding."""

    model: PreTrainedModel
    pad_id: int
    smoothing: float

    def __call__(
        self,
        x: Int[Tensor, "batch length"],
        where: Bool[Tensor, "batch length"],
        time: None = None,
        valid: Bool[Tensor, "batch length"] | None = None,
        stepwise: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "rows vocab"]: ...


@dataclass
class Sharing:
    """What the tests have found out about a model. They are extended as the model is evaluated at new lengths.

    Attributes:
        key: The state of the model that was tested: version, type and device of its weights, its attention
            implementation, and the padding token. In another state it is tested again.
        together: Which sequences can be evaluated together.
        random: Whether an evaluation draws random numbers.
        changes: Whether an evaluation changes the model.
        width: The greatest length of a batch in which padding was found to make no difference.
        watched: The lengths at which the model was checked for random numbers and changes.
        fault: Why the model is not a masked language model, whatever its class is called; `None` if it is one.
        told: Whether the user was warned that sequences are evaluated separately.
    """

    key: tuple[object, ...]
    together: Together = "any"
    random: bool = False
    changes: bool = False
    width: int = 0
    watched: set[int] = field(default_factory=set)
    fault: str | None = None
    told: bool = False


_known: WeakKeyDictionary[PreTrainedModel, Sharing] = WeakKeyDictionary()


def sharing_of(model: PreTrainedModel, pad_id: int) -> Sharing:
    """Returns what is known about a model, which is tested if it is new, or was trained, moved or cast since.

    Args:
        model: The model.
        pad_id: The token that stands for padding in the model's input.
    """
    weight = next(model.parameters())
    version = None if weight.is_inference() else weight._version  # every training step increases it
    key = (weight.dtype, weight.device, version, getattr(model.config, "_attn_implementation", None), pad_id)
    known = _known.get(model)
    if known is None or known.key != key:
        known = _known[model] = Sharing(key)
        if weight.device.type != "meta":
            _try(model, known, pad_id)
    return known


def evaluate(network: Network, query: Query) -> Float[Tensor, "rows vocab"]:
    """Evaluates a query so that, apart from rounding, every sequence gets the result that it would get alone.

    Sequences of different lengths are evaluated together only if padding makes no difference to the model. The first
    time that they are not, a warning says so.

    Args:
        network: The model; it may be compiled.
        query: The tokens and the requested positions.

    Raises:
        ValueError: If the model cannot be evaluated. The message names its class and the length.
    """
    sharing = sharing_of(network.model, network.pad_id)
    if sharing.fault is not None:
        raise ValueError(f"{type(network.model).__name__} {sharing.fault}")
    x, where, valid, stepwise = query.x, query.where, query.valid, query.stepwise
    if sharing.together == "any" and (x.shape[1] <= sharing.width or bool(valid.all())):
        return _call(network, sharing, x, where, valid, stepwise)
    lengths = valid.sum(-1)
    if sharing.together == "any" and not _notices(network, sharing, query, lengths):
        sharing.width = x.shape[1]
        return _call(network, sharing, x, where, valid, stepwise)
    if not sharing.told and len(lengths.unique()) > 1:
        sharing.told = True
        warnings.warn(
            f"{type(network.model).__name__} does not ignore padding: sequences of different lengths are evaluated one"
            " after the other, so that no answer depends on the others of its batch; that takes longer",
            stacklevel=2,
        )
    return _apart(network, sharing, query, lengths)


def _notices(network: Network, sharing: Sharing, query: Query, lengths: Int[Tensor, " batch"]) -> bool:
    """Tests a model at the length of a query, and returns whether its sequences affect each other.

    Beginnings of the longest sequence are evaluated alone, and together with the whole sequence.
    """
    network = getattr(network, "_orig_mod", network)  # not the compiled one: the type of the weights may change here
    whole = query.x[lengths.argmax()]
    width = len(whole)
    ends = sorted({width * length // _LENGTHS[-1] | 1 for length in _LENGTHS[:-1]} | {width - 1})
    x = whole.expand(len(ends) + 1, -1)
    valid = torch.arange(width, device=x.device) < torch.tensor([*ends, width], device=x.device).unsqueeze(-1)
    where = torch.zeros_like(valid)
    for place, end in enumerate(ends):
        where[place, [*range(0, end, -(-end // _ASKED)), *range(max(0, end - _ASKED), end)]] = True
    with widened(network.model), without_experts(network.model), _as_trained(network):
        together = _call(network, sharing, x, where, valid)
        for place, (end, beside) in enumerate(zip(ends, together.split(where.sum(-1)[:-1].tolist()), strict=True)):
            one = slice(place, place + 1)
            alone = _call(network, sharing, x[one, :end], where[one, :end], valid[one, :end])
            if bool(_differ(alone, beside).any()):
                sharing.together = "equal"
    return sharing.together != "any"


@contextlib.contextmanager
def _as_trained(network: Network) -> Iterator[None]:
    """Does not undo label smoothing: without it, the logits of almost impossible tokens are mostly rounding errors."""
    smoothing, network.smoothing = network.smoothing, 0.0
    try:
        yield
    finally:
        network.smoothing = smoothing


def _apart(network: Network, sharing: Sharing, query: Query, lengths: Int[Tensor, " batch"]) -> Tensor:
    """Evaluates the sequences of each length together, without padding, or each sequence alone."""
    if sharing.together == "one":
        groups = [torch.tensor([row], device=lengths.device) for row in range(len(lengths))]
    else:
        groups = [(lengths == length).nonzero().squeeze(-1) for length in lengths.unique()]
    row = query.where.nonzero()[:, 0]
    logits: Tensor | None = None
    for group in groups:
        mine = torch.isin(row, group)
        if not bool(mine.any()):
            continue
        length = int(lengths[group[0]])
        x, where = query.x[group, :length], query.where[group, :length]
        stepwise = None if query.stepwise is None else query.stepwise[group]
        found = _call(network, sharing, x, where, torch.ones_like(where), stepwise)
        if len(found) == len(row):
            return found
        logits = found.new_empty(len(row), found.shape[1]) if logits is None else logits
        logits[mine] = found
    if logits is None:
        return _call(network, sharing, query.x, query.where, query.valid, query.stepwise)
    return logits


def _call(
    network: Network, sharing: Sharing, x: Tensor, where: Tensor, valid: Tensor, stepwise: Tensor | None = None
) -> Tensor:
    return _unmoved(network.model, sharing, x.shape, lambda: network(x, where, None, valid, stepwise))


def _unmoved(model: PreTrainedModel, sharing: Sharing, shape: torch.Size, evaluation: Callable[[], Tensor]) -> Tensor:
    """Evaluates a model independently of earlier evaluations: with the same random numbers, and restored afterwards."""
    watch = shape[1] not in sharing.watched
    if not (watch or sharing.changes or sharing.random):
        return _tried(model, shape, evaluation)
    device = next(model.parameters()).device
    snapshot = Snapshot(model) if watch or sharing.changes else None
    before = random_state(device) if watch and not sharing.random else None
    try:
        with contextlib.ExitStack() as stack:
            if snapshot is not None:
                stack.enter_context(quiet())  # a model that is restored would give the same warning every time
            if sharing.random:
                stack.enter_context(seeded(device, _SEED))
            result = _tried(model, shape, evaluation)
    finally:
        if snapshot is not None and snapshot.restore():
            sharing.changes = True
    sharing.watched.add(shape[1])
    if before is None or all(torch.equal(a, b) for a, b in zip(before, random_state(device), strict=True)):
        return result
    sharing.random = True
    set_random_state(before, device)
    return _unmoved(model, sharing, shape, evaluation)


def _tried(model: PreTrainedModel, shape: torch.Size, evaluation: Callable[[], Tensor]) -> Tensor:
    """Evaluates a model, with an error in plain words."""
    try:
        return evaluation()
    except torch.OutOfMemoryError:
        raise
    except _FAULTS as error:
        batch = f"{shape[0]} sequence{'s' if shape[0] > 1 else ''} of {shape[1]} tokens"
        name = type(model).__name__
        raise ValueError(f"{name} cannot be evaluated on {batch} ({type(error).__name__}: {error})") from error


def _try(model: PreTrainedModel, sharing: Sharing, pad_id: int) -> None:
    """Tests a model: evaluates sequences alone, with others of their length and with longer ones, and compares.

    A model that cannot be evaluated at these lengths will be given one sequence at a time.
    """
    device, limit = next(model.parameters()).device, longest(model)
    lengths = [length if limit is None else min(length, limit * length // _LENGTHS[-1]) for length in _LENGTHS]
    lengths[-1] = _LENGTHS[-1] if limit is None else min(_LENGTHS[-1], limit)
    if lengths[0] < 1:
        sharing.together = "equal"
        return
    tokens = torch.tensor([token for token in ordinary_tokens(model) if token != pad_id] or [pad_id])
    picked = torch.randint(len(tokens), (len(lengths), lengths[-1]), generator=torch.Generator().manual_seed(1))
    rows = tokens[picked]
    mask = getattr(model.config.get_text_config(), "mask_token_id", None)
    if isinstance(mask, int) and mask != pad_id:
        rows[:, lengths[0] // 2] = mask  # some models count the masks of a sequence
    short, middle, long = (row[:length] for row, length in zip(rows, lengths, strict=True))
    first, last = middle.clone(), middle.clone()
    first[0], last[-1] = (tokens[(picked[1, place] + 1) % len(tokens)] for place in (0, lengths[1] - 1))

    def logits(*rows: Tensor) -> list[Tensor]:
        x = torch.full((len(rows), max(map(len, rows))), pad_id)
        seen = torch.zeros_like(x)
        for place, row in enumerate(rows):
            x[place, : len(row)], seen[place, : len(row)] = row, 1
        x, seen = x.to(device), seen.to(device)
        found = _unmoved(model, sharing, x.shape, lambda: model(input_ids=x, attention_mask=seen).logits)
        return [found[place, : len(row)] for place, row in enumerate(rows)]

    try:
        with at_rest(model), widened(model), without_experts(model):
            alone = [*logits(middle), *logits(short)]
            *group, beside, _ = logits(middle, first, last, short, long)
            if _differ(alone[0], group[0]).any() or _differ(alone[1], beside).any():
                group = logits(middle, first, last)
                sharing.together = "one" if _differ(alone[0], group[0]).any() else "equal"
    except ValueError:
        sharing.together = "one"
        return
    sharing.width = lengths[-1]
    if lengths[1] > 1 and len(tokens) > 1:
        sharing.fault = _fault(model, *group)


def _fault(model: PreTrainedModel, middle: Tensor, first: Tensor, last: Tensor) -> str | None:
    """Returns what is wrong if positions do not attend to each other, `None` if they do.

    The logits are those of three sequences: `middle`, the same with another first token, and with another last token.
    """
    left, right = (
        torch.equal(middle[part], other[part]) for part, other in ((slice(1, None), first), (slice(-1), last))
    )
    if not right or any(weight.ndim > 1 and not bool(weight.any()) for weight in model.parameters()):
        return None  # some networks are initialised with weights of 0, and attend to nothing before they are trained
    if left and right:
        return "sees no token but the one it is asked about: its attention does not work here (is a kernel missing?)"
    return "sees only the tokens to its left: it is a causal model, and cannot unmask"


def _differ(a: Float[Tensor, "positions vocab"], b: Float[Tensor, "positions vocab"]) -> Bool[Tensor, " positions"]:
    """Returns where two rows of logits differ by more than rounding, relative to the standard deviation of a row.

    Half of the digits of the type may be lost to rounding within a network.
    """
    eps = torch.finfo(a.dtype).eps
    if a.is_cuda and a.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        eps = 2.0**-10
    known = a.isfinite() & b.isfinite()
    odd = (a != b) & ~known & ~(a.isnan() & b.isnan())
    count = known.sum(-1).clamp(min=1)
    a, b = (torch.where(known, one, 0.0).double() for one in (a, b))
    mean = a.sum(-1, keepdim=True) / count.unsqueeze(-1)
    spread = (torch.where(known, a - mean, 0.0).square().sum(-1) / count).sqrt()
    gap = ((a - b).square().sum(-1) / count).sqrt()
    return odd.any(-1) | (gap > eps**0.5 * spread.clamp(min=float(spread.mean())))
