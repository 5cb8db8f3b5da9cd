"""Writes schema.sql, the schema that the migrations make: ``python -m db.schema``."""

import asyncio
import re
import tempfile
from pathlib import Path

from db.binaries import binary
from db.embedded import EmbeddedOptions, embedded_postgres
from db.migrations.runner import migrate

SCHEMA_FILE = Path(__file__).with_name("schema.sql")

# What pg_dump adds that differs between its versions and runs, or says nothing about the schema.
_NOISE = re.compile(r"^(--.*|SET .*|SELECT pg_catalog\.set_config.*|\\.*)\n", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")


async def dump(url: str) -> str:
    """The schema of a database as SQL, the same for the same schema."""
    process = await asyncio.create_subprocess_exec(
        str(binary("pg_dump")),
        "--schema-only",
        "--no-owner",
        "--no-privileges",
        "--exclude-table=alembic_version",
        url,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"pg_dump failed with status {process.returncode}")
    return _BLANK_LINES.sub("\n\n", _NOISE.sub("", output.decode())).strip() + "\n"


async def _main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with embedded_postgres(Path(directory), EmbeddedOptions(durable=False)) as url:
            await migrate(url)
            SCHEMA_FILE.write_text(await dump(url))


if __name__ == "__main__":
    asyncio.run(_main())
