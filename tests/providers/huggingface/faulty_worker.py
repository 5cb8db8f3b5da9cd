"""A worker that does one thing wrong: ``python faulty_worker.py FAULT SOCKET``. It tells its pid first."""

import os
import signal
import socket
import sys

from providers.huggingface.protocol import VERSION, Converting, Hello, Loaded, Loading, encode, read


def main(fault: str, path: str) -> None:
    if fault == "exits":
        sys.exit("it has no torch")
    if fault == "never-ends":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    if fault == "garbage":
        connection.sendall(b"\0\0\0\3abc")
    elif fault == "huge":
        connection.sendall(b"\xff\xff\xff\xff")
    else:
        connection.sendall(encode(Hello(VERSION + (fault == "version"), os.getpid())))
    with connection.makefile("rb") as stream:
        read(stream)  # Load
        connection.sendall(encode(Loading(str(os.getpid()))))
        match fault:
            case "converts":
                for step in range(40):
                    connection.sendall(encode(Converting(f"step {step}", step / 40)))
                    signal.sigtimedwait([], 0.02)
                connection.sendall(encode(Loaded("cpu", "float32", 64)))
            case "mute":
                connection.sendall(encode(Loaded("cpu", "float32", 64)))
            case "speaks-out-of-turn":
                connection.sendall(encode(Loaded("cpu", "float32", 64)))
                connection.sendall(encode(Loaded("cpu", "float32", 64)))
        while read(stream) is not None:
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])
