"""The metrics that `/metrics` shows, in Prometheus' form."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds


class Metrics:
    """The metrics of one app."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "rung_requests", "Requests answered.", ["endpoint", "status"], registry=registry
        )
        self.tokens = Counter(
            "rung_tokens", "Tokens read and written.", ["model", "kind"], registry=registry
        )
        self.waiting = Gauge(
            "rung_waiting_texts", "Texts that wait for a slot.", ["model"], registry=registry
        )
        self.running = Gauge(
            "rung_running_texts", "Texts that are being continued.", ["model"], registry=registry
        )
        self.first_token = Histogram(
            "rung_first_token_seconds",
            "From a request's arrival to the first token of its answer.",
            ["model"],
            buckets=FIRST_TOKEN_BUCKETS,
            registry=registry,
        )
