"""What clients can change."""

from contextlib import aclosing
from typing import Annotated, TypeAlias
from uuid import uuid4

import strawberry

from db import conversations
from db.conversations import NewConversation
from providers.errors import ModelNotFound
from providers.router import Route
from server import deletion
from server.api.context import Info
from server.api.fields import resolver
from server.api.ids import to_id, to_uuid
from server.api.inputs import MessageInput, conversation_change, prompt_of, title_of
from server.api.models import Model, listed_model
from server.api.nodes import Conversation, Generation, Message, load_message
from server.errors import ChatError, ErrorCode
from server.events import clean

NewMessage: TypeAlias = Annotated[
    MessageInput, strawberry.argument(name="input", description="What to send.")
]
ConversationId: TypeAlias = Annotated[
    strawberry.ID, strawberry.argument(name="id", description="The conversation's id.")
]
ModelName: TypeAlias = Annotated[
    str, strawberry.argument(description="The model, as MessageInput.model takes it.")
]
Title: TypeAlias = Annotated[
    str | None, strawberry.argument(description="What it is to be called; empty: by its next message.")
]
SystemPrompt: TypeAlias = Annotated[
    str | None,
    strawberry.argument(description="What the model is told before everything else; empty for nothing."),
]


@strawberry.type(description="What can be changed.")
class Mutation:
    @resolver(
        "Send a message, and return when its reply has begun; watch it by subscribing to the generation."
    )
    async def send_message(self, info: Info, message: NewMessage) -> Generation:
        context = info.context
        return Generation.of(await context.engine.send(context.viewer_id, message.unread_draft()))

    @resolver("Send a message, and return its whole reply; the status says whether it failed.")
    async def add_message(self, info: Info, message: NewMessage) -> Message:
        generation = await info.context.engine.send(info.context.viewer_id, message.unread_draft())
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

    @resolver("Begin a conversation without a message.")
    async def create_conversation(
        self,
        info: Info,
        title: Title = strawberry.UNSET,
        system_prompt: SystemPrompt = strawberry.UNSET,
        model: Annotated[
            str | None,
            strawberry.argument(description="Who is to answer. Left out: whom the first message names."),
        ] = strawberry.UNSET,
    ) -> Conversation:
        context = info.context
        route = await context.router.resolve(clean(model)) if model else None
        new = NewConversation(
            id=uuid4(),
            viewer_id=context.viewer_id,
            title=title_of(title) or "",
            system_prompt=prompt_of(system_prompt) or None,
            model=route.full_name if route else None,
            provider=route.provider_name if route else None,
        )
        return Conversation.of(await conversations.create(context.database, new))

    @resolver("Change what a conversation is called or told, or put it aside. What is left out stays.")
    async def update_conversation(
        self,
        info: Info,
        id_: ConversationId,
        title: Title = strawberry.UNSET,
        system_prompt: SystemPrompt = strawberry.UNSET,
        archived: Annotated[
            bool | None, strawberry.argument(description="Whether it is put aside.")
        ] = strawberry.UNSET,
    ) -> Conversation:
        context = info.context
        change = conversation_change(title, system_prompt, archived)
        record = await conversations.update(context.database, context.viewer_id, to_uuid(id_, "id"), change)
        if record is None:
            raise ChatError(ErrorCode.NOT_FOUND, f"there is no conversation {id_} of yours")
        return Conversation.of(record)

    @resolver("Delete a conversation with all its messages, and return its id. Replies that run are stopped.")
    async def delete_conversation(self, info: Info, id_: ConversationId) -> strawberry.ID:
        context, uuid = info.context, to_uuid(id_, "id")
        await deletion.delete_conversation(context.database, context.engine, context.viewer_id, uuid)
        return to_id(uuid)

    @resolver(
        "Delete everything that follows a message, in every branch, and return how many messages went."
        " Replies that run there are stopped; a head that was there moves to the message."
    )
    async def delete_messages_after(
        self,
        info: Info,
        id_: Annotated[
            strawberry.ID, strawberry.argument(name="id", description="The message, which stays.")
        ],
    ) -> int:
        context, uuid = info.context, to_uuid(id_, "id")
        return await deletion.delete_messages_after(context.database, context.engine, context.viewer_id, uuid)

    @resolver("Load a model into memory, and return when it would answer at once.")
    async def load_model(self, info: Info, name: ModelName) -> Model:
        router = info.context.router
        route = await router.resolve(clean(name))
        async with aclosing(router.host(route).load(route.model)) as phases:
            async for _ in phases:
                pass
        return await _held(info, route)

    @resolver(
        "Take a model out of memory. One that is answering stays: that is a CONFLICT, or with Ollama it goes"
        " when its replies have ended."
    )
    async def unload_model(self, info: Info, name: ModelName) -> Model:
        router = info.context.router
        route = await router.resolve(clean(name))
        await router.host(route).unload(route.model)
        return await _held(info, route)


async def _held(info: Info, route: Route) -> Model:
    model = await listed_model(info, route, refresh=True)
    if model is None:
        raise ModelNotFound(f"{route.full_name} was removed in the meantime")
    return model
