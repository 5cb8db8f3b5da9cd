"""What goes over the wire to and from Anthropic's Messages API, as far as it is used."""

from datetime import datetime
from typing import Any

import msgspec


class Text(msgspec.Struct, tag_field="type", tag="text", frozen=True):
    text: str


class Turn(msgspec.Struct, frozen=True):
    role: str
    content: list[Text]


class Chat(msgspec.Struct, omit_defaults=True, frozen=True):
    model: str
    max_tokens: int
    messages: list[Turn]
    stream: bool
    system: str = ""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: tuple[str, ...] = ()


class Usage(msgspec.Struct, frozen=True):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def prompt_tokens(self) -> int | None:
        """What was read from a cache, or written to one, is not part of ``input_tokens``."""
        parts = (self.input_tokens, self.cache_creation_input_tokens, self.cache_read_input_tokens)
        return None if self.input_tokens is None else sum(part for part in parts if part is not None)

    def replaced_by(self, newer: "Usage") -> "Usage":
        """Every count is cumulative: a newer one stands for itself, one that is not sent for the last."""
        sent = {name: count for name, count in msgspec.structs.asdict(newer).items() if count is not None}
        return msgspec.structs.replace(self, **sent)


class Message(msgspec.Struct, frozen=True):
    usage: Usage = Usage()


class StopDetails(msgspec.Struct, frozen=True):
    category: str | None = None
    explanation: str | None = None


class Delta(msgspec.Struct, frozen=True):
    """A piece of a content block, or in ``message_delta`` how the message ended."""

    text: str | None = None
    thinking: str | None = None
    stop_reason: str | None = None
    stop_details: StopDetails | None = None


class Event(msgspec.Struct, frozen=True):
    """Any event of a stream; ``type`` says which of the others it has."""

    type: str
    message: Message = Message()
    delta: Delta = Delta()
    usage: Usage = Usage()


class Supported(msgspec.Struct, frozen=True):
    supported: bool = False


class Capabilities(msgspec.Struct, frozen=True):
    image_input: Supported | None = None
    thinking: Supported | None = None


class Model(msgspec.Struct, frozen=True):
    """``max_input_tokens`` is the window, ``max_tokens`` the longest reply."""

    id: str
    display_name: str | None = None
    created_at: datetime | None = None
    max_input_tokens: int | None = None
    max_tokens: int | None = None
    capabilities: Capabilities | None = None


class Models(msgspec.Struct, frozen=True):
    data: list[Model]
    has_more: bool = False
    last_id: str | None = None


ANYTHING = msgspec.json.Decoder[Any](Any)
EVENT = msgspec.json.Decoder(Event)
MODELS = msgspec.json.Decoder(Models)
