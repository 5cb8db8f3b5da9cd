"""What the environment and the ``.env`` file say, read once; nothing else in the server looks there."""

import ipaddress
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import SplitResult, urlsplit

from dotenv import dotenv_values
from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from providers.huggingface.settings import Device, Precision, child_environment
from providers.ollama import host_url
from providers.openai import HF_ROUTER_MODEL
from server.endpoints import NAMED, Endpoint, endpoint_url, key_text, keys_beside_urls, named_endpoints

_log = logging.getLogger("parley.settings")

DEFAULT_MODELS_PATH = Path("models/huggingface")

# In the order in which they come where the settings say nothing of it.
PROVIDERS = ("ollama", "huggingface", "claude", "gemini", "openai", "hf-router", "scripted")
ALIASES = {"huggingface": ("hf",), "claude": ("anthropic",), "openai": ("codex",)}
_TAKEN = frozenset((*PROVIDERS, *(alias for aliases in ALIASES.values() for alias in aliases), "auto"))

_ENV_FILE = ".env"
_KEYS_AND_URLS = (
    ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
    ("GEMINI_API_KEY", "GEMINI_BASE_URL"),
    ("OPENAI_API_KEY", "OPENAI_BASE_URL"),
    ("HF_TOKEN", "HF_ROUTER_BASE_URL"),
)


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
        env_file=_ENV_FILE, env_ignore_empty=True, extra="ignore", frozen=True, hide_input_in_errors=True
    )
    secrets: ClassVar[frozenset[str]] = frozenset(
        {"DATABASE_URL", "OLLAMA_HOST", *(name for pair in _KEYS_AND_URLS for name in pair)}
    )

    named_endpoints: dict[str, Endpoint] = Field({}, validation_alias="PARLEY_PROVIDER_*")
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
    anthropic_api_key: SecretStr | None = None
    anthropic_base_url: str | None = None
    gemini_api_key: SecretStr | None = None
    gemini_base_url: str | None = None
    openai_api_key: SecretStr | None = None
    openai_base_url: str | None = None
    hf_token: SecretStr | None = None
    hf_router_base_url: str | None = None
    model_provider_priority: CommaSeparated = ("ollama", "huggingface")
    default_model_provider: str = "ollama"
    fallback_order: CommaSeparated = Field(
        ("ollama", "claude", "gemini", "openai", "hf-router"), validation_alias="PARLEY_FALLBACK_ORDER"
    )
    huggingface_max_memory: int | None = Field(None, ge=512)
    max_concurrent_models: int = Field(2, ge=1)
    model_load_timeout_ms: int = Field(30_000, ge=1)
    stream_timeout_ms: int = Field(300_000, ge=1)
    retry_attempts: int = Field(3, ge=0, le=10)
    retry_delay_ms: int = Field(1_000, ge=1, le=30_000)
    enable_model_monitoring: bool = True
    model_health_check_interval_ms: int = Field(60_000, ge=1_000)
    memory_cleanup_interval_ms: int = Field(300_000, ge=1_000)
    database_url: SecretStr | None = None

    host: str = Field("127.0.0.1", validation_alias="PARLEY_HOST")
    port: int = Field(8000, ge=0, le=65_535, validation_alias="PARLEY_PORT")
    data_dir: Path = Field(Path(".parley"), validation_alias="PARLEY_DATA_DIR")
    allowed_hosts: CommaSeparated = Field((), validation_alias="PARLEY_ALLOWED_HOSTS")
    allowed_origins: CommaSeparated = Field((), validation_alias="PARLEY_ALLOWED_ORIGINS")
    default_max_tokens: int = Field(1024, ge=1, validation_alias="PARLEY_DEFAULT_MAX_TOKENS")
    max_tokens: int = Field(32_768, ge=1, validation_alias="PARLEY_MAX_TOKENS")
    events_retention_ms: int = Field(3_600_000, ge=1, validation_alias="PARLEY_EVENTS_RETENTION_MS")
    scripted: bool = Field(default=False, validation_alias="PARLEY_SCRIPTED")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", validation_alias="PARLEY_LOG_LEVEL"
    )

    @field_validator("huggingface_models_path")
    @classmethod
    def _usable_home(cls, path: Path) -> Path:
        """What cannot even be a path falls back like one that cannot be used."""
        try:
            return path.expanduser().absolute()
        except RuntimeError:
            default = DEFAULT_MODELS_PATH.absolute()
            _log.error("HUGGINGFACE_MODELS_PATH %s cannot be used: no such home; using %s", path, default)
            return default

    @field_validator("huggingface_cache_dir", "data_dir")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        try:
            return path and path.expanduser().absolute()
        except RuntimeError:
            raise ValueError("expected a path; nobody has the home that it begins with") from None

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, url: SecretStr | None) -> SecretStr | None:
        if url and _parts(url.get_secret_value()).scheme not in ("postgres", "postgresql"):
            raise ValueError("expected postgresql://user:password@host:5432/database")
        return url

    @field_validator("ollama_host")
    @classmethod
    def _is_ollama(cls, host: SecretStr) -> SecretStr:
        return SecretStr(host_url(host.get_secret_value()))

    @field_validator("anthropic_api_key", "gemini_api_key", "openai_api_key", "hf_token")
    @classmethod
    def _is_key(cls, key: SecretStr | None) -> SecretStr | None:
        return key and SecretStr(key_text(key.get_secret_value()))

    @field_validator("anthropic_base_url", "gemini_base_url", "openai_base_url", "hf_router_base_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        return url and endpoint_url(url)

    @field_validator("model_provider_priority", "default_model_provider", "fallback_order")
    @classmethod
    def _are_providers(cls, names: Any, info: ValidationInfo) -> Any:
        if info.field_name == "fallback_order" and names == ("none",):
            return ()
        known = (*PROVIDERS, *info.data.get("named_endpoints", ()))
        if set((names,) if isinstance(names, str) else names) - set(known):
            raise ValueError(f"expected {', '.join(known[:-1])} or {known[-1]}")
        return names

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
            parts = _parts(origin)
            if not parts.scheme or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}":
                raise ValueError(f"expected scheme://host or scheme://host:port, not {origin!r}")
        return origins

    @model_validator(mode="after")
    def _default_is_enabled(self) -> Self:
        name = self.default_model_provider
        enabled = {
            "huggingface": self.huggingface_enabled,
            "ollama": self.ollama_enabled,
            "scripted": self.scripted,
        }
        if not enabled.get(name, True):
            raise ValueError(
                f"DEFAULT_MODEL_PROVIDER is {name}, which is not enabled: enable it, or set "
                "DEFAULT_MODEL_PROVIDER to another"
            )
        if name not in enabled and not self.endpoints[name].is_configured:
            raise ValueError(f"DEFAULT_MODEL_PROVIDER is {name}, which has no key: set one, or name another")
        return self

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Self:
        if self.default_max_tokens > self.max_tokens:
            raise ValueError(
                f"PARLEY_DEFAULT_MAX_TOKENS is {self.default_max_tokens}: expected at most "
                f"PARLEY_MAX_TOKENS, which is {self.max_tokens}"
            )
        return self

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """By provider: every server that is reached with a key, those without one too, and the named ones."""
        return {
            "claude": Endpoint(self.anthropic_base_url, self.anthropic_api_key),
            "gemini": Endpoint(self.gemini_base_url, self.gemini_api_key),
            "openai": Endpoint(self.openai_base_url, self.openai_api_key),
            "hf-router": Endpoint(self.hf_router_base_url, self.hf_token, HF_ROUTER_MODEL),
            **self.named_endpoints,
        }

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


def _parts(url: str) -> SplitResult:
    """Empty for what is no URL. Why it is none stays unsaid: the reason may show a password."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def worker_environment() -> dict[str, str]:
    """What a model's worker process may know of this environment."""
    return child_environment(os.environ)


def read_settings(overrides: Mapping[str, object] | None = None) -> Settings:
    """The settings of the environment, else of ``.env``, else the defaults. ``overrides``, by variable, win.

    Raises SettingsError.
    """
    values: dict[str, Any] = dict(overrides or {})
    problems: list[str] = []
    try:
        places = [_by_variable(place) for place in (values, os.environ, dotenv_values(_ENV_FILE))]
        endpoints, problems = named_endpoints(places, _TAKEN)
        values |= keys_beside_urls(places, _KEYS_AND_URLS)
        values["PARLEY_PROVIDER_*"] = endpoints
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(problems + [_problem(dict(details)) for details in error.errors()]) from None
    except (OSError, UnicodeError) as error:
        raise SettingsError([f".env cannot be read: {error}"]) from None
    if problems:
        raise SettingsError(problems)
    _tell_of_lost_keys(settings, places)
    return settings


def _by_variable(place: Mapping[str, object]) -> dict[str, str]:
    """As the settings read them: whatever their case, and without the empty ones."""
    return {name.upper(): str(value) for name, value in place.items() if value}


def _tell_of_lost_keys(settings: Settings, places: Sequence[Mapping[str, str]]) -> None:
    used = {pair: getattr(settings, pair[0].lower()) for pair in _KEYS_AND_URLS}
    for name, endpoint in settings.named_endpoints.items():
        used[f"{NAMED}{name.upper()}_API_KEY", f"{NAMED}{name.upper()}_BASE_URL"] = endpoint.api_key
    for (key, url), value in used.items():
        if value is None and any(key in place for place in places):
            _log.warning("%s is not used: set it in the same place as %s", key, url)


_EXPECTED = {
    "bool_parsing": "true or false",
    "greater_than_equal": "{ge} or more",
    "int_parsing": "a whole number",
    "less_than_equal": "{le} or less",
}


def _problem(details: dict[str, Any]) -> str:
    message = str(details["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if expectation := _EXPECTED.get(details["type"]):
        message = expectation.format_map(details.get("ctx", {}))
    if not details["loc"]:
        return message
    name = str(details["loc"][0]).upper()
    value = details["input"]
    shown = "" if name in Settings.secrets else f" is {value!r}"
    expected = message if message.startswith("expected") else f"expected {message}"
    return f"{name}{shown}: {expected}"
