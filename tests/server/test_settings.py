"""Settings: read once, all problems at once, no secret shown (F1, F2, M3)."""

import logging
import re
from pathlib import Path

import pytest

from server.settings import Settings, SettingsError, is_loopback, read_settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for field in Settings.model_fields:
        for prefix in ("", "parley_"):
            monkeypatch.delenv(f"{prefix}{field}".upper(), raising=False)
    monkeypatch.delenv("HF_MODEL_PATH", raising=False)
    monkeypatch.chdir(tmp_path)


def test_defaults(tmp_path: Path) -> None:
    settings = read_settings()
    assert settings.huggingface_models_path == tmp_path / "models/huggingface"
    assert settings.data_dir == tmp_path / ".parley"
    assert settings.model_provider_priority == ("ollama", "huggingface")
    assert (settings.default_model_provider, settings.max_concurrent_models) == ("ollama", 2)
    assert (settings.model_load_timeout_ms, settings.stream_timeout_ms) == (30_000, 300_000)
    assert (settings.retry_attempts, settings.retry_delay_ms) == (3, 1_000)
    assert (settings.enable_model_monitoring, settings.model_health_check_interval_ms) == (True, 60_000)
    assert (settings.huggingface_max_memory, settings.memory_cleanup_interval_ms) == (None, 300_000)
    assert settings.ollama_host.get_secret_value() == "http://127.0.0.1:11434"
    assert (settings.host, settings.port, settings.database_url) == ("127.0.0.1", 8000, None)


def test_the_environment_goes_before_dotenv_and_overrides_before_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("PARLEY_PORT=1\nMAX_CONCURRENT_MODELS=1\nSTREAM_TIMEOUT_MS=1\nOTHER=x\n")
    monkeypatch.setenv("MAX_CONCURRENT_MODELS", "2")
    monkeypatch.setenv("STREAM_TIMEOUT_MS", "2")
    settings = read_settings({"STREAM_TIMEOUT_MS": 3})
    assert (settings.port, settings.max_concurrent_models, settings.stream_timeout_ms) == (1, 2, 3)


def test_variables_that_only_look_like_ours_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST", "PORT", "DATA_DIR", "SCRIPTED", "LOG_LEVEL"):
        monkeypatch.setenv(name, "unusable")
    assert read_settings() == read_settings({"PARLEY_PORT": 8000})


def test_empty_means_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_CONCURRENT_MODELS", "")
    monkeypatch.setenv("DATABASE_URL", "")
    assert read_settings().max_concurrent_models == 2


def test_the_older_name_of_the_models_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_MODEL_PATH", "old")
    assert read_settings().huggingface_models_path == tmp_path / "old"
    monkeypatch.setenv("HUGGINGFACE_MODELS_PATH", "new")
    assert read_settings().huggingface_models_path == tmp_path / "new"


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_PROVIDER_PRIORITY", "huggingface, ollama")
    monkeypatch.setenv("PARLEY_ALLOWED_HOSTS", "a.example,b.example,")
    settings = read_settings()
    assert settings.model_provider_priority == ("huggingface", "ollama")
    assert settings.allowed_hosts == ("a.example", "b.example")


def test_every_problem_is_told_at_once_with_what_would_be_right(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "MAX_CONCURRENT_MODELS": ("zero", "MAX_CONCURRENT_MODELS is 'zero': expected a whole number"),
        "STREAM_TIMEOUT_MS": ("0", "STREAM_TIMEOUT_MS is '0': expected 1 or more"),
        "RETRY_ATTEMPTS": ("11", "RETRY_ATTEMPTS is '11': expected 10 or less"),
        "RETRY_DELAY_MS": ("0", "RETRY_DELAY_MS is '0': expected 1 or more"),
        "MODEL_HEALTH_CHECK_INTERVAL_MS": ("999", "expected 1000 or more"),
        "MEMORY_CLEANUP_INTERVAL_MS": ("999", "expected 1000 or more"),
        "HUGGINGFACE_MAX_MEMORY": ("2GB", "HUGGINGFACE_MAX_MEMORY is '2GB': expected a whole number"),
        "HUGGINGFACE_DEVICE": (
            "gpu",
            "HUGGINGFACE_DEVICE is 'gpu': expected 'auto', 'cpu', 'cuda' or 'mps'",
        ),
        "HUGGINGFACE_ENABLED": ("maybe", "HUGGINGFACE_ENABLED is 'maybe': expected true or false"),
        "MODEL_PROVIDER_PRIORITY": (
            "ollama,olama",
            "MODEL_PROVIDER_PRIORITY is 'ollama,olama': expected ollama, huggingface, claude, ",
        ),
        "DATABASE_URL": ("mysql://me:hush@db", "DATABASE_URL: expected postgresql://"),
        "OLLAMA_HOST": ("ftp://me:hush@box", "OLLAMA_HOST: expected host, host:port or http(s)://"),
        "ANTHROPIC_API_KEY": ("hush hush", "ANTHROPIC_API_KEY: expected a key without blanks"),
        "GEMINI_BASE_URL": ("https://me:hush@box", "GEMINI_BASE_URL: expected http(s)://host:port/path"),
        "PARLEY_HOST": ("0.0.0.0", "PARLEY_HOST is '0.0.0.0': expected 127.0.0.1, ::1 or localhost"),
        "PARLEY_ALLOWED_ORIGINS": ("chat.example", "expected scheme://host or scheme://host:port"),
    }
    for name, (value, _) in wrong.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as told:
        read_settings()
    assert len(told.value.problems) == len(wrong)
    for _, expected in wrong.values():
        assert expected in str(told.value)
    assert "hush" not in str(told.value)


def test_the_default_provider_has_to_be_enabled() -> None:
    with pytest.raises(SettingsError, match="DEFAULT_MODEL_PROVIDER is scripted, which is not enabled"):
        read_settings({"DEFAULT_MODEL_PROVIDER": "scripted"})
    assert read_settings({"DEFAULT_MODEL_PROVIDER": "scripted", "PARLEY_SCRIPTED": True}).scripted


def test_the_default_number_of_tokens_has_to_be_allowed() -> None:
    with pytest.raises(SettingsError, match="PARLEY_DEFAULT_MAX_TOKENS is 1024: expected at most"):
        read_settings({"PARLEY_MAX_TOKENS": 100})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgresql://me:hu\u2100sh@db/chat"),
        ("DATABASE_URL", "postgresql://me:hush@[::1/chat"),
        ("PARLEY_ALLOWED_ORIGINS", "http://["),
        ("PARLEY_ALLOWED_ORIGINS", "https://chat.example/"),
        ("PARLEY_DATA_DIR", "~nobody-of-that-name/data"),
        ("HUGGINGFACE_CACHE_DIR", "~nobody-of-that-name/cache"),
    ],
)
def test_what_cannot_be_read_at_all_is_a_problem_like_others(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"{name}.*: expected ([a-z]+://|a path)") as told:
        read_settings()
    assert len(told.value.problems) == 1
    assert "hu" not in str(told.value)


def test_an_unreadable_dotenv_is_a_problem_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe=\x00")
    with pytest.raises(SettingsError, match=r"\.env cannot be read"):
        read_settings()


def test_secrets_do_not_print() -> None:
    url = "postgresql://me:hush@db/chat"
    settings = read_settings(
        {
            "DATABASE_URL": url,
            "OLLAMA_HOST": "https://me:hush@box",
            "ANTHROPIC_API_KEY": "sk-ant-hush",
            "OPENAI_API_KEY": "sk-hush",
            "HF_TOKEN": "hf_hush",
            "GEMINI_API_KEY": "AIza-hush",
        }
    )
    assert "hush" not in repr(settings)
    assert "hush" not in str(settings)
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == url
    assert settings.endpoints["claude"].key == "sk-ant-hush"
    assert "hush" not in repr(settings.endpoints)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read_settings().port = 1


def test_a_models_path_that_is_missing_is_created(tmp_path: Path) -> None:
    settings = read_settings({"HUGGINGFACE_MODELS_PATH": "far/away"})
    assert settings.usable_models_path() == tmp_path / "far/away"
    assert (tmp_path / "far/away").is_dir()


@pytest.mark.parametrize("unusable", ["a-file", "a-file/below", "/proc/models", "/sys"])
def test_a_models_path_that_cannot_be_used_is_logged_and_the_default_taken(
    unusable: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a-file").touch()
    settings = read_settings({"HUGGINGFACE_MODELS_PATH": unusable})
    assert settings.usable_models_path() == tmp_path / "models/huggingface"
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert str(Path(unusable).absolute()) in record.getMessage()


def test_when_the_default_cannot_be_used_either_it_stays_for_the_scan_to_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "models").touch()
    assert read_settings().usable_models_path() == tmp_path / "models/huggingface"
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.8.9.1", "::1", "[::1]"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "192.168.0.1", "localhost.example", "127.0.0.1.example"]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def _variables() -> set[str]:
    """Those of servers with a name of one's own apart: there is no list of them."""
    return {
        alias if isinstance(alias := field.validation_alias, str) else name.upper()
        for name, field in Settings.model_fields.items()
        if name != "named_endpoints"
    }


def test_the_readme_names_only_variables_that_there_are() -> None:
    readme = Path(__file__).parents[2] / "README.md"
    rows = re.findall(r"^\| (`[A-Z_]+`.*?) \|", readme.read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"[A-Z_]+", row)}
    assert "OLLAMA_ENABLED" in named
    assert named <= _variables()


def test_the_example_names_every_variable_with_its_default(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / ".env.example"
    assignments = re.findall(r"^# ([A-Z_]+=.*)$", example.read_text(), re.MULTILINE)
    assert {line.partition("=")[0] for line in assignments} == _variables()
    defaults = read_settings()
    (tmp_path / ".env").write_text("\n".join(assignments))
    assert read_settings() == defaults


def test_ollama_can_be_switched_off_where_it_is_not_the_default() -> None:
    with pytest.raises(SettingsError, match="DEFAULT_MODEL_PROVIDER is ollama, which is not enabled"):
        read_settings({"OLLAMA_ENABLED": False})
    assert not read_settings(
        {"OLLAMA_ENABLED": False, "DEFAULT_MODEL_PROVIDER": "huggingface"}
    ).ollama_enabled


def test_a_models_path_in_nobodys_home(caplog: pytest.LogCaptureFixture) -> None:
    """M3: it falls back, as one that cannot be written does."""
    settings = read_settings({"HUGGINGFACE_MODELS_PATH": "~nobody-at-all/models"})
    assert settings.huggingface_models_path == Path("models/huggingface").absolute()
    assert "~nobody-at-all/models cannot be used: no such home" in caplog.text
