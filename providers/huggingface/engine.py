"""One model in memory: loads it, and generates replies, one at a time, in the thread that calls."""

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.streamers import BaseStreamer

from providers.base import FinishReason, GenerationOptions
from providers.huggingface.chat_template import ChatTemplate
from providers.huggingface.conversion import converted
from providers.huggingface.detokenizer import Detokenizer
from providers.huggingface.hardware import choose_device, choose_precision
from providers.huggingface.protocol import (
    Converting,
    Delta,
    Done,
    FailureKind,
    Generate,
    Load,
    Loaded,
    Loading,
    Usage,
)
from providers.huggingface.refusal import Refusal
from providers.huggingface.stop_strings import StopStrings

_DEFAULT_MAX_TOKENS = 1024
_GREEDY_BELOW = 1e-4  # logits divided by less than this overflow


class Cancelled(Exception):
    """Raised inside ``generate`` to leave it."""


class _StopStringMet(Exception):
    """Raised inside ``generate`` to leave it."""


class Engine:
    """``steps`` counts the tokens computed so far, over all replies."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: str,
    ) -> None:
        self.steps = 0
        self._model = model
        self._tokenizer = tokenizer
        self._device = device
        self._template = ChatTemplate(tokenizer)
        self._window: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._cancelled = threading.Event()
        for layers in (module for module in model.modules() if isinstance(module, torch.nn.ModuleList)):
            for layer in layers:
                layer.register_forward_pre_hook(self._leave_if_cancelled)

    @classmethod
    def load(cls, load: Load, report: Callable[[Converting | Loading], None]) -> "Engine":
        """Raises Refusal, and whatever torch and transformers raise."""
        torch.set_num_threads(load.threads)
        device = choose_device(load.device)
        dtype = choose_precision(load.precision, device)
        folder = Path(load.folder)
        if load.gguf_file:
            folder = converted(folder / load.gguf_file, Path(load.cache_dir), dtype, report)
        report(Loading("weights"))
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model_and_info: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        model, info = model_and_info
        if missing := sorted(info["missing_keys"]):  # transformers would fill them with random numbers
            raise Refusal(FailureKind.LOAD_FAILED, f"Its weights are incomplete: there is no {missing[0]}.")
        engine = cls(model.to(device).eval(), tokenizer, device)
        engine._warm_up()
        return engine

    @property
    def loaded(self) -> Loaded:
        return Loaded(self._device, str(self._model.dtype).removeprefix("torch."), self._window)

    def generate(
        self, request: Generate, show: Callable[[Delta], None], cancelled: threading.Event
    ) -> tuple[Usage, Done]:
        """Shows the reply as it comes. The completion's tokens include the one that ended it.

        Raises Refusal, Cancelled, and whatever torch and transformers raise.
        """
        prompt = self._template.encode(request.messages)
        if self._window is not None and len(prompt) >= self._window:
            raise Refusal(
                FailureKind.CONTEXT_TOO_LONG,
                f"The conversation has {len(prompt)} tokens; the model's window holds {self._window}.",
            )
        config = self._configure(request.options, len(prompt))
        self._cancelled = cancelled
        if request.options.seed is None:
            torch.seed()
        else:
            torch.manual_seed(request.options.seed)
        reply = _Reply(
            on_step=self._step,
            text=Detokenizer(self._decode),
            stops=StopStrings((*self._template.stops, *request.options.stop)),
            show=lambda text: show(Delta(request.id, text)),
        )
        try:
            self._run(prompt, config, reply)
        except _StopStringMet:
            reason = FinishReason.STOP
        else:
            ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
            stopped = reply.stops.met or reply.last_token in ends
            reason = FinishReason.STOP if stopped else FinishReason.LENGTH
        return Usage(request.id, len(prompt), reply.tokens), Done(request.id, reason)

    def _run(self, prompt: list[int], config: GenerationConfig, streamer: BaseStreamer | None) -> None:
        tokens = torch.tensor([prompt], device=self._device)
        self._model.generate(  # type: ignore[operator]
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            generation_config=config,
            streamer=streamer,
        )

    def _warm_up(self) -> None:
        """The first pass sets up kernels and reads the weights from disk; nobody should wait for that."""
        self._run([0], self._configure(GenerationOptions(temperature=0, max_tokens=2), 1), None)

    def _configure(self, options: GenerationOptions, prompt_tokens: int) -> GenerationConfig:
        """The model's own configuration with what the request says instead."""
        config = copy.deepcopy(self._model.generation_config)
        if config is None:
            config = GenerationConfig()
        config.num_beams = config.num_return_sequences = 1
        config.return_dict_in_generate = False
        config.max_length = None
        config.max_new_tokens = options.max_tokens or _DEFAULT_MAX_TOKENS
        if self._window is not None:
            config.max_new_tokens = min(config.max_new_tokens, self._window - prompt_tokens)
        if options.top_p is not None:
            config.do_sample, config.top_p = True, options.top_p
        if options.top_k is not None:
            config.do_sample, config.top_k = True, options.top_k
        if options.temperature is not None:
            config.do_sample, config.temperature = True, options.temperature
        temperature = 1.0 if config.temperature is None else config.temperature
        if not config.do_sample or temperature < _GREEDY_BELOW:
            config.do_sample, config.temperature, config.top_p, config.top_k = False, 1.0, 1.0, 50
        if config.pad_token_id is None:
            config.pad_token_id = self._tokenizer.pad_token_id or 0
        return config

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _step(self) -> None:
        self.steps += 1
        self._leave_if_cancelled()

    def _leave_if_cancelled(self, *_: object) -> None:
        if self._cancelled.is_set():
            raise Cancelled


class _Reply(BaseStreamer):
    """Takes the tokens as ``generate`` finds them. Raising here ends it before its next step."""

    def __init__(
        self,
        on_step: Callable[[], None],
        text: Detokenizer,
        stops: StopStrings,
        show: Callable[[str], None],
    ) -> None:
        self.tokens = 0
        self.last_token: int | None = None
        self.stops = stops
        self._on_step = on_step
        self._text = text
        self._show = show
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # the first call brings the prompt
            self._prompt_seen = True
            return
        self._on_step()
        self.tokens += 1
        self.last_token = int(value)
        self._pass_on(self.stops.push(self._text.push(self.last_token)))
        if self.stops.met:
            raise _StopStringMet

    def end(self) -> None:
        self._pass_on(self.stops.push(self._text.flush()))
        self._pass_on(self.stops.flush())

    def _pass_on(self, text: str) -> None:
        if text:
            self._show(text)
