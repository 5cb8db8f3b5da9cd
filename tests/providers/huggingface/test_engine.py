"""What the engine says of models that it cannot load, in the words that a reader gets."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from providers.huggingface.engine import Engine
from providers.huggingface.protocol import FailureKind, Load, Loaded
from providers.huggingface.refusal import Refusal, explain_load, explain_reply
from tests.providers.huggingface.tiny_models import write_reciter


def _load(folder: Path) -> Load:
    return Load(
        folder=str(folder), gguf_file=None, cache_dir="", device="cpu", precision="float32", threads=1
    )


def _refusal(folder: Path) -> Refusal:
    try:
        Engine.load(_load(folder), lambda _: None)
    except Exception as error:
        return explain_load(error)
    pytest.fail("it was loaded")


def _lose_a_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.norm.weight"]
    save_file(weights, path, {"format": "pt"})


def _edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


def _break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def _break_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for %}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 8), "weights are damaged"),
        (_lose_a_weight, "incomplete: there is no model.norm.weight"),
        (_edit_config(model_type="unheard-of"), "unheard-of"),
        (_edit_config(hidden_size=64), "transformers says"),
        (
            _edit_config(
                model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.M"}
            ),
            "code of its own",
        ),
        (_break_tokenizer, "transformers says"),
        (_break_template, "chat template cannot be used"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = write_reciter(tmp_path / "model", "abc")
    damage(folder)
    refusal = _refusal(folder)
    assert refusal.kind is FailureKind.LOAD_FAILED
    assert message in refusal.message


def test_what_is_missing_in_the_machine_is_no_fault_of_the_model() -> None:
    assert explain_load(MemoryError()).kind is FailureKind.OUT_OF_MEMORY
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert explain_load(raised.value).kind is FailureKind.OUT_OF_MEMORY
    assert explain_reply(raised.value).kind is FailureKind.OUT_OF_MEMORY


def test_a_sound_model_is_loaded(tmp_path: Path) -> None:
    engine = Engine.load(_load(write_reciter(tmp_path / "model", "abc")), lambda _: None)
    assert engine.loaded == Loaded("cpu", "float32", 256)
