"""Several servers on one database, each a process to be killed, ended and started anew."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.acceptance.parley import Parley, serving
from tests.graphql_client import GraphQLClient
from tests.providers.proxy import FaultProxy

_PATIENCE_SECONDS = 60.0
_NOBODY = ("127.0.0.1", 1)
_SCRIPTED = {
    "HUGGINGFACE_ENABLED": "false",
    "OLLAMA_ENABLED": "false",
    "DEFAULT_MODEL_PROVIDER": "scripted",
}


class Replica:
    """One server of several. ``client`` reaches it; after each start it is another, at another port.

    However it ends, a traceback in its log fails the test.
    """

    def __init__(self, data_dir: Path, settings: Mapping[str, str]) -> None:
        self.client: GraphQLClient
        self._data_dir = data_dir
        self._settings = settings
        self._parley: Parley | None = None
        self._running = AsyncExitStack()

    @property
    def parley(self) -> Parley:
        assert self._parley, "it does not run"
        return self._parley

    @property
    def is_running(self) -> bool:
        return self._parley is not None

    async def start(self) -> None:
        parley = await self._running.enter_async_context(serving(self._data_dir, **self._settings))
        self.client = GraphQLClient(f"{parley.url}/graphql", _PATIENCE_SECONDS)
        self._parley = parley

    async def kill(self) -> None:
        """With kill -9: it can neither say nor store anything more."""
        self.parley.process.kill()
        await self.parley.process.wait()
        await self._ended()

    async def stop(self) -> None:
        """With SIGTERM."""
        assert await self.parley.stop() == 0
        await self._ended()

    async def _ended(self) -> None:
        log = await self.parley.logged()
        self._parley = None
        await self.client.http.aclose()
        await self._running.aclose()
        assert "Traceback" not in log, log


class FrontDoor(FaultProxy):
    """One address for all replicas. A new connection goes to the replica that it was last led to, or to
    nobody; every connection can be cut."""

    def __init__(self, replica: Replica) -> None:
        super().__init__(*_address(replica))

    def lead_to(self, replica: Replica | None) -> None:
        self._target = _address(replica) if replica else _NOBODY


def _address(replica: Replica) -> tuple[str, int]:
    return "127.0.0.1", int(replica.parley.url.rpartition(":")[2])


@asynccontextmanager
async def replicas(
    folder: Path, database_url: str, count: int = 2, **settings: str
) -> AsyncIterator[tuple[Replica, ...]]:
    """That many, running, with no model but the scripted one unless ``settings`` say otherwise. Those that
    still run at the end are stopped."""
    together = _SCRIPTED | {"DATABASE_URL": database_url} | settings
    fleet = tuple(Replica(folder / f"replica-{number}", together) for number in range(1, count + 1))
    try:
        for number, replica in enumerate(fleet, 1):
            (folder / f"replica-{number}").mkdir()
            await replica.start()
        yield fleet
    finally:
        for replica in fleet:
            if replica.is_running:
                await replica.stop()
