"""What the provider tests share: replaying servers, an address that never answers, the real Ollama."""

import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import TypeVar

import hypothesis
import pytest

from providers.base import ChatMessage, ChatRequest, GenerationOptions, Role, TextDelta
from providers.errors import ProviderError
from providers.ollama import Ollama, OllamaSettings, host_url
from providers.router import RoutedEvent
from tests.providers.replay import ReplayServer, replay_server

# How long an example takes says more about the machine's other work than about the code.
hypothesis.settings.register_profile("parley", deadline=None)
hypothesis.settings.load_profile("parley")


EventT = TypeVar("EventT")


async def collect(events: AsyncGenerator[EventT, None]) -> list[EventT]:
    async with aclosing(events):
        return [event async for event in events]


async def outcome(
    events: AsyncGenerator[EventT, None], on_text: Callable[[], None] | None = None
) -> tuple[list[EventT], ProviderError | None]:
    """What came, and what it ended with; ``on_text`` is called at the first piece of text."""
    seen: list[EventT] = []
    try:
        async with aclosing(events):
            async for event in events:
                seen.append(event)
                if on_text and isinstance(event, TextDelta):
                    on_text()
                    on_text = None
    except ProviderError as error:
        return seen, error
    return seen, None


def text_of(events: Iterable[RoutedEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def chat(model: str, text: str = "Hello", options: GenerationOptions | None = None) -> ChatRequest:
    return ChatRequest(model, (ChatMessage(Role.USER, text),), options or GenerationOptions())


@pytest.fixture
async def server() -> AsyncIterator[ReplayServer]:
    async with replay_server() as replaying:
        yield replaying


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="session")
def ollama_url() -> str:
    host = os.environ.get("OLLAMA_HOST")
    if not host:
        pytest.skip("needs a real Ollama with smollm2:135m and smollm2:second: set OLLAMA_HOST")
    return host_url(host)


@pytest.fixture
async def ollama(ollama_url: str) -> AsyncIterator[Ollama]:
    provider = Ollama(OllamaSettings(ollama_url))
    yield provider
    await provider.aclose()
