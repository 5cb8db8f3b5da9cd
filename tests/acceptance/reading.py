"""Readers that come and go: what each saw of a reply, over a WebSocket or an event stream."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
from websockets.exceptions import WebSocketException

from tests.event_stream import COMPLETE, event_stream, events
from tests.graphql_client import GraphQLClient, Json

EVENT = """
fragment Event on StreamEvent {
  __typename seq generationId
  ... on TextDelta { text fromSeq }
  ... on ReasoningDelta { text fromSeq }
  ... on GenerationCompleted { message { content status } }
  ... on GenerationStopped { message { content status } }
  ... on GenerationFailed { message { content status } error { code retryable } }
}
"""
SEND = "subscription ($input: MessageInput!) { streamMessage(input: $input) { ...Event } }" + EVENT
SEND_OR_RESUME = (
    "subscription ($input: MessageInput!, $after: Int)"
    " { streamMessage(input: $input, after: $after) { ...Event } }" + EVENT
)
WATCH = "subscription ($id: ID!, $after: Int) { generation(id: $id, after: $after) { ...Event } }" + EVENT
_PATIENCE_SECONDS = 20.0
TERMINAL = frozenset({"GenerationCompleted", "GenerationStopped", "GenerationFailed"})


class Lost(Exception):
    """The connection is gone, or nobody was there to take it."""


@dataclass
class Reading:
    """What one reader saw behind ``after``, each event as it has to be: where the last one ended."""

    after: int = 0
    seen: list[Json] = field(default_factory=list)
    _grown: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def reached(self) -> int:
        return self.seen[-1]["seq"] if self.seen else self.after

    @property
    def generation_id(self) -> str | None:
        return self.seen[0]["generationId"] if self.seen else None

    @property
    def text(self) -> str:
        return "".join(event["text"] for event in self.seen if event["__typename"] == "TextDelta")

    @property
    def terminal(self) -> Json | None:
        return self.seen[-1] if self.seen and self.seen[-1]["__typename"] in TERMINAL else None

    def add(self, event: Json) -> None:
        assert self.terminal is None, f"{event} after {self.terminal}"
        repeated = not self.seen and event["__typename"] in TERMINAL and event["seq"] <= self.after
        assert repeated or first_number(event) == self.reached + 1, (self, event)
        self.seen.append(event)
        self._grown.set()

    async def saw(self, count: int) -> None:
        """Return when it has that many events."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while len(self.seen) < count:
                self._grown.clear()
                await self._grown.wait()

    async def read(self, events: AsyncGenerator[Json], most: int | None = None) -> None:
        """Up to ``most`` of the events. Raises what the events do."""
        async with aclosing(events):
            async for event in events:
                self.add(event)
                if most is not None and len(self.seen) >= most:
                    return
        assert self.terminal, f"it completed without its end: {self}"


def first_number(event: Json) -> int:
    """Where the log's numbers that an event covers begin; ``seq`` is the last of them."""
    first: int = event["fromSeq"] if "fromSeq" in event else event["seq"]
    return first


async def over_websocket(
    client: GraphQLClient, query: str, *, vanish: bool = False, **variables: Any
) -> AsyncGenerator[Json]:
    """One operation's events on a connection of its own. Closed early it unsubscribes, or it vanishes. Raises
    Lost and Refused."""
    with losses():
        async with client.socket(proxy=None) as socket:
            operation = await socket.subscribe(query, **variables)
            completed = False
            try:
                async with aclosing(operation.events()) as received:
                    async for event in received:
                        yield event
                completed = True
            finally:
                if vanish:
                    socket.drop()
                elif not completed:
                    await operation.complete()


async def over_event_stream(client: GraphQLClient, query: str, **variables: Any) -> AsyncGenerator[Json]:
    """The same over HTTP; closed early it vanishes. Raises Lost and Failed."""
    with losses():
        async with (
            event_stream(client, query, **variables) as response,
            aclosing(events(response)) as received,
        ):
            async for event in received:
                if event.name == "next":
                    yield event.value
                elif event == COMPLETE:
                    return
        raise Lost("an event stream without its end")


Way = Callable[..., AsyncGenerator[Json]]
WAYS: tuple[Way, ...] = (over_websocket, partial(over_websocket, vanish=True), over_event_stream)


@contextmanager
def losses() -> Iterator[None]:
    """What the clients' libraries raise for a lost connection leaves this block as Lost."""
    try:
        yield
    except (WebSocketException, ConnectionError, httpx.NetworkError, httpx.ProtocolError) as error:
        raise Lost(repr(error)) from error
