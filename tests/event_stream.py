"""Event streams as any standard consumer reads them, over httpx."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.graphql_client import GraphQLClient, Json, data_of


@dataclass(frozen=True, slots=True)
class Event:
    """One event. ``id`` is None where it brought none. A comment's name is ``comment``."""

    name: str
    data: str
    id: str | None = None

    @property
    def payload(self) -> Json:
        payload: Json = json.loads(self.data)
        return payload

    @property
    def value(self) -> Any:
        """The value of the only field. Raises Failed."""
        return data_of(self.payload)


COMPLETE = Event("complete", "")


@asynccontextmanager
async def event_stream(
    client: GraphQLClient, query: str, *, last_event_id: str | None = None, **variables: Any
) -> AsyncIterator[httpx.Response]:
    """The answer to one operation, not read yet."""
    headers = {"accept": "text/event-stream"}
    if last_event_id is not None:
        headers["last-event-id"] = last_event_id
    body = {"query": query, "variables": variables}
    async with client.http.stream("POST", client.url, json=body, headers=headers) as response:
        yield response


async def events(response: httpx.Response) -> AsyncGenerator[Event]:
    """Each as it comes, by the rules of the HTML standard, comments among them."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
        elif line:
            yield Event("comment", value.removeprefix(" "))
        elif "data" in fields:
            yield Event(fields["event"], fields["data"], fields.get("id"))
            fields = {}


async def all_events(
    client: GraphQLClient, query: str, *, last_event_id: str | None = None, **variables: Any
) -> list[Event]:
    """Those of one operation, to the end of the answer, where ``complete`` has to be."""
    async with event_stream(client, query, last_event_id=last_event_id, **variables) as response:
        seen = [event async for event in events(response)]
    assert seen[-1] == COMPLETE
    return seen[:-1]
