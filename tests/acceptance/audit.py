"""What the database has of every generation, and whether it is as it has to be."""

from collections.abc import Sequence
from dataclasses import dataclass

from db.database import Database
from tests.acceptance.reading import Reading, first_number
from tests.graphql_client import Json

_KINDS = {
    "GenerationStarted": "started",
    "PhaseChanged": "phase",
    "ReasoningDelta": "reasoning",
    "TextDelta": "text",
    "GenerationCompleted": "completed",
    "GenerationStopped": "stopped",
    "GenerationFailed": "failed",
}
_TERMINAL = {"completed", "stopped", "failed"}


@dataclass(frozen=True, slots=True)
class Stored:
    """One generation that has ended. ``log`` has number 1 first; ``content`` is the reply's message's."""

    status: str
    asked: str
    content: str
    log: tuple[Json, ...]

    def check(self) -> None:
        """One end, at the end; and what is kept is what was shown."""
        kinds = [event["kind"] for event in self.log]
        assert kinds[0] == "started"
        assert [kind for kind in kinds if kind in _TERMINAL] == kinds[-1:], kinds
        assert self.log[-1].get("outcome", kinds[-1]) == self.status
        assert self.content == "".join(event["text"] for event in self.log if event["kind"] == "text")

    def check_followed(self, pieces: Sequence[Reading]) -> None:
        """One who came back until the end saw everything, and everything once."""
        for piece in pieces:
            self.check_reading(piece)
        assert [piece.after for piece in pieces[1:]] == [piece.reached for piece in pieces[:-1]]
        assert pieces[0].after == 0
        assert pieces[-1].terminal
        assert "".join(piece.text for piece in pieces) == self.content

    def check_reading(self, reading: Reading) -> None:
        """Every event that this reader saw is what the log has at its numbers."""
        for event in reading.seen:
            kind, last = _KINDS[event["__typename"]], event["seq"]
            covered = self.log[first_number(event) - 1 : last]
            assert [row["kind"] for row in covered] == [kind] * (last - first_number(event) + 1), event
            if kind in ("text", "reasoning"):
                assert event["text"] == "".join(row["text"] for row in covered)
            elif kind in _TERMINAL:
                told = event["message"]
                assert (told["content"], told["status"].lower()) == (self.content, self.status)


async def audited(database: Database) -> dict[str, Stored]:
    """Every generation, by its id. What is wrong with any of them fails the test."""
    rows = await database.fetch(
        """
        SELECT g.id, g.status, g.finished_at, m.status AS message_status, m.content, u.content AS asked,
               array_agg(e.seq ORDER BY e.seq) AS numbers, jsonb_agg(e.event ORDER BY e.seq) AS log,
               (SELECT array_agg(s.outcome) FROM model_usage_stats s WHERE s.generation_id = g.id) AS counted
        FROM generations g
        JOIN messages m ON m.id = g.message_id
        JOIN messages u ON u.id = g.user_message_id
        JOIN generation_events e ON e.generation_id = g.id
        GROUP BY g.id, m.id, u.id
        """
    )
    found = {}
    for row in rows:
        assert row["finished_at"], f"{row['id']} has not ended"
        assert row["numbers"] == list(range(1, len(row["numbers"]) + 1))
        assert row["message_status"] == row["status"]
        assert row["counted"] == [row["status"]]
        stored = Stored(row["status"], row["asked"], row["content"], tuple(row["log"]))
        stored.check()
        found[str(row["id"])] = stored
    return found
