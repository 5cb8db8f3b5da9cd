"""What the server and its model workers say to each other: length-prefixed msgpack on a Unix socket.

The worker connects and says ``Hello``; the server answers with ``Load``. ``Hello`` is decoded the same way
in every version, so that a worker of another version can be told apart from garbage.
"""

import asyncio
import re
from enum import StrEnum
from typing import BinaryIO

import msgspec

from providers.base import ChatMessage, FinishReason, GenerationOptions
from providers.huggingface.settings import Device, Precision

VERSION = 1

_LENGTH_BYTES = 4
_MAX_FRAME_BYTES = 64 * 1024 * 1024
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class ProtocolError(Exception):
    """The other side sent what the protocol does not allow."""


class FailureKind(StrEnum):
    LOAD_FAILED = "load_failed"
    OUT_OF_MEMORY = "out_of_memory"
    CONTEXT_TOO_LONG = "context_too_long"
    BAD_REQUEST = "bad_request"
    INTERNAL = "internal"


class _Message(msgspec.Struct, frozen=True, tag=True):
    pass


class Load(_Message, frozen=True):
    """Load the weights in ``folder``, or its ``gguf_file``; ``cache_dir`` takes converted ones."""

    folder: str
    gguf_file: str | None
    cache_dir: str
    device: Device
    precision: Precision
    threads: int


class Generate(_Message, frozen=True):
    id: int
    messages: tuple[ChatMessage, ...]
    options: GenerationOptions


class Cancel(_Message, frozen=True):
    """End request ``id`` before its next layer is computed. Nothing is said about it any more."""

    id: int


class StatusRequest(_Message, frozen=True):
    pass


class Hello(_Message, frozen=True):
    version: int
    pid: int


class Converting(_Message, frozen=True):
    """The conversion advances; not to be heard for long means that it does not."""

    detail: str
    progress: float | None = None


class Loading(_Message, frozen=True):
    detail: str


class Loaded(_Message, frozen=True):
    """``context_tokens`` is the model's window; ``None`` where its configuration names none."""

    device: str
    precision: str
    context_tokens: int | None


class Started(_Message, frozen=True):
    """The requests before ``id`` are through: its prompt is being read."""

    id: int


class Delta(_Message, frozen=True):
    id: int
    text: str


class Usage(_Message, frozen=True):
    id: int
    prompt_tokens: int
    completion_tokens: int


class Done(_Message, frozen=True):
    id: int
    reason: FinishReason


class Failed(_Message, frozen=True):
    """``id`` is ``None`` when the load failed."""

    id: int | None
    kind: FailureKind
    message: str


class Status(_Message, frozen=True):
    """``steps`` counts the tokens computed since the worker started, for whichever request."""

    pid: int
    steps: int
    running: int | None
    queued: int


ToWorker = Load | Generate | Cancel | StatusRequest
FromWorker = Hello | Converting | Loading | Loaded | Started | Delta | Usage | Done | Failed | Status

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)


def encode(message: ToWorker | FromWorker) -> bytes:
    payload = _encoder.encode(message)
    return len(payload).to_bytes(_LENGTH_BYTES, "big") + payload


async def receive(reader: asyncio.StreamReader) -> FromWorker | None:
    """The worker's next message; ``None`` once it has hung up. Raises ProtocolError."""
    try:
        length = _length(await reader.readexactly(_LENGTH_BYTES))
        payload = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        return _from_worker.decode(payload)
    except msgspec.MsgspecError as error:
        raise ProtocolError(str(error)) from error


def read(stream: BinaryIO) -> ToWorker | None:
    """The server's next message, waited for by the worker's thread; ``None`` once the server has hung up."""
    prefix = stream.read(_LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES:
        return None
    length = _length(prefix)
    payload = stream.read(length)
    return _to_worker.decode(payload) if len(payload) == length else None


def clean(text: str) -> str:
    """Text that UTF-8 and Postgres can hold: U+FFFD stands for NUL and for lone surrogates."""
    return _UNSTORABLE.sub("\ufffd", text)


def _length(prefix: bytes) -> int:
    length = int.from_bytes(prefix, "big")
    if length > _MAX_FRAME_BYTES:
        raise ProtocolError(f"A message of {length} bytes was announced; {_MAX_FRAME_BYTES} are allowed.")
    return length
