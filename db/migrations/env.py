"""What alembic runs around the migrations: in the server on its connection, else at ``-x url=...``."""

import asyncio

from alembic import context
from sqlalchemy import Connection

from db.migrations.runner import locked_transaction


def _run(connection: Connection) -> None:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


async def _run_at(url: str) -> None:
    async with locked_transaction(url) as connection:
        await connection.run_sync(_run)


if (given := context.config.attributes.get("connection")) is not None:
    _run(given)
else:
    asyncio.run(_run_at(context.get_x_argument(as_dictionary=True)["url"]))
