"""Plain transformers ``generate``: a question per line of standard input, its timing per line of output."""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.generation.streamers import BaseStreamer


class Stopwatch(BaseStreamer):  # type: ignore[misc, no-any-unimported]
    """Notes when each token came. The first call brings the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def main() -> None:
    folder, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    print("ready", model.dtype, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        started = time.perf_counter()
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question["prompt"]}],
            add_generation_prompt=True, return_tensors="pt", return_dict=True,
        )  # fmt: skip
        watch = Stopwatch()
        model.generate(**inputs, streamer=watch, do_sample=False, max_new_tokens=question["tokens"])
        _, first, *rest = watch.times
        answer = {
            "first_token_ms": (first - started) * 1000,
            "tokens_per_second": len(rest) / (rest[-1] - first),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
