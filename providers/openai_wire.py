"""What goes over the wire to and from servers that speak OpenAI's chat completions, as far as it is used."""

from typing import Any

import msgspec


class Turn(msgspec.Struct, frozen=True):
    role: str
    content: str


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = True


class Chat(msgspec.Struct, omit_defaults=True, frozen=True):
    """A request. What has a default is left out where a server does not take it."""

    model: str
    messages: list[Turn]
    stream: bool
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Delta(msgspec.Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class Choice(msgspec.Struct, frozen=True):
    """``message`` stands in place of ``delta`` where a server answers in one piece all the same."""

    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Chunk(msgspec.Struct, frozen=True):
    choices: list[Choice] | None = None
    usage: Usage | None = None


class Architecture(msgspec.Struct, frozen=True):
    input_modalities: list[str] | None = None
    output_modalities: list[str] | None = None


class Pricing(msgspec.Struct, frozen=True):
    """US dollars for a million tokens."""

    input: float | None = None
    output: float | None = None


class Host(msgspec.Struct, frozen=True):
    """Who answers for a model that the Hugging Face router lists."""

    provider: str = ""
    status: str = "live"
    context_length: int | None = None
    supports_tools: bool | None = None
    pricing: Pricing | None = None


class Meta(msgspec.Struct, frozen=True):
    """What llama.cpp says of the file that it serves."""

    n_ctx: int | None = None
    n_ctx_train: int | None = None
    n_params: int | None = None
    size: int | None = None
    ftype: str | None = None


class Model(msgspec.Struct, frozen=True):
    """``max_model_len`` is vLLM's word for ``context_length``. ``created`` is whatever a server has there."""

    id: str
    created: Any = None
    context_length: int | None = None
    max_model_len: int | None = None
    architecture: Architecture | None = None
    providers: list[Host] | None = None
    meta: Meta | None = None


class Models(msgspec.Struct, frozen=True):
    data: list[Model] | None = None


ANYTHING = msgspec.json.Decoder[Any](Any)
CHUNK = msgspec.json.Decoder(Chunk)
MODELS = msgspec.json.Decoder(Models)
