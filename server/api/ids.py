"""One opaque id per object, everywhere: the text of its UUID."""

from uuid import UUID

import strawberry

from server.errors import ChatError, ErrorCode


def to_id(uuid: UUID) -> strawberry.ID:
    return strawberry.ID(str(uuid))


def to_uuid(id_: str, argument: str) -> UUID:
    """Raises ChatError that names the argument."""
    try:
        return UUID(id_)
    except ValueError:
        message = f"{argument} is {id_[:100]!r}, which is no id; ids are to be passed on as they were got"
        raise ChatError(ErrorCode.BAD_INPUT, message) from None
