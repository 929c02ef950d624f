"""Replicas on a real Ray cluster of two nodes, PostgreSQL and real clients. Runs where ray is installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
import pytest
from llm.tiny_llm import write_tiny_llm
from openai import APIConnectionError, APIError
from server.cluster.ray_cluster import Served, command, eventually, replica_pids, serving, two_nodes
from server.postgres import Postgres
from sqlalchemy import select

from puna.server.storage.database import open_database
from puna.server.storage.tables import usage

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (make test-ray)")
TURN = "The answer to this question has to be the same on all of the replicas that there are. " * 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llm(tmp_path_factory.mktemp("replicas") / "tiny.gguf")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with two_nodes() as address:
        yield address


@pytest.fixture(scope="module")
def ledger(postgres: Postgres) -> str:
    return postgres.create("replicas")


@pytest.fixture(scope="module")
def served(
    model: Path, cluster: str, ledger: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    with serving(model, ledger, home, "--ray-address", cluster, "--replicas", "2") as found:
        yield found


def rows(database: str) -> dict[str, Any]:
    """The ledger, by request id; that is its primary key, so none can be there twice."""
    opened = open_database(database)
    try:
        with opened.read() as connection:
            return {row.request_id: row for row in connection.execute(select(usage))}
    finally:
        opened.close()


def ask(served: Served, text: str, n_tokens: int = 8, n: int = 1) -> tuple[str, Any]:
    """A whole answer -> the replica that gave it, and the answer."""
    client = served.openai()
    messages: list[Any] = [{"role": "user", "content": text}]
    raw = client.chat.completions.with_raw_response.create(
        model="tiny",
        messages=messages,
        max_tokens=n_tokens,
        n=n,
        temperature=0,
        extra_body={"ignore_eos": True},
    )
    return raw.headers["x-puna-replica"], raw.parse()


def streamed(
    served: Served, text: str, n_tokens: int, n: int = 1, begun: Callable[[], object] = lambda: None
) -> tuple[str, Any, str]:
    """A streamed answer -> its id, its usage, its text. Raises what the client raises."""
    chunks = served.openai().chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": text}],
        max_tokens=n_tokens,
        n=n,
        temperature=0,
        extra_body={"ignore_eos": True},
        stream=True,
        stream_options={"include_usage": True},
    )
    whole = [next(chunks)]
    begun()
    whole += chunks
    answer = "".join(chunk.choices[0].delta.content or "" for chunk in whole if chunk.choices)
    return whole[0].id, whole[-1].usage, answer


def test_a_prompt_goes_where_its_beginning_is_cached(served: Served) -> None:
    first, answer = ask(served, TURN + "One?")
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    others = [ask(served, f"{i} is where this begins, and that is {i}. {TURN}") for i in range(8)]
    assert len({replica for replica, _ in others}) == 2
    again, answer = ask(served, TURN + "Two?")
    assert again == first
    assert answer.usage.prompt_tokens_details.cached_tokens >= 32


def test_streams_are_the_same_as_whole_answers(served: Served, ledger: str) -> None:
    id, counted, text = streamed(served, TURN, 24)
    _, answer = ask(served, TURN, 24)
    assert text == answer.choices[0].message.content
    row = rows(ledger)[id.removeprefix("chatcmpl-")]
    assert (row.prompt_tokens, row.output_tokens) == (counted.prompt_tokens, counted.completion_tokens)


def test_all_replicas_work_under_load_and_the_ledger_has_each_call_once(served: Served, ledger: str) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda i: ask(served, f"{i}: {TURN}"), range(48)))
    assert len({replica for replica, _ in answers}) == 2
    found = rows(ledger)
    for _, answer in answers:
        row = found[answer.id.removeprefix("chatcmpl-")]
        assert (row.prompt_tokens, row.output_tokens, row.status) == (
            answer.usage.prompt_tokens,
            answer.usage.completion_tokens,
            "ok",
        )


def test_every_api_answers_and_errors_keep_their_form(served: Served) -> None:
    paths = httpx.get(f"{served.url}/openapi.json").json()["paths"]
    assert "/v1/chat/completions" in paths
    assert httpx.get(f"{served.url}/").status_code == 200
    ids = httpx.post(f"{served.url}/tokenize", json={"model": "tiny", "prompt": "abc"}).json()
    assert ids["tokens"], ids
    with pytest.raises(APIError, match="there is no model 'other'"):
        served.openai().chat.completions.create(model="other", messages=[{"role": "user", "content": "a"}])
    large = httpx.post(f"{served.url}/v1/chat/completions", content=b" " * (33 << 20), timeout=60)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")


def test_metrics_have_every_replica(served: Served) -> None:
    text = httpx.get(f"{served.url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("puna_requests_total{")]
    assert len({line.split('replica="')[1].split('"')[0] for line in lines}) == 2
    assert 'puna_replicas{replica=""} 2.0' in text


def test_a_client_that_leaves_is_cancelled_and_counted(served: Served, ledger: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Go on"}], "stream": True, "n": 8}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body) as answer:
        id = answer.headers["x-request-id"]
        next(answer.iter_bytes())
    row = eventually(lambda: rows(ledger).get(id), "the call is not in the ledger")
    assert row.status == "cancelled"


def test_a_cluster_of_its_own_is_reached_from_this_machine_only() -> None:
    done = subprocess.run([sys.executable, "-c", _OWN], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    addresses = done.stdout.split()
    assert len(addresses) > 5
    assert all(ip_address(found.removeprefix("::ffff:")).is_loopback for found in addresses), addresses


# Which addresses the processes of a cluster listen on that is started where there is none to join.
_OWN = """
import ray, psutil  # which Ray brings
from puna.server.cluster import deploy
deploy.start_here(num_cpus=1, object_store_memory=100 << 20, log_to_driver=False)
assert ray.get(ray.remote(lambda: 1).remote()) == 1
own = psutil.Process()
for process in (own, *own.children(recursive=True)):
    print(*(c.laddr.ip for c in process.net_connections("tcp") if c.status == "LISTEN"))
ray.shutdown()
"""


def test_a_second_front_is_refused(served: Served, model: Path, cluster: str, ledger: str) -> None:
    done = subprocess.run(
        command(model, ledger, "--ray-address", cluster), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2
    assert "another `puna serve --ray` serves on this Ray cluster" in done.stderr
    assert ask(served, "still there?")


def test_a_killed_replica_costs_no_row_and_its_clients_are_told(served: Served, ledger: str) -> None:
    before = set(rows(ledger))
    victim = replica_pids()[0]  # looked for now: it takes longer than requests do
    answers: list[tuple[str, Any]] = []
    told: Counter[str] = Counter()

    def client(number: int) -> None:
        for i in range(6):
            text = f"{number} {i} {TURN}"
            try:
                if number % 2:
                    id, counted, _ = streamed(served, text, 250, n=16)
                else:
                    answer = ask(served, text, 250, n=16)[1]
                    id, counted = answer.id, answer.usage
            except APIConnectionError as error:  # no words: that would be a bug
                told[f"cut off: {error!r}"] += 1
            except APIError as error:
                told[str(error.code)] += 1
            else:
                answers.append((id, counted))

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, number) for number in range(8)]
        eventually(lambda: httpx.get(f"{served.url}/ready").json()["in_flight"] >= 6, "no load")
        os.kill(victim, signal.SIGKILL)
        for future in clients:
            future.result()
    assert set(told) <= {"replica_lost"}
    assert len(answers) + told.total() == 48
    found = rows(ledger)
    for id, counted in answers:
        row = found[id.removeprefix("chatcmpl-")]
        assert (row.prompt_tokens, row.output_tokens, row.status) == (
            counted.prompt_tokens,
            counted.completion_tokens,
            "ok",
        )
    unknown = set(found) - before - {id.removeprefix("chatcmpl-") for id, _ in answers}
    assert len(unknown) <= told.total()  # recorded, and the replica died before it could say so
    assert [line for line in served.lines if line.get("event") == "replica_lost"]
    eventually(lambda: served.n_replicas() == 2, "no replica in place of the killed one")


def test_a_stop_under_load_fails_nobody(served: Served, ledger: str) -> None:
    """The last test of this server: those that follow need the cluster for themselves."""
    begun: SimpleQueue[None] = SimpleQueue()
    with ThreadPoolExecutor(8) as pool:
        waiting = [
            pool.submit(streamed, served, f"{i} {TURN}", 300, 16, lambda: begun.put(None)) for i in range(8)
        ]
        for _ in waiting:
            begun.get(timeout=60)
        assert not all(future.done() for future in waiting)
        assert served.stop() == 0
        answers = [future.result() for future in waiting]
    found = rows(ledger)
    for id, counted, _ in answers:
        assert found[id.removeprefix("chatcmpl-")].output_tokens == counted.completion_tokens
    assert replica_pids() == []


def test_replicas_come_and_go_with_the_load(
    served: Served, model: Path, cluster: str, ledger: str, tmp_path: Path
) -> None:
    assert served.stop() == 0
    scaling = ["--min-replicas", "1", "--max-replicas", "2", "--target-requests", "2"]
    delays = ["--scale-up-after", "1", "--scale-down-after", "1"]
    with serving(model, ledger, tmp_path, "--ray-address", cluster, *scaling, *delays) as served:
        assert served.n_replicas() == 1
        is_over = False

        def client(number: int) -> int:
            n = 0
            while not is_over:
                ask(served, f"{number} {n} {TURN}", 200)
                n += 1
            return n

        with ThreadPoolExecutor(8) as pool:
            counts = [pool.submit(client, number) for number in range(8)]
            try:
                eventually(lambda: served.n_replicas() == 2, "no second replica under load")
            finally:
                is_over = True
            assert all(future.result() for future in counts)
        eventually(lambda: served.n_replicas() == 1, "the second replica stays without load")


def test_a_front_that_was_killed_can_be_started_again(
    served: Served, model: Path, cluster: str, ledger: str, tmp_path: Path
) -> None:
    assert served.stop() == 0
    with serving(model, ledger, tmp_path, "--ray-address", cluster) as first:
        assert ask(first, TURN)
        first.kill()
    with serving(model, ledger, tmp_path, "--ray-address", cluster) as second:
        assert ask(second, TURN)
        assert second.stop() == 0
    assert replica_pids() == []


def test_a_model_that_is_not_there_is_named(
    served: Served, cluster: str, ledger: str, tmp_path: Path
) -> None:
    assert served.stop() == 0
    done = subprocess.run(
        command(tmp_path / "none.gguf", ledger, "--ray-address", cluster),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("puna: no replica could start: ")
    assert "none.gguf" in done.stderr
