"""What a recipe says: dataclasses whose fields are the words of its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import with_config

from puna.core import BadValue
from puna.train.optim.groups import DEFAULT, Rule
from puna.train.optim.schedule import Schedule
from puna.train.parallel.layout import Layout
from puna.train.strict import STRICT

Kind = Literal["text", "jsonl", "parquet", "chat", "preference"]
Packing = Literal["concat", "fit", "pad"]
Precision = Literal["f32", "bf16"]


@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class Start:
    """What training begins with: a model, or with `new` only its shape and tokenizer."""

    model: str  # a name, a file, a folder or a source
    new: bool = False  # weights to begin with are made anew
    std: float = 0.02  # of new weights


@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class SourceSpec:
    """Files of one kind, and how much of what is trained on comes from them."""

    path: str
    kind: Kind = "text"
    weight: float = 1.0  # relative to the other sources, in tokens

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise BadValue(f"weight must be above 0, got {self.weight}")


@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class Data:
    sources: tuple[SourceSpec, ...]
    row_tokens: int  # of a row
    packing: Packing = "concat"

    def __post_init__(self) -> None:
        if not self.sources:
            raise BadValue("sources must name at least one file to train on, found none")
        if self.row_tokens < 2:
            raise BadValue(f"row_tokens must be 2 or more, got {self.row_tokens}")


@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class Checkpointing:
    every: int = 1000  # steps
    keep: int = 2

    def __post_init__(self) -> None:
        if self.every < 1 or self.keep < 1:
            raise BadValue(f"every and keep must be 1 or more, got {self.every} and {self.keep}")


@with_config(STRICT)
@dataclass(frozen=True, slots=True)
class Recipe:
    """Raises BadValue for what makes no sense, whatever the machine."""

    start: Start
    data: Data
    batch_tokens: int  # of a step, over all ranks and micro-batches
    schedule: Schedule
    steps: int | None = None
    tokens: int | None = None  # in place of steps: as many as these need
    micro_rows: int = 1  # that go through the model at once on a rank
    rules: tuple[Rule, ...] = field(default=DEFAULT)
    clip: float = 1.0  # the most that the norm of all gradients may be
    z_loss: float = 0.0
    precision: Precision = "f32"
    layout: Layout = field(default_factory=Layout)
    checkpoint: Checkpointing = field(default_factory=Checkpointing)
    seed: int = 0
    source: str = ""  # where the recipe is from

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.tokens is None):
            raise BadValue("a recipe says steps or tokens, one of them")
        if self.batch_tokens % self.data.row_tokens:
            raise BadValue(
                f"batch_tokens must be a number of rows of {self.data.row_tokens} tokens, "
                f"got {self.batch_tokens}"
            )
        per_pass = self.micro_rows * self.layout.n_batch
        if self.micro_rows < 1 or self.n_rows % per_pass:
            raise BadValue(
                f"the {self.n_rows} rows of a step must be shared by {self.layout.n_batch} ranks in "
                f"micro-batches of {self.micro_rows} rows; make batch_tokens a multiple of "
                f"{per_pass * self.data.row_tokens}"
            )
        if self.n_steps < 1 or self.clip <= 0 or self.z_loss < 0:
            raise BadValue(
                f"steps must be 1 or more, clip above 0, z_loss 0 or more; got {self.n_steps}, {self.clip}, "
                f"{self.z_loss}"
            )
        self.schedule.check(self.n_steps)

    @property
    def n_rows(self) -> int:
        """Of a step."""
        return self.batch_tokens // self.data.row_tokens

    @property
    def n_steps(self) -> int:
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None
        return -(-self.tokens // self.batch_tokens)
