"""Limits hold over every window, whatever the order of admissions, ends and pauses."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from puna.core import BadValue, UnknownOption
from puna.server.tenants.limits import Lease, Limiter, Limits, RateLimited, duration


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0
        self.began = datetime(2026, 11, 25, 23, 0, tzinfo=UTC)

    def __call__(self) -> float:
        return self.at

    def now(self) -> datetime:
        return self.began + timedelta(seconds=self.at - 1000)


def limiter(clock: Clock, used: dict[str, int] | None = None) -> Limiter:
    return Limiter(used, clock=clock, now=clock.now)


# small ones reach the limit of requests, large ones that of tokens
TOKENS = st.integers(0, 4) | st.integers(0, 60)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), TOKENS, TOKENS),
        st.tuples(st.just("settle"), st.integers(0, 20), st.integers(0, 100)),
        st.tuples(st.just("wait"), st.integers(0, 40_000), st.just(0)),  # milliseconds
        st.tuples(st.just("obey"), st.just(0), st.just(0)),  # wait as long as the last refusal said
    ),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(EVENTS)
@example(
    [("admit", 0, 29), ("wait", 1, 0), ("admit", 0, 52), ("admit", 60, 60), ("admit", 0, 29), ("obey", 0, 0)]
)
@example([("admit", 0, 29), ("wait", 1, 0), ("admit", 0, 52), ("admit", 60, 60), ("obey", 0, 0)])
def test_no_window_has_more_than_the_limit(events: list[tuple[str, int, int]]) -> None:
    clock = Clock()
    subject = limiter(clock)
    limits = Limits(5, 200, 900, 3)
    live: list[tuple[Lease, list[float]]] = []
    log: list[list[float]] = []  # time, tokens that it has or may have, day
    refused: RateLimited | None = None
    for what, a, b in events:
        if what == "wait":
            clock.at += a / 1000
        elif what == "obey" and refused is not None and refused.retry_after is not None:
            clock.at += refused.retry_after + 1e-6  # of rounding
            if refused.which in ("requests_per_minute", "tokens_per_minute", "tokens_per_day"):
                # what was said is enough, as far as that limit is concerned
                try:
                    probe = subject.admit("k", Limits(**{refused.which: refused.limit}), refused.requested, 0)
                except RateLimited as error:
                    raise AssertionError(str(error)) from None
                record = [clock.at, float(refused.requested), float(clock.now().toordinal())]
                log.append(record)
                probe.settle(refused.requested, 0)
            refused = None
        elif what == "settle" and live:
            lease, record = live.pop(a % len(live))
            used = min(b, lease.n_reserved)
            lease.settle(used, 0)
            lease.settle(0, 0)  # a second time does nothing
            record[1] = used
        elif what == "admit":
            try:
                lease = subject.admit("k", limits, a, b)
            except RateLimited as error:
                refused = error
                continue
            refused = None  # when to come back was said of what was used then
            record = [clock.at, a + b, float(clock.now().toordinal())]
            live.append((lease, record))
            log.append(record)
            window = [r for r in log if clock.at - 60 < r[0]]
            assert len(window) <= 5
            assert sum(r[1] for r in window) <= 200
            assert sum(r[1] for r in log if r[2] == record[2]) <= 900
            assert len(live) <= 3
        assert subject.n_live("k") == len(live)
    for lease, _ in live:
        lease.settle(0, 0)
    assert subject.n_live("k") == 0


def test_each_limit_says_what_is_used_and_when_to_come_back() -> None:
    clock = Clock()
    subject = limiter(clock)
    subject.admit("k", Limits(requests_per_minute=2), 1, 1)
    clock.at += 10
    subject.admit("k", Limits(requests_per_minute=2), 1, 1)
    with pytest.raises(RateLimited, match=r"2 requests a minute .* try again in 50 s") as caught:
        subject.admit("k", Limits(requests_per_minute=2), 1, 1)
    assert (caught.value.which, caught.value.limit, caught.value.used) == ("requests_per_minute", 2, 2)
    assert caught.value.retry_after == pytest.approx(50)
    subject.admit("other", Limits(requests_per_minute=2), 1, 1)
    clock.at += 50
    subject.admit("k", Limits(requests_per_minute=2), 1, 1)


def test_what_an_answer_did_not_use_is_given_back() -> None:
    clock = Clock()
    subject = limiter(clock)
    limits = Limits(tokens_per_minute=1000)
    lease = subject.admit("k", limits, 100, 800)
    with pytest.raises(RateLimited, match="900 are used and the request may take 200"):
        subject.admit("k", limits, 100, 100)
    lease.settle(40, 10)  # most of the prompt was cached
    assert subject.headers("k", limits)["x-ratelimit-remaining-tokens"] == "950"
    subject.admit("k", limits, 900, 50)
    clock.at += 61
    late = subject.admit("k", limits, 500, 500)
    clock.at += 61  # it takes longer than the window: nothing is given back twice
    late.settle(0, 0)
    assert subject.headers("k", limits)["x-ratelimit-remaining-tokens"] == "1000"


def test_more_than_a_limit_ever_gives_has_no_time_to_come_back() -> None:
    with pytest.raises(RateLimited, match=r"may take 1001 tokens a minute.*max_tokens") as caught:
        limiter(Clock()).admit("k", Limits(tokens_per_minute=1000), 1, 1000)
    assert caught.value.retry_after is None


def test_the_day_is_utcs_and_survives_a_restart() -> None:
    clock = Clock()  # 23:00
    limits = Limits(tokens_per_day=1000)
    subject = limiter(clock, {"k": 900})
    with pytest.raises(RateLimited, match="900 are used") as caught:
        subject.admit("k", limits, 101, 0)
    assert caught.value.retry_after == 3600
    over_midnight = subject.admit("k", limits, 100, 0)
    clock.at += 3600
    subject.admit("k", limits, 1000, 0)
    over_midnight.settle(0, 0)  # yesterday's
    with pytest.raises(RateLimited):
        subject.admit("k", limits, 1, 0)


def test_concurrent_requests() -> None:
    subject = limiter(Clock())
    limits = Limits(concurrent_requests=1)
    lease = subject.admit("k", limits, 1, 1)
    with pytest.raises(RateLimited, match="1 requests at a time"):
        subject.admit("k", limits, 1, 1)
    lease.settle(1, 1)
    subject.admit("k", limits, 1, 1)


def test_headers_are_openais() -> None:
    clock = Clock()
    subject = limiter(clock)
    limits = Limits(requests_per_minute=60, tokens_per_minute=1000)
    assert subject.headers("k", Limits()) == {}
    subject.admit("k", limits, 10, 20)
    clock.at += 0.5
    assert subject.headers("k", limits) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "59.5s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "970",
        "x-ratelimit-reset-tokens": "59.5s",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.12, "120ms"), (1, "1s"), (7.66, "7.66s"), (60, "1m0s"), (359.999, "6m0s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_limits_survive_json_and_refuse_nonsense() -> None:
    limits = Limits(requests_per_minute=3, models=("a", "b"), priority=-2)
    assert limits.to_json() == {"requests_per_minute": 3, "models": ("a", "b"), "priority": -2}
    assert Limits.from_json(limits.to_json()) == limits
    assert limits.allows("a")
    assert not limits.allows("c")
    assert Limits().allows("c")
    with pytest.raises(BadValue, match="tokens_per_day must be 1 or more"):
        Limits(tokens_per_day=0)
    with pytest.raises(BadValue, match="models must be names"):
        Limits(models=())
    with pytest.raises(BadValue, match="priority must be from"):
        Limits(priority=10**6)
    with pytest.raises(UnknownOption, match="'request_per_minute'; did you mean 'requests_per_minute'"):
        Limits.from_json({"request_per_minute": 1})


def test_a_day_has_exactly_its_tokens() -> None:
    clock = Clock()
    subject = limiter(clock)
    limits = Limits(tokens_per_day=10)
    subject.admit("k", limits, 4, 5)
    clock.at += 120  # out of the minute, in the same day
    with pytest.raises(RateLimited, match="tokens_per_day"):
        subject.admit("k", limits, 1, 1)
    subject.admit("k", limits, 1, 0)
    with pytest.raises(RateLimited, match="tokens_per_day"):
        subject.admit("k", limits, 1, 0)
