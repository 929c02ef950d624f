"""Several models in one server: who is in memory, who waits, who has to go."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm.tiny_llm import write_tiny_llm

from puna.core import BadFile, DoesNotFit, EngineClosed, UnknownModel, WorkFailed
from puna.llm.budget import Budget, LLMLoader
from puna.llm.models import ModelPool

MB = 1_000_000


class FakeModel:
    """What the pool asks of an LLM."""

    context = 512

    def __init__(self, owner: FakeLoader, name: str, memory_bytes: int) -> None:
        self.owner, self.name, self.memory_bytes = owner, name, memory_bytes
        self.is_open = True
        self.adapters = SimpleNamespace(all=())

    def close(self) -> None:
        assert self.is_open or self.owner.may_break, "closed twice"
        self.is_open = False
        self.owner.resident.remove(self)


class FakeLoader:
    """Models whose sizes are in their names: "small-2-5" takes 2 to 5 bytes."""

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self.resident: list[FakeModel] = []
        self.loaded: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.broken: set[str] = set()
        self.may_break = False
        self.n_at_once = 0

    def measure(self, path: Path) -> tuple[int, int]:
        least, most = path.stem.split("-")[1:]
        return int(least), int(most)

    def load(self, path: Path, room: int | None, progress: Callable[..., None]) -> Any:
        self.n_at_once += 1
        assert self.n_at_once == 1, "two loads at once"
        try:
            while not self.gate.wait(0.001):
                progress("loading", 0, None)
            if path.stem in self.broken:
                raise BadFile(f"{path} is damaged")
            least, most = self.measure(path)
            n_bytes = most if room is None else min(most, room)
            assert n_bytes >= least
            if self.total is not None:
                assert sum(m.memory_bytes for m in self.resident) + n_bytes <= self.total
            self.loaded.append(path.stem)
            self.resident.append(FakeModel(self, path.stem, n_bytes))
            return self.resident[-1]
        finally:
            self.n_at_once -= 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a-4-4", "b-4-4", "c-4-4", "big-9-9", "wide-2-8", "giant-99-99"):
        (tmp_path / f"{name}.gguf").touch()
    return tmp_path


def pool_of(folder: Path, names: str, total: int | None = 10, **options: Any) -> tuple[ModelPool, FakeLoader]:
    loader = FakeLoader(total)
    places = [(name.split("-")[0], folder / f"{name}.gguf") for name in names.split()]
    return ModelPool(places, loader, Budget(total, len(places)), **options), loader


def run(work: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(120):
            await work

    asyncio.run(limited())


def states(pool: ModelPool) -> dict[str, str]:
    return {card.name: card.state for card in pool.cards()}


def test_what_fits_is_loaded_at_once_and_the_rest_on_demand_in_the_place_of_the_longest_idle(
    folder: Path,
) -> None:
    pool, loader = pool_of(folder, "a-4-4 b-4-4 c-4-4")
    pool.preload()
    assert states(pool) == {"a": "loaded", "b": "loaded", "c": "unloaded"}

    async def work() -> None:
        with await pool.use("a"):
            pass
        with await pool.use("c") as model:
            assert model.name == "c-4-4"  # type: ignore[attr-defined]
        assert states(pool) == {"a": "loaded", "b": "unloaded", "c": "loaded"}
        assert pool.used_bytes == 8
        await pool.stop()

    run(work())
    pool.close()
    assert not loader.resident


def test_a_model_in_use_stays_and_the_one_that_waits_gets_its_turn(folder: Path) -> None:
    pool, loader = pool_of(folder, "a-4-4 big-9-9")

    async def work() -> None:
        use = await pool.use("a")
        waiting = asyncio.create_task(pool.use("big"))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        assert use.model.is_open
        late = asyncio.create_task(pool.use("a"))  # must not keep the other from its turn for ever
        await asyncio.sleep(0.02)
        assert not late.done()
        use.release()
        use.release()  # does nothing
        with await waiting as model:
            assert model.is_open
            assert not late.done()
        with await late as model:
            assert model.name == "a-4-4"  # type: ignore[attr-defined]
        assert loader.loaded == ["a-4-4", "big-9-9", "a-4-4"]
        await pool.stop()

    run(work())
    pool.close()


def test_who_goes_away_while_waiting_leaves_nothing_behind(folder: Path) -> None:
    pool, loader = pool_of(folder, "a-4-4 big-9-9 c-4-4")

    async def work() -> None:
        use = await pool.use("a")
        waiting = asyncio.create_task(pool.use("big"))
        third = asyncio.create_task(pool.use("c"))
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        (await third).release()  # came behind it in the queue
        (await pool.use("a")).release()  # is not leaving any more
        assert "big-9-9" not in loader.loaded
        assert use.model.is_open
        use.release()
        await pool.stop()

    run(work())
    pool.close()


def test_a_load_whose_waiters_all_left_leaves_an_idle_model(folder: Path) -> None:
    pool, loader = pool_of(folder, "a-4-4", idle_s=0.01)

    async def work() -> None:
        loader.gate.clear()
        waiting = asyncio.create_task(pool.use("a"))
        while not loader.n_at_once:  # nobody would want it any more where it has not begun
            await asyncio.sleep(0.001)
        assert states(pool) == {"a": "loading"}
        waiting.cancel()
        await asyncio.sleep(0)
        loader.gate.set()
        while loader.loaded != ["a-4-4"] or loader.resident or pool.used_bytes:  # free a moment later
            await asyncio.sleep(0.005)
        await pool.stop()

    run(work())
    pool.close()


def test_all_who_wait_for_a_model_share_one_load(folder: Path) -> None:
    pool, loader = pool_of(folder, "a-4-4")

    async def work() -> None:
        uses = await asyncio.gather(*(pool.use("a") for _ in range(50)))
        assert len({id(use.model) for use in uses}) == 1
        for use in uses:
            use.release()
        assert loader.loaded == ["a-4-4"]
        await pool.stop()

    run(work())
    pool.close()


def test_a_model_that_never_fits_is_refused_with_both_numbers(folder: Path) -> None:
    pool, _ = pool_of(folder, "a-4-4 giant-99-99")
    with pytest.raises(DoesNotFit, match=r"giant needs at least .* and the models of this server may take"):
        pool.preload()

    async def work() -> None:
        with pytest.raises(DoesNotFit, match="giant needs at least"):
            await pool.use("giant")
        (await pool.use("a")).release()
        await pool.stop()

    run(work())
    pool.close()


def test_a_damaged_file_is_an_error_for_those_who_ask_and_for_nobody_else(folder: Path) -> None:
    pool, loader = pool_of(folder, "a-4-4 b-4-4")
    loader.broken.add("b-4-4")

    async def work() -> None:
        asked = await asyncio.gather(*(pool.use(name) for name in "bab"), return_exceptions=True)
        assert isinstance(asked[0], WorkFailed)
        assert "b could not be loaded" in str(asked[0])
        assert isinstance(asked[2], WorkFailed)
        assert not isinstance(asked[1], BaseException)
        asked[1].release()
        loader.broken.clear()  # it was repaired
        (await pool.use("b")).release()
        await pool.stop()

    run(work())
    pool.close()


def test_a_model_whose_engine_broke_is_loaded_anew(folder: Path) -> None:
    pool, loader = pool_of(folder, "a-4-4")
    loader.may_break = True

    async def work() -> None:
        use = await pool.use("a")
        broken: Any = use.model
        broken.is_open = False
        waiting = asyncio.create_task(pool.use("a"))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        use.release()
        with await waiting as model:
            assert model is not broken
        await pool.stop()

    run(work())
    pool.close()


def test_idle_models_are_unloaded_and_used_ones_are_not(folder: Path) -> None:
    pool, loader = pool_of(folder, "a-4-4 b-4-4", idle_s=0.02)
    pool.preload()

    async def work() -> None:
        pool.start()
        with await pool.use("a"):
            while len(loader.resident) > 1:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            assert [model.name for model in loader.resident] == ["a-4-4"]
        while loader.resident:
            await asyncio.sleep(0.005)
        (await pool.use("b")).release()
        await pool.stop()

    run(work())
    pool.close()


def test_a_model_that_is_let_go_leaves_with_its_last_user_unless_it_is_wanted_again(folder: Path) -> None:
    pool, loader = pool_of(folder, "a-4-4")
    pool.preload()

    async def work() -> None:
        first, second = await pool.use("a"), await pool.use("a")
        pool.let_go("a")
        first.release()
        await asyncio.sleep(0.02)
        assert second.model.is_open
        second.release()
        while loader.resident:
            await asyncio.sleep(0.005)
        first = await pool.use("a")
        pool.let_go("a")
        (await pool.use("a")).release()  # whoever comes later says nothing of letting it go
        first.release()
        await asyncio.sleep(0.02)
        assert states(pool) == {"a": "loaded"}
        pool.let_go("a")  # nobody uses it
        while loader.resident:
            await asyncio.sleep(0.005)
        await pool.stop()

    run(work())
    pool.close()


def test_stopping_ends_a_load_and_tells_those_who_wait(folder: Path) -> None:
    pool, loader = pool_of(folder, "a-4-4 b-4-4")

    async def work() -> None:
        loader.gate.clear()
        waiting = [asyncio.create_task(pool.use(name)) for name in "ab"]
        await asyncio.sleep(0.01)
        await pool.stop()
        for task in waiting:
            with pytest.raises(EngineClosed):
                await task
        with pytest.raises(EngineClosed):
            await pool.use("a")

    run(work())
    pool.close()
    assert not loader.resident


def test_nobody_asks_for_a_cache_larger_than_a_models_share(folder: Path) -> None:
    pool, loader = pool_of(folder, "wide-2-8 a-4-4")
    pool.preload()
    assert [model.memory_bytes for model in loader.resident] == [5, 4]
    pool.close()


def test_other_models_are_found_by_name_where_the_pool_may(folder: Path) -> None:
    def find(name: str) -> tuple[str, Path] | None:
        path = folder / "b-4-4.gguf"
        return ("b", path) if name.lower() == "b" and path.exists() else None

    pool, _ = pool_of(folder, "a-4-4", find=find, others=lambda: [("b", folder / "b-4-4.gguf")])
    assert states(pool) == {"a": "unloaded", "b": "unloaded"}

    async def work() -> None:
        use = await pool.use("B")
        assert use.name == "b"
        assert states(pool) == {"a": "unloaded", "b": "loaded"}
        with pytest.raises(UnknownModel, match="no model 'x' here; this server has a, b"):
            await pool.use("x")
        use.release()
        await pool.stop()

    run(work())
    pool.close()
    strict, _ = pool_of(folder, "a-4-4")
    with pytest.raises(UnknownModel):
        strict.hold("b")


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(9, 24))
def test_random_use_never_meets_a_closed_model_nor_exceeds_the_budget(seed: int, total: int) -> None:
    """30 clients of five models that do not fit together; some go away, some files break now and then."""
    chance = random.Random(seed)
    names = ["a-1-4", "b-2-2", "c-4-4", "d-5-9", "e-9-9"]
    loader = FakeLoader(total)
    # directories stand for files: only their names count here
    places = [(name[0], Path("/") / name) for name in names]
    pool = ModelPool(places, loader, Budget(total, 2), idle_s=0.001 if chance.random() < 0.3 else 0)

    async def client() -> None:
        for _ in range(4):
            await asyncio.sleep(chance.random() / 500)
            if chance.random() < 0.1:
                loader.broken ^= {chance.choice(names)}
            asked = asyncio.create_task(pool.use(chance.choice("abcde")))
            if chance.random() < 0.3:
                await asyncio.sleep(chance.random() / 300)
                asked.cancel()
            try:
                use = await asked
            except (asyncio.CancelledError, WorkFailed):
                continue
            assert use.model.is_open
            assert pool.used_bytes <= total
            await asyncio.sleep(chance.random() / 500)
            assert use.model.is_open
            use.release()

    async def work() -> None:
        await asyncio.gather(*(client() for _ in range(30)))
        assert all(not resident.n_users for resident in pool._residents.values())
        loader.broken.clear()
        for name in "abcde":
            (await pool.use(name)).release()
        await pool.stop()

    run(work())
    pool.close()
    assert not loader.resident


def test_memory_comes_back(tmp_path: Path) -> None:
    """The real thing: two models in turn, in a budget for one; the process does not grow."""
    one = write_tiny_llm(tmp_path / "one.gguf", dim=512, ffn_dim=1536, n_layers=2, n_heads=16, n_kv_heads=8)
    two = write_tiny_llm(tmp_path / "two.gguf", dim=512, ffn_dim=1536, n_layers=2, n_heads=16, n_kv_heads=8)
    loader = LLMLoader(threads=1, context=256, batch=1)
    least, most = loader.measure(one)
    assert least == most > 10 * MB
    pool = ModelPool([("one", one), ("two", two)], loader, Budget(least, 2))
    sizes: list[int] = []

    async def work() -> None:
        for i in range(12):
            with await pool.use(("one", "two")[i % 2]) as model:
                await model.agenerate("hello", temperature=0, max_tokens=4)
            assert pool.used_bytes == least
            gc.collect()
            sizes.append(_resident_bytes())
        await pool.stop()

    run(work())
    pool.close()
    assert sizes[-1] - sizes[3] < 6 * MB, sizes


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
