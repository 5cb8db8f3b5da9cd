"""Reading conversations, messages and generations."""

from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest

from db.database import Database, Record
from tests.graphql_client import Failed, Json
from tests.server.api.conftest import House

PAGE = """
query ($first: Int, $after: String, $search: String) {
  conversations(first: $first, after: $after, search: $search) {
    edges { cursor node { id title } }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}
"""
MESSAGES = """
query ($id: ID!, $first: Int, $after: String, $branch: ID) {
  conversation(id: $id) {
    messages(first: $first, after: $after, branch: $branch) {
      edges { cursor node { id role content } }
      pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
    }
  }
}
"""
NODE = """
query ($id: ID!) {
  node(id: $id) {
    id __typename
    ... on Conversation { title }
    ... on Message { content }
    ... on Generation { status }
  }
}
"""


async def page(house: House, **variables: Any) -> tuple[list[str], Json]:
    """The titles on one page of conversations, and where it lies."""
    connection = await house.client.ask(PAGE, **variables)
    assert [e["cursor"] for e in connection["edges"][:1]] == [
        c for c in [connection["pageInfo"]["startCursor"]] if c
    ]
    return [edge["node"]["title"] for edge in connection["edges"]], connection["pageInfo"]


async def test_a_conversation_has_all_that_was_said(house: House) -> None:
    sent = await house.say("words 2", "What?\nPlease.", systemPrompt="Be brief.")
    conversation = await house.client.ask(
        """
        query ($id: ID!) {
          conversation(id: $id) {
            id title systemPrompt model provider archived createdAt updatedAt
            head { id content conversationId generationId }
            messages { edges { node { role content parentId } } }
          }
        }
        """,
        id=sent["conversation"]["id"],
    )
    created, updated = (datetime.fromisoformat(conversation.pop(name)) for name in ("createdAt", "updatedAt"))
    assert created.utcoffset() is not None
    assert created < updated
    assert conversation == {
        "id": sent["conversation"]["id"],
        "title": "What?",
        "systemPrompt": "Be brief.",
        "model": "scripted:words 2",
        "provider": "scripted",
        "archived": False,
        "head": {
            "id": sent["message"]["id"],
            "content": "w1 w2",
            "conversationId": sent["conversation"]["id"],
            "generationId": sent["id"],
        },
        "messages": {
            "edges": [
                {"node": {"role": "USER", "content": "What?\nPlease.", "parentId": None}},
                {
                    "node": {
                        "role": "ASSISTANT",
                        "content": "w1 w2",
                        "parentId": sent["message"]["parentId"],
                    }
                },
            ]
        },
    }


async def test_a_reply_that_is_being_written_shows_its_text_so_far(house: House) -> None:
    sent = await house.send("words 3;stall")
    async with house.client.socket() as socket:
        watching = await socket.subscribe(
            "subscription ($id: ID!) { generation(id: $id) { __typename } }", id=sent["id"]
        )
        await watching.until("TextDelta")
        await watching.complete()
    message = await house.client.ask(
        """
        query ($id: ID!) {
          node(id: $id) { ... on Message { status content usage { source } error { code } } }
        }
        """,
        id=sent["message"]["id"],
    )
    assert message == {"status": "GENERATING", "content": "w1 w2 w3", "usage": None, "error": None}


async def test_conversations_come_page_by_page_the_last_changed_first(house: House) -> None:
    for number in range(5):
        await house.say("words 1", f"number {number}")
    titles, info = await page(house, first=2)
    assert titles == ["number 4", "number 3"]
    assert (info["hasNextPage"], info["hasPreviousPage"]) == (True, False)
    titles, info = await page(house, first=2, after=info["endCursor"])
    assert titles == ["number 2", "number 1"]
    assert (info["hasNextPage"], info["hasPreviousPage"]) == (True, True)
    titles, info = await page(house, first=2, after=info["endCursor"])
    assert titles == ["number 0"]
    assert info["hasNextPage"] is False
    titles, info = await page(house, first=2, after=info["endCursor"])
    assert titles == []
    assert info == {
        "hasNextPage": False,
        "hasPreviousPage": True,
        "startCursor": None,
        "endCursor": None,
    }
    assert len((await page(house))[0]) == len((await page(house, first=None))[0]) == 5


async def test_conversations_are_found_by_title_and_message(house: House) -> None:
    await house.say("text The answer is 100%.", "Rivers of Europe")
    await house.say("text Nothing.", "Lakes")
    assert (await page(house, search="rivers OF"))[0] == ["Rivers of Europe"]
    assert (await page(house, search="100%"))[0] == ["Rivers of Europe"]
    assert (await page(house, search="%"))[0] == ["Rivers of Europe"]
    assert (await page(house, search="_"))[0] == []
    assert (await page(house, search="\0lakes"))[0] == ["Lakes"]
    assert (await page(house, search=""))[0] == ["Lakes", "Rivers of Europe"]


async def test_one_sees_ones_own_only(house: House) -> None:
    sent = await house.say("words 1")
    house.viewer_id = "somebody else"
    assert (await page(house))[0] == []
    for id_ in (sent["id"], sent["message"]["id"], sent["conversation"]["id"]):
        assert await house.client.ask(NODE, id=id_) is None
    assert await house.client.ask(MESSAGES, id=sent["conversation"]["id"]) is None
    assert await house.client.ask("query ($id: ID!) { generation(id: $id) { id } }", id=sent["id"]) is None


async def test_node_finds_all_that_has_an_id(house: House) -> None:
    sent = await house.say("words 1", "hi")
    conversation_id, message_id = sent["conversation"]["id"], sent["message"]["id"]
    assert await house.client.ask(NODE, id=conversation_id) == {
        "id": conversation_id,
        "__typename": "Conversation",
        "title": "hi",
    }
    assert await house.client.ask(NODE, id=message_id) == {
        "id": message_id,
        "__typename": "Message",
        "content": "w1",
    }
    assert await house.client.ask(NODE, id=sent["id"]) == {
        "id": sent["id"],
        "__typename": "Generation",
        "status": "COMPLETED",
    }
    assert await house.client.ask(NODE, id=str(uuid4())) is None


async def test_a_malformed_id_is_bad_input(house: House, subtests: pytest.Subtests) -> None:
    for field in ("node", "conversation", "generation"):
        for id_ in ("", "x", "1", "'; --", "\0", "a" * 10_000):
            with subtests.test(field=field, id=id_[:10]):
                with pytest.raises(Failed) as failed:
                    await house.client.ask(f"query ($id: ID!) {{ {field}(id: $id) {{ id }} }}", id=id_)
                assert failed.value.code == "BAD_INPUT"
                assert len(failed.value.message) < 500


async def test_messages_come_page_by_page_along_a_branch(house: House) -> None:
    first = await house.say("words 1", "one")
    conversation_id = first["conversation"]["id"]
    other = await house.say("words 2", "two", conversationId=conversation_id)
    await house.say("words 3", "three", conversationId=conversation_id, parentId=first["message"]["id"])

    async def contents(**variables: Any) -> tuple[list[str], Json]:
        found = await house.client.ask(MESSAGES, id=conversation_id, **variables)
        connection = found["messages"]
        return [edge["node"]["content"] for edge in connection["edges"]], connection["pageInfo"]

    assert (await contents())[0] == ["one", "w1", "three", "w1 w2 w3"]
    assert (await contents(branch=other["message"]["id"]))[0] == ["one", "w1", "two", "w1 w2"]
    texts, info = await contents(first=3)
    assert texts == ["one", "w1", "three"]
    assert (info["hasNextPage"], info["hasPreviousPage"]) == (True, False)
    texts, info = await contents(first=3, after=info["endCursor"])
    assert texts == ["w1 w2 w3"]
    assert (info["hasNextPage"], info["hasPreviousPage"]) == (False, True)

    elsewhere = await house.say("words 1")
    for branch, code in (
        (elsewhere["message"]["id"], "NOT_FOUND"),
        (str(uuid4()), "NOT_FOUND"),
        ("?", "BAD_INPUT"),
    ):
        with pytest.raises(Failed) as failed:
            await contents(branch=branch)
        assert failed.value.code == code


# Not base64; null; a moment without its offset, and no id; another kind of cursor.
FORGED = ["x", "!!!", "é", "a" * 10_000, "bnVsbA", "WyIyMDI2LTAxLTAxVDAwOjAwOjAwIiwgIngiXQ", "IjIwMjYi"]


async def test_a_page_has_from_1_to_100_behind_a_cursor_of_its_list(
    house: House, subtests: pytest.Subtests
) -> None:
    sent = await house.say("words 1")
    wrong: list[Json] = [{"first": first} for first in (0, -1, 101, 2**31 - 1)]
    wrong += [{"after": after} for after in FORGED]
    for variables in wrong:
        for query in (PAGE, MESSAGES):
            with subtests.test(**variables, query=query):
                with pytest.raises(Failed) as failed:
                    await house.client.ask(query, id=sent["conversation"]["id"], **variables)
                assert failed.value.code == "BAD_INPUT"
                assert next(iter(variables)) in failed.value.message


class Counted(Database):
    """The same connections, and how many queries ran on them through this object."""

    def __init__(self, database: Database) -> None:
        super().__init__(database._pool, database._limits)
        self.queries = 0

    async def fetch(self, sql: str, *args: object) -> list[Record]:
        self.queries += 1
        return await super().fetch(sql, *args)


@pytest.mark.parametrize("first", [1, 5])
async def test_a_page_costs_as_many_queries_as_one_conversation(house: House, first: int) -> None:
    for _ in range(5):
        await house.say("words 1")
    house.database = counted = Counted(house.database)
    connection = await house.client.ask(
        """
        query ($first: Int) {
          conversations(first: $first) { edges { node { head { generationId } } } }
        }
        """,
        first=first,
    )
    assert len(connection["edges"]) == first
    assert counted.queries == 3
