"""What clients can watch."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

import strawberry

from db.generations import Generation
from server.api.context import Context, Info
from server.api.events import StreamEvent, to_stream_event
from server.api.fields import subscription
from server.api.ids import to_uuid
from server.api.inputs import MessageInput
from server.errors import ChatError, ErrorCode


@strawberry.type(
    description="What can be watched. A subscription refused at the start gives an error; what goes wrong"
    " later is an event. Unsubscribing, or losing the connection, ends no generation."
)
class Subscription:
    # Coroutines that return a generator: what they raise is an error of the operation, whereas what a
    # generator raises would be a result without data.
    @subscription("Send a message, and watch its reply from the first event on.")
    async def stream_message(
        self,
        info: Info,
        message: Annotated[MessageInput, strawberry.argument(name="input", description="What to send.")],
    ) -> AsyncGenerator[StreamEvent, None]:
        context = info.context
        generation = await context.engine.send(context.viewer_id, message.draft())
        return _watch(context, generation, after=0)

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
        context = info.context
        if after is not None and after < 0:
            raise ChatError(ErrorCode.BAD_INPUT, f"after is {after}; the first event has number 1")
        generation = await context.engine.generation(context.viewer_id, to_uuid(id_, "id"))
        return _watch(context, generation, after or 0)


async def _watch(context: Context, generation: Generation, after: int) -> AsyncGenerator[StreamEvent, None]:
    async with aclosing(context.log.read(generation.id, after)) as events:
        async for event in events:
            yield to_stream_event(generation, event)
