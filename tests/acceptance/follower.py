"""Somebody who wants the whole of a reply, whatever happens to the servers it comes from."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.acceptance.reading import SEND, WATCH, WAYS, Lost, Reading, over_websocket
from tests.acceptance.replicas import Replica
from tests.graphql_client import Json

_PAUSE_SECONDS = 0.02


async def begin(replica: Replica, model: str, message: str = "Go on.") -> str:
    """Send a message, and leave with the id of the generation that answers it."""
    reading = Reading()
    sent = {"message": message, "model": model}
    await reading.read(over_websocket(replica.client, SEND, input=sent), most=1)
    assert reading.generation_id
    return reading.generation_id


@dataclass
class Follower:
    """Reads at the first of ``replicas``; when the connection is lost, behind what came, at the next one."""

    replicas: Sequence[Replica]
    generation_id: str
    pieces: list[Reading] = field(default_factory=lambda: [Reading()])

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def end(self) -> Json:
        assert self.pieces[-1].terminal
        return self.pieces[-1].terminal

    async def follow(self) -> None:
        """Return at the reply's end."""
        while not await self._read_at(self.replicas[(len(self.pieces) - 1) % len(self.replicas)]):
            await asyncio.sleep(_PAUSE_SECONDS)  # as a client does before it tries again
            self.pieces.append(Reading(self.pieces[-1].reached))

    async def _read_at(self, replica: Replica) -> bool:
        piece, way = self.pieces[-1], WAYS[len(self.pieces) % len(WAYS)]
        if not replica.is_running:
            return False
        try:
            await piece.read(way(replica.client, WATCH, id=self.generation_id, after=piece.after))
        except Lost:
            return False
        return True
