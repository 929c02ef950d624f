"""puna run: what goes in, what comes out, and how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from puna import LLM
from puna.cli import options
from puna.cli.main import main
from puna.cli.terminal import harmless, rate

GREEDY = ["--temperature", "0", "--max-tokens", "12", "--threads", "1"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PUNA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "stdin", Terminal())
    return tmp_path / "home"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def llm(tiny: Path) -> Any:
    with LLM(tiny, threads=1) as llm:
        yield llm


def test_a_prompt_is_a_user_message(tiny: Path, llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tiny), "Why?", *GREEDY]) == 0
    assert capsys.readouterr() == (llm.chat("Why?", temperature=0, max_tokens=12).text + "\n", "")
    assert main(["run", str(tiny), "Why?", "--system", "Be brief.", *GREEDY]) == 0
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    assert capsys.readouterr().out == llm.chat(messages, temperature=0, max_tokens=12).text + "\n"


def test_raw_text_is_continued(tiny: Path, llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    for more, special in ([], False), (["--special"], True):
        assert main(["run", str(tiny), "<|im_start|>a", "--raw", *more, *GREEDY]) == 0
        text = llm.generate("<|im_start|>a", temperature=0, max_tokens=12, special=special).text
        assert capsys.readouterr().out == text + "\n"


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_the_prompt_may_come_from_stdin(
    tiny: Path,
    llm: LLM,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines"))
    assert main(["run", str(tiny), *arguments, *GREEDY]) == 0
    assert capsys.readouterr().out == llm.chat("two\nlines", temperature=0, max_tokens=12).text + "\n"


def test_json(tiny: Path, llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", str(tiny), "Why?", "--json", "--logprobs", "2", "--seed", "7", "--max-tokens", "5"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    expected = llm.chat("Why?", max_tokens=5, seed=7, logprobs=2)
    assert expected.logprobs is not None
    assert report["text"] == expected.text
    assert report["token_ids"] == list(expected.token_ids)
    assert (report["finish_reason"], report["stop"], report["seed"]) == ("length", None, 7)
    assert (report["n_prompt"], report["n_tokens"]) == (expected.n_prompt, 5)
    assert [item["logprob"] for item in report["logprobs"]] == [item.logprob for item in expected.logprobs]
    assert [len(item["top"]) for item in report["logprobs"]] == [2] * 5
    assert set(report["timing"]) == {"load_s", "prompt_s", "decode_s", "prompt_tok_s", "decode_tok_s"}
    # the seed that was drawn gives the same answer again
    assert main(["run", str(tiny), "Why?", "--json", "--max-tokens", "9"]) == 0
    drawn = json.loads(capsys.readouterr().out)
    assert main(["run", str(tiny), "Why?", "--max-tokens", "9", "--seed", str(drawn["seed"])]) == 0
    assert capsys.readouterr().out == drawn["text"] + "\n"


def test_stats_go_to_stderr(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tiny), "Why?", "--stats", *GREEDY]) == 0
    assert "answer 12 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["x", "--temperature", "-1"], "temperature must be from 0 to 100, got -1.0"),
        (["x", "--temperature", "nan"], "temperature must be from 0 to 100, got nan"),
        (["x", "--top-p", "2"], "top_p must be above 0, at most 1, got 2.0"),
        (["x", "--max-tokens", "0"], "max_tokens must be 1 or more, got 0"),
        (["x", "--stop", ""], "stop must be non-empty strings, got ('',)"),
        (["x", "--logprobs", "1"], "--logprobs needs --json to be seen; add it"),
        (["x", "--special"], "--special needs --raw"),
        (["x", "--raw", "--system", "y"], "--system needs a chat template"),
        (["x", "--context", "70000"], "context must be at most the 65,536 tokens that tiny was made for"),
        (["x", "--context", "-1"], "context must be a whole number from 1"),
        (["x", "--cache-type", "q4"], "cache_type must be one of bf16, f16, f32, q8_0, got 'q4'"),
        (["x", "--context", "10"], "the prompt has 20 tokens, but the context holds 10"),
        (["x", "--tempertaure", "1"], "`puna run` has no option --tempertaure; did you mean '--temperature'"),
        ([], 'give a prompt: puna run MODEL "PROMPT", or through a pipe'),
    ],
)
def test_bad_input_is_one_sentence(
    tiny: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(tiny), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"puna: {sentence}")
    assert captured.err.count("\n") == 1


def test_which_argument_is_which(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["run", "hello"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("puna: there is no model 'hello'")
    assert 'a prompt comes after the model: puna run MODEL "PROMPT"' in error
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["run", str(tiny)]) == 2
    assert capsys.readouterr().err == "puna: the prompt on stdin must not be empty\n"
    assert main(["run", "hello there"]) == 2
    assert "run `puna pull smollm2`" in capsys.readouterr().err  # taken as a prompt for it
    spaced = tmp_path / "a model.gguf"
    spaced.write_bytes(tiny.read_bytes())
    assert main(["run", str(spaced)]) == 2  # a file that exists is the model
    assert "stdin" in capsys.readouterr().err


def test_a_terminal_gets_no_control_characters() -> None:
    assert harmless("a\x1b]0;title\x07b\r\x9bc\u202e\td\n") == "a\\x1b]0;title\\x07b\\x0d\\x9bc\\u202e\td\n"
    assert harmless("日本語 🦙") == "日本語 🦙"


def test_rates() -> None:
    assert [rate(1, 0), rate(1200, 310.4)] == ["1 token", "1,200 tokens, 310 tok/s"]


def test_a_progress_bar_appears_where_loading_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(options.ProgressBar, "__enter__", lambda self: made.append(self) or self)
    now = 0.0
    monkeypatch.setattr(options, "perf_counter", lambda: now)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with options.LateProgress() as progress:
        progress("loading", 1, 10)
        assert not made
        now = 2.0
        progress("loading", 5, 10)
        progress("loading", 10, 10)
    assert len(made) == 1


def start(tiny: Path, *arguments: str, **more: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "puna", "run", str(tiny), "x", "--ignore-end", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_can_be_interrupted, **more
    )


def _can_be_interrupted() -> None:
    """A shell starts background jobs, such as a whole test run may be, with interrupts ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_keeps_the_text_so_far(tiny: Path) -> None:
    process = start(tiny, "--threads", "1")
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 100)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"\npuna: interrupted\n")
    assert len(first) > 0
    assert len(first + rest) < 50_000


def test_a_closed_pipe_is_quiet(tiny: Path) -> None:
    process = start(tiny, "--threads", "1")
    assert process.stdout is not None
    assert process.stderr is not None
    os.read(process.stdout.fileno(), 10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_what_a_run_does_not_need_is_not_imported(tiny: Path) -> None:
    code = (
        f"from puna.cli.main import main; main(['run', {str(tiny)!r}, 'x', '--max-tokens', '1'])\n"
        "import sys; print('modules:', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("modules:")[2].split())
    assert not loaded & {
        "asyncio",
        "rich",
        "prompt_toolkit",
        "huggingface_hub",
        "platformdirs",
        "ctypes.util",
    }


@pytest.mark.parametrize(
    "order",
    [["{}", "the", *GREEDY], [*GREEDY, "{}", "the"], ["{}", *GREEDY, "the"], ["{}", "--raw", "the", *GREEDY]],
    ids=["behind", "before", "between", "flag"],
)
def test_options_may_stand_anywhere(order: list[str], tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *(word.format(tiny) for word in order)]) == 0
    assert capsys.readouterr().out


def test_an_empty_name_is_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "", "Why?"]) == 2
    assert capsys.readouterr().err.endswith("got an empty text\n")
