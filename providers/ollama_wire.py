"""What goes over the wire to and from Ollama's native API, as far as it is used."""

from datetime import datetime
from typing import Any

import msgspec


class Options(msgspec.Struct, omit_defaults=True, frozen=True):
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    num_predict: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Turn(msgspec.Struct, frozen=True):
    role: str
    content: str


class Chat(msgspec.Struct, frozen=True):
    model: str
    messages: list[Turn]
    options: Options
    stream: bool = True


class Message(msgspec.Struct, frozen=True):
    content: str | None = None
    thinking: str | None = None


class Chunk(msgspec.Struct, frozen=True):
    message: Message = Message()
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None


class TagDetails(msgspec.Struct, frozen=True):
    family: str | None = None
    parameter_size: str | None = None
    quantization_level: str | None = None
    context_length: int | None = None


class Tag(msgspec.Struct, frozen=True):
    name: str
    digest: str = ""
    size: int | None = None
    modified_at: datetime | None = None
    details: TagDetails = TagDetails()
    capabilities: list[str] | None = None


class Tags(msgspec.Struct, frozen=True):
    models: list[Tag] | None = None


class Show(msgspec.Struct, frozen=True):
    license: str | None = None
    model_info: dict[str, Any] | None = None
    capabilities: list[str] | None = None


class Keep(msgspec.Struct, frozen=True):
    """An order to load a model, or with ``keep_alive`` 0 to unload it."""

    model: str
    keep_alive: int | msgspec.UnsetType = msgspec.UNSET
    stream: bool = False


class Version(msgspec.Struct, frozen=True):
    version: str


ANYTHING = msgspec.json.Decoder[Any](Any)
CHUNK = msgspec.json.Decoder(Chunk)
TAGS = msgspec.json.Decoder(Tags)
SHOW = msgspec.json.Decoder(Show)
VERSION = msgspec.json.Decoder(Version)
