"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """
    The counters of one server.

    Attributes:
        requests (`Counter`): requests to transcribe that were answered, by `status`; 499 where the client had left.
        queue (`Gauge`): requests that are received, wait or run.
        audio (`Counter`): seconds of audio that were transcribed.
        latency (`Histogram`): seconds from the first byte of a request to its answer, of those that were transcribed.
        batch (`Histogram`): windows that ran at once.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory and processor time, on Linux
        name, registry = "lite_whisper_{}".format, self._registry
        self.requests = Counter(name("requests"), "Requests that were answered", ["status"], registry=registry)
        self.queue = Gauge(name("queue_length"), "Requests that are received, wait or run", registry=registry)
        self.audio = Counter(name("audio_seconds"), "Seconds of audio transcribed", registry=registry)
        self.latency = Histogram(
            name("request_seconds"), "Seconds to the transcript", buckets=SECONDS, registry=registry
        )
        self.batch = Histogram(name("batch_windows"), "Windows that ran at once", buckets=WINDOWS, registry=registry)

    def text(self) -> bytes:
        """All of them in the format of Prometheus."""
        return generate_latest(self._registry)
