"""Deleting what was said: what still runs in it is stopped first, so that its watchers see it end."""

from collections.abc import Iterable
from uuid import UUID

from db import deletion
from db.database import Database
from server.chat import ChatEngine
from server.errors import ChatError, ErrorCode


async def delete_messages_after(
    database: Database, engine: ChatEngine, viewer_id: str, message_id: UUID
) -> int:
    """Delete everything below a message, and return how many messages that were.

    Raises ChatError for a message that is not the viewer's, Conflict if a reply began there in the meantime.
    """
    await _stop(engine, viewer_id, await deletion.running_below(database, viewer_id, message_id))
    try:
        return await deletion.delete_below(database, viewer_id, message_id)
    except LookupError:
        raise ChatError(ErrorCode.NOT_FOUND, f"there is no message {message_id} of yours") from None


async def delete_conversation(
    database: Database, engine: ChatEngine, viewer_id: str, conversation_id: UUID
) -> None:
    """Raises ChatError for one that is not the viewer's, Conflict if a reply began there in the meantime."""
    await _stop(engine, viewer_id, await deletion.running_in(database, viewer_id, conversation_id))
    try:
        await deletion.delete_conversation(database, viewer_id, conversation_id)
    except LookupError:
        message = f"there is no conversation {conversation_id} of yours"
        raise ChatError(ErrorCode.NOT_FOUND, message) from None


async def _stop(engine: ChatEngine, viewer_id: str, generation_ids: Iterable[UUID]) -> None:
    for generation_id in generation_ids:
        try:
            await engine.stop(viewer_id, generation_id)
        except ChatError as error:
            if error.code is not ErrorCode.NOT_FOUND:  # somebody else deleted it at the same time
                raise
