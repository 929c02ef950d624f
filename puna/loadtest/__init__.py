"""Load on any OpenAI-compatible server over HTTP, and what its users would meet.

    load = Load(model="smollm2", rate=2.0, requests=200)
    report = measure(Target.of("http://127.0.0.1:8080"), load)
"""

from puna.loadtest.client import Target
from puna.loadtest.lengths import LengthMix, read_trace
from puna.loadtest.load import Load, Tenant
from puna.loadtest.session import Session, measure
from puna.loadtest.stats import Targets

__all__ = ["LengthMix", "Load", "Session", "Target", "Targets", "Tenant", "measure", "read_trace"]
