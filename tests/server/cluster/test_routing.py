"""Which replica gets which request."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from puna.server.cluster.prefixes import CHUNK, PrefixTable, chunk_keys, prompt_keys
from puna.server.cluster.routing import Routing
from puna.server.cluster.wire import Envelope

TEXT = "".join(f"sentence {i} of a long text. " for i in range(100))


def routing(*replicas: str, slack: int = 2) -> Routing[str]:
    made: Routing[str] = Routing(str, slack)
    made.set_replicas(replicas)
    return made


def send(to: Routing[str], text: str) -> str:
    """Route a request, which does not end."""
    request = [Envelope({}, b"", chunk_keys(text))]
    chosen = to.order(request, to.names)[0]
    to.sent(request, chosen)
    return chosen


@given(st.text(max_size=400), st.text(max_size=400), st.text(max_size=400))
def test_keys_are_equal_exactly_as_far_as_texts_are(shared: str, one: str, other: str) -> None:
    a, b = chunk_keys(shared + one), chunk_keys(shared + other)
    n_equal = next(
        (i for i, pair in enumerate(zip(a, b, strict=False)) if len(set(pair)) == 2), min(len(a), len(b))
    )
    common = next(
        (i for i, pair in enumerate(zip(shared + one, shared + other, strict=False)) if len(set(pair)) == 2),
        min(len(shared + one), len(shared + other)),
    )
    assert n_equal == common // CHUNK


def test_a_conversation_keeps_its_keys_as_it_goes_on() -> None:
    turns = [{"role": "system", "content": TEXT}, {"role": "user", "content": "Hello"}]
    keys = prompt_keys(json.dumps({"model": "m", "stream": True, "messages": turns}).encode())
    turns.append({"role": "assistant", "content": "Hello yourself"})
    later = prompt_keys(json.dumps({"messages": turns, "temperature": 0, "model": "m"}).encode())
    assert keys
    assert later
    assert later[: len(keys)] == keys
    other = prompt_keys(json.dumps({"model": "n", "messages": turns}).encode())
    assert other
    assert other[0] != keys[0]


def test_what_has_no_prompt_has_no_keys() -> None:
    for body in (b"", b"{", b"[1]", b"{}", b'{"messages": []}', b"[" * 100_000, b"\xff"):
        assert prompt_keys(body) is None
    assert prompt_keys(b'{"prompt": "short"}') == ()


def test_a_picture_counts_by_its_digest() -> None:
    def body(data: str) -> bytes:
        part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + data}}
        return json.dumps({"model": "m", "messages": [{"role": "user", "content": [part]}]}).encode()

    one, same, other = (prompt_keys(body(text * 1_000_000)) for text in "aab")
    assert one
    assert len(one) < 4
    assert one == same != other


def test_a_prompt_goes_to_whoever_has_most_of_it() -> None:
    three = routing("a", "b", "c")
    assert send(three, TEXT) == "a"
    assert send(three, TEXT[::-1]) == "b"
    assert send(three, TEXT + "and more") == "a"
    assert send(three, TEXT[:1000] + "something else " * 20) == "a"
    assert send(three, "a text without a past " * 20) == "c"


def test_whoever_has_too_much_to_do_is_spared() -> None:
    two = routing("a", "b", slack=2)
    assert [send(two, TEXT) for _ in range(4)] == ["a", "a", "a", "b"]
    assert send(two, TEXT) == "b"  # has it now, too, and less to do
    for _ in range(3):
        two.ended("a")
    assert send(two, TEXT) == "a"


def test_short_prompts_are_spread() -> None:
    two = routing("a", "b")
    chosen = []
    for _ in range(6):
        chosen.append(send(two, "hello"))
        two.ended(chosen[-1])
    assert chosen == ["a", "b"] * 3


def test_what_has_no_prompt_stays_with_the_oldest() -> None:
    two = routing("b", "c")
    two.set_replicas(["a", "b", "c"])
    assert two.order([Envelope({}, b"")], two.names)[0] == "b"
    two.set_replicas(["a", "c"])
    assert two.order([Envelope({}, b"")], two.names)[0] == "c"


def test_a_replica_can_be_named() -> None:
    two = routing("a", "b")
    assert two.order([Envelope({}, b"", replica="b")], two.names) == ["b"]


def test_who_is_gone_is_forgotten_and_its_requests_with_it() -> None:
    two = routing("a", "b")
    assert send(two, TEXT) == "a"
    two.set_replicas(["b"])
    assert send(two, TEXT) == "b"
    two.ended("a")  # told late
    two.set_replicas(["a2", "b"])
    two.ended("b")
    assert send(two, TEXT) == "b"


def test_the_table_forgets_the_oldest_first() -> None:
    table: PrefixTable[str] = PrefixTable(most=40)
    old, new = chunk_keys(TEXT), chunk_keys(TEXT[::-1])
    table.add(old, "a")
    table.add(new, "b")
    assert len(old) + len(new) > 40
    loads = {"b": 0, "a": 1}
    assert table.order(new, {"a": 0, "b": 1}, slack=4)[0] == "b"
    assert table.order(old, loads, slack=4)[0] == "b"  # its beginning is forgotten
