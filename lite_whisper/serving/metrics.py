"""Prometheus metrics of the server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

LATENCY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """
    Metrics of one server.

    Attributes:
        requests (`Counter`): finished transcription requests by `status`; 499 if the client disconnected.
        queue (`Gauge`): requests that are being received, waiting or running.
        audio (`Counter`): seconds of audio transcribed.
        latency (`Histogram`): seconds from the first byte of a request to its response, for successful requests.
        batch (`Histogram`): windows per batch.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory and CPU time, on Linux
        name, registry = "lite_whisper_{}".format, self._registry
        self.requests = Counter(name("requests"), "Finished requests", ["status"], registry=registry)
        self.queue = Gauge(name("queue_length"), "Requests being received, waiting or running", registry=registry)
        self.audio = Counter(name("audio_seconds"), "Seconds of audio transcribed", registry=registry)
        self.latency = Histogram(
            name("request_seconds"),
            "Seconds from a request to its response",
            buckets=LATENCY_BUCKETS,
            registry=registry,
        )
        self.batch = Histogram(name("batch_windows"), "Windows per batch", buckets=BATCH_BUCKETS, registry=registry)

    def text(self) -> bytes:
        """Returns the metrics in the Prometheus text format."""
        return generate_latest(self._registry)
