"""One thread that works on all requests: it passes sequences to the runners, and their results to the requests.

The scheduler decides which sequences to work on and a runner evaluates them; neither knows of the other. Requests come
from other threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import UnmaskError
from .events import Admitted, Event, Failed, Finished, Request, Written
from .limits import Limits
from .runner import Runner, Turned, Work
from .scheduler import Scheduler

log = logging.getLogger("unmask.serving")


class Observer(Protocol):
    """Counts what an engine does."""

    def passed(self, model: str, rows: int, seconds: float) -> None:
        """Counts a forward pass made for this many sequences."""
        ...

    def finished(self, model: str, event: Finished) -> None:
        """Counts a sequence that is finished."""
        ...

    def left(self, model: str, reason: str, evaluations: int) -> None:
        """Counts a sequence that left unfinished, this many forward passes after it was asked to leave."""
        ...


@dataclass
class _Sequence:
    """A sequence that a request waits for: its work, and the request."""

    work: Work
    request: Request
    index: int
    submitted: float
    admitted: float = 0.0
    evaluations: int = 0
    keeps: bool = True
    asked_at: int | None = None  # passes of the runner when it was asked to leave


@dataclass
class _Lane:
    """A model, with the sequences that wait for it and those it works on."""

    name: str
    runner: Runner
    scheduler: Scheduler
    sequences: dict[int, _Sequence] = field(default_factory=dict)
    cancelled: dict[str, Failed | None] = field(default_factory=dict)


class Engine:
    """Answers requests, in a thread of its own.

    Args:
        runners: The runner of each model, by name.
        limits: Limits on the requests that it accepts.
        observer: Counts what the engine does.
        clock: Returns the time, in seconds.
    """

    def __init__(
        self,
        runners: Mapping[str, Runner],
        limits: Limits | None = None,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits, self.observer, self.clock = limits or Limits(), observer, clock
        self.lanes = {name: _Lane(name, runner, Scheduler(self.limits)) for name, runner in runners.items()}
        self._wake = threading.Condition()
        self._numbers, self._stopping = 0, False
        self._thread = threading.Thread(target=self._run, name="unmask-engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; unfinished requests fail."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the engine accepts requests."""
        return self._thread.is_alive() and not self._stopping

    def load(self, model: str) -> tuple[int, int]:
        """Returns how many sequences of a model wait, and how many are worked on."""
        scheduler = self.lanes[model].scheduler
        return scheduler.waiting, len(scheduler.running)

    def submit(self, request: Request) -> None:
        """Accepts a request.

        Raises:
            ValueError: If it exceeds the limits of the server.
            Full: If the queue is full.
        """
        lane, now = self.lanes[request.model], self.clock()
        with self._wake:
            numbers = range(self._numbers, self._numbers + len(request.asked))
            lengths = [len(one.row) for one in request.asked]
            lane.scheduler.submit(request.name, list(zip(numbers, lengths, strict=True)), now)
            self._numbers += len(numbers)
            for index, (number, asked) in enumerate(zip(numbers, request.asked, strict=True)):
                work = Work(number, asked, asked.canvas(lane.runner.denoiser), request.candidates)
                lane.sequences[number] = _Sequence(work, request, index, now, keeps=asked.settings.keeps)
            self._wake.notify()

    def cancel(self, request: Request) -> None:
        """Cancels a request: it gets no more events. Does nothing if the request is finished or unknown."""
        with self._wake:
            self.lanes[request.model].cancelled.setdefault(request.name, None)
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (
                    self._stopping or any(lane.scheduler.busy or lane.cancelled for lane in self.lanes.values())
                ):
                    self._wake.wait()
                if self._stopping:
                    break
            for lane in self.lanes.values():
                try:
                    self.turn(lane.name)
                except Exception as error:
                    log.exception("a forward pass has failed")
                    self._give_up(lane, error)
        with self._wake:
            waited_for = {
                one.request.name: one.request for lane in self.lanes.values() for one in lane.sequences.values()
            }
        for request in waited_for.values():
            self._tell(request, [Failed("shutdown", "the server is shutting down")])

    def turn(self, model: str) -> None:
        """Lets sequences of a model leave and join, and makes a forward pass. The thread does nothing else.

        Args:
            model: Its name.
        """
        lane = self.lanes[model]
        with self._wake:
            now = self.clock()
            for name in lane.scheduler.expired(now):
                message = f"the request took longer than {self.limits.seconds:g} s"
                lane.cancelled.setdefault(name, Failed("timeout", message))
            leaving = self._cancelled(lane)
            admitted = [lane.sequences[number] for number in lane.scheduler.admit()]
        lane.runner.leave(leaving)
        refused = {work.number: error for work, error in lane.runner.join([one.work for one in admitted])}
        for one in admitted:
            one.admitted = now
            if one.work.number in refused:
                self._fail(lane, one, refused[one.work.number])
            else:
                self._tell(one.request, [Admitted(one.index, now - one.submitted)])
        if not len(lane.runner):
            return
        rows, began = len(lane.runner), self.clock()
        turned = lane.runner.step()
        if self.observer is not None:
            self.observer.passed(lane.name, rows, self.clock() - began)
        self._deliver(lane, turned)

    def _cancelled(self, lane: _Lane) -> list[int]:
        """Takes cancelled requests out of the queue; returns the numbers of the sequences that have yet to leave."""
        leaving = []
        for name, failed in lane.cancelled.items():
            own = [one for one in lane.sequences.values() if one.request.name == name]
            running = set(lane.scheduler.cancel(name))
            leaving += running
            if failed is not None and any(one.asked_at is None for one in own):
                self._tell(own[0].request, [failed])
            for one in own:
                if one.work.number in running:
                    one.asked_at = lane.runner.passes if one.asked_at is None else one.asked_at
                else:
                    del lane.sequences[one.work.number]
        lane.cancelled.clear()
        return leaving

    def _deliver(self, lane: _Lane, turned: list[Turned]) -> None:
        """Tells requests what happened to their sequences."""
        now, told = self.clock(), defaultdict(list)
        for turn in turned:
            one = lane.sequences.get(turn.work.number)
            if one is None:
                continue
            if turn.change is not None:
                one.evaluations = turn.change.evaluations
                if one.request.watch:
                    canvas = one.work.canvas
                    text = canvas.release() if one.keeps else ""
                    final = len(canvas.written()) if one.keeps else 0
                    told[id(one)].append(Written(one.index, turn.change, now - one.admitted, text, final))
            if turn.done:
                told[id(one)] += self._done(lane, one, turn.error, now)
            if told[id(one)]:
                self._tell(one.request, told.pop(id(one)))

    def _done(self, lane: _Lane, one: _Sequence, error: Exception | None, now: float) -> list[Event]:
        number = one.work.number
        del lane.sequences[number]
        with self._wake:
            lane.scheduler.finish(number, now)
        if one.asked_at is not None:
            if self.observer is not None:
                self.observer.left(lane.name, "cancelled", lane.runner.passes - one.asked_at)
            return []
        if error is not None:
            log.error("a sequence has failed: %s", type(error).__name__)
            with self._wake:
                lane.cancelled.setdefault(one.request.name, None)
            if self.observer is not None:
                self.observer.left(lane.name, "failed", 0)
            asked_wrongly = isinstance(error, ValueError) and not isinstance(error, UnmaskError)
            message = " ".join(str(error).split())
            return [Failed("request", message) if asked_wrongly else Failed("model", f"the model failed: {message}")]
        asked = one.work.asked
        completion = one.work.canvas.completion(asked.prompt.text, now - one.admitted, asked.stream)
        text = one.work.canvas.release() if one.request.watch else ""
        event = Finished(one.index, completion, one.evaluations, text, one.admitted - one.submitted)
        if self.observer is not None:
            self.observer.finished(lane.name, event)
        return [event]

    def _fail(self, lane: _Lane, one: _Sequence, error: Exception) -> None:
        self._tell(one.request, self._done(lane, one, error, self.clock()))

    def _give_up(self, lane: _Lane, error: Exception) -> None:
        """Fails all sequences that are worked on, and continues with those that wait."""
        lane.runner = lane.runner.emptied()
        for number in list(lane.scheduler.running):
            self._fail(lane, lane.sequences[number], error)

    def _tell(self, request: Request, events: list[Event]) -> None:
        try:
            request.tell(events)
        except RuntimeError:  # the event loop it would be told in has gone
            log.debug("nobody listens to %s", request.name)
