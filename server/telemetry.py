"""Where the log goes, and in what form."""

import logging
import logging.config


def configure_logging(level: str) -> None:
    """One line per record on stderr, from ``level`` up; of libraries only what matters to an operator."""
    quiet = dict.fromkeys(("alembic", "asyncio", "httpcore", "httpx", "uvicorn"), "WARNING")
    quiet["asyncpg"] = "ERROR"  # its pool repeats at length what server and db say in a line
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "line": {
                    "format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s",
                    "datefmt": "%Y-%m-%dT%H:%M:%S%z",
                }
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "root": {"level": level.upper(), "handlers": ["stderr"]},
            "loggers": {name: {"level": least} for name, least in quiet.items()},
        }
    )
