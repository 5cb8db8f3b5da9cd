"""A server in mid-answer: ``python streaming_server.py MODELS_PATH RUNTIME_DIR`` prints its worker's pid."""

import asyncio
import sys
from contextlib import aclosing
from pathlib import Path

from providers.base import ChatMessage, ChatRequest, GenerationOptions, Role, TextDelta
from providers.huggingface.provider import HuggingFace
from providers.huggingface.settings import HuggingFaceSettings


async def main(models_path: str, runtime_dir: str) -> None:
    provider = HuggingFace(
        HuggingFaceSettings(
            models_path=Path(models_path),
            cache_dir=Path(runtime_dir) / "cache",
            runtime_dir=Path(runtime_dir),
            threads=1,
        )
    )
    options = GenerationOptions(temperature=0, max_tokens=90_000)
    request = ChatRequest("endless", (ChatMessage(Role.USER, "Hello"),), options)
    is_first = True
    async with aclosing(provider.stream(request)) as events:
        async for event in events:
            if isinstance(event, TextDelta) and is_first:
                is_first = False
                print((await provider.status("endless")).pid, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
