"""A stage's Prometheus metrics, and the HTTP server that Prometheus reads them from. No torch.

What happens is counted as it happens; what the parts know anyway is read when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from carrara.v1 import stage_pb2
from carrara_services.admission.line import WaitingLine
from carrara_services.serving.describe import DescribedPart, Runtime
from carrara_services.serving.settings import SettingsError
from carrara_services.watch import Outcome, TickWatch

# From the call of a tiny UNet to one that is so slow that the stage is of little use.
TICK_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
# From a text that is in the cache to the job at the end of a long line.
JOB_SECONDS = (*TICK_SECONDS[:-1], 30, 60, 120, 300, 600)
# Batches are worth telling apart by how often they double.
TICK_ROWS = (1, 2, 4, 8, 16, 32, 64)

REASONS = tuple(
    name.removeprefix("ERROR_REASON_")
    for name, value in stage_pb2.ErrorReason.items()
    if value != stage_pb2.ERROR_REASON_UNSPECIFIED
)


class TextCache(Protocol):
    """What a text encoder tells of the texts that it keeps."""

    @property
    def hits(self) -> int: ...  # noqa: D102
    @property
    def misses(self) -> int: ...  # noqa: D102
    @property
    def bytes(self) -> int: ...  # noqa: D102
    def __len__(self) -> int: ...


class Metrics:
    """The metrics of one stage, in a registry of their own: several stages may share a process.

    All methods are safe from any thread and never wait for a part, so that a worker that hangs can
    be seen from here.

    Attributes:
        registry: What a scrape reads.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._serving = self._gauge(
            "carrara_serving", "1 while the stage's health says SERVING, else 0."
        )
        self._jobs_ended = self._counter(
            "carrara_jobs_ended",
            "Jobs that have left the stage, by how they ended; handed_back is what waited when the "
            "stage began to drain, suspended what ran then and goes on elsewhere.",
            "outcome",
        )
        self._queue_wait = self._histogram(
            "carrara_queue_wait_seconds",
            "How long jobs waited in the line; only those that the worker took.",
            JOB_SECONDS,
        )
        self._running = self._histogram(
            "carrara_job_running_seconds",
            "How long jobs ran, from leaving the line to their end, however they ended.",
            JOB_SECONDS,
        )
        self._calls = self._counter(
            "carrara_calls", "Calls that have ended, by gRPC status code.", "method", "code"
        )
        self._call_seconds = self._histogram(
            "carrara_call_seconds",
            "How long calls took, from the request to the status.",
            JOB_SECONDS,
            "method",
        )
        self._refusals = self._counter(
            "carrara_refusals",
            "Calls that ended with an error of the stage, by the reason that the caller was told.",
            "reason",
        )
        self._received = self._counter(
            "carrara_received_bytes", "Bytes of the requests' messages.", "method"
        )
        self._sent = self._counter(
            "carrara_sent_bytes", "Bytes of the responses' messages.", "method"
        )
        # At 0 from the beginning, so that the first one is an increase.
        for outcome in get_args(Outcome):
            self._jobs_ended.labels(outcome)
        for reason in REASONS:
            self._refusals.labels(reason)

    def tell_serving(self, serving: bool) -> None:
        """Says what the stage's health says."""
        self._serving.set(serving)

    def tell_stage(
        self, part: DescribedPart, *, role: str, checkpoint: str, runtime: Runtime
    ) -> None:
        """Says what the stage is, and reads its device's memory from now on."""
        info = Info("carrara_stage", "What this stage is.", registry=self.registry)
        info.info(
            {
                "role": role,
                "family": part.family,
                "checkpoint": checkpoint,
                "fingerprint": part.fingerprint,
                "device": runtime.device,
                "precision": runtime.precision,
                "numerics": "exact" if runtime.exact else "fast",
                "version": runtime.versions["carrara"],
            }
        )
        if runtime.device_memory is not None:
            gauge = self._gauge(
                "carrara_device_memory_bytes",
                "Memory of the device that torch has given to tensors (allocated) and keeps from "
                "others (reserved).",
                "kind",
            )
            for kind, read in runtime.device_memory.items():
                gauge.labels(kind).set_function(read)

    def watch_line(self, line: WaitingLine) -> None:
        """Counts what happens to the line's jobs from now on."""
        jobs = self._gauge(
            "carrara_jobs",
            "Jobs in the stage: images, or texts of a text encoder; queued or running.",
            "state",
        )
        jobs.labels("queued").set_function(lambda: line.queued)
        jobs.labels("running").set_function(lambda: line.running)
        self._gauge("carrara_max_queue_jobs", "How many jobs may wait.").set(line.max_jobs)
        self._gauge(
            "carrara_queue_seconds", "How long all that waits and runs takes, at the stage's pace."
        ).set_function(lambda: line.backlog_seconds or 0.0)
        self._gauge(
            "carrara_max_queue_seconds", "The most of that at which more work is let in."
        ).set(line.max_seconds)
        line.watch = self

    def watch_batch(
        self, *, rows: Callable[[], int], max_batch_rows: Callable[[], int]
    ) -> TickWatch:
        """Reads how full a stage's batch is; what it returns counts the ticks."""
        seconds_of_ticks = self._histogram(
            "carrara_tick_seconds",
            "How long ticks took; a tick is one network call for one group of jobs, of denoisers "
            "with the scheduler step of each.",
            TICK_SECONDS,
        )
        rows_of_ticks = self._histogram(
            "carrara_tick_rows",
            "Rows of the network's batch at each tick; a job with guidance has 2.",
            TICK_ROWS,
        )
        steps = self._counter(
            "carrara_steps",
            "Steps of all jobs; each job in a tick makes one, and a decoded picture is one.",
        )
        self._gauge("carrara_batch_rows", "Rows of the jobs that run now.").set_function(rows)
        self._gauge("carrara_max_batch_rows", "How many rows may run at a time.").set_function(
            max_batch_rows
        )

        def tick(*, seconds: float, jobs: int, rows: int) -> None:
            seconds_of_ticks.observe(seconds)
            rows_of_ticks.observe(rows)
            steps.inc(jobs)

        return tick

    def watch_cache(self, cache: TextCache) -> None:
        """Reads what a text encoder's cache tells."""
        self.registry.register(_CacheReader(cache))

    def job_taken(self, *, queue_seconds: float) -> None:
        """Counts a job that the worker has taken from the line."""
        self._queue_wait.observe(queue_seconds)

    def job_ended(self, outcome: Outcome, *, running_seconds: float | None) -> None:
        """Counts a job that has left the stage.

        Args:
            running_seconds: None for one that never ran.
        """
        self._jobs_ended.labels(outcome).inc()
        if running_seconds is not None:
            self._running.observe(running_seconds)

    def call_ended(
        self,
        method: str,
        *,
        code: str,
        reason: str | None,
        seconds: float,
        received_bytes: int,
        sent_bytes: int,
    ) -> None:
        """Counts a call.

        Args:
            method: One that the stage serves; a caller's invention would make a series of its own.
            reason: Of the error that it ended with.
        """
        self._calls.labels(method, code).inc()
        self._call_seconds.labels(method).observe(seconds)
        self._received.labels(method).inc(received_bytes)
        self._sent.labels(method).inc(sent_bytes)
        if reason is not None:
            self._refusals.labels(reason).inc()

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(name, help_text, labels, registry=self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(name, help_text, labels, registry=self.registry)

    def _histogram(
        self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(name, help_text, labels, buckets=buckets, registry=self.registry)


class _CacheReader(Collector):
    """Reads counters that the cache keeps itself, which the library's own `Counter` cannot."""

    def __init__(self, cache: TextCache) -> None:
        self._cache = cache

    def collect(self) -> Iterable[Metric]:
        cache = self._cache
        yield CounterMetricFamily(
            "carrara_cache_hits",
            "Texts that were in the cache or just being encoded for another request.",
            value=cache.hits,
        )
        yield CounterMetricFamily(
            "carrara_cache_misses", "Texts that had to be encoded.", value=cache.misses
        )
        yield GaugeMetricFamily(
            "carrara_cache_texts", "Texts that the cache holds now.", value=len(cache)
        )
        yield GaugeMetricFamily(
            "carrara_cache_bytes",
            "Bytes of these texts and their embeddings.",
            value=cache.bytes,
        )


class MetricsServer:
    """Answers Prometheus over HTTP, from threads of its own.

    Attributes:
        address: Where it listens; a port of 0 has been replaced by the real one.
    """

    def __init__(self, metrics: Metrics, *, bind: str) -> None:
        """Takes the address and answers from now on.

        Args:
            bind: As `addresses.check_metrics_bind` allows it.

        Raises:
            SettingsError: The address cannot be had.
        """
        host, _, port = bind.rpartition(":")
        try:
            self._server, self._thread = start_http_server(
                int(port), addr=host.strip("[]"), registry=metrics.registry
            )
        except OSError as error:
            raise SettingsError(f"--metrics-bind {bind}: {error.strerror}") from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Ends; blocks for up to half a second. Closing twice does nothing."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
