"""Where the client of an event stream is, in a form that it can come back with."""

import re
from dataclasses import dataclass
from typing import Self
from uuid import UUID

from server.errors import ChatError, ErrorCode

_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_POSITION = re.compile(rf"({_UUID}):([0-9]{{1,9}})")


@dataclass(frozen=True, slots=True)
class Position:
    """Right behind the event ``seq`` of a generation's log. Written ``<generationId>:<seq>``."""

    generation_id: UUID
    seq: int

    @classmethod
    def parse(cls, event_id: str) -> Self:
        """Raises ChatError."""
        match = _POSITION.fullmatch(event_id)
        if match is None:
            message = (
                f"Last-Event-ID is {event_id[:100]!r}, which is no id of an event; send it as it was got,"
                " or leave it out"
            )
            raise ChatError(ErrorCode.BAD_INPUT, message)
        return cls(UUID(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.generation_id}:{self.seq}"


class Cursor:
    """One per event stream. ``last_event_id`` is what a client that comes back had last.

    Who watches a generation calls ``reach`` before it hands on an event; whoever sends the result that is
    made of it calls ``take`` before asking for the next one.
    """

    def __init__(self, last_event_id: str | None) -> None:
        self._last_event_id = last_event_id
        self._reached: Position | None = None

    def resumed(self) -> Position | None:
        """Where to go on; None for a client that begins. Raises ChatError."""
        return Position.parse(self._last_event_id) if self._last_event_id else None

    def reach(self, position: Position) -> None:
        self._reached = position

    def take(self) -> Position | None:
        """Where the newest event is; None for a result that is made of no event."""
        reached, self._reached = self._reached, None
        return reached
