"""A loopback HTTP server that answers with exactly the bytes it was told, and breaks where it was told."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum


class Break(Enum):
    """RESET sends a TCP RST, CLOSE a FIN; HOLD keeps the connection open and says nothing more."""

    RESET = "reset"
    CLOSE = "close"
    HOLD = "hold"


Piece = bytes | Break


@dataclass(frozen=True, slots=True)
class Received:
    """The names of its headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


def answer(body: bytes | object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole answer; anything but bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Reason", f"content-length: {len(data)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def ndjson(*lines: object) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def stream(parts: Iterable[bytes], *ending: Piece) -> tuple[Piece, ...]:
    """A chunked answer, one HTTP chunk and one write per part; without an ending it ends properly."""
    return (STREAM_HEAD, *map(chunk, parts), *(ending or (STREAM_END,)))


@dataclass
class ReplayServer:
    """``answers`` maps a path to its pieces, or to what makes them of the request; they are written one by
    one. A connection is used again unless the pieces broke it."""

    url: str
    answers: dict[str, tuple[Piece, ...] | Callable[[Received], tuple[Piece, ...]]] = field(
        default_factory=dict
    )
    received: list[Received] = field(default_factory=list)
    connections: int = 0

    def paths(self) -> list[str]:
        return [request.path for request in self.received]


async def _read_request(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    method, path, _ = head.split(" ", 2)
    lines = (line.partition(": ") for line in head.split("\r\n")[1:] if line)
    headers = {name.lower(): value for name, _, value in lines}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body)


def reset(writer: asyncio.StreamWriter) -> None:
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _write(writer: asyncio.StreamWriter, pieces: tuple[Piece, ...]) -> bool:
    """Whether the connection may be used again."""
    for piece in pieces:
        match piece:
            case Break.RESET:
                reset(writer)
                return False
            case Break.CLOSE:
                return False
            case Break.HOLD:
                await asyncio.Event().wait()
            case bytes():
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
    return True


@asynccontextmanager
async def replay_server() -> AsyncIterator[ReplayServer]:
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        try:
            usable = True
            while usable:
                request = await _read_request(reader)
                server.received.append(request)
                not_found: tuple[Piece, ...] = (answer(b"404 page not found", status=404),)
                found = server.answers.get(request.path, not_found)
                usable = await _write(writer, found(request) if callable(found) else found)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    server = ReplayServer(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
    try:
        yield server
    finally:
        listener.close()
        running = list(tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
