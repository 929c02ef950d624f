"""Load on any OpenAI-compatible server over HTTP, and what its users would meet.

load = Load(model="smollm2", rate=2.0, requests=200)
report = measure(Target.of("http://127.0.0.1:8080"), load)
report.to_json()["ttft_ms"]["p95"]
"""

from puna.loadtest.lengths import LengthMix, read_trace
from puna.loadtest.load import Load, Tenant
from puna.loadtest.report import Report
from puna.loadtest.session import Session, first_model, measure
from puna.loadtest.stats import Targets
from puna.loadtest.target import Target

__all__ = [
    "LengthMix",
    "Load",
    "Report",
    "Session",
    "Target",
    "Targets",
    "Tenant",
    "first_model",
    "measure",
    "read_trace",
]
