from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core import Request, SamplingParams
from puna.engine.blocks import BlockManager
from puna.engine.prefix import ROOT, PrefixCache
from puna.engine.sampling import SamplingState
from puna.engine.sequence import Sequence
from puna.engine.speculate import Guesser


def sequence(*tokens: int, prompt_logprobs: bool = False) -> Sequence:
    params = SamplingParams()
    request = Request(tokens, params, prompt_logprobs=prompt_logprobs)
    return Sequence(request, 1000, frozenset(), SamplingState(params, tokens, [], 0), Guesser())


def admitted(blocks: BlockManager, *tokens: int) -> Sequence:
    seq = sequence(*tokens)
    assert blocks.admit(seq, 0)
    return seq


def compute_all(blocks: BlockManager, seq: Sequence) -> None:
    seq.n_computed = len(seq.tokens)
    blocks.advance(seq)


def test_admits_only_what_fits_beside_the_reserve() -> None:
    blocks = BlockManager(n_blocks=4, block_size=2)
    assert not blocks.admit(sequence(1, 2, 3, 4, 5), reserve=2)
    assert blocks.n_free == 4
    seq = sequence(1, 2, 3, 4, 5)
    assert blocks.admit(seq, reserve=1)
    assert len(seq.blocks) == 3
    assert blocks.n_free == 1
    assert blocks.missing(seq, 6) == 0
    assert blocks.missing(seq, 7) == 1
    blocks.grow(seq, 1)
    assert blocks.n_free == 0
    blocks.release(seq)
    assert blocks.n_free == 4


def test_blocks_are_reused_only_after_they_are_computed() -> None:
    blocks = BlockManager(n_blocks=8, block_size=2)
    first = admitted(blocks, 1, 2, 3, 4, 5)
    early = admitted(blocks, 1, 2, 3, 4, 5)
    assert early.n_computed == 0
    first.n_computed = 3  # one block full, one half full
    blocks.advance(first)
    late = sequence(1, 2, 3, 4, 5)
    blocks.release(early)
    assert blocks.admit(late, 0)
    assert late.n_computed == 2
    assert late.blocks[0] == first.blocks[0]
    assert late.blocks[1] not in first.blocks


def test_the_last_token_is_computed_even_if_all_is_cached() -> None:
    blocks = BlockManager(n_blocks=8, block_size=2)
    compute_all(blocks, admitted(blocks, 1, 2, 3, 4))
    assert admitted(blocks, 1, 2, 3, 4).n_computed == 2
    assert admitted(blocks, 1, 2, 3, 4, 5).n_computed == 4


def test_equal_tokens_after_different_ones_are_not_shared() -> None:
    blocks = BlockManager(n_blocks=8, block_size=2)
    compute_all(blocks, admitted(blocks, 1, 2, 3, 4))
    assert admitted(blocks, 3, 4, 3, 4, 9).n_computed == 0


def test_a_prompt_to_be_scored_is_computed_again() -> None:
    blocks = BlockManager(n_blocks=12, block_size=2)
    compute_all(blocks, admitted(blocks, 1, 2, 3, 4, 5))
    scored = sequence(1, 2, 3, 4, 5, prompt_logprobs=True)
    assert blocks.admit(scored, 0)
    assert scored.n_computed == 0
    blocks.release(scored)
    scored.n_scored = 3  # preempted after three scores
    assert blocks.admit(scored, 0)
    assert scored.n_computed == 2


def test_two_that_computed_the_same_end_up_with_the_same_blocks() -> None:
    blocks = BlockManager(n_blocks=6, block_size=2)
    one, two = admitted(blocks, 1, 2, 3, 4, 5), admitted(blocks, 1, 2, 3, 4, 6)
    compute_all(blocks, one)
    assert blocks.n_free == 0
    compute_all(blocks, two)
    assert one.blocks[:2] == two.blocks[:2]
    assert one.blocks[2] != two.blocks[2]
    assert blocks.n_free == 2


def test_the_least_recently_used_contents_go_first_and_ends_before_beginnings() -> None:
    blocks = BlockManager(n_blocks=4, block_size=1)
    for tokens in [(1, 2), (3, 4)]:
        seq = admitted(blocks, *tokens)
        compute_all(blocks, seq)
        blocks.release(seq)
    blocks.release(admitted(blocks, 1, 9))  # uses 1 again; takes the place of 2
    blocks.release(admitted(blocks, 7))  # 9 was never computed: its block is blank
    assert admitted(blocks, 3, 4, 0).n_computed == 2
    blocks = BlockManager(n_blocks=3, block_size=1)
    seq = admitted(blocks, 1, 2, 3)
    compute_all(blocks, seq)
    blocks.release(seq)
    blocks.release(admitted(blocks, 8))
    assert admitted(blocks, 1, 2, 3).n_computed == 2


@given(st.integers(0, 2**32), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_prefix_cache_finds_exactly_what_a_dictionary_of_prefixes_would(seed: int, size: int) -> None:
    rng = Random(seed)
    cache = PrefixCache(size)
    known: dict[tuple[int, ...], int] = {}  # whole prefix -> block
    for block in range(60):
        seq = sequence(*(rng.randrange(2) for _ in range(size * rng.randint(1, 5))))
        hits = cache.match(seq.tokens, len(seq.tokens))
        prefixes = [tuple(seq.tokens[: size * (i + 1)]) for i in range(len(seq.tokens) // size)]
        n_known = next((i for i, prefix in enumerate(prefixes) if prefix not in known), len(prefixes))
        assert hits == [known[prefix] for prefix in prefixes[:n_known]]
        if n_known < len(prefixes):
            parent = cache.serial(hits[-1]) if hits else ROOT
            piece = seq.tokens[n_known * size : (n_known + 1) * size]
            assert cache.insert(parent, piece, block) == block
            assert cache.insert(parent, piece, 1000) == block
            known[prefixes[n_known]] = block
        if known and rng.random() < 0.3:  # forget one, and with it what follows from it
            lost = rng.choice(sorted(known))
            assert cache.holds(known[lost])
            cache.forget(known[lost])
            known = {prefix: b for prefix, b in known.items() if prefix[: len(lost)] != lost}
