"""Why a model is not loaded or a request not answered, in words for people."""

import torch
from safetensors import SafetensorError

from providers.huggingface.protocol import FailureKind

_MAX_DETAIL_CHARACTERS = 300
# torch has no type of its own for these on a CPU
_OUT_OF_MEMORY_TEXTS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


class Refusal(Exception):
    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def explain_load(error: Exception) -> Refusal:
    """Translates whatever torch, safetensors, tokenizers and transformers raise while a model is loaded."""
    if isinstance(error, Refusal):
        return error
    detail = _first_line(error)
    if _is_out_of_memory(error):
        return Refusal(FailureKind.OUT_OF_MEMORY, f"There is not enough memory to load it ({detail}).")
    if isinstance(error, SafetensorError):
        return Refusal(FailureKind.LOAD_FAILED, f"Its weights are damaged ({detail}).")
    if isinstance(error, OSError):
        return Refusal(FailureKind.LOAD_FAILED, f"A file is missing or cannot be read ({detail}).")
    if "trust_remote_code" in str(error):
        return Refusal(FailureKind.LOAD_FAILED, "It needs code of its own to be run, which is not allowed.")
    return Refusal(FailureKind.LOAD_FAILED, f"transformers says: {detail}.")


def explain_reply(error: Exception) -> Refusal:
    """Translates whatever is raised while a reply is generated."""
    if isinstance(error, Refusal):
        return error
    detail = _first_line(error)
    if _is_out_of_memory(error):
        return Refusal(FailureKind.OUT_OF_MEMORY, f"There is not enough memory for this reply ({detail}).")
    return Refusal(FailureKind.INTERNAL, f"The model failed ({type(error).__name__}: {detail}).")


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:_MAX_DETAIL_CHARACTERS].rstrip(".") if lines else type(error).__name__
