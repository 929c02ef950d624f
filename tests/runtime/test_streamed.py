"""The streamed pass: what matrices multiply and what it predicts, against transformers with hooks."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from parity.oracle import Oracle, oracle  # noqa: E402

from puna.model import names  # noqa: E402
from puna.runtime.streamed import WINDOW, agreement, log_probabilities, observe  # noqa: E402
from puna.weights.files.values import Metadata  # noqa: E402
from puna.weights.load import Checkpoint  # noqa: E402
from puna.weights.quantize.encode import encoded  # noqa: E402


def checkpoint(known: Oracle) -> Checkpoint:
    return Checkpoint(known.config, Metadata({}), known.stored())


def silent(*_: object) -> None:
    pass


def squares_by_transformers(known: Oracle, ids: list[int]) -> dict[str, np.ndarray]:
    """Squared inputs of every linear layer, summed over the tokens, by our names."""
    sums: dict[str, np.ndarray] = {}
    hooks = []
    for name, module in known._hf.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":

            def hook(_: object, inputs: tuple, ours: str = names.from_hf(f"{name}.weight") or "") -> None:
                sums[ours] = inputs[0][0].double().square().sum(0).numpy()

            hooks.append(module.register_forward_pre_hook(hook))
    with torch.inference_mode():
        known._hf(torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return sums


def test_observed_is_what_transformers_multiplies() -> None:
    known = oracle("gqa")
    found = observe(checkpoint(known), known.tokens, None, silent)
    expected = squares_by_transformers(known, known.tokens)
    assert set(found) == set(expected)
    for name, sums in expected.items():
        assert found[name].counts_E.tolist() == [len(known.tokens)]
        np.testing.assert_allclose(found[name].sums_EX[0], sums, rtol=2e-4)


def test_windows_do_not_see_each_other() -> None:
    known = oracle("gqa")
    ids = known.tokens * 8  # more than one window
    head, bos = ids[: WINDOW - 1], 5
    both = observe(checkpoint(known), ids, bos, silent)["layers.1.w1"]
    parts = [
        observe(checkpoint(known), part, bos, silent)["layers.1.w1"] for part in (head, ids[len(head) :])
    ]
    assert both.counts_E[0] == sum(part.counts_E[0] for part in parts) == len(ids) + 2
    np.testing.assert_allclose(both.sums_EX, sum(part.sums_EX for part in parts), rtol=1e-5)


def test_each_expert_sees_its_own_tokens() -> None:
    known = oracle("experts")
    found = observe(checkpoint(known), known.tokens, None, silent)
    for i in range(known.config.n_layers):
        first, second = found[f"layers.{i}.experts_w1"], found[f"layers.{i}.experts_w2"]
        assert first.counts_E.sum() == len(known.tokens)
        assert first.counts_E.tolist() == second.counts_E.tolist()
        assert found[f"layers.{i}.router"].counts_E.tolist() == [len(known.tokens)]


@pytest.mark.parametrize("name", ["gqa", "tied", "experts"])
def test_predictions_are_transformers(name: str) -> None:
    known = oracle(name)
    got = log_probabilities(checkpoint(known), known.tokens)
    np.testing.assert_allclose(got, known.logprobs(known.tokens), rtol=0, atol=1e-4)


def test_agreement() -> None:
    known = oracle("gqa")
    source = checkpoint(known)
    same = agreement(source, source, known.tokens)
    assert (same.max_difference, same.same_choice) == (0.0, 1.0)
    rough = {name: encoded(t, "Q4_0") if len(t.shape) == 2 else t for name, t in source.tensors.items()}
    found = agreement(source, Checkpoint(known.config, Metadata({}), rough), known.tokens)
    assert 0.01 < found.mean_difference < found.max_difference
    assert found.same_choice < 1
