"""`GET /metrics`: what the engine and the server do, in Prometheus' text format."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from moejax.inference.engine.stats import Balance, EngineStats, Histogram
from moejax.inference.server.tally import Tally

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_GAUGES = {
    "seats": "Texts that can run at once.",
    "running": "Texts that run.",
    "waiting": "Texts that wait for a seat or for pages.",
    "pages": "Pages of the cache.",
    "pages_used": "Pages that running texts have.",
    "pages_shared": "Pages that several running texts have together.",
    "pages_kept": "Free pages whose content is kept for texts that begin alike.",
    "waste": "Part of the slots of used pages that holds nothing a later token sees.",
}
_COUNTERS = {
    "prompt_tokens": "Tokens of prompts that have begun.",
    "drawn_tokens": "Tokens that texts have got.",
    "prefix_hits": "Texts that found pages of their beginning in the cache.",
    "prefix_tokens": "Tokens of prompts that were not read because of it.",
    "put_back": "Times that a text gave up its pages for others (preemptions).",
    "prompt_calls": "Calls of the model that read prompts.",
    "decode_calls": "Calls of the model that add a token to each running text.",
    "rows": "Tokens that were drawn.",
    "lost_rows": "Those of them that came after the end of a text.",
    "drafted": "Drafts that were checked (speculation).",
    "accepted": "Those of them that were right: tokens without a call of the model.",
}
_HISTOGRAMS = {
    "first_seconds": "From when a text was asked for to its first token.",
    "next_seconds": "From one token of a text to the next.",
}


def write_metrics(stats: EngineStats, tally: Tally, layers: Sequence[int]) -> bytes:
    """The lines of all metrics. Names begin with ``moejax_``. ``layers``: the numbers of the routed
    ones in the model.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(stats, tally, layers))
    return generate_latest(registry)


class _Collector:
    def __init__(self, stats: EngineStats, tally: Tally, layers: Sequence[int]) -> None:
        self._stats, self._tally, self._layers = stats, tally, layers

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        stats = self._stats
        yield _gauge("up", "1 while the engine works.", float(stats.failed is None))
        for name, about in _GAUGES.items():
            yield _gauge(name, about, getattr(stats, name))
        cache = stats.pages_used / max(1, stats.pages)
        yield _gauge("cache_use", "Part of the pages that running texts have.", cache)
        for name, about in _COUNTERS.items():
            yield _counter(name, about, getattr(stats, name))
        ended = _counter("texts", "Texts that have ended, by why.", labels=["why"])
        for why, count in stats.ended.items():
            ended.add_metric([why], count)
        yield ended
        for name, about in _HISTOGRAMS.items():
            yield _histogram(name, about, getattr(stats, name))
        answers = _counter("answers", "Answers by path and status.", labels=["path", "status"])
        for (path, status), count in self._tally.answers.items():
            answers.add_metric([path, str(status)], count)
        yield answers
        yield _counter("clients_gone", "Clients that left before their answer.", self._tally.gone)
        if stats.load_LE is not None:
            yield from describe_load(stats.load_LE, self._layers)
        if stats.balance is not None:
            yield from describe_balance(stats.balance, self._layers)


def describe_load(load_LE: np.ndarray, layers: Sequence[int]) -> Iterator[Metric]:
    """Choices of each expert, and how far the largest load of a layer is above the mean: a layer
    waits for the device with the most.
    """
    load = _counter("expert_choices", "Choices asked of an expert.", labels=["layer", "expert"])
    ratio = GaugeMetricFamily(
        "moejax_straggler_ratio",
        "Largest load of an expert over the mean of its layer, since the start.",
        labels=["layer"],
    )
    for layer, load_E in zip(layers, load_LE, strict=True):
        for expert, count in enumerate(load_E):
            load.add_metric([str(layer), str(expert)], float(count))
        if load_E.sum() > 0:
            ratio.add_metric([str(layer)], float(load_E.max() / load_E.mean()))
    yield load
    yield ratio


def describe_balance(balance: Balance, layers: Sequence[int]) -> Iterator[Metric]:
    """What moving experts does: how even the load of their devices is, and was."""
    yield _counter("expert_moves", "Times that experts moved to other devices.", balance.moves)
    yield _counter("experts_copied", "Experts copied for it, in all layers.", balance.copied)
    even = GaugeMetricFamily(
        "moejax_balancedness",
        "Mean over largest load of the devices that hold experts: now, before and after they moved"
        " the last time.",
        labels=["when", "layer"],
    )
    for when, (of_all, share_L) in balance.shares().items():
        even.add_metric([when, "all"], of_all)
        for layer, share in zip(layers, share_L, strict=True):
            even.add_metric([when, str(layer)], float(share))
    yield even


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(f"moejax_{name}", about, value=value)


def _counter(
    name: str, about: str, value: float | None = None, labels: list[str] | None = None
) -> CounterMetricFamily:
    return CounterMetricFamily(f"moejax_{name}", about, value=value, labels=labels)


def _histogram(name: str, about: str, values: Histogram) -> Metric:
    bounds = [*map(str, values.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(values.counts), strict=True))
    return HistogramMetricFamily(f"moejax_{name}", about, buckets=buckets, sum_value=values.sum)
