"""Sending with a client key over the endpoint: again and again, at ``after``, exactly once."""

from typing import Any

import pytest

from tests.graphql_client import Failed, Json, Refused, Socket
from tests.server.api.conftest import House
from tests.server.api.test_subscriptions import EVENT, covered, text_of

STREAM = (
    "subscription ($input: MessageInput!, $after: Int) {"
    " streamMessage(input: $input, after: $after) { ...Event } }" + EVENT
)
SEND = "mutation ($input: MessageInput!) { sendMessage(input: $input) { id } }"
ADD = "mutation ($input: MessageInput!) { addMessage(input: $input) { id content } }"


def message(script: str = "words 5", **more: Any) -> Json:
    return {"message": "hello", "model": f"scripted:{script}", "clientKey": "mine", **more}


async def streamed(socket: Socket, input_: Json, after: int | None = 0) -> list[Any]:
    operation = await socket.subscribe(STREAM, input=input_, after=after)
    return await operation.rest()


async def refusal(house: House, input_: Json, after: int) -> Refused:
    async with house.client.socket() as socket:
        with pytest.raises(Refused) as refused:
            await streamed(socket, input_, after)
    return refused.value


async def test_a_connection_that_is_lost_again_and_again_loses_and_doubles_nothing(house: House) -> None:
    """C7: the same subscription, with after kept current."""
    seen: list[Any] = []
    while not (seen and seen[-1]["__typename"] == "GenerationCompleted"):
        async with house.client.socket() as socket:
            after = seen[-1]["seq"] if seen else 0
            operation = await socket.subscribe(STREAM, input=message("words 30 every 5ms"), after=after)
            async for event in operation.events():
                seen.append(event)
                if len(seen) % 3 == 0:
                    socket.drop()
                    break
    assert covered(seen) == list(range(1, seen[-1]["seq"] + 1))
    assert (
        text_of(seen) == " ".join(f"w{number}" for number in range(1, 31)) == seen[-1]["message"]["content"]
    )
    assert [await house.count(table) for table in ("generations", "messages")] == [1, 2]


@pytest.mark.parametrize("after", [0, None])
async def test_from_the_beginning_it_is_told_whole_again(house: House, after: int | None) -> None:
    async with house.client.socket() as socket:
        first = await streamed(socket, message(), after)
        again = await streamed(socket, message(), after)
    assert covered(again) == covered(first)
    assert text_of(again) == text_of(first) == "w1 w2 w3 w4 w5"
    assert await house.count("generations") == 1


async def test_behind_its_end_it_is_told_how_it_ended(house: House) -> None:
    async with house.client.socket() as socket:
        first = await streamed(socket, message())
        for after in (first[-1]["seq"], first[-1]["seq"] + 1, 2**31 - 1):
            (end,) = await streamed(socket, message(), after)
            assert end == first[-1]


async def test_after_without_a_key_is_refused(house: House) -> None:
    refused = await refusal(house, message(clientKey=None), after=3)
    assert refused.code == "BAD_INPUT"
    assert "clientKey" in refused.message
    assert await house.count("generations") == 0


async def test_after_with_a_key_that_was_not_used_sends_nothing(house: House) -> None:
    refused = await refusal(house, message(), after=3)
    assert refused.code == "NOT_FOUND"
    assert "mine" in refused.message
    assert await house.count("generations") == 0


async def test_a_negative_after_is_refused(house: House) -> None:
    assert (await refusal(house, message(), after=-1)).code == "BAD_INPUT"
    assert await house.count("generations") == 0


@pytest.mark.parametrize("after", [0, 3])
async def test_another_message_with_the_key_is_refused(house: House, after: int) -> None:
    await house.say("words 5", clientKey="mine")
    refused = await refusal(house, message(message="something else"), after)
    assert refused.code == "CLIENT_KEY_REUSED"
    for mutation in (SEND, ADD):
        with pytest.raises(Failed) as failed:
            await house.client.ask(mutation, input=message(message="something else"))
        assert failed.value.code == "CLIENT_KEY_REUSED"
    assert await house.count("generations") == 1


@pytest.mark.parametrize("key", ["", "x" * 201, "\0"])
async def test_a_key_that_is_none_is_refused_everywhere(house: House, key: str) -> None:
    for after in (0, 3):
        assert (await refusal(house, message(clientKey=key), after)).code == "BAD_INPUT"
    for mutation in (SEND, ADD):
        with pytest.raises(Failed) as failed:
            await house.client.ask(mutation, input=message(clientKey=key))
        assert failed.value.code == "BAD_INPUT"


async def test_every_way_of_sending_goes_on_with_what_was_sent_by_another(house: House) -> None:
    sent = await house.client.ask(SEND, input=message())
    assert await house.client.ask(SEND, input=message()) == sent
    async with house.client.socket() as socket:
        events = await streamed(socket, message())
    assert {event["generationId"] for event in events} == {sent["id"]}
    added = await house.client.ask(ADD, input=message())
    assert added == {"id": events[-1]["message"]["id"], "content": "w1 w2 w3 w4 w5"}
    assert [await house.count(table) for table in ("generations", "messages")] == [1, 2]


async def test_somebody_elses_key_finds_nothing(house: House) -> None:
    await house.say("words 5", clientKey="mine")
    house.viewer_id = "somebody else"
    assert (await refusal(house, message(), after=3)).code == "NOT_FOUND"
