"""Run rung, or some Python, in a fork of a process that has imported torch already, which takes
seconds.

    python tests/forks.py serve NUMBER              # answers at the listening socket of this number
    python tests/forks.py ask SOCKET rung eval RUN  # does what `rung eval RUN` does
    python tests/forks.py ask SOCKET block.py       # does what `python block.py` does
    python tests/forks.py ask SOCKET -c CODE        # does what `python -c CODE` does

The server ends when its standard input is closed. A fork imports rung anew, and has the arguments,
the folder, the environment and the standard streams of the process that asks for it. A test asks
by `start_fork` and `run_fork`, the fixtures of conftest.py.
"""

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path


def request(path, arguments, folder, environment, streams):
    """Have the server run a command. Return the connection at which it tells its process number,
    and its exit code when it ends.
    """
    server = socket.socket(socket.AF_UNIX)
    server.connect(path)
    socket.send_fds(server, [b"."], streams)
    server.sendall(json.dumps([arguments, folder, environment]).encode())
    server.shutdown(socket.SHUT_WR)
    return server


def ask(path, arguments):
    """Have the server run a command, and return its exit code as a shell does."""
    with request(path, arguments, str(Path.cwd()), dict(os.environ), [0, 1, 2]) as server:
        code = int(server.makefile().read().split()[1])
        return code if code >= 0 else 128 - code


class Fork:
    """A command in a fork of the server, handled as a `subprocess.Popen` of text."""

    def __init__(self, path, arguments, cwd=None, env=None, stdin=None, stdout=None, stderr=None):
        ours, theirs = zip(
            *(_open_stream(n, kind) for n, kind in enumerate((stdin, stdout, stderr))), strict=True
        )
        environment = dict(os.environ if env is None else env)
        words = [str(word) for word in arguments]
        self._server = request(path, words, str(cwd or Path.cwd()), environment, theirs)
        for kind, stream in zip((stdin, stdout, stderr), theirs, strict=True):
            if kind in (subprocess.PIPE, subprocess.DEVNULL):
                os.close(stream)
        self.args, self.returncode = words, None
        self.stdin, self.stdout, self.stderr = ours
        self._lines = self._server.makefile()
        self.pid = int(self._lines.readline())

    def poll(self):
        """Return the exit code, or None while it runs."""
        if self.returncode is None and select.select([self._server], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout=None):
        """Return the exit code when it has ended."""
        if self.returncode is None:
            if not select.select([self._server], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._lines.readline())
            self._server.close()
        return self.returncode

    def send_signal(self, number):
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """End it at once."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, text=None):
        """Give it the text to read, and return what it wrote to each of its pipes."""
        found = {}
        readers = [
            threading.Thread(target=lambda s=s, n=n: found.update({n: s.read()}))
            for n, s in (("stdout", self.stdout), ("stderr", self.stderr))
            if s
        ]
        for reader in readers:
            reader.start()
        if self.stdin:
            with self.stdin:
                self.stdin.write(text or "")
        for reader in readers:
            reader.join()
        self.wait()
        return found.get("stdout"), found.get("stderr")


def _open_stream(number, kind):
    """Return our end of a standard stream, where there is one, and the descriptor for the fork."""
    if kind is None:
        return None, number
    if kind == subprocess.DEVNULL:
        return None, os.open(os.devnull, os.O_RDWR)
    if kind != subprocess.PIPE:
        return None, kind.fileno()
    read, write = os.pipe()
    options = {"encoding": "utf-8", "errors": "surrogateescape"}
    return (
        (os.fdopen(write, "w", **options), read)
        if number == 0
        else (
            os.fdopen(read, **options),
            write,
        )
    )


@contextlib.contextmanager
def start_server():
    """A server of this Python, ended in the end; gives the path of its socket."""
    with (
        tempfile.TemporaryDirectory(prefix="rung-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(f"{folder}/socket")
        listener.listen()
        command = [sys.executable, __file__, "serve", str(listener.fileno())]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()]
        ) as server:
            yield f"{folder}/socket"
            server.stdin.close()


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
        connection.sendall(f"{command}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
        connection.sendall(f"{code}\n".encode())
        os._exit(0)
    connection.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    encoding, _, errors = environment.get("PYTHONIOENCODING", "").partition(":")
    options = {"encoding": encoding or None, "errors": errors or None}
    sys.stdin, sys.stdout = os.fdopen(0, **options), os.fdopen(1, "w", **options)
    options["errors"] = "backslashreplace"
    sys.stderr = os.fdopen(2, "w", buffering=1, **options)
    for name in [name for name in sys.modules if name.split(".")[0] == "rung"]:
        del sys.modules[name]
    return arguments


def run(arguments):
    """Run the command in this process."""
    sys.argv, sys.path = arguments, sys.path[1:]  # without the folder of this file
    if arguments[0] == "-c":
        sys.argv, sys.path = ["-c", *arguments[2:]], ["", *sys.path]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    elif arguments[0] == "rung":
        runpy.run_module("rung", run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        run(serve(int(sys.argv[2])))
    else:
        sys.exit(ask(sys.argv[2], sys.argv[3:]))
