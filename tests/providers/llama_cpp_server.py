"""llama.cpp's own server, run as a process: arguments are a model's file, its alias, a window and a key."""

import signal
import sys

import xllamacpp


def main(model: str, alias: str, window: str, key: str) -> None:
    """Print the server's URL once it answers, then serve until killed."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {alias}
    params.n_ctx = int(window)
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [key]
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
