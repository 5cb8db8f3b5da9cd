"""Models of a few kilobytes: one that says a given text whatever it is asked, one that says random bytes."""

import tempfile
from itertools import pairwise
from pathlib import Path

import torch
from gguf import MODEL_ARCH, GGUFWriter, get_tensor_name_map
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}>{% endif %}"
)
_END = "<end>"


def write_reciter(folder: Path, text: str, *, template: str | None = TEMPLATE, window: int = 256) -> Path:
    """Says ``text`` and ends; each of its bytes may be there once, but for the last: a text that ends as it
    began goes on for ever. One token is one byte."""
    tokenizer = byte_tokenizer(template)
    size = len(tokenizer)
    model = LlamaForCausalLM(_config(size, window, hidden_size=-(-size // 4) * 4))
    said = tokenizer(text, add_special_tokens=False).input_ids
    end = tokenizer.convert_tokens_to_ids(_END)
    follows = dict(pairwise([*said, *([] if said[0] == said[-1] and len(said) > 1 else [end])]))
    for start in tokenizer(">:", add_special_tokens=False).input_ids:
        follows.setdefault(start, said[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(size, model.config.hidden_size))
        for token in range(size):
            model.lm_head.weight[follows.get(token, end), token] = 1
    return _save(folder, model, tokenizer)


def write_babbler(folder: Path, *, window: int = 256, intermediate_size: int = 16) -> Path:
    """Says what random weights say: any bytes, broken characters among them. A prompt needs 4 bytes of
    memory for each of its tokens times ``intermediate_size``, and more than once."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer(TEMPLATE)
    config = _config(len(tokenizer), window, hidden_size=32, intermediate_size=intermediate_size)
    return _save(folder, LlamaForCausalLM(config), tokenizer)


def write_gguf_reciter(path: Path, text: str) -> Path:
    """The same as a GGUF file, in float32."""
    with tempfile.TemporaryDirectory() as folder:
        write_reciter(Path(folder), text)
        model = LlamaForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    config, weights = model.config, model.state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == _END else 1 for token in tokens])
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_eos_token_id(tokens.index(_END))
    writer.add_pad_token_id(tokens.index(_END))
    writer.add_chat_template(TEMPLATE)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in weights.items():
        gguf_name = names.get_name(name, try_suffixes=(".weight",))
        if gguf_name is None:
            raise KeyError(name)
        writer.add_tensor(gguf_name, weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """One token is one byte, but for two spaces."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠĠ"]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "Ġ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token=_END, pad_token=_END
    )
    fast.chat_template = template
    return fast


def _config(vocabulary: int, window: int, hidden_size: int, intermediate_size: int = 16) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=window,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def _save(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
