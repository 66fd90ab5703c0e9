"""What a server counts, for Prometheus; all names begin with `unmask_`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .engine import Engine
from .events import Finished

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_RATIOS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.5, 2, 4)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_RATES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)


class Metrics:
    """The counters of one server, which observe its engine (see `unmask.serving.engine.Observer`)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        model = ["model"]
        self.requests = Counter("unmask_requests", "Requests of HTTP.", ["path", "status"], registry=registry)
        self.request_seconds = Histogram(
            "unmask_request_seconds", "Seconds of a request of HTTP.", ["path"], buckets=_SECONDS, registry=registry
        )
        self.sequences = Counter(
            "unmask_sequences", "Sequences that are no longer worked on.", ["model", "reason"], registry=registry
        )
        self.tokens = Counter("unmask_tokens", "Tokens of answers, up to their ends.", model, registry=registry)
        self.nfe = Counter("unmask_nfe", "Evaluations that sequences took part in.", model, registry=registry)
        self.evaluations = Counter("unmask_evaluations", "States that were evaluated.", model, registry=registry)
        self.passes = Counter("unmask_forward_passes", "Forward passes.", model, registry=registry)
        self.pass_seconds = Counter("unmask_forward_seconds", "Seconds in forward passes.", model, registry=registry)
        self.per_token = Histogram(
            "unmask_nfe_per_token", "Evaluations per token of an answer.", model, buckets=_RATIOS, registry=registry
        )
        self.rate = Histogram(
            "unmask_tokens_per_second",
            "Tokens per second of an answer, from its admission on.",
            model,
            buckets=_RATES,
            registry=registry,
        )
        self.occupancy = Histogram(
            "unmask_batch_sequences", "Sequences of a forward pass.", model, buckets=_ROWS, registry=registry
        )
        self.seconds = Histogram(
            "unmask_sequence_seconds", "From admission to the end.", model, buckets=_SECONDS, registry=registry
        )
        self.waited = Histogram(
            "unmask_queue_seconds", "From the request to admission.", model, buckets=_SECONDS, registry=registry
        )
        self.freed = Histogram(
            "unmask_freed_after_evaluations",
            "Forward passes from the cancelling of a sequence until it was gone.",
            model,
            buckets=(0, 1, 2, 4, 8, 16),
            registry=registry,
        )
        self._waiting = Gauge("unmask_queue_sequences", "Sequences that wait.", model, registry=registry)
        self._running = Gauge("unmask_running_sequences", "Sequences that are worked on.", model, registry=registry)

    def watch(self, engine: Engine) -> None:
        """Reads the lengths of an engine's queues whenever it is asked."""
        for name in engine.lanes:
            self._waiting.labels(name).set_function(lambda name=name: engine.load(name)[0])
            self._running.labels(name).set_function(lambda name=name: engine.load(name)[1])

    def passed(self, model: str, rows: int, seconds: float) -> None:
        """Counts a forward pass."""
        self.passes.labels(model).inc()
        self.pass_seconds.labels(model).inc(seconds)
        self.occupancy.labels(model).observe(rows)

    def finished(self, model: str, event: Finished) -> None:
        """Counts an answer."""
        done = event.completion
        self.sequences.labels(model, done.finish_reason).inc()
        self.tokens.labels(model).inc(done.new_tokens)
        self.nfe.labels(model).inc(done.nfe)
        self.evaluations.labels(model).inc(event.evaluations)
        self.per_token.labels(model).observe(done.nfe / max(1, done.new_tokens))
        self.rate.labels(model).observe(done.new_tokens / max(1e-9, done.seconds))
        self.seconds.labels(model).observe(done.seconds)
        self.waited.labels(model).observe(event.waited)

    def left(self, model: str, reason: str, evaluations: int) -> None:
        """Counts a sequence that was not finished."""
        self.sequences.labels(model, reason).inc()
        if reason == "cancelled":
            self.freed.labels(model).observe(evaluations)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Counts a request of HTTP."""
        self.requests.labels(path, str(status)).inc()
        self.request_seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)
