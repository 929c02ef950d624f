"""One run of the bench: from a model file to everything that was found out about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import puna
from puna.bench.jobs import BenchConfig, Job, ModelCost, cost_of, jobs_of
from puna.bench.limits import Probe
from puna.bench.ours import Ours
from puna.bench.peer import Peer, PeerSpec
from puna.bench.report import Outcome, PeerInfo
from puna.bench.rounds import measure
from puna.bench.start import Start, cold_start
from puna.core import BadValue
from puna.engine.config import EngineConfig
from puna.llm.backend import NATIVE, Backend, available, weight_bytes
from puna.llm.load import needs_of
from puna.llm.memory import Needs, available_bytes, fit
from puna.model import catalog
from puna.model.config import ModelConfig
from puna.runtime.cpu import cpu_info
from puna.runtime.native import BLOCK_TOKENS
from puna.weights.load import open_checkpoint, write_checkpoint
from puna.weights.synthetic import synthetic_checkpoint

_STARTS = 3  # cold starts, of which the median counts


@dataclass(frozen=True, slots=True)
class Setting:
    """How our engine runs, and beside whom."""

    threads: int
    target: str = ""  # of the kernels; "": the best
    cache_type: str = "bf16"
    vs: str | None = None  # a key of peer.ENGINES
    vs_quant: str | None = None  # also the same model requantized by llama.cpp
    peer_python: str = ""
    backend: Backend = NATIVE


@dataclass(frozen=True, slots=True)
class _Model:
    facts: dict[str, Any]  # of the report
    config: ModelConfig
    cost: ModelCost
    needs: Needs


def run_bench(
    model: Path,
    config: BenchConfig,
    setting: Setting,
    tick: Callable[[str], None],
    name: str | None = None,
) -> Outcome:
    """Measure. `tick` is told what comes next. Raises BadFile, DoesNotFit, BadValue or WorkFailed."""
    known = _inspect(model, setting, name)
    jobs, skipped = _runnable(jobs_of(config), known.config)
    cache_tokens = _cache_tokens(jobs)
    on_cpu = setting.backend.device == "cpu"
    fit(known.needs, cache_tokens, 1, available_bytes() if on_cpu else available(setting.backend))
    tick("cold start")
    start = _median_start(model, setting)
    with ExitStack() as stack:
        ours = Ours(model, cache_tokens, setting.threads, setting.cache_type, setting.target, setting.backend)
        stack.callback(ours.close)
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="puna-bench-")))
        peers = [
            stack.enter_context(Peer(spec, folder)) for spec in _specs(model, setting, jobs, folder, tick)
        ]
        probe = _probe(config, setting)
        samples = measure(jobs, config.rounds, probe.measure, ours, peers, tick)
    return Outcome(
        puna=puna.__version__,
        model=known.facts,
        settings={
            "threads": setting.threads,
            "backend": setting.backend.name,
            "device": setting.backend.device,
            "weights": setting.backend.weights or known.facts["format"],
            "target": cpu_info(setting.target)["target"],
            "cache_type": setting.cache_type,
        },
        config=config,
        cost=known.cost,
        limits=probe.seen,
        samples=samples,
        start=start,
        peers=[
            PeerInfo(peer.spec.engine, peer.version, _format(peer.spec, known), peer.load_seconds)
            for peer in peers
        ],
        skipped=skipped,
    )


def n_ticks(config: BenchConfig, setting: Setting) -> int:
    """An upper bound of how often run_bench ticks."""
    n_peers = 0 if setting.vs is None else 1 + (setting.vs_quant is not None)
    return 1 + n_peers + (config.rounds + 1) * len(jobs_of(config))


def _probe(config: BenchConfig, setting: Setting) -> Any:
    if setting.backend.device == "cpu":
        return Probe(config, setting.threads, setting.target, available_bytes())
    from puna.bench.torch_limits import TorchProbe

    return TorchProbe(config, setting.backend.device)


def _inspect(model: Path, setting: Setting, name: str | None) -> _Model:
    with open_checkpoint(model) as checkpoint:
        bytes_of: Counter[str] = Counter()
        for tensor in checkpoint.tensors.values():
            bytes_of[tensor.kind] += tensor.n_bytes
        facts: dict[str, Any] = {
            "name": name or checkpoint.metadata.get("general.name") or model.stem,
            "format": bytes_of.most_common(1)[0][0],
            "file_bytes": sum(path.stat().st_size for path in checkpoint.paths),
            "parameters": sum(prod(tensor.shape) for tensor in checkpoint.tensors.values()),
            "context": checkpoint.config.context_length,
        }
        needs = needs_of(facts["name"], checkpoint, setting.cache_type, EngineConfig())
        bytes_in_memory = None
        if setting.backend.is_torch:
            from puna.runtime.torch_weights import weight_bytes as bytes_by_kind

            bytes_in_memory = partial(bytes_by_kind, kind=setting.backend.weights)
            needs = replace(needs, weight_bytes=weight_bytes(checkpoint, setting.backend))
        cost = cost_of(checkpoint, setting.cache_type, bytes_in_memory)
        return _Model(facts, checkpoint.config, cost, needs)


def _runnable(jobs: Sequence[Job], config: ModelConfig) -> tuple[list[Job], list[str]]:
    """The jobs that the model's context holds, and a sentence for each that it does not."""
    skipped = [
        f"{job.name} needs {job.length:,} positions, and the model was made for {config.context_length:,}"
        for job in jobs
        if job.length > config.context_length
    ]
    return [job for job in jobs if job.length <= config.context_length], skipped


def _cache_tokens(jobs: Sequence[Job]) -> int:
    """Room for the largest job beside the prompt of the deepest decode, which stays in the prefix cache."""
    # a block that is not full, and the free one that the scheduler wants before it admits the next stream
    spare = 2 * BLOCK_TOKENS
    largest = max((job.streams * (job.length + spare) for job in jobs), default=spare)
    kept = max((job.prompt for job in jobs if job.kind == "decode"), default=0)
    return largest + kept + BLOCK_TOKENS


def _median_start(model: Path, setting: Setting) -> Start:
    found = [
        cold_start(model, setting.threads, setting.cache_type, setting.target, setting.backend)
        for _ in range(_STARTS)
    ]
    return Start(
        load_s=median(start.load_s for start in found),
        first_token_s=median(start.first_token_s for start in found),
        peak_bytes=max(start.peak_bytes for start in found),
    )


def _specs(
    model: Path, setting: Setting, jobs: Sequence[Job], folder: Path, tick: Callable[[str], None]
) -> Iterator[PeerSpec]:
    if setting.vs is None:
        return
    tick(f"starting {setting.vs}")
    length = max(job.length for job in jobs)
    spec = PeerSpec(setting.vs, setting.peer_python, model, setting.threads, length=length)
    if setting.backend.is_torch:
        dtype = setting.backend.weights
        is_float = dtype in ("bf16", "f16", "f32")
        spec = replace(spec, device=setting.backend.device, dtype=dtype if is_float else "bf16")
    if setting.vs in ("vllm", "transformers"):
        from puna.bench.hf_folder import write_hf_folder

        with open_checkpoint(model) as checkpoint:
            write_hf_folder(checkpoint, folder)
        spec = replace(spec, model=folder)
    yield spec
    if setting.vs_quant is not None:
        tick(f"starting {setting.vs} on {setting.vs_quant}")
        yield replace(spec, quant=setting.vs_quant)


def _format(spec: PeerSpec, model: _Model) -> str:
    """What the peer ran."""
    if spec.engine in ("vllm", "transformers"):
        return spec.dtype.upper()
    return spec.quant.upper() if spec.quant else str(model.facts["format"])


@contextmanager
def synthetic_file(shape: str, quant: str, n_layers: int | None = None) -> Iterator[Path]:
    """A file of seeded random weights in the shape of a model of the catalog, for as long as it is needed.

    Without its image encoder, and with its first `n_layers` only if given. Raises UnknownModel, BadValue,
    DoesNotFit or DiskFull.
    """
    entry = catalog.find(shape)
    most = entry.config.n_layers
    if n_layers is not None and not 1 <= n_layers <= most:
        raise BadValue(f"--layers must be from 1 to the {most} of {shape}, got {n_layers}")
    config = replace(entry.config, n_layers=n_layers or most, vision=None)
    # before gigabytes are written: the cache of the jobs is looked at when they are known
    fit(needs_of(shape, synthetic_checkpoint(config, quant), "bf16", EngineConfig()), 1, 1, available_bytes())
    with TemporaryDirectory(prefix="puna-bench-") as folder:
        path = Path(folder) / f"{entry.name}-{quant}.gguf"
        write_checkpoint(synthetic_checkpoint(config, quant), path)
        yield path
