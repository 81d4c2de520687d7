"""Run rung, or a file of Python, in a fork of a process that has imported torch already, which
takes seconds.

    python tests/forks.py serve NUMBER              # answers at the listening socket of this number
    python tests/forks.py ask SOCKET rung eval RUN  # does what `rung eval RUN` does
    python tests/forks.py ask SOCKET block.py       # does what `python block.py` does

The server ends when its standard input is closed. A fork imports rung anew, and has the arguments,
the folder, the environment and the standard streams of the process that asks for it.
"""

import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path


def ask(path, arguments):
    """Have the server run a command, and return its exit code."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        socket.send_fds(server, [b"."], [0, 1, 2])
        server.sendall(json.dumps([arguments, str(Path.cwd()), dict(os.environ)]).encode())
        server.shutdown(socket.SHUT_WR)
        return int(server.makefile().read())


def serve(number):
    """Fork for every request. It is in the forks that this function returns, each with a command to
    run.
    """
    from rung.device import configure_threads

    configure_threads()  # before torch is imported, as the command does it
    import datasets  # noqa: F401
    import jaxtyping  # noqa: F401
    import torch  # noqa: F401
    import typer.rich_utils  # noqa: F401
    from transformers import GPT2LMHeadModel, LlamaForCausalLM, Trainer  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    listener = socket.socket(fileno=number)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            return answer(connection)
        connection.close()


def answer(connection):
    """Fork once more, and tell how the command ended. It is in the second fork that this function
    returns.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    arguments, folder, environment = json.load(connection.makefile())
    if command := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
        connection.sendall(str(code if code >= 0 else 128 - code).encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(0),
        os.fdopen(1, "w"),
        os.fdopen(2, "w", buffering=1),
    )
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return arguments


def run(arguments):
    """Run the command in this process."""
    sys.argv, sys.path = arguments, sys.path[1:]  # without the folder of this file
    if arguments[0] == "rung":
        runpy.run_module("rung", run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        run(serve(int(sys.argv[2])))
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
