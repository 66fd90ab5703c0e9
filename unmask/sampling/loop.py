"""The only sampling loop: `step(state) -> (state, info)`.

It carries a rule's questions to the denoiser and the rule's moves to the state, and treats all rules alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..denoiser import Denoiser, check_denoiser
from ..draws.streams import Purpose, uniforms
from .batch import Tokens, as_batch, stream_ids, temperatures
from .blocks import block_numbers
from .conversation import AnyRule, Move
from .draw import Draw, Processor, Settings
from .result import Result, StepInfo
from .state import State
from .turn import Turn


class Sampler:
    """A denoiser and a rule with the settings of the draw. Stateless: one object serves any number of batches.

    Args:
        denoiser: The model (see `Denoiser`).
        rule: Decides which positions to unmask at each step (see `Rule`, and `AnyRule` for what the loop needs of it).
        top_k: Draw among the `k` most probable tokens. Does not affect planning.
        top_p: Draw among the fewest tokens whose probabilities sum to at least this. Does not affect planning.
        forbidden: Token ids that must not appear: they are removed before planning and before drawing. The mask token
            is always removed.
        last: Tokens that are written after the others (see `View.measured`), for rules that look at the marginals
            before they choose.
        processor: Changes logits before planning and drawing (see `Processor`).

    Raises:
        ValueError: If a setting is out of range, a token id outside the vocabulary, or `last` does not fit the rule.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        rule: AnyRule,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        forbidden: Iterable[int] = (),
        last: Iterable[int] = (),
        processor: Processor | None = None,
    ) -> None:
        check_denoiser(denoiser)
        self.denoiser, self.rule = denoiser, rule
        self.settings = self.fits(
            Settings.of(denoiser.vocab_size, denoiser.mask_id, top_k, top_p, forbidden, tuple(last), processor)
        )

    def fits(self, settings: Settings) -> Settings:
        """Returns the settings if the rule can follow them.

        Raises:
            ValueError: If tokens are to be written last, but the rule chooses before it sees the marginals.
        """
        if settings.last and not self.rule.waits:
            raise ValueError(f"{self.rule} cannot keep tokens for last: it chooses before it knows what is probable")
        return settings

    def start(
        self,
        x: Tokens,
        *,
        seed: int | None = None,
        streams: Iterable[int] | Int[Tensor, " batch"] | None = None,
        temperature: float | Float[Tensor, " batch"] = 1.0,
        blocks: int | Int[Tensor, "batch length"] | None = None,
        settings: Settings | Iterable[Settings] | None = None,
        slots: Iterable[int] | None = None,
        valid: Bool[Tensor, "batch length"] | None = None,
        fill: Bool[Tensor, "batch length"] | None = None,
    ) -> State:
        """Prepares a batch. The arguments that `sample` also has mean what they mean there.

        Args:
            x: Token ids, with the mask token where something is to be drawn.
            seed: Gives row `r` the stream `derive(seed, r)`.
            streams: One 64-bit integer per sequence.
            temperature: The temperature of the draw.
            blocks: Window length, or the block number of every position.
            settings: How tokens are drawn, for all or for each sequence, instead of the sampler's own settings.
            slots: Numbers by which caches identify the sequences; default: 0, 1, 2, ...
            valid: False where a matrix of tokens is padding; default: True everywhere.
            fill: Which masks to fill in; the model also sees the others, but they stay masked. Default: all.
        """
        x, inside = as_batch(x, self.denoiser)
        valid = inside if valid is None else inside & valid
        batch, device = len(x), x.device
        ids = stream_ids(seed, streams, batch, device)
        settings = self.settings if settings is None else settings
        given = [settings] if isinstance(settings, Settings) else list(settings)
        if not isinstance(settings, Settings) and len(given) != batch:
            raise ValueError(f"{len(given)} settings for a batch of {batch} sequences")
        pending = (x == self.denoiser.mask_id) & valid
        pending = pending if fill is None else pending & fill
        position = torch.arange(x.shape[1], device=device)
        none = torch.zeros(batch, dtype=torch.int64, device=device)
        purposes = torch.tensor((Purpose.TOKEN, Purpose.ORDER), device=device).reshape(2, 1, 1)
        token_noise, order_noise = uniforms(ids.unsqueeze(-1), position, purposes)
        return State(
            slot=torch.arange(batch, device=device) if slots is None else torch.tensor(list(slots), device=device),
            x=x,
            valid=valid,
            pending=pending,
            editable=pending,
            block=block_numbers(x, pending, blocks),
            visits=torch.zeros_like(x),
            streams=ids,
            token_noise=token_noise,
            order_noise=order_noise,
            memory=self.rule.start(pending.sum(-1)),
            draw=Draw.of(temperatures(temperature, batch, device), [self.fits(one) for one in given]),
            nfe=none,
            evaluations=none,
            more=none.bool(),
            mask_id=self.denoiser.mask_id,
        )

    def begin(self, state: State) -> Turn:
        """Opens the next turn of the rule: a conversation whose first question is in `Turn.query`."""
        return Turn(self.rule, state, self.denoiser.vocab_size, getattr(self.denoiser, "wants_time", False))

    def _hold(self, state: State) -> Turn:
        """Runs a turn up to the rule's move, but does not make the move."""
        turn = self.begin(state)
        while turn.query is not None:
            turn.tell(self.denoiser(turn.query))
        return turn

    @torch.no_grad()
    def move(self, state: State) -> Move:
        """Returns the move that the rule would make, checked. Exact laws are computed from it.

        Raises:
            LogitsError: As `step` does.
            ValueError: If nothing is left to do, and as `step` does.
        """
        turn = self._hold(state)
        if turn.move is None:
            raise ValueError("every sequence of the state is finished")
        turn.check()
        return turn.move

    @torch.no_grad()
    def step(self, state: State, *, candidates: int = 0) -> tuple[State, StepInfo]:
        """Evaluates the denoiser for the unfinished sequences, as often as the rule asks, and makes the rule's move.

        A state without pending positions comes back unchanged, with no forward pass. With `candidates`, the information
        also holds that many of the most probable tokens of each unmasked position.

        Raises:
            LogitsError: If logits are not a distribution; it names the row, sequence and position.
            ValueError: If the logits have the wrong shape or dtype.
            RuleError: If the rule breaks its contract.
        """
        return self._hold(state).end(candidates)

    def run(
        self,
        state: State,
        *,
        max_steps: int | None = None,
        trace: bool = False,
        candidates: int = 0,
        on_step: Callable[[State, StepInfo], None] | None = None,
        settle: Callable[[State, StepInfo], State] | None = None,
    ) -> Result:
        """Makes steps until every sequence is finished, or at most `max_steps` of them; see `sample`.

        After each step `settle` may take positions out of `State.pending`: they stay masked and are never filled in.
        """
        check_run(max_steps, candidates)
        x0, passes, infos = state.x, 0, []
        bounds: list[tuple[Tensor, Tensor]] = []
        while max_steps is None or passes < max_steps:
            state, info = self.step(state, candidates=candidates)
            if not len(info.sequence):
                break
            state = state if settle is None else settle(state, info)
            passes += info.forward_passes
            bounds.append((info.sequence, info.bound))
            if trace:
                infos.append(info)
            if on_step is not None:
                on_step(state, info)
        return Result.of(state, x0, passes, bounds, infos if trace else None)


def check_run(max_steps: int | None, candidates: int) -> None:
    """Raises `ValueError` if `max_steps` or `candidates` is out of range."""
    if max_steps is not None:
        whole("max_steps", max_steps, least=0)
    whole("candidates", candidates, least=0)
