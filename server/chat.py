"""The chat engine: a message goes in, and one task per generation writes the reply to its log."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar, assert_never
from uuid import UUID, uuid4

from db import conversations, generations
from db.conversations import Conversation, Message
from db.database import Conflict, Database
from db.generation_log import NoSuchGeneration
from db.generations import Generation, NewGeneration
from providers import base
from providers import router as routing
from providers.base import ChatMessage, ChatRequest, Finished, FinishReason, Role, UsageReport
from providers.errors import StreamBroken
from providers.router import Route, Router
from server.draft import Draft, DraftLimits, given
from server.errors import ChatError, ErrorCode, to_chat_error
from server.events import (
    Completed,
    Failed,
    ModelSwitched,
    PhaseChanged,
    ReasoningDelta,
    Started,
    Stopped,
    Terminal,
    TextDelta,
    clean,
)
from server.log_rows import encode
from server.meter import Meter
from server.patience import patiently
from server.stream_log import StreamLog, Writer

T = TypeVar("T")

_log = logging.getLogger("parley.chat")
_TITLE_CHARACTERS = 80
_BEYOND_THE_END = 2**31 - 1
_FAREWELL_SECONDS = 5.0  # that a database which is away holds up the end of the process


@dataclass(slots=True)
class _Running:
    """A generation of this process. ``producing`` may be cancelled by anybody at any time; the task that
    awaits it is not, so that the end is always written."""

    generation: Generation
    draft: Draft
    route: Route
    system_prompt: str | None
    writer: Writer
    meter: Meter
    producing: asyncio.Task[FinishReason] = field(init=False)
    interrupted: bool = False

    def stop(self) -> None:
        if not self.producing.cancelling():  # a second time would cut short how the upstream is closed
            self.producing.cancel()

    def interrupt(self) -> None:
        self.interrupted = True
        self.stop()


class ChatEngine:
    """Sends messages and stops replies. Every reply runs in a task of its own, whoever watches it."""

    def __init__(
        self, database: Database, router: Router, log: StreamLog, limits: DraftLimits | None = None
    ) -> None:
        self._database = database
        self._router = router
        self._log = log
        self._limits = limits or DraftLimits()
        self._running: dict[UUID, _Running] = {}
        self._tasks = asyncio.TaskGroup()
        self._draining = False
        self._beginning: set[asyncio.Task[Generation]] = set()

    @contextlib.asynccontextmanager
    async def running(self, *, grace_seconds: float) -> AsyncIterator["ChatEngine"]:
        """Accept messages for as long as the context lasts; then give the replies that run ``grace_seconds``
        to end, and close the rest as interrupted."""
        async with self._tasks:
            try:
                yield self
            finally:
                await self._drain(grace_seconds)

    @property
    def is_draining(self) -> bool:
        return self._draining

    async def send(self, viewer_id: str, draft: Draft) -> Generation:
        """Store the message and start its reply; where it was sent before, with the same client key, the
        reply is the one that began then.

        Raises ChatError, ProviderError (an unknown model) or DatabaseError; then nothing is stored.
        """
        draft = self._limits.checked(draft)
        if earlier := await self.sent(viewer_id, draft):
            return earlier
        self._refuse_while_draining()
        conversation = await self._conversation(viewer_id, draft)
        preferred = conversation.model if conversation else None
        route = await self._router.resolve(draft.model or preferred, is_open=draft.model is None)
        new = self._new_generation(viewer_id, draft, conversation, route)
        system_prompt = new.system_prompt or (conversation.system_prompt if conversation else None)
        self._refuse_while_draining()  # again: finding the model may have taken seconds
        beginning = asyncio.create_task(self._begin(new, draft, route, system_prompt))
        self._beginning.add(beginning)
        beginning.add_done_callback(self._beginning.discard)
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            # The sender is gone. A generation that was stored and not started would keep its lease, and its
            # conversation its unfinished head, for as long as this process lives.
            await asyncio.wait({beginning})
            beginning.exception()  # nobody is left to be told
            raise
        except Conflict:
            if earlier := await self.sent(viewer_id, draft):  # by somebody who was a little quicker
                return earlier
            raise

    async def sent(self, viewer_id: str, draft: Draft) -> Generation | None:
        """The generation that sending this draft began, by its client key; None where it was not sent yet.

        Raises ChatError, also when another message was sent with the key.
        """
        draft = self._limits.checked(draft)
        if draft.client_key is None:
            return None
        found = await generations.of_client_key(self._database, viewer_id, draft.client_key)
        if found is None:
            return None
        generation, digest = found
        if digest != draft.digest():
            message = f"the clientKey {draft.client_key!r} was used for another message; choose a new one"
            raise ChatError(ErrorCode.CLIENT_KEY_REUSED, message)
        return generation

    async def stop(self, viewer_id: str, generation_id: UUID) -> Generation:
        """End a reply and keep its text; one that has ended already stays as it is.

        Returns once it has ended: for a reply of this process after one commit, for another replica's when
        that one has heard of it, at the latest when it next renews its leases.
        """
        running = self._running.get(generation_id)
        if running and running.generation.viewer_id == viewer_id:
            running.stop()  # before the database is asked anything: it may be away
        elif (await self.generation(viewer_id, generation_id)).finished_at is None:
            await generations.request_stop(self._database, viewer_id, generation_id)
        await self.ended(generation_id)
        return await self.generation(viewer_id, generation_id)

    async def ended(self, generation_id: UUID) -> None:
        """Return when the generation has ended, or was deleted."""
        with contextlib.suppress(NoSuchGeneration):
            async with aclosing(self._log.read(generation_id, after=_BEYOND_THE_END)) as events:
                async for _ in events:
                    pass

    async def generation(self, viewer_id: str, generation_id: UUID) -> Generation:
        found = await generations.get(self._database, viewer_id, generation_id)
        if found is None:
            raise ChatError(ErrorCode.NOT_FOUND, f"there is no generation {generation_id} of yours")
        return found

    def _refuse_while_draining(self) -> None:
        if self._draining:
            raise ChatError(ErrorCode.OVERLOADED, "the server is shutting down", retryable=True)

    async def _begin(
        self, new: NewGeneration, draft: Draft, route: Route, system_prompt: str | None
    ) -> Generation:
        try:
            generation = await generations.begin(self._database, new)
        except LookupError as missing:
            raise ChatError(ErrorCode.NOT_FOUND, f"there is no such {missing.args[0]} of yours") from None
        self._start(generation, draft, route, system_prompt)
        return generation

    async def _conversation(self, viewer_id: str, draft: Draft) -> Conversation | None:
        if draft.conversation_id is None:
            return None
        found = await conversations.get(self._database, viewer_id, draft.conversation_id)
        if found is None:
            raise ChatError(ErrorCode.NOT_FOUND, f"there is no conversation {draft.conversation_id} of yours")
        return found

    def _new_generation(
        self, viewer_id: str, draft: Draft, conversation: Conversation | None, route: Route
    ) -> NewGeneration:
        started = Started(conversation.id if conversation else uuid4(), uuid4(), uuid4(), route.full_name)
        return NewGeneration(
            id=uuid4(),
            viewer_id=viewer_id,
            conversation_id=started.conversation_id,
            user_message_id=started.user_message_id,
            message_id=started.message_id,
            parent_id=draft.parent_id,
            begins_conversation=conversation is None,
            title=_title(draft.text),
            system_prompt=draft.system_prompt or None,
            text=draft.text,
            model=route.full_name,
            provider=route.provider_name,
            options=given(self._limits.completed(draft.options)),
            started_event=encode(started),
            owner=self._log.owner,
            lease_seconds=self._log.timing.lease_seconds,
            client_key=draft.client_key,
            request_digest=draft.digest() if draft.client_key else None,
            stops_without_readers=draft.stops_without_readers,
        )

    def _start(self, generation: Generation, draft: Draft, route: Route, system_prompt: str | None) -> None:
        started = Started(
            generation.conversation_id, generation.user_message_id, generation.message_id, generation.model
        )
        writer = self._log.writer(generation.id, started, lambda: running.stop())
        running = _Running(generation, draft, route, system_prompt, writer, Meter(route))
        running.producing = asyncio.create_task(self._produce(running))
        self._running[generation.id] = running
        self._tasks.create_task(self._supervise(running))

    async def _supervise(self, running: _Running) -> None:
        """Wait for the reply however it ends, and write that end."""
        try:
            await asyncio.wait({running.producing})
            terminal = self._terminal(running)
            attempt = running.meter.attempt(terminal)
            await running.writer.finish(terminal, attempt, running.meter.earlier)
        except Exception:
            # Raised further it would end the task group, and with it every other reply.
            _log.exception("generation %s could not be closed", running.generation.id)
        finally:
            del self._running[running.generation.id]

    def _terminal(self, running: _Running) -> Terminal:
        if running.producing.cancelled():
            if not running.interrupted:
                return Stopped()
            message = "the server was shut down before the reply was complete; the text so far is kept"
            return Failed("interrupted", ErrorCode.INTERRUPTED, message, retryable=True)
        if error := running.producing.exception():
            told = to_chat_error(error)
            _log.warning("generation %s failed: %s %s", running.generation.id, told.code, told.message)
            return Failed("failed", told.code, clean(told.message), told.retryable)
        return Completed(running.producing.result())

    async def _produce(self, running: _Running) -> FinishReason:
        messages = await self._patiently(partial(self._history, running))
        options = self._limits.completed(running.draft.options)
        request = ChatRequest(running.route.model, messages, options)
        finished: FinishReason | None = None
        async with aclosing(self._router.stream(running.route, request)) as events:
            async for event in events:
                match event:
                    case base.TextDelta(text=text):
                        running.meter.delta()
                        await running.writer.append(TextDelta(text))
                    case base.ReasoningDelta(text=text):
                        running.meter.delta()
                        await running.writer.append(ReasoningDelta(text))
                    case base.PhaseChanged():
                        detail = event.detail and clean(event.detail)
                        await running.writer.append(PhaseChanged(event.phase, detail, event.progress))
                    case UsageReport():
                        running.meter.report(event)
                    case routing.ModelSwitched():
                        await self._switch(running, event)
                    case Finished():
                        finished = event.reason
                    case _:
                        assert_never(event)
        if finished is None:
            raise StreamBroken("the reply ended without its terminal marker; the text so far is kept")
        return finished

    async def _history(self, running: _Running) -> tuple[ChatMessage, ...]:
        generation = running.generation
        branch = await conversations.branch(self._database, generation.viewer_id, generation.user_message_id)
        system = [ChatMessage(Role.SYSTEM, running.system_prompt)] if running.system_prompt else []
        return (*system, *(_turn(message) for message in branch if message.content))

    async def _switch(self, running: _Running, switched: routing.ModelSwitched) -> None:
        before, running.route = running.route, switched.route
        told = to_chat_error(switched.error)
        reason = clean(told.message)
        running.meter.switch(switched.route, Failed("failed", told.code, reason, told.retryable))
        await self._patiently(
            partial(
                generations.switch_model,
                self._database,
                self._log.owner,
                running.generation.id,
                model=switched.route.full_name,
                provider=switched.route.provider_name,
            )
        )
        await running.writer.append(
            ModelSwitched(before.full_name, switched.route.full_name, reason, discard_text=False)
        )

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        timing = self._log.timing
        return await patiently(
            ask, patience_seconds=timing.patience_seconds, retry_seconds=timing.retry_seconds
        )

    async def _drain(self, grace_seconds: float) -> None:
        self._draining = True
        if self._beginning:  # what is being stored will run, and has to be ended too
            await asyncio.wait(self._beginning)
        producing = [running.producing for running in self._running.values()]
        if producing:
            await asyncio.wait(producing, timeout=grace_seconds)
        for running in self._running.values():
            running.interrupt()
        self._log.give_up_after(_FAREWELL_SECONDS)


def _turn(message: Message) -> ChatMessage:
    return ChatMessage(Role(message.role), message.content)


def _title(text: str) -> str:
    first_line = text.strip().partition("\n")[0].strip()
    return first_line if len(first_line) <= _TITLE_CHARACTERS else first_line[: _TITLE_CHARACTERS - 1] + "…"
