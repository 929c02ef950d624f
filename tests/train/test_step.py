"""A step is the same whatever it is cut into, and packed documents are what they are alone."""

from __future__ import annotations

import pytest
import torch
from parity.oracle import oracle

from puna.core import BadInput
from puna.train.model.module import Llama
from puna.train.model.rows import IGNORED, Rows, rows_of
from puna.train.optim.build import Optimizers
from puna.train.optim.groups import DEFAULT
from puna.train.optim.schedule import Schedule
from puna.train.step import Batch, Stepper

N = 48


def stepper(name: str = "gqa", **more: float) -> Stepper:
    known = oracle(name)
    model = Llama(known.config)
    model.load(known.tensors)
    optimizers = Optimizers(dict(model.tensors()), DEFAULT, Schedule(1e-3, "constant"))
    return Stepper(model, optimizers, n_steps=20, **more)  # type: ignore[arg-type]


def rows(step: int, n_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels, of which each row has another number."""
    random = torch.Generator().manual_seed(step)
    tokens = torch.randint(1, 96, (n_rows, N), generator=random)
    labels = tokens.roll(-1, 1)
    for i in range(n_rows):
        labels[i, : 7 * i] = IGNORED
    labels[:, -1] = IGNORED
    return tokens, labels


@pytest.mark.parametrize("name", ["gqa", "tied"])
@pytest.mark.parametrize("sizes", [[6], [1] * 6, [1, 3, 2]])
def test_a_step_is_the_same_in_any_number_of_parts(name: str, sizes: list[int]) -> None:
    whole, parted = stepper(name), stepper(name)
    for number in range(20):
        tokens, labels = rows(number, 6)
        expected = whole.step(number, [Batch(rows_of(tokens), labels)])
        parts = zip(tokens.split(sizes), labels.split(sizes), strict=True)
        found = parted.step(number, [Batch(rows_of(ids), own) for ids, own in parts])
        assert found.loss == pytest.approx(expected.loss, abs=1e-5)
        assert found.n_labels == expected.n_labels
    assert expected.loss < 5


@pytest.mark.parametrize("name", ["gqa", "small_chunks"])
def test_packed_documents_see_nothing_of_each_other(name: str) -> None:
    """The same documents side by side and each in a row of its own, filled up with what is not learnt."""
    known = oracle(name)
    model = Llama(known.config)
    model.load(known.tensors)
    lengths = [20, 9, 19]
    tokens, _ = rows(0, 1)
    packed = model.hidden(rows_of(tokens, [lengths]))
    at = 0
    for length in lengths:
        alone = torch.full((1, N), 5)
        alone[0, :length] = tokens[0, at : at + length]
        found = model.hidden(rows_of(alone))[:length]
        torch.testing.assert_close(packed[at : at + length], found, atol=1e-5, rtol=1e-5)
        at += length


def test_without_labels_there_is_no_step() -> None:
    tokens, labels = rows(0, 2)
    with pytest.raises(BadInput, match="step 3 has no label"):
        stepper().step(3, [Batch(rows_of(tokens), torch.full_like(labels, IGNORED))])


def test_what_is_no_number_changes_nothing() -> None:
    own = stepper()
    with torch.no_grad():
        own.model.norm[0] = float("nan")
    before = {name: parameter.clone() for name, parameter in own.model.tensors()}
    tokens, labels = rows(0, 2)
    assert own.step(0, [Batch(rows_of(tokens), labels)]).is_skipped
    for name, parameter in own.model.tensors():
        assert torch.equal(parameter.nan_to_num(7), before[name].nan_to_num(7)), name


def test_the_z_loss_is_the_square_of_the_normalizer() -> None:
    tokens, labels = rows(0, 2)
    batch = Batch(rows_of(tokens), labels)
    plain, weighed = stepper(), stepper(z_loss=0.5)
    logits = plain.model.logits(plain.model.hidden(batch.rows))
    is_label = labels.flatten() != IGNORED
    expected = 0.5 * logits.logsumexp(-1)[is_label].square().mean()
    gradients = torch.autograd.grad(expected, list(plain.model.parameters()))
    for own in (plain, weighed):
        own._backward(batch, batch.n_labels)
    for (name, a), b, extra in zip(plain.model.tensors(), weighed.model.parameters(), gradients, strict=True):
        assert a.grad is not None
        torch.testing.assert_close(b.grad, a.grad + extra, msg=name, atol=1e-5, rtol=1e-4)


def test_lengths_must_add_up() -> None:
    with pytest.raises(BadInput, match="must add up to 48 tokens"):
        rows_of(torch.ones(1, 48, dtype=torch.int64), [[20, 20]])
    assert isinstance(rows_of(torch.ones(1, 48, dtype=torch.int64), [[20, 28]]), Rows)
