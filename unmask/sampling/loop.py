"""The only sampling loop: `step(state) -> (state, info)`. It carries questions and moves, and knows no rule by name."""

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
        rule: What to unmask when (see `Rule`, and `AnyRule` for what the loop needs of one).
        top_k: Keep the `k` most probable tokens when drawing. Planning never sees it.
        top_p: Keep the smallest set of tokens with this mass when drawing. Planning never sees it.
        forbidden: Token ids that must not appear; removed before planning and drawing alike. The mask token always is.
        last: Tokens that go after the others (see `View.measured`), for rules that look before they choose.
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
        """Returns settings that the rule can keep to.

        Raises:
            ValueError: If tokens are to go last, and the rule chooses before it knows what is probable.
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
        """Prepares a batch; see `sample` for the arguments.

        Args:
            x: As in `sample`, like those that follow.
            seed: Gives row `r` the stream `derive(seed, r)`.
            streams: One 64-bit integer per sequence.
            temperature: The temperature of the draw.
            blocks: Window length, or the block number of every position.
            settings: How tokens are drawn, for all or for each sequence, instead of the sampler's own settings.
            slots: Numbers by which caches know the sequences; default: 0, 1, 2, ...
            valid: Where a matrix of tokens is not padding; default: everywhere.
            fill: Which masks are to be filled in, the others being shown to the model only; default: all.
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
        purposes = torch.tensor([Purpose.TOKEN, Purpose.ORDER], device=device).reshape(2, 1, 1)
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
        """Holds a turn up to the rule's move, which is not made yet."""
        turn = self.begin(state)
        while turn.query is not None:
            turn.tell(self.denoiser(turn.query))
        return turn

    @torch.no_grad()
    def move(self, state: State) -> Move:
        """The move that the rule would make, checked: what exact laws are made of.

        Raises:
            LogitsError: See `step`, as for the others.
            ValueError: If nothing is left to do, or see `step`.
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
        also has so many of the most probable tokens of each position unmasked.

        Raises:
            LogitsError: If logits are no distribution; it names the row, sequence and position.
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
        """Steps until every sequence is finished, or `max_steps` are made; see `sample`.

        After each step `settle` may take positions out of `State.pending`: they stay masked, and are not evaluated for.
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
    """Raises `ValueError` if a run cannot be limited or watched so."""
    if max_steps is not None:
        whole("max_steps", max_steps, least=0)
    whole("candidates", candidates, least=0)
