"""A provider for tests of lists and routes: it lists what its test says, as badly as its test says."""

import asyncio
from collections.abc import AsyncGenerator

from providers.base import ChatRequest, Finished, FinishReason, ModelInfo, ProviderEvent, TextDelta


def info(name: str) -> ModelInfo:
    return ModelInfo(name=name, source="test", display_name=name)


class ListingProvider:
    """``error`` is raised instead of listing, ``check_error`` by a check; while ``gate`` is shut a list
    waits. Replies name it."""

    def __init__(self, name: str, *models: str) -> None:
        self.name = name
        self.listed = [info(model) for model in models]
        self.error: Exception | None = None
        self.check_error: Exception | None = None
        self.close_error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = 0
        self.closed = False

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ProviderEvent, None]:
        yield TextDelta(f"{self.name}/{request.model}")
        yield Finished(FinishReason.STOP)

    async def models(self) -> list[ModelInfo]:
        self.asked += 1
        await self.gate.wait()
        if self.error:
            raise self.error
        return self.listed

    async def check(self) -> None:
        if self.check_error:
            raise self.check_error

    async def aclose(self) -> None:
        self.closed = True
        if self.close_error:
            raise self.close_error
