"""Other people's suite: `llm-comply --format open-responses` (the Open Responses specification).

The model is the tiny one, made to end its answers soon and to see pictures, so that every case can pass.
Against `puna serve smollm2` the suite passes but for its picture and its tool, which this model has to refuse
(400).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import llm_comply
import pytest
from llm.tiny_llm import write_tiny_llm
from llm.tiny_vision import LLAMA4, TEMPLATE, TOKENS, let_see
from llm_comply.config import ComplianceConfig
from llm_comply.result import TestStatus as Status
from llm_comply.runner import TestRunner as Suite
from llm_comply.schema import SpecLoader
from llm_comply.tests.open_responses import OPEN_RESPONSES_TESTS
from server.conftest import Running, Start

from puna.server.config import ServerConfig

# case -> why it cannot apply
SKIPPED = {"reasoning-summary": "no Llama has reasoning apart from its answer"}
SPEC = SpecLoader(str(Path(llm_comply.__file__).parent / "specs" / "openresponses.json"))
END, QUOTE = "<|im_end|>", '"'


@pytest.fixture(scope="module")
def seeing(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    path = tmp_path_factory.mktemp("seeing") / "tiny.gguf"
    write_tiny_llm(path, template=TEMPLATE, control=TOKENS["llama4"])
    running = start(ServerConfig(port=0), path=path)
    llm = running.llm
    let_see(llm, LLAMA4)
    (end,), (quote,) = llm.tokenizer.encode(END, special=True), llm.tokenizer.encode(QUOTE)
    bias = {end: 100.0, quote: 50.0}
    llm.default_params = replace(llm.default_params, temperature=0, min_tokens=3, logit_bias=bias)
    return running


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver:DeprecationWarning")  # the suite uses it
@pytest.mark.parametrize("case", OPEN_RESPONSES_TESTS, ids=lambda case: case.id)
def test_open_responses(seeing: Running, case: object) -> None:
    config = ComplianceConfig(base_url=f"{seeing.url}/v1", api_key="none", model="tiny")
    result = Suite(config, [case], SPEC).run_one(case)
    if case.id in SKIPPED:  # type: ignore[attr-defined]
        assert result.status is Status.SKIPPED
    else:
        assert result.status is Status.PASSED, result.errors
