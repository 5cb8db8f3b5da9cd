"""What a client that watches a conversation gets."""

from typing import assert_never

import strawberry

from server import conversation_events
from server.api.ids import to_id
from server.api.nodes import Conversation, Generation


@strawberry.interface(
    description="Something that happens in a conversation. A client that lags is told what it all comes to,"
    " and no step in between."
)
class ConversationEvent:
    conversation_id: strawberry.ID = strawberry.field(description="The conversation that it happens in.")


@strawberry.type(
    description="What the conversation is now: the first event, then one whenever its title, prompt, model,"
    " head or messages have changed, a reply has begun or ended in it, or it was put aside."
)
class ConversationChanged(ConversationEvent):
    conversation: Conversation = strawberry.field(description="The conversation.")


@strawberry.type(
    description="A reply is being written: one event for each when the watching begins, then for each that"
    " begins. Watch the generation for its text."
)
class GenerationBegan(ConversationEvent):
    generation_id: strawberry.ID = strawberry.field(description="The generation that writes it.")
    generation: Generation | None = strawberry.field(
        description="The same; null where it was deleted in the meantime."
    )


@strawberry.type(
    description="A reply that was told to have begun is no longer written; also told of one that had ended"
    " before its begin could be told."
)
class GenerationEnded(ConversationEvent):
    generation_id: strawberry.ID = strawberry.field(description="The generation that wrote it.")
    generation: Generation | None = strawberry.field(
        description="The same, whose status tells how it ended; null where it was deleted in the meantime."
    )


@strawberry.type(description="The conversation was deleted with all its messages. Nothing follows.")
class ConversationDeleted(ConversationEvent):
    pass


CONVERSATION_EVENTS = (ConversationChanged, GenerationBegan, GenerationEnded, ConversationDeleted)


def to_conversation_event(event: conversation_events.ConversationEvent) -> ConversationEvent:
    match event:
        case conversation_events.ConversationChanged(conversation=conversation):
            return ConversationChanged(
                conversation_id=to_id(conversation.id), conversation=Conversation.of(conversation)
            )
        case conversation_events.GenerationBegan(generation=generation):
            return GenerationBegan(
                conversation_id=to_id(generation.conversation_id),
                generation_id=to_id(generation.id),
                generation=Generation.of(generation),
            )
        case conversation_events.GenerationEnded(generation=ended):
            return GenerationEnded(
                conversation_id=to_id(event.conversation_id),
                generation_id=to_id(event.generation_id),
                generation=Generation.of(ended) if ended else None,
            )
        case conversation_events.ConversationDeleted():
            return ConversationDeleted(conversation_id=to_id(event.conversation_id))
        case _:
            assert_never(event)
