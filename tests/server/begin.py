"""Generations to write to, begun as the chat engine begins them."""

from uuid import UUID, uuid4

from db import generations
from db.database import Database
from db.generations import Generation, NewGeneration
from server.events import Started
from server.log_rows import encode

VIEWER = "somebody"


async def begin(
    database: Database,
    owner: UUID,
    *,
    conversation_id: UUID | None = None,
    parent_id: UUID | None = None,
    text: str = "hello",
    lease_seconds: float = 10.0,
) -> tuple[Generation, Started]:
    started = Started(conversation_id or uuid4(), uuid4(), uuid4(), "scripted:words 3")
    new = NewGeneration(
        id=uuid4(),
        viewer_id=VIEWER,
        conversation_id=started.conversation_id,
        user_message_id=started.user_message_id,
        message_id=started.message_id,
        parent_id=parent_id,
        begins_conversation=conversation_id is None,
        title=text,
        system_prompt=None,
        text=text,
        model=started.model,
        provider="scripted",
        options={},
        started_event=encode(started),
        owner=owner,
        lease_seconds=lease_seconds,
    )
    return await generations.begin(database, new), started
