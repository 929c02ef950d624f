"""The metrics of all replicas as one page of Prometheus: each sample with the label `replica`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


class _Families(Collector):
    def __init__(self) -> None:
        self._of: dict[str, Metric] = {}

    def add(self, replica: str, text: str) -> None:
        for family in text_string_to_metric_families(text):
            mine = self._of.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                mine.samples.append(sample._replace(labels={"replica": replica, **sample.labels}))

    def collect(self) -> Iterator[Metric]:
        yield from self._of.values()


def merged(texts: Mapping[str, str]) -> bytes:
    """What replicas answered to /metrics, by their names."""
    families = _Families()
    for replica, text in sorted(texts.items()):
        families.add(replica, text)
    families.add("", f"# TYPE puna_replicas gauge\npuna_replicas {len(texts)}\n")
    return generate_latest(families)
