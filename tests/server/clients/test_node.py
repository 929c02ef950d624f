"""npm's `openai` and the Vercel AI SDK, where node and they are (`make test-clients`).

node/run.mjs runs all cases of one client in one process and says which failed; each of them is a test here.
"""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from server.clients.conftest import ANIMAL, HELLO, NODE
from server.conftest import Running

EACH = ("chat", "stream", "tools", "schema", "pictures", "errors")
CASES = {
    "openai": [*EACH, "response", "response with tools", "files", "embeddings"],
    "ai": [*(f"{api} {case}" for api in ("compatible", "chat", "responses") for case in EACH), "embeddings"],
}

if shutil.which("node") is None or not (NODE / "node_modules").is_dir():
    pytest.skip("needs node and its packages (make test-clients)", allow_module_level=True)


@pytest.fixture(scope="module")
def results(talker: Running) -> dict[str, dict[str, str | None]]:
    return {client: _run(client, talker.url) for client in CASES}


def _run(client: str, url: str) -> dict[str, str | None]:
    command = [
        "node",
        str(NODE / "run.mjs"),
        client,
        url,
        json.dumps({"HELLO": HELLO, "ANIMAL": json.loads(ANIMAL)}),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(("client", "case"), [(name, case) for name in CASES for case in CASES[name]])
def test_a_case(results: dict[str, dict[str, str | None]], client: str, case: str) -> None:
    assert results[client][case] is None, results[client][case]


def test_no_case_is_left_out(results: dict[str, dict[str, str | None]]) -> None:
    assert {client: list(found) for client, found in results.items()} == CASES
