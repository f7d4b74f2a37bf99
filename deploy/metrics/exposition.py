"""Series as Prometheus reads them, by its own client library."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from deploy.metrics import catalog
from deploy.metrics.series import Change, Series

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

_FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}


class _Collector(Collector):
    def __init__(self, series: Series) -> None:
        self._series = series

    def collect(self) -> Iterable[Family]:
        for metric, samples in self._series.now().items():
            family = _FAMILIES[metric.kind](metric.name, metric.help, labels=metric.labels)
            for labels, value in samples.items():
                family.add_metric(labels, value)
            yield family


def registry_of(series: Series) -> CollectorRegistry:
    """Returns a registry of these series, what is built in here, and this process (`process_*`)."""
    labels = (importlib.metadata.version("wildflower"), platform.python_version())
    series.apply([Change(catalog.BUILD_INFO, labels, 1)])
    registry = CollectorRegistry()
    registry.register(_Collector(series))
    ProcessCollector(registry=registry)
    return registry
