"""Two answers at the same time in one event loop: python examples/async_stream.py [MODEL]"""

import asyncio
import sys

from puna import LLM


async def tell(llm: LLM, who: str) -> None:
    messages = [{"role": "user", "content": f"Tell me something about {who}."}]
    async for text in llm.astream(messages, max_tokens=40):
        print(f"[{who}] {text!r}")


async def main() -> None:
    with LLM(*sys.argv[1:2]) as llm:
        await asyncio.gather(tell(llm, "llamas"), tell(llm, "the Andes"))


asyncio.run(main())
