"""What clients can change."""

from typing import Annotated

import strawberry

from server.api.context import Info
from server.api.fields import resolver
from server.api.ids import to_uuid
from server.api.inputs import MessageInput
from server.api.nodes import Generation, Message, load_message


@strawberry.type(description="What can be changed.")
class Mutation:
    @resolver(
        "Send a message, and return when its reply has begun; watch it by subscribing to the generation."
    )
    async def send_message(
        self,
        info: Info,
        message: Annotated[MessageInput, strawberry.argument(name="input", description="What to send.")],
    ) -> Generation:
        context = info.context
        return Generation.of(await context.engine.send(context.viewer_id, message.draft()))

    @resolver("Send a message, and return its whole reply; the status says whether it failed.")
    async def add_message(
        self,
        info: Info,
        message: Annotated[MessageInput, strawberry.argument(name="input", description="What to send.")],
    ) -> Message:
        generation = await info.context.engine.send(info.context.viewer_id, message.draft())
        await info.context.engine.ended(generation.id)
        return await load_message(info, generation.message_id)

    @resolver("End a reply and keep its text; one that has ended already stays as it is.")
    async def stop_generation(
        self,
        info: Info,
        id_: Annotated[strawberry.ID, strawberry.argument(name="id", description="The generation's id.")],
    ) -> Generation:
        context = info.context
        return Generation.of(await context.engine.stop(context.viewer_id, to_uuid(id_, "id")))
