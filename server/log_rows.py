"""How events become rows of the log, and rows events."""

from collections.abc import Iterable, Sequence

import msgspec

from db.generation_log import Ending, LogRow
from db.usage import Attempt
from server.events import Completed, Failed, LoggedEvent, StreamEvent, Terminal

_decode = msgspec.json.Decoder(StreamEvent).decode


def encode(event: StreamEvent) -> str:
    return msgspec.json.encode(event).decode()


def to_rows(events: Iterable[LoggedEvent]) -> list[LogRow]:
    return [LogRow(event.generation_id, event.seq, encode(event.event)) for event in events]


def to_events(rows: Iterable[LogRow]) -> list[LoggedEvent]:
    return [LoggedEvent(row.generation_id, row.seq, row.seq, _decode(row.event)) for row in rows]


def to_ending(
    terminal: Terminal, attempt: Attempt, rows: Sequence[LogRow], earlier: Sequence[Attempt] = ()
) -> Ending:
    """``rows`` are those not stored yet; the last one is the terminal event's."""
    failed = terminal if isinstance(terminal, Failed) else None
    return Ending(
        rows[-1].generation_id,
        rows,
        attempt,
        earlier,
        finish_reason=terminal.finish_reason.value if isinstance(terminal, Completed) else None,
        error_message=failed.message if failed else None,
        error_retryable=failed.retryable if failed else None,
    )
