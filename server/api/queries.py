"""What clients can ask."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
import strawberry

from db import conversations
from db.conversations import PagePosition
from providers.errors import ModelNotFound
from server.api.context import Info
from server.api.enums import Capability
from server.api.fields import resolver
from server.api.ids import to_uuid
from server.api.models import Model, Provider, listed_model
from server.api.nodes import Conversation, Generation, Message, Node
from server.api.pages import After, Connection, Edge, First, from_cursor, page_size, to_connection, to_cursor
from server.errors import ChatError, ErrorCode
from server.events import clean

_PAGE = 20


class _Cursor(msgspec.Struct, array_like=True, frozen=True):
    updated_at: Annotated[datetime, msgspec.Meta(tz=True)]
    id: UUID


@strawberry.type(description="What can be asked.")
class Query:
    @resolver("Whatever has this id; null if nothing of yours has.")
    async def node(
        self,
        info: Info,
        id_: Annotated[strawberry.ID, strawberry.argument(name="id", description="Any object's id.")],
    ) -> Node | None:
        uuid, loaders = to_uuid(id_, "id"), info.context.loaders
        if conversation := await loaders.conversation.load(uuid):
            return Conversation.of(conversation)
        if message := await loaders.message.load(uuid):
            return Message.of(message)
        if generation := await loaders.generation.load(uuid):
            return Generation.of(generation)
        return None

    @resolver("Every provider's models. One that does not answer is waited for 2 s.")
    async def available_models(
        self,
        info: Info,
        provider: Annotated[
            str | None, strawberry.argument(description="Only this one's, by its name or prefix.")
        ] = strawberry.UNSET,
        search: Annotated[
            str | None, strawberry.argument(description="Only those with this in their name, in any case.")
        ] = strawberry.UNSET,
        capabilities: Annotated[
            list[Capability] | None,
            strawberry.argument(description="Only those that are known to have all of these."),
        ] = strawberry.UNSET,
        refresh: Annotated[
            bool | None,
            strawberry.argument(
                description="Ask the providers now, instead of taking a list of seconds ago."
            ),
        ] = False,
    ) -> list[Model]:
        listed = await _models(info, provider or None, refresh=bool(refresh))
        return [
            model
            for model in listed
            if model.matches(search or "") and all(model.can(capability) for capability in capabilities or ())
        ]

    @resolver("The listed model that is meant by this name; null if there is none.")
    async def model(
        self,
        info: Info,
        name: Annotated[str, strawberry.argument(description="As MessageInput.model takes it.")],
    ) -> Model | None:
        try:
            route = await info.context.router.resolve(name)
        except ModelNotFound:
            return None
        return await listed_model(info, route)

    @resolver("Every provider, in the order of their priority; those that are switched off too.")
    def providers(self, info: Info) -> list[Provider]:
        return [Provider.of(registration) for registration in info.context.registry]

    @resolver("A conversation; null if none of yours has this id.")
    async def conversation(
        self,
        info: Info,
        id_: Annotated[strawberry.ID, strawberry.argument(name="id", description="The conversation's id.")],
    ) -> Conversation | None:
        record = await info.context.loaders.conversation.load(to_uuid(id_, "id"))
        return Conversation.of(record) if record else None

    @resolver("Your conversations, the last changed first.")
    async def conversations(
        self,
        info: Info,
        first: First = _PAGE,
        after: After = strawberry.UNSET,
        search: Annotated[
            str | None,
            strawberry.argument(description="Only those with this in their title or messages, in any case."),
        ] = strawberry.UNSET,
    ) -> Connection[Conversation]:
        size = page_size(first, _PAGE)
        cursor = from_cursor(after, _Cursor) if after else None
        records = await conversations.page(
            info.context.database,
            info.context.viewer_id,
            limit=size + 1,
            after=PagePosition(cursor.updated_at, cursor.id) if cursor else None,
            search=clean(search) if search else None,
        )
        return to_connection(records, size, after or None, _conversation_edge)

    @resolver("A generation; null if none of yours has this id.")
    async def generation(
        self,
        info: Info,
        id_: Annotated[strawberry.ID, strawberry.argument(name="id", description="The generation's id.")],
    ) -> Generation | None:
        record = await info.context.loaders.generation.load(to_uuid(id_, "id"))
        return Generation.of(record) if record else None


async def _models(info: Info, provider: str | None, *, refresh: bool) -> list[Model]:
    registry = info.context.registry
    if provider is None:
        return [Model.of(owner, model) for owner, model in await registry.all_models(refresh=refresh)]
    owner = registry.get(provider)
    if owner is None:
        known = ", ".join(registration.provider.name for registration in registry)
        raise ChatError(ErrorCode.NOT_FOUND, f"there is no provider {provider!r}; there are: {known}")
    models = await registry.models(owner.provider.name, refresh=refresh)
    return [Model.of(owner, model) for model in models]


def _conversation_edge(record: conversations.Conversation) -> Edge[Conversation]:
    cursor = to_cursor(_Cursor(record.updated_at, record.id))
    return Edge(cursor=cursor, node=Conversation.of(record))
