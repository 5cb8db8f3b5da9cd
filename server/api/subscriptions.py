"""What clients can watch."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

import strawberry

from db.generation_log import NoSuchGeneration
from db.generations import Generation
from server.api.context import Context, Info
from server.api.conversation_events import ConversationEvent, to_conversation_event
from server.api.cursor import Position
from server.api.events import StreamEvent, to_stream_event
from server.api.fields import subscription
from server.api.ids import to_uuid
from server.api.inputs import MessageInput
from server.conversation_events import ConversationEvent as Happening
from server.errors import ChatError, ErrorCode
from server.events import clean


@strawberry.type(
    description="What can be watched. A subscription refused at the start gives an error; what goes wrong"
    " later is an event. Unsubscribing, or losing the connection, ends no generation that was not sent with"
    " onDisconnect: STOP."
)
class Subscription:
    # Coroutines that return a generator: what they raise is an error of the operation, whereas what a
    # generator raises would be a result without data.
    @subscription(
        "Send a message, and watch its reply from the first event on. Subscribing again with the same"
        " clientKey sends nothing again, and goes on with that reply."
    )
    async def stream_message(
        self,
        info: Info,
        message: Annotated[MessageInput, strawberry.argument(name="input", description="What to send.")],
        after: Annotated[
            int | None,
            strawberry.argument(
                description="Begin behind this number: the seq of the last event that came, when subscribing"
                " again with a clientKey."
            ),
        ] = 0,
    ) -> AsyncGenerator[StreamEvent, None]:
        context, after = info.context, _checked(after)
        if position := _resumed(context):
            generation = await context.engine.generation(context.viewer_id, position.generation_id)
            await _check_asked(context, generation, message)
            return _resume(context, generation, position)
        draft = message.draft()
        if after == 0:
            return _watch(context, await context.engine.send(context.viewer_id, draft), after)
        if draft.client_key is None:
            raise ChatError(ErrorCode.BAD_INPUT, "after needs the clientKey that the message was sent with")
        sent = await context.engine.sent(context.viewer_id, draft)
        if sent is None:
            told = f"no message was sent with the clientKey {draft.client_key!r}; send it with after: 0"
            raise ChatError(ErrorCode.NOT_FOUND, told)
        return _watch(context, sent, after)

    @subscription(
        "Watch a generation, running or ended: first what happened, then what happens. Every"
        " watcher is told how it ended."
    )
    async def generation(
        self,
        info: Info,
        id_: Annotated[strawberry.ID, strawberry.argument(name="id", description="The generation's id.")],
        after: Annotated[
            int | None,
            strawberry.argument(description="Begin behind this number: the seq of the last event that came."),
        ] = 0,
    ) -> AsyncGenerator[StreamEvent, None]:
        context, after = info.context, _checked(after)
        generation = await context.engine.generation(context.viewer_id, to_uuid(id_, "id"))
        if position := _resumed(context):
            if position.generation_id != generation.id:
                raise ChatError(ErrorCode.BAD_INPUT, "Last-Event-ID is of another generation than id")
            return _resume(context, generation, position)
        return _watch(context, generation, after)

    @subscription(
        "Watch a conversation: what it is and which replies are being written, then what anybody does in it,"
        " on any device. Needs nothing to resume by: whoever subscribes is told what is the case."
    )
    async def conversation(
        self,
        info: Info,
        id_: Annotated[strawberry.ID, strawberry.argument(name="id", description="The conversation's id.")],
    ) -> AsyncGenerator[ConversationEvent, None]:
        context = info.context
        try:
            return _told(await context.watcher.watch(context.viewer_id, to_uuid(id_, "id")))
        except LookupError:
            raise ChatError(ErrorCode.NOT_FOUND, f"there is no conversation {id_} of yours") from None


def _checked(after: int | None) -> int:
    if after is not None and after < 0:
        raise ChatError(ErrorCode.BAD_INPUT, f"after is {after}; the first event has number 1")
    return after or 0


def _resumed(context: Context) -> Position | None:
    """Where a client that comes back to an event stream goes on. Raises ChatError."""
    return context.cursor.resumed() if context.cursor else None


async def _check_asked(context: Context, generation: Generation, message: MessageInput) -> None:
    """Raises ChatError where the generation answers something else: a client that keeps an old id would
    lose what it sends now."""
    asked = await context.loaders.message.load(generation.user_message_id)
    if asked is None or asked.content != clean(message.draft().text):
        told = "Last-Event-ID is of the reply to another message; leave it out to send this one"
        raise ChatError(ErrorCode.BAD_INPUT, told)


async def _resume(
    context: Context, generation: Generation, position: Position
) -> AsyncGenerator[StreamEvent, None]:
    """Exactly what follows, which is nothing where the client had the terminal event."""
    async with aclosing(_watch(context, generation, position.seq)) as events:
        async for event in events:
            if event.seq != position.seq:
                yield event


async def _told(happening: AsyncGenerator[Happening, None]) -> AsyncGenerator[ConversationEvent, None]:
    async with aclosing(happening) as events:
        async for event in events:
            yield to_conversation_event(event)


async def _watch(context: Context, generation: Generation, after: int) -> AsyncGenerator[StreamEvent, None]:
    try:
        with context.readers.present(generation, context.has_unsubscribed):
            async with aclosing(context.log.read(generation.id, after)) as events:
                async for event in events:
                    if context.cursor:
                        context.cursor.reach(Position(generation.id, event.seq))
                    yield to_stream_event(generation, event)
    except NoSuchGeneration:
        message = f"the generation {generation.id} was deleted while it was watched"
        raise ChatError(ErrorCode.NOT_FOUND, message) from None
