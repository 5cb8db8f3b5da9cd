"""Conversations, their messages, and the generations that write them."""

from datetime import datetime
from typing import Annotated, Self, TypeAlias
from uuid import UUID

import strawberry

from db import conversations, generations
from db.usage import Attempt as AttemptRecord
from server.api.context import Info, loaders_of
from server.api.enums import FinishReason, GenerationStatus, MessageStatus, Role
from server.api.errors import ChatError
from server.api.fields import resolver
from server.api.ids import to_id, to_uuid
from server.api.pages import After, Connection, Edge, First, from_cursor, page_size, to_connection, to_cursor
from server.api.usage import Usage
from server.errors import ChatError as Failure
from server.errors import ErrorCode

_PAGE = 100


@strawberry.interface(description="Anything that has an id of its own.")
class Node:
    id: strawberry.ID = strawberry.field(description="Opaque, and unique among everything there is.")


@strawberry.type(description="One turn of a conversation.")
class Message(Node):
    record: strawberry.Private[conversations.Message]
    conversation_id: strawberry.ID = strawberry.field(description="The conversation that it belongs to.")
    parent_id: strawberry.ID | None = strawberry.field(
        description="The message that it follows; null for a conversation's first."
    )
    role: Role = strawberry.field(description="Who wrote it.")
    content: str = strawberry.field(description="Its text; while it is being written, the text so far.")
    reasoning: str | None = strawberry.field(description="What the model thought before it answered.")
    status: MessageStatus = strawberry.field(description="Whether it is whole.")
    finish_reason: FinishReason | None = strawberry.field(
        description="Why the model finished, in a completed reply."
    )
    model: str | None = strawberry.field(description="The model that wrote it, with its prefix.")
    provider: str | None = strawberry.field(description="The provider of that model.")
    created_at: datetime = strawberry.field(description="When it was sent or, of a reply, begun.")

    @resolver("What the reply cost, once it has ended.")
    def usage(self) -> Usage | None:
        return Usage.of(self.record)

    @resolver("Why the reply failed, if it did.")
    def error(self) -> ChatError | None:
        return ChatError.of(self.record)

    @resolver("The generation that writes or wrote it; watch a running one by this id.")
    async def generation_id(self, info: Info) -> strawberry.ID | None:
        generation = await loaders_of(info).generation_of_message.load(self.record.id)
        return to_id(generation.id) if generation else None

    @classmethod
    def of(cls, record: conversations.Message) -> Self:
        return cls(
            record=record,
            id=to_id(record.id),
            conversation_id=to_id(record.conversation_id),
            parent_id=to_id(record.parent_id) if record.parent_id else None,
            role=Role(record.role),
            content=record.content,
            reasoning=record.reasoning,
            status=MessageStatus(record.status),
            finish_reason=FinishReason(record.finish_reason) if record.finish_reason else None,
            model=record.model,
            provider=record.provider,
            created_at=record.created_at,
        )


Branch: TypeAlias = Annotated[
    strawberry.ID | None,
    strawberry.argument(description="The message that the branch ends with; without it, the head."),
]


@strawberry.type(description="A tree of messages. Its head is the message that the next one follows.")
class Conversation(Node):
    record: strawberry.Private[conversations.Conversation]
    title: str = strawberry.field(description="What it is called; at first, its first message's first line.")
    system_prompt: str | None = strawberry.field(description="What the model is told before everything else.")
    model: str | None = strawberry.field(
        description="The model asked last, with its prefix; the next message goes to it unless it says other."
    )
    provider: str | None = strawberry.field(description="The provider of that model.")
    archived: bool = strawberry.field(description="Whether it was put aside.")
    created_at: datetime = strawberry.field(description="When it began.")
    updated_at: datetime = strawberry.field(description="When it last changed.")

    @resolver("The message that the next one follows.")
    async def head(self, info: Info) -> Message | None:
        return await load_message(info, self.record.head_id) if self.record.head_id else None

    @resolver("The messages from the first to the head, or to another branch's end.")
    async def messages(
        self,
        info: Info,
        first: First = _PAGE,
        after: After = strawberry.UNSET,
        branch: Branch = strawberry.UNSET,
    ) -> Connection[Message]:
        size = page_size(first, _PAGE)
        position = from_cursor(after, UUID) if after else None
        leaf_id = await self._leaf(info, branch) if branch else self.record.head_id
        if leaf_id is None:
            return to_connection([], size, after or None, _message_edge)
        context = info.context
        records = await conversations.branch(
            context.database, context.viewer_id, leaf_id, limit=size + 1, after=position
        )
        return to_connection(records, size, after or None, _message_edge)

    async def _leaf(self, info: Info, branch: strawberry.ID) -> UUID:
        record = await loaders_of(info).message.load(to_uuid(branch, "branch"))
        if record is None or record.conversation_id != self.record.id:
            raise Failure(ErrorCode.NOT_FOUND, f"there is no message {branch} in this conversation")
        return record.id

    @classmethod
    def of(cls, record: conversations.Conversation) -> Self:
        return cls(
            record=record,
            id=to_id(record.id),
            title=record.title,
            system_prompt=record.system_prompt,
            model=record.model,
            provider=record.provider,
            archived=record.archived,
            created_at=record.created_at,
            updated_at=record.updated_at,
        )


@strawberry.type(description="One model's try at a reply.")
class Attempt:
    number: int = strawberry.field(description="From 1.")
    model: str = strawberry.field(description="The model, with its prefix.")
    provider: str = strawberry.field(description="The name of its provider.")
    started_at: datetime = strawberry.field(description="When it was asked.")
    first_token_at: datetime | None = strawberry.field(description="When its first token came, if one did.")
    finished_at: datetime = strawberry.field(description="When it ended.")
    outcome: MessageStatus = strawberry.field(description="How it ended.")
    error_code: ErrorCode | None = strawberry.field(description="Why it failed, if it did.")
    usage: Usage = strawberry.field(description="What it cost.")

    @classmethod
    def of(cls, record: AttemptRecord) -> Self:
        return cls(
            number=record.number,
            model=record.model,
            provider=record.provider,
            started_at=record.started_at,
            first_token_at=record.first_token_at,
            finished_at=record.finished_at,
            outcome=MessageStatus(record.outcome),
            error_code=ErrorCode(record.error_code) if record.error_code else None,
            usage=Usage.of_attempt(record.usage),
        )


@strawberry.type(description="One reply being written, or written. It belongs to nobody's connection.")
class Generation(Node):
    record: strawberry.Private[generations.Generation]
    status: GenerationStatus = strawberry.field(description="How far it is.")
    model: str = strawberry.field(description="The model that answers, with its prefix.")
    started_at: datetime | None = strawberry.field(description="When it began.")
    finished_at: datetime | None = strawberry.field(description="When it ended, if it has.")

    @resolver("The conversation that it writes to.")
    async def conversation(self, info: Info) -> Conversation:
        return await load_conversation(info, self.record.conversation_id)

    @resolver("Which models tried, in their order, once it has ended.")
    async def attempts(self, info: Info) -> list[Attempt]:
        records = await loaders_of(info).attempts.load(self.record.id)
        return [Attempt.of(record) for record in records]

    @resolver("The reply that it writes.")
    async def message(self, info: Info) -> Message:
        return await load_message(info, self.record.message_id)

    @classmethod
    def of(cls, record: generations.Generation) -> Self:
        return cls(
            record=record,
            id=to_id(record.id),
            status=GenerationStatus(record.status),
            model=record.model,
            started_at=record.started_at,
            finished_at=record.finished_at,
        )


async def load_message(info: Info, message_id: UUID) -> Message:
    """Raises ChatError where it was deleted in the meantime."""
    record = await loaders_of(info).message.load(message_id)
    if record is None:
        raise Failure(ErrorCode.NOT_FOUND, f"there is no message {message_id} of yours")
    return Message.of(record)


async def load_conversation(info: Info, conversation_id: UUID) -> Conversation:
    """Raises ChatError where it was deleted in the meantime."""
    record = await loaders_of(info).conversation.load(conversation_id)
    if record is None:
        raise Failure(ErrorCode.NOT_FOUND, f"there is no conversation {conversation_id} of yours")
    return Conversation.of(record)


def _message_edge(record: conversations.Message) -> Edge[Message]:
    return Edge(cursor=to_cursor(record.id), node=Message.of(record))
