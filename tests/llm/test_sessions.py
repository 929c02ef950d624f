"""Sessions in files: what comes back is to the bit what was computed, and nothing else comes back."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llm.tiny_llm import write_tiny_llm
from safetensors.numpy import load_file

from puna import LLM
from puna.core import BadFile, BadValue, Completion, DiskFull, DoesNotFit, Unsupported, WorkFailed
from puna.weights import disk

TEXT = "the other day the other man said the other thing, " * 8
ASKED = [{"role": "user", "content": TEXT}]


def ask(llm: LLM, prompt: Any = TEXT) -> Completion:
    if isinstance(prompt, str):
        return llm.generate(prompt, temperature=0.7, seed=4, max_tokens=24, logprobs=3)
    return llm.chat(prompt, temperature=0.7, seed=4, max_tokens=24, logprobs=3)


def bits(answer: Completion) -> tuple[Any, ...]:
    return answer.token_ids, answer.logprobs, answer.text


@pytest.fixture
def saved(llm: LLM, tmp_path: Path) -> Path:
    path = tmp_path / "one.session"
    llm.save_session(path, TEXT)
    return path


@pytest.fixture(scope="module")
def expected(llm: LLM) -> tuple[Any, ...]:
    return bits(ask(llm))


@pytest.mark.parametrize("cache_type", ["bf16", "q8_0", "f32"])
def test_a_restored_beginning_is_the_computed_one(tiny: Path, tmp_path: Path, cache_type: Any) -> None:
    path = tmp_path / "x.session"
    with LLM(tiny, threads=1, cache_type=cache_type) as one:
        session = one.save_session(path, TEXT)
        answer = ask(one)
    n = len(one.tokenizer.encode(TEXT)) // 32 * 32
    assert len(session.tokens) == n > 200
    assert session.n_bytes == path.stat().st_size
    with LLM(tiny, threads=2, cache_type=cache_type) as other:
        found = other.load_session(path)
        assert (found.tokens, found.n_bytes) == (session.tokens, session.n_bytes)
        assert other.stats().prefill_tokens == 0
        again = ask(other)
        assert again.n_cached == n
        assert bits(again) == bits(answer)
    assert os.listdir(tmp_path) == ["x.session"]


def test_the_file_is_one_that_others_read(llm: LLM, saved: Path) -> None:
    tensors = load_file(saved)
    ids = llm.tokenizer.encode(TEXT)
    n = len(ids) // 32
    assert tensors["tokens"].tolist() == ids[: 32 * n]
    assert tensors["blocks"].shape == (
        n,
        2 * 2 * 32 * 32 * 2,
    )  # keys and values, layers, positions, head, bf16
    raw = saved.read_bytes()
    metadata = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])["__metadata__"]
    assert sha256(raw.replace(metadata["sha256"].encode(), b"0" * 64)).hexdigest() == metadata["sha256"]


def test_a_conversation_brings_its_messages(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.session"
    with LLM(tiny, threads=1) as llm:
        llm.save_session(path, ASKED)
        answer = ask(llm, ASKED)
    with LLM(tiny, threads=1) as llm:
        session = llm.load_session(path)
        assert list(session.messages) == ASKED
        again = ask(llm, session.messages)
        assert bits(again) == bits(answer)
        assert again.n_cached == len(session.tokens)


def test_a_longer_conversation_goes_on_in_the_same_file(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "chat.session"
    with LLM(tiny, threads=1) as llm:
        first = llm.save_session(path, TEXT[:150])
        second = llm.save_session(path, TEXT)
        assert second.tokens[: len(first.tokens)] == first.tokens
        llm.load_session(path)  # what is there already is not put there twice
        assert llm.stats().kv_blocks_cached == len(second.tokens) // 32
        assert llm.stats().kv_blocks_used == 0


def test_what_is_evicted_is_computed_again(tiny: Path, tmp_path: Path, expected: tuple[Any, ...]) -> None:
    with LLM(tiny, threads=1, batch=1) as llm:
        ask(llm)
        for i in range(4):
            ask(llm, f"{i} {TEXT}"[:500])
        llm.save_session(tmp_path / "x", TEXT)
        assert bits(ask(llm)) == expected


@pytest.mark.parametrize("place", [0.001, 0.2, 0.5, 0.999])
def test_any_flipped_bit_is_found(llm: LLM, saved: Path, place: float) -> None:
    raw = bytearray(saved.read_bytes())
    raw[int(place * len(raw))] ^= 4
    saved.write_bytes(raw)
    n_cached = llm.stats().kv_blocks_cached
    with pytest.raises(BadFile, match=str(saved)):
        llm.load_session(saved)
    assert llm.stats().kv_blocks_cached == n_cached
    assert llm.stats().kv_blocks_used == 0


@pytest.mark.parametrize("n_left", [0, 7, 9, 200, 5000, -1])
def test_a_truncated_file_is_refused(llm: LLM, saved: Path, n_left: int) -> None:
    saved.write_bytes(saved.read_bytes()[:n_left])
    with pytest.raises(BadFile, match=str(saved)):
        llm.load_session(saved)
    with pytest.raises(BadFile, match="No such file"):
        llm.load_session(saved.with_name("none"))


def test_another_model_is_refused(saved: Path, tmp_path: Path) -> None:
    """Of the same shape, as a fine-tuned one would be."""
    other = write_tiny_llm(tmp_path / "tuned.gguf", seed=4)
    with LLM(other, threads=1) as llm, pytest.raises(BadFile, match=r"saved with other weights \(tiny\)"):
        llm.load_session(saved)


def test_another_cache_is_refused(tiny: Path, saved: Path) -> None:
    with LLM(tiny, threads=1, cache_type="f16") as llm, pytest.raises(BadFile, match=r"bf16.*f16"):
        llm.load_session(saved)


def altered(path: Path, change: Any) -> None:
    """The file with another header, its checksum made right."""
    raw = path.read_bytes()
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:end])
    change(header)
    header["__metadata__"]["sha256"] = "0" * 64
    text = json.dumps(header).encode()
    raw = struct.pack("<Q", len(text)) + text + raw[end:]
    digest = sha256(raw).hexdigest().encode()
    path.write_bytes(raw.replace(b"0" * 64, digest, 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h["__metadata__"].update(puna_session="2"), "no session that this version saves"),
        (lambda h: h["__metadata__"].pop("weights"), "no session"),
        (lambda h: h["__metadata__"].update(messages="[1]"), "no list of messages"),
        (lambda h: h["__metadata__"].update(messages="[" * 5000), "no list of messages"),
        (lambda h: h["tokens"].update(dtype="F32"), "it should hold"),
        (lambda h: h.update(more=h.pop("blocks")), "it should hold"),
        (
            lambda h: h["blocks"].update(shape=[1, h["blocks"]["shape"][0] * h["blocks"]["shape"][1]]),
            "should hold",
        ),
    ],
)
def test_a_header_that_lies_is_refused(llm: LLM, saved: Path, change: Any, words: str) -> None:
    altered(saved, lambda header: None)
    llm.load_session(saved)
    altered(saved, change)
    with pytest.raises(BadFile, match=words):
        llm.load_session(saved)
    assert llm.stats().kv_blocks_used == 0


def test_sizes_have_limits(llm: LLM, saved: Path, tmp_path: Path) -> None:
    n = saved.stat().st_size
    with pytest.raises(BadValue, match=f"may have {n - 1:,} bytes"):
        llm.load_session(saved, max_bytes=n - 1)
    llm.load_session(saved, max_bytes=n)
    with pytest.raises(BadValue, match=f"may have {n - 1:,} bytes"):
        llm.save_session(tmp_path / "y", TEXT, max_bytes=n - 1)
    with pytest.raises(BadValue, match="at least 32 tokens, this one has 3"):
        llm.save_session(tmp_path / "y", [5, 6, 7])
    assert not (tmp_path / "y").exists()


def test_no_room_in_the_cache(tiny: Path, saved: Path) -> None:
    with LLM(tiny, threads=1, context=64, batch=1) as llm, pytest.raises(DoesNotFit, match="has no room"):
        llm.load_session(saved)


def test_places_that_cannot_be_written(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkFailed, match="is a folder"):
        llm.save_session(tmp_path, TEXT)
    with pytest.raises(WorkFailed, match="cannot be written"):
        llm.save_session(tmp_path / "no" / "x", TEXT)
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 1000)
    with pytest.raises(DiskFull, match="1,000 are free"):
        llm.save_session(tmp_path / "x", TEXT)
    assert not os.listdir(tmp_path)
    assert llm.stats().kv_blocks_used == 0


def test_a_model_whose_file_was_replaced(tmp_path: Path) -> None:
    path = write_tiny_llm(tmp_path / "m.gguf")
    with LLM(path, threads=1) as llm:
        os.utime(path)
        with pytest.raises(WorkFailed, match="have changed since they were loaded"):
            llm.save_session(tmp_path / "x", TEXT)


def test_torch_has_no_sessions(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with LLM(tiny, backend="torch", device="cpu", threads=1) as llm:
        with pytest.raises(Unsupported, match="backend native"):
            llm.save_session(tmp_path / "x", TEXT)
        assert llm.stats().steps == 0


@pytest.fixture(scope="module")
def real() -> Iterator[LLM]:
    from puna.weights import store

    stored = store.find("smollm2")
    if stored is None or not stored.is_whole():
        pytest.skip("smollm2 is not in the store; run `puna pull smollm2`")
    with LLM("smollm2", context=1024, batch=1) as llm:
        yield llm


def test_the_real_model_goes_on_where_it_was(real: LLM, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Remember the number 4711. " * 16 + "Which number?"}]
    real.save_session(tmp_path / "x", messages)
    answer = real.chat(messages, temperature=0, max_tokens=12, logprobs=2)
    with LLM("smollm2", context=1024, batch=1) as other:
        other.load_session(tmp_path / "x")
        again = other.chat(messages, temperature=0, max_tokens=12, logprobs=2)
    assert again.n_prompt - again.n_cached <= 32
    assert bits(again) == bits(answer)
    assert np.isfinite([item.logprob for item in answer.logprobs or ()]).all()
