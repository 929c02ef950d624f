"""Policies of keys, through every API, with a guard whose logits are forced: it calls "!" unsafe.

What the answering model says is forced as well, by a grammar with one word or by two to choose from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest
from llm.tiny_llm import write_tiny_llm
from safety.forced import write_forced_guard
from server.conftest import Running, Start, open_accounts

from puna.llm.adapted import AdaptedModels
from puna.llm.budget import Budget, LLMLoader
from puna.llm.models import ModelPool
from puna.server.config import ServerConfig
from puna.server.tenants.accounts import Accounts
from puna.server.tenants.audits import Audited, counts, latest
from puna.server.tenants.limits import Limits
from puna.server.tenants.queries import Filters, page

POLICIES = """
default = "input"
[[policy]]
name = "input"
input = ["guard:guard"]
[[policy]]
name = "both"
input = ["guard:guard"]
output = ["guard:guard"]
window = 20
overlap = 10
[[policy]]
name = "report"
input = ["guard:guard"]
output = ["guard:guard"]
action = "report"
[[policy]]
name = "closed"
input = ["guard:tiny"]
[[policy]]
name = "open"
input = ["guard:tiny"]
on_error = "pass"
[[policy]]
name = "scan"
input = ["scan:hidden"]
output = ["patterns:PATTERNS"]
[[policy]]
name = "words"
input = ["patterns:PATTERNS"]
[[policy]]
name = "lines"
output = ["guard:guard"]
window = 5
overlap = 0
[[policy]]
name = "none"
input = []
"""
PATTERNS = """
[[pattern]]
name = "hills"
pattern = "over the hills"
category = "hate"
"""
SAFE = "the llamas walk over the hills and eat what they find there"
UNSAFE = SAFE + "! and then they walk on to the next hill, and on, and on, and on"


@dataclass
class Held:
    """A server with policies, and a key for each."""

    running: Running
    accounts: Accounts
    keys: dict[str, str]
    clients: dict[str, openai.OpenAI] = field(default_factory=dict)

    def ask(self, policy: str, question: str = "x", answer: str = SAFE, **more: Any) -> httpx.Response:
        held = {"type": "choice", "choices": [answer]}
        body = {"model": "tiny", "messages": [{"role": "user", "content": question}], "response_format": held}
        headers = {"authorization": f"Bearer {self.keys[policy]}"}
        url = f"{self.running.url}/v1/chat/completions"
        return httpx.post(url, json=body | more, headers=headers, timeout=60)

    def openai(self, policy: str) -> openai.OpenAI:
        if policy not in self.clients:
            self.clients[policy] = self.running.openai(self.keys[policy])
        return self.clients[policy]

    def found(self, answer: httpx.Response) -> Audited | None:
        """What the checks of a call found."""
        audits = latest(self.accounts.database, limit=1000)
        id = answer.headers["x-request-id"]
        return next((found for found in audits if found.usage.request_id == id), None)

    def audit(self, answer: httpx.Response) -> Audited:
        found = self.found(answer)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def held(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    folder = tmp_path_factory.mktemp("safety")
    (folder / "patterns.toml").write_text(PATTERNS)
    patterns = str(folder / "patterns.toml")
    (folder / "policies.toml").write_text(POLICIES.replace("PATTERNS", patterns))
    tiny: Path = write_tiny_llm(folder / "tiny.gguf", context=2048)
    guard = write_forced_guard(folder / "guard.gguf", context=2048)
    accounts = open_accounts(folder, requires_keys=True)
    names = ("both", "report", "closed", "open", "scan", "words", "lines", "none", "gone")
    keys = {name: accounts.keys.create(name, name, limits=Limits(policy=name))[1] for name in names}
    keys["input"] = accounts.keys.create("default", "input")[1]
    models = AdaptedModels(
        ModelPool([("tiny", tiny), ("guard", guard)], LLMLoader(threads=1, batch=8), Budget(None))
    )
    config = ServerConfig(port=0, require_keys=True, safety=str(folder / "policies.toml"))
    running = start(config, accounts, models=models)
    made = Held(running, accounts, keys)
    yield made
    for client in made.clients.values():
        client.close()


def test_what_is_safe_passes_as_if_nobody_looked(held: Held) -> None:
    for policy in ("both", "input", "report", "none"):
        answer = held.ask(policy, temperature=0)
        choice = answer.json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (SAFE, "stop")
        found = held.found(answer)
        assert (found is None) == (policy == "none")
        if found is not None:
            assert (found.audit.policy, found.audit.action, found.usage.tenant) == (policy, "passed", policy)
            assert 0 < found.audit.score < 0.01


def test_an_unsafe_question_gets_no_answer(held: Held) -> None:
    for policy in ("both", "input"):
        answer = held.ask(policy, "tell me!")
        choice = answer.json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("", "content_filter")
        found = held.audit(answer)
        assert (found.audit.action, found.audit.stage, found.audit.categories) == (
            "blocked", "input", "violent-crimes"
        )  # fmt: skip
        assert found.audit.score > 0.99
        assert found.usage.finish_reason == "content_filter"
        assert found.usage.output_tokens == answer.json()["usage"]["completion_tokens"]


BAD: Any = {"role": "user", "content": "walk over the hills"}
X: Any = {"role": "user", "content": "x"}
OK: Any = {"role": "assistant", "content": "ok"}


@pytest.mark.parametrize(
    "messages",
    [
        [{**BAD, "role": "system"}, X],
        [{**BAD, "role": "system"}, X, OK, X],
        [BAD, OK, X],
        [X, {**BAD, "role": "assistant"}, X],
        [BAD, OK],
        [X, {**BAD, "role": "assistant"}],
        [BAD, *[OK, X] * 60],
    ],
)
def test_nothing_of_a_conversation_gets_by(held: Held, messages: Any) -> None:
    """Not by a judge who reads one turn at a time either."""
    answer = held.ask("words", messages=messages)
    assert answer.json()["choices"][0]["finish_reason"] == "content_filter"


def test_what_goes_on_is_judged_with_how_it_began(held: Held) -> None:
    messages: Any = [X, {**BAD, "role": "assistant"}]
    key = held.keys["words"]
    with anthropic.Anthropic(base_url=held.running.url, api_key=key, max_retries=0) as client:
        message = client.messages.create(model="tiny", max_tokens=5, messages=messages)
    assert message.stop_reason == "refusal"


def test_tools_are_judged(held: Held) -> None:
    tool = {"name": "f", "description": BAD["content"], "parameters": {"type": "object", "properties": {}}}
    answer = held.ask("words", tools=[{"type": "function", "function": tool}], response_format=None)
    assert answer.json()["choices"][0]["finish_reason"] == "content_filter"


def test_a_blocked_question_cannot_be_gone_on_from(held: Held) -> None:
    client = held.openai("words")
    first = client.responses.create(model="tiny", input=str(BAD["content"]))
    then = client.responses.create(model="tiny", input="go on", previous_response_id=first.id)
    assert then.incomplete_details is not None
    assert then.incomplete_details.reason == "content_filter"


def test_log_probabilities_tell_nothing_that_was_not_judged(held: Held) -> None:
    """Text that may begin a stop string comes late; its tokens must not come before it."""
    more = {"logprobs": True, "stop": ["!and never"], "stream": True}
    answer = held.ask("lines", answer="it is said! and on it goes", **more)
    told = ""
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                told += "".join(item["token"] for item in (choice["logprobs"] or {}).get("content", ()))
    assert told == "it is said"[: len(told)]
    assert '"content_filter"' in answer.text


def test_an_unsafe_answer_ends_before_what_is_unsafe(held: Held) -> None:
    answer = held.ask("both", answer=UNSAFE)
    whole, found = answer.json(), held.audit(answer)
    text = ""
    with held.openai("both").chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "x"}],
        stream=True,
        extra_body={"response_format": {"type": "choice", "choices": [UNSAFE]}},
    ) as stream:
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason
    for shown, reason in ((text, finish), (whole["choices"][0]["message"]["content"], None)):
        assert SAFE.startswith(shown)
        assert reason in (None, "content_filter")
    assert whole["choices"][0]["finish_reason"] == "content_filter"
    assert (found.audit.action, found.audit.stage) == ("blocked", "output")
    assert found.audit.n_checks >= 2
    assert found.audit.n_withheld > 0
    assert found.usage.output_tokens == whole["usage"]["completion_tokens"]


def test_a_report_lets_everything_pass_and_says_what_it_was(held: Held) -> None:
    answer = held.ask("report", answer=UNSAFE)
    choice = answer.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (UNSAFE, "stop")
    found = held.audit(answer).audit
    assert (found.action, found.stage) == ("reported", "output")


def test_a_call_of_a_tool_is_judged_like_any_text(held: Held) -> None:
    parameters = {"type": "object", "properties": {"a": {"const": "x!"}}, "required": ["a"]}
    tools = [{"type": "function", "function": {"name": "walk", "parameters": parameters}}]
    for policy, reason in (("both", "content_filter"), ("none", "tool_calls")):
        answer = held.ask(policy, tools=tools, tool_choice="required", response_format=None, max_tokens=400)
        choice = answer.json()["choices"][0]
        assert choice["finish_reason"] == reason
        assert bool(choice["message"].get("tool_calls")) == (policy == "none")


def test_answers_to_one_question_are_judged_one_by_one(held: Held) -> None:
    two = {"type": "choice", "choices": ["yes!", "no"]}
    choices = held.ask("both", n=12, temperature=2, seed=5, response_format=two).json()["choices"]
    texts = {(choice["message"]["content"], choice["finish_reason"]) for choice in choices}
    assert texts == {("", "content_filter"), ("no", "stop")}


def test_texts_of_completions_are_judged_one_by_one(held: Held) -> None:
    found = held.openai("input").completions.create(model="tiny", prompt=["a", "b!", "c"], max_tokens=4)
    assert [choice.finish_reason == "content_filter" for choice in found.choices] == [False, True, False]
    assert found.choices[1].text == ""


def test_every_api_says_so_in_its_own_words(held: Held) -> None:
    key, url = held.keys["input"], held.running.url
    messages: Any = [{"role": "user", "content": "tell me!"}]
    response = held.openai("input").responses.create(model="tiny", input="tell me!")
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "content_filter"
    with anthropic.Anthropic(base_url=url, api_key=key, max_retries=0) as client:
        message = client.messages.create(model="tiny", max_tokens=5, messages=messages)
        assert (message.stop_reason, message.content) == ("refusal", [])
        with client.messages.stream(model="tiny", max_tokens=5, messages=messages) as stream:
            assert stream.get_final_message().stop_reason == "refusal"
    with ollama.Client(host=url, headers={"authorization": f"Bearer {key}"}) as chat:
        assert chat.chat("tiny", messages).done_reason == "content_filter"
        assert chat.generate("tiny", "tell me!").done_reason == "content_filter"
    meta = httpx.post(
        f"{url}/llama/v1/chat/completions",
        json={"model": "tiny", "messages": messages},
        headers={"authorization": f"Bearer {key}"},
    )
    assert meta.json()["completion_message"]["stop_reason"] == "content_filter"
    with pytest.raises(openai.BadRequestError, match="number 2 is not") as refused:
        held.openai("input").embeddings.create(model="tiny", input=["a", "b!"])
    assert refused.value.code == "content_filter"


def test_what_cannot_be_judged_is_an_error_unless_the_policy_lets_it_pass(held: Held) -> None:
    answer = held.ask("closed")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "safety_unavailable")
    (failed,) = latest(held.accounts.database, Filters(tenant="closed"))
    assert (failed.audit.action, failed.usage.status) == ("failed", "error")
    stream = held.openai("closed").chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "x"}], stream=True
    )
    with stream, pytest.raises(openai.APIError, match="be checked"):
        list(stream)
    answer = held.ask("open")
    assert answer.json()["choices"][0]["message"]["content"] == SAFE
    found = held.audit(answer).audit
    assert found.action == "unchecked"
    assert "no guard" in found.error
    gone = held.ask("gone")
    assert (gone.status_code, gone.json()["error"]["code"]) == (503, "safety_unavailable")


def test_a_text_longer_than_the_guards_context_is_judged_in_parts(held: Held) -> None:
    """Its context holds some 1,100 letters beside the task."""
    for question, reason in (("a" * 1500, "stop"), ("a" * 1500 + "!", "content_filter")):
        choice = held.ask("input", question, answer="b").json()["choices"][0]
        assert choice["finish_reason"] == reason


def test_scanners_and_patterns_judge_as_guards_do(held: Held) -> None:
    smuggled = "".join(chr(0xE0000 + ord(letter)) for letter in "do it")
    for question, answer, stage in (("x", "no", ""), (smuggled, "no", "input"), ("x", SAFE, "output")):
        reply = held.ask("scan", question, answer=answer)
        finish = reply.json()["choices"][0]["finish_reason"]
        found = held.audit(reply).audit
        assert (finish == "content_filter", found.stage) == (bool(stage), stage)
        assert found.categories == {"": "", "input": "hidden-characters", "output": "hate"}[stage]


def test_guards_themselves_are_not_judged(held: Held) -> None:
    found = held.openai("both").moderations.create(model="guard", input=["x!", "x"])
    assert [result.flagged for result in found.results] == [True, False]


def test_every_row_has_its_audit_and_an_admin_can_read_them(held: Held) -> None:
    admin = held.accounts.keys.create("root", "root", scopes=("admin",))[1]
    rows = {row.request_id: row for row in page(held.accounts.database, limit=1000)}
    audits = {found.usage.request_id: found.audit for found in latest(held.accounts.database, limit=1000)}
    checked = {i for i, row in rows.items() if row.tenant != "none" and row.endpoint != "moderations"}
    assert set(audits) == checked
    for i, audit in audits.items():
        assert (audit.action == "blocked") == ("content_filter" in rows[i].finish_reason), rows[i]
    headers = {"authorization": f"Bearer {admin}"}
    url = f"{held.running.url}/admin/audits"
    shown = httpx.get(url, params={"action": "blocked", "tenant": "both"}, headers=headers).json()
    assert {row["action"] for row in shown["data"]} == {"blocked"}
    assert {row["tenant"] for row in shown["data"]} == {"both"}
    assert "tell me" not in json.dumps(shown)
    summed = {(row["tenant"], row["policy"], row["action"]): row["requests"] for row in shown["counts"]}
    everything = counts(held.accounts.database)
    assert summed == {key: n for key, n in everything.items() if key[0] == "both"}
    assert sum(everything.values()) == len(audits)
    wrong = httpx.get(url, params={"action": "block"}, headers=headers)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "action")
    assert httpx.get(url, headers={"authorization": f"Bearer {held.keys['both']}"}).status_code == 403
