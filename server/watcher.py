"""Watches conversations for everybody who asks here: one look at all of them, each time the bell rings."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Never
from uuid import UUID

from db import conversations, generations
from db.bell import Bell, Channel
from db.conversations import Conversation
from db.database import Database, DatabaseError, DatabaseUnavailable
from db.generations import Generation
from server.conversation_events import ConversationDeleted, ConversationEvent, Known

_log = logging.getLogger("parley.watcher")


@dataclass(frozen=True, slots=True)
class _Sight:
    """What one look at a conversation found; ``look`` is its number."""

    conversation: Conversation | None
    generations: Sequence[Generation]
    look: int


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """Somebody who wants to know when the conversation differs from this, and how; None: nobody can say."""

    conversation_id: UUID
    updated_at: datetime
    number: int
    sight: asyncio.Future[_Sight | None]


class Watcher:
    """Tells what happens in conversations, whoever does it and on whichever server.

    Looks are taken one after the other, for all who wait at that moment, so nobody is ever told of an older
    state than before; and nothing is kept for who does not wait. A dead bell costs ``poll_seconds``: so often
    it looks without being rung for. After ``patience_seconds`` without the database all are told so.
    """

    def __init__(
        self, database: Database, bell: Bell, *, poll_seconds: float, patience_seconds: float
    ) -> None:
        self._database = database
        self._bell = bell
        self._poll_seconds = poll_seconds
        self._patience_seconds = patience_seconds
        self._waiting: set[_Waiting] = set()
        self._looks = 0
        self._is_awaited = asyncio.Event()
        self._is_due = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Watcher"]:
        async with asyncio.TaskGroup() as tasks:
            jobs = [tasks.create_task(job) for job in (self._listen(), self._keep_looking())]
            try:
                yield self
            finally:
                for job in jobs:
                    job.cancel()

    async def watch(self, viewer_id: str, conversation_id: UUID) -> AsyncGenerator[ConversationEvent, None]:
        """What is the case, then what changes, to the conversation's end. Raises LookupError for one that is
        not the viewer's, and DatabaseError; what is returned raises DatabaseUnavailable."""
        conversation = await conversations.get(self._database, viewer_id, conversation_id)
        if conversation is None:
            raise LookupError("conversation")
        current = await generations.current(self._database, viewer_id, conversation_id)
        known = Known(conversation)
        return self._events(known, known.begin(conversation, current))

    async def _events(
        self, known: Known, events: list[ConversationEvent]
    ) -> AsyncGenerator[ConversationEvent, None]:
        look = -1  # of its own, when it began
        while True:
            for event in events:
                yield event
                if isinstance(event, ConversationDeleted):
                    return
            sight = await self._different(known, look)
            look = sight.look
            events = known.catch_up(sight.conversation, sight.generations)

    async def _different(self, known: Known, look: int) -> _Sight:
        """Wait until the conversation is no longer as it is known from that look."""
        sight: asyncio.Future[_Sight | None] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(known.conversation_id, known.updated_at, known.number, sight)
        self._waiting.add(waiting)
        self._is_awaited.set()
        if look < self._looks:
            self._is_due.set()  # what happened in between was rung for when this one did not wait
        try:
            found = await sight
        finally:
            self._waiting.discard(waiting)
            if not self._waiting:
                self._is_awaited.clear()
        if found is None:
            raise DatabaseUnavailable("the database was away for too long to tell what happens")
        return found

    async def _listen(self) -> Never:
        """Have a look taken at each ring; nothing is asked while nobody waits here."""
        heard = self._bell.rings(Channel.CONVERSATIONS)
        while True:
            await self._is_awaited.wait()
            heard = await self._bell.wait(Channel.CONVERSATIONS, heard, at_most_seconds=self._poll_seconds)
            self._is_due.set()

    async def _keep_looking(self) -> Never:
        failing_since: float | None = None
        while True:
            await self._is_awaited.wait()
            await self._is_due.wait()
            self._is_due.clear()
            try:
                await self._look()
                failing_since = None
            except DatabaseError as error:
                _log.warning("%d watchers wait for the database: %s", len(self._waiting), error)
                failing_since = failing_since or time.monotonic()
                if time.monotonic() - failing_since > self._patience_seconds:
                    failing_since = None
                    for one in self._waiting:
                        _answer(one, None)

    async def _look(self) -> None:
        self._looks += 1
        asking = list(self._waiting)
        if not asking:
            return
        seen = {(one.conversation_id, one.updated_at) for one in asking}
        changed = await conversations.changed(self._database, seen)
        # A slow one asks from an older state than others; what it missed is not news to them.
        told = [one for one in asking if _differs(one, changed)]
        numbers: dict[UUID, int] = {}
        for one in told:
            numbers[one.conversation_id] = min(one.number, numbers.get(one.conversation_id, one.number))
        begun: defaultdict[UUID, list[Generation]] = defaultdict(list)
        for generation in await generations.begun_since(self._database, numbers) if numbers else ():
            begun[generation.conversation_id].append(generation)
        for one in told:
            id_ = one.conversation_id
            _answer(one, _Sight(changed[id_], begun[id_], self._looks))


def _differs(one: _Waiting, changed: Mapping[UUID, Conversation | None]) -> bool:
    if one.conversation_id not in changed:
        return False
    conversation = changed[one.conversation_id]
    return conversation is None or conversation.updated_at != one.updated_at


def _answer(one: _Waiting, sight: _Sight | None) -> None:
    if not one.sight.done():  # it may have been cancelled a moment ago
        one.sight.set_result(sight)
