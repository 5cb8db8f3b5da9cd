"""What clients send."""

from typing import TypeVar

import strawberry

from db.conversations import ConversationChange
from providers.base import GenerationOptions
from server.api.enums import OnDisconnect
from server.api.ids import to_uuid
from server.draft import Draft, DraftLimits
from server.errors import ChatError, ErrorCode
from server.events import clean

_TITLE_CHARACTERS = 200

ValueT = TypeVar("ValueT")


def _or_none(value: ValueT | None) -> ValueT | None:
    """A field that was left out is as good as null."""
    return None if value is strawberry.UNSET else value


@strawberry.input(
    name="GenerationOptions",
    description="How the model chooses its words. What is left out is the model's own choice.",
)
class OptionsInput:
    temperature: float | None = strawberry.field(
        default=strawberry.UNSET, description="From 0, always the likeliest token, to 2."
    )
    top_p: float | None = strawberry.field(
        default=strawberry.UNSET,
        description="Choose among the likeliest tokens that together have this probability, from 0 to 1.",
    )
    top_k: int | None = strawberry.field(
        default=strawberry.UNSET, description="Choose among this many of the likeliest tokens."
    )
    max_tokens: int | None = strawberry.field(
        default=strawberry.UNSET, description="End the reply after this many tokens; 1024 if left out."
    )
    seed: int | None = strawberry.field(
        default=strawberry.UNSET, description="Makes the choice repeatable, as far as the model allows it."
    )
    stop: list[str] | None = strawberry.field(
        default=strawberry.UNSET,
        description="End the reply before the first of these strings; it is not part of the text.",
    )

    def options(self) -> GenerationOptions:
        return GenerationOptions(
            temperature=_or_none(self.temperature),
            top_p=_or_none(self.top_p),
            top_k=_or_none(self.top_k),
            max_tokens=_or_none(self.max_tokens),
            seed=_or_none(self.seed),
            stop=tuple(clean(text) for text in _or_none(self.stop) or ()),
        )


@strawberry.input(description="A message to send.")
class MessageInput:
    message: str = strawberry.field(description="Its text.")
    model: str | None = strawberry.field(
        default=strawberry.UNSET,
        description="Who is to answer, as availableModels names it; without its prefix if that is"
        " unambiguous. Left out: the conversation's model, or else the default one.",
    )
    conversation_id: strawberry.ID | None = strawberry.field(
        default=strawberry.UNSET, description="The conversation to go on with. Left out: a new one."
    )
    parent_id: strawberry.ID | None = strawberry.field(
        default=strawberry.UNSET, description="The message to follow. Left out: the conversation's head."
    )
    system_prompt: str | None = strawberry.field(
        default=strawberry.UNSET,
        description="What the model is told before everything else, from this message on.",
    )
    options: OptionsInput | None = strawberry.field(
        default=strawberry.UNSET, description="How the model chooses its words."
    )
    client_key: str | None = strawberry.field(
        default=strawberry.UNSET,
        description="A name of your choice for this message, such as a UUID: sending it again with the same"
        " name sends nothing twice, but goes on with the reply that began then, for as long as its"
        " conversation exists. Another message with a name that was used is refused with CLIENT_KEY_REUSED.",
    )
    on_disconnect: OnDisconnect = strawberry.field(
        default=OnDisconnect.KEEP,
        description="What happens when nobody reads the reply any more. STOP is for streamMessage; the"
        " mutations, which nobody reads, refuse it.",
    )

    def draft(self) -> Draft:
        """Raises ChatError for an id that is none."""
        model, options = _or_none(self.model), _or_none(self.options)
        conversation_id, parent_id = _or_none(self.conversation_id), _or_none(self.parent_id)
        return Draft(
            text=self.message,
            model=None if model is None else clean(model),
            conversation_id=to_uuid(conversation_id, "conversationId") if conversation_id else None,
            parent_id=to_uuid(parent_id, "parentId") if parent_id else None,
            system_prompt=_or_none(self.system_prompt),
            options=options.options() if options else GenerationOptions(),
            client_key=_or_none(self.client_key),
            stops_without_readers=self.on_disconnect is OnDisconnect.STOP,
        )

    def unread_draft(self) -> Draft:
        """The same where nobody reads the reply as it comes. Raises ChatError also for STOP."""
        if self.on_disconnect is OnDisconnect.STOP:
            raise ChatError(ErrorCode.BAD_INPUT, "onDisconnect: STOP needs a reader: send by streamMessage")
        return self.draft()


def title_of(title: str | None) -> str | None:
    """None where it was left out. Raises ChatError."""
    return _text("title", title, _TITLE_CHARACTERS)


def prompt_of(system_prompt: str | None) -> str | None:
    """None where it was left out. Raises ChatError."""
    return _text("systemPrompt", system_prompt, DraftLimits().message_characters)


def conversation_change(
    title: str | None, system_prompt: str | None, archived: bool | None
) -> ConversationChange:
    """Raises ChatError."""
    return ConversationChange(title_of(title), prompt_of(system_prompt), _or_none(archived))


def _text(name: str, value: str | None, most: int) -> str | None:
    given = _or_none(value)
    if given is not None and len(given) > most:
        raise ChatError(ErrorCode.BAD_INPUT, f"{name} has {len(given)} characters; {most} is the most")
    return None if given is None else clean(given)
