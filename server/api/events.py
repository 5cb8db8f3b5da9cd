"""What a client that watches a generation gets."""

from typing import assert_never

import strawberry

from db.generations import Generation
from server import events
from server.api.context import Info, loaders_of
from server.api.enums import FinishReason, Phase
from server.api.errors import ChatError
from server.api.fields import resolver
from server.api.ids import to_id
from server.api.nodes import Conversation, Message, load_conversation, load_message
from server.api.usage import Usage
from server.errors import ChatError as Failure
from server.errors import ErrorCode
from server.events import LoggedEvent

_FROM_SEQ = "The first number that it covers: it may stand for several entries of the log, up to seq."


@strawberry.interface(description="Something that happens in a generation. The last one says how it ended.")
class StreamEvent:
    generation: strawberry.Private[Generation]
    seq: int = strawberry.field(
        description="Its number in the generation's log, from 1 without gaps; resume with after: seq."
    )

    @resolver("The generation that it happens in.")
    def generation_id(self) -> strawberry.ID:
        return to_id(self.generation.id)


@strawberry.type(description="The message is stored and the reply begins. Always number 1.")
class GenerationStarted(StreamEvent):
    model: str = strawberry.field(description="The model that answers, with its prefix.")

    @resolver("The conversation that the message belongs to.")
    async def conversation(self, info: Info) -> Conversation:
        return await load_conversation(info, self.generation.conversation_id)

    @resolver("The message that was sent.")
    async def user_message(self, info: Info) -> Message:
        return await load_message(info, self.generation.user_message_id)

    @resolver("The reply, which is being written.")
    async def message(self, info: Info) -> Message:
        return await load_message(info, self.generation.message_id)


@strawberry.type(description="What goes on while no text comes.")
class PhaseChanged(StreamEvent):
    phase: Phase = strawberry.field(description="What it is.")
    detail: str | None = strawberry.field(description="More about it, for people.")
    progress: float | None = strawberry.field(description="From 0 to 1, where that is known.")


@strawberry.type(
    description="Another model answers, because the one before it failed. That happens only where the message"
    " named no model."
)
class ModelSwitched(StreamEvent):
    from_model: str = strawberry.field(description="The model that failed, with its prefix.")
    to_model: str = strawberry.field(description="The model that is asked now, with its prefix.")
    reason: str = strawberry.field(description="How the first one failed, for people.")
    discard_text: bool = strawberry.field(
        description="Whether the text so far is void, because the new model begins anew."
    )


@strawberry.type(description="More of what the model thinks before it answers.")
class ReasoningDelta(StreamEvent):
    text: str = strawberry.field(description="To be added to what came before.")
    from_seq: int = strawberry.field(description=_FROM_SEQ)


@strawberry.type(description="More of the reply.")
class TextDelta(StreamEvent):
    text: str = strawberry.field(description="To be added to what came before.")
    from_seq: int = strawberry.field(description=_FROM_SEQ)


@strawberry.type(description="The model finished.")
class GenerationCompleted(StreamEvent):
    finish_reason: FinishReason = strawberry.field(description="Why it finished.")

    @resolver("The whole reply.")
    async def message(self, info: Info) -> Message:
        return await load_message(info, self.generation.message_id)

    @resolver("What it cost.")
    async def usage(self, info: Info) -> Usage:
        return await _usage(info, self.generation)


@strawberry.type(description="Somebody stopped the reply.")
class GenerationStopped(StreamEvent):
    @resolver("The reply as far as it came.")
    async def message(self, info: Info) -> Message:
        return await load_message(info, self.generation.message_id)

    @resolver("What it cost.")
    async def usage(self, info: Info) -> Usage:
        return await _usage(info, self.generation)


@strawberry.type(description="The reply failed, or the server ended before it did.")
class GenerationFailed(StreamEvent):
    failed: strawberry.Private[events.Failed]

    @resolver("The reply as far as it came.")
    async def message(self, info: Info) -> Message:
        return await load_message(info, self.generation.message_id)

    @resolver("Why it failed.")
    async def error(self, info: Info) -> ChatError:
        message = await load_message(info, self.generation.message_id)  # knows which model was asked last
        return ChatError(
            code=self.failed.code,
            message=self.failed.message,
            retryable=self.failed.retryable,
            provider=message.provider,
            model=message.model,
        )

    @resolver("What it cost.")
    async def usage(self, info: Info) -> Usage:
        return await _usage(info, self.generation)


STREAM_EVENTS = (
    GenerationStarted,
    PhaseChanged,
    ModelSwitched,
    ReasoningDelta,
    TextDelta,
    GenerationCompleted,
    GenerationStopped,
    GenerationFailed,
)


def to_stream_event(generation: Generation, logged: LoggedEvent) -> StreamEvent:
    seq, event = logged.seq, logged.event
    match event:
        case events.Started():
            return GenerationStarted(generation=generation, seq=seq, model=event.model)
        case events.PhaseChanged(phase=phase, detail=detail, progress=progress):
            return PhaseChanged(generation=generation, seq=seq, phase=phase, detail=detail, progress=progress)
        case events.ModelSwitched():
            return ModelSwitched(
                generation=generation,
                seq=seq,
                from_model=event.from_model,
                to_model=event.to_model,
                reason=event.reason,
                discard_text=event.discard_text,
            )
        case events.ReasoningDelta(text=text):
            return ReasoningDelta(generation=generation, seq=seq, from_seq=logged.from_seq, text=text)
        case events.TextDelta(text=text):
            return TextDelta(generation=generation, seq=seq, from_seq=logged.from_seq, text=text)
        case events.Completed():
            return GenerationCompleted(generation=generation, seq=seq, finish_reason=event.finish_reason)
        case events.Stopped():
            return GenerationStopped(generation=generation, seq=seq)
        case events.Failed():
            return GenerationFailed(generation=generation, seq=seq, failed=event)
        case _:
            assert_never(event)


async def _usage(info: Info, generation: Generation) -> Usage:
    record = await loaders_of(info).message.load(generation.message_id)
    if record is None or (usage := Usage.of(record)) is None:
        raise Failure(ErrorCode.NOT_FOUND, f"there is no message {generation.message_id} of yours")
    return usage
