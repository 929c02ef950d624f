"""The suites of llm-comply against a server: answers validated by the published documents of each API.

A random model stands in for a real one: its answers end because the token that ends them is made likely. It
takes pictures. What `puna serve smollm2` passes is in docs/api.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import llm_comply
import pytest
from llm.tiny_llm import write_tiny_llm
from llm.tiny_vision import LLAMA4, TEMPLATE, TOKENS, let_see
from llm_comply.config import ComplianceConfig
from llm_comply.http import close_client
from llm_comply.result import TestStatus as Status
from llm_comply.runner import TestRunner as Runner
from llm_comply.schema import SpecLoader
from llm_comply.tests import get_tests
from server.conftest import Running, Start

from puna import LLM, SamplingParams
from puna.server.config import ServerConfig

pytestmark = pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated:DeprecationWarning")

SPECS = Path(llm_comply.__file__).parent / "specs"
SUITES = {"anthropic": "anthropic.json", "openai-chat": "openai_chat.json"}
# What asks for the name of somebody's model, and is skipped for all others.
SKIPPED = {"anth-thinking-display", "chat-reasoning-summary"}
CASES = [(suite, case.id) for suite in SUITES for case in get_tests(suite) if case.id not in SKIPPED]


@pytest.fixture(scope="module")
def ending(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("models") / "llama4.gguf"
    write_tiny_llm(path, template=TEMPLATE, control=TOKENS["llama4"], context=8192)
    llm = LLM(path, threads=1, batch=64)
    let_see(llm, LLAMA4)
    end, quote = llm.tokenizer.id("<|im_end|>"), llm.tokenizer.encode('"', bos=False)[0]
    likely = {end: 8.0, quote: 8.0}
    llm.default_params = SamplingParams(temperature=1.5, seed=1, logit_bias=likely, min_tokens=3)
    yield start(ServerConfig(port=0), llm=llm)
    close_client()


@pytest.mark.parametrize(("suite", "name"), CASES)
def test_the_suite(ending: Running, suite: str, name: str) -> None:
    config = ComplianceConfig(base_url=f"{ending.url}/v1", api_key="none", model="tiny", verbose=True)
    case = next(case for case in get_tests(suite) if case.id == name)
    result = Runner(config, [case], SpecLoader(str(SPECS / SUITES[suite]))).run_one(case)
    assert result.status is Status.PASSED, (result.errors, result.response)
    assert not result.warnings, result.warnings


def test_nothing_else_is_skipped() -> None:
    config = ComplianceConfig(base_url="", api_key="none", model="tiny")
    skipped = {
        case.id
        for suite in SUITES
        for case in get_tests(suite)
        if case.skip_reason is not None and case.skip_reason(config)
    }
    assert skipped == SKIPPED
