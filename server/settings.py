"""What the environment and the ``.env`` file say, read once; nothing else in the server looks there."""

import ipaddress
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from providers.huggingface.settings import Device, Precision, child_environment
from providers.ollama import host_url

_log = logging.getLogger("parley.settings")

DEFAULT_MODELS_PATH = Path("models/huggingface")

ProviderName = Literal["huggingface", "ollama", "scripted"]


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class SettingsError(Exception):
    """Everything that is wrong with the settings, one line for each, with what would be right."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Settings(BaseSettings):
    """One run's settings. An attribute is named like its variable; those of ours have ``PARLEY_`` before it.

    Build it with ``read_settings``, which tells people what is wrong.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )
    secrets: ClassVar[frozenset[str]] = frozenset({"DATABASE_URL", "OLLAMA_HOST"})

    huggingface_enabled: bool = True
    huggingface_models_path: Path = Field(
        DEFAULT_MODELS_PATH, validation_alias=AliasChoices("HUGGINGFACE_MODELS_PATH", "HF_MODEL_PATH")
    )
    huggingface_cache_dir: Path | None = None
    huggingface_device: Device = "auto"
    huggingface_precision: Precision = "auto"
    huggingface_threads: int | None = Field(None, ge=1, validation_alias="PARLEY_HUGGINGFACE_THREADS")
    ollama_enabled: bool = True
    ollama_host: SecretStr = Field(SecretStr(""), validate_default=True)
    model_provider_priority: Annotated[tuple[ProviderName, ...], NoDecode, BeforeValidator(_split)] = (
        "ollama",
        "huggingface",
    )
    default_model_provider: ProviderName = "ollama"
    max_concurrent_models: int = Field(2, ge=1)
    model_load_timeout_ms: int = Field(30_000, ge=1)
    stream_timeout_ms: int = Field(300_000, ge=1)
    enable_model_monitoring: bool = True
    model_health_check_interval_ms: int = Field(60_000, ge=1_000)
    database_url: SecretStr | None = None

    host: str = Field("127.0.0.1", validation_alias="PARLEY_HOST")
    port: int = Field(8000, ge=0, le=65_535, validation_alias="PARLEY_PORT")
    data_dir: Path = Field(Path(".parley"), validation_alias="PARLEY_DATA_DIR")
    allowed_hosts: CommaSeparated = Field((), validation_alias="PARLEY_ALLOWED_HOSTS")
    allowed_origins: CommaSeparated = Field((), validation_alias="PARLEY_ALLOWED_ORIGINS")
    default_max_tokens: int = Field(1024, ge=1, validation_alias="PARLEY_DEFAULT_MAX_TOKENS")
    max_tokens: int = Field(32_768, ge=1, validation_alias="PARLEY_MAX_TOKENS")
    scripted: bool = Field(default=False, validation_alias="PARLEY_SCRIPTED")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", validation_alias="PARLEY_LOG_LEVEL"
    )

    @field_validator("huggingface_models_path", "huggingface_cache_dir", "data_dir")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path and path.expanduser().absolute()

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, url: SecretStr | None) -> SecretStr | None:
        if url and urlsplit(url.get_secret_value()).scheme not in ("postgres", "postgresql"):
            raise ValueError("expected postgresql://user:password@host:5432/database")
        return url

    @field_validator("ollama_host")
    @classmethod
    def _is_ollama(cls, host: SecretStr) -> SecretStr:
        return SecretStr(host_url(host.get_secret_value()))

    @field_validator("host")
    @classmethod
    def _is_loopback(cls, host: str) -> str:
        if not is_loopback(host):
            raise ValueError(
                "expected 127.0.0.1, ::1 or localhost; without a login no other machine may connect"
            )
        return host

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if not parts.scheme or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}":
                raise ValueError(f"expected scheme://host or scheme://host:port, not {origin!r}")
        return origins

    @model_validator(mode="after")
    def _default_is_enabled(self) -> Self:
        enabled = {
            "huggingface": self.huggingface_enabled,
            "ollama": self.ollama_enabled,
            "scripted": self.scripted,
        }
        if not enabled[self.default_model_provider]:
            raise ValueError(
                f"DEFAULT_MODEL_PROVIDER is {self.default_model_provider}, which is not enabled: "
                "enable it, or name another"
            )
        return self

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Self:
        if self.default_max_tokens > self.max_tokens:
            raise ValueError(
                f"PARLEY_DEFAULT_MAX_TOKENS is {self.default_max_tokens}: expected at most "
                f"PARLEY_MAX_TOKENS, which is {self.max_tokens}"
            )
        return self

    def usable_models_path(self) -> Path:
        """The folder that Hugging Face models are in, created when missing.

        One that cannot be used is logged, and the default taken; the default is not judged, so that whoever
        scans it reports what is wrong with it.
        """
        path, default = self.huggingface_models_path, DEFAULT_MODELS_PATH.absolute()
        for candidate in (path, default):
            try:
                candidate.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=candidate):
                    return candidate
            except OSError as error:
                _log.error(
                    "HUGGINGFACE_MODELS_PATH %s cannot be used: %s%s",
                    candidate,
                    os.strerror(error.errno) if error.errno else error,
                    f"; using {default}" if candidate != default else "",
                )
        return default


def is_loopback(host: str) -> bool:
    """Whether a name or address, without port, can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def worker_environment() -> dict[str, str]:
    """What a model's worker process may know of this environment."""
    return child_environment(os.environ)


def read_settings(overrides: Mapping[str, object] | None = None) -> Settings:
    """The settings of the environment, else of ``.env``, else the defaults. ``overrides``, by variable, win.

    Raises SettingsError.
    """
    values: dict[str, Any] = dict(overrides or {})
    try:
        return Settings(**values)
    except ValidationError as error:
        raise SettingsError([_problem(dict(details)) for details in error.errors()]) from None
    except (OSError, UnicodeError) as error:
        raise SettingsError([f".env cannot be read: {error}"]) from None


def _problem(details: dict[str, Any]) -> str:
    message = str(details["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if not details["loc"]:
        return message
    name = str(details["loc"][0]).upper()
    value = details["input"]
    shown = "" if name in Settings.secrets else f" is {value!r}"
    expected = message if message.startswith("expected") else f"expected {message}"
    return f"{name}{shown}: {expected}"
