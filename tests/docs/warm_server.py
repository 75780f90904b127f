"""Runs `mmllm ...` and `python FILE` without importing everything anew: a process that has the imports done, and forks.

`serve SOCKET` waits for commands; `client SOCKET NAME ARGUMENTS...` has one run with its own folder, environment, input
and output, and ends with its exit code. A shell script finds clients under the names `mmllm` and `python`.
"""

import json
import os
import socket
import sys
import tempfile
import traceback

IMPORTS = (
    "matplotlib.figure",
    "mmllm.cli",
    "mmllm.commands.ask",
    "mmllm.commands.evaluate",
    "mmllm.commands.tokens",
    "mmllm.evaluation.pictures",
    "mmllm.inference.answering",
    "mmllm.inference.plotting",
    "mmllm.train.run",
    "rich.console",
    "rich.table",
    "tyro",
)


def serve(address: str) -> None:
    """Imports, then forks for every command until it is ended."""
    import importlib
    import signal

    for module in IMPORTS:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children: their codes come by the socket
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        while True:
            connection, _ = listening.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listening.close()
                _run(connection)
            connection.close()


def _run(connection: socket.socket) -> None:
    """Runs one command in this process and ends it."""
    message, descriptors, _, _ = socket.recv_fds(connection, 4096, 3)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    with open(message.decode()) as file:
        command = json.load(file)
    os.environ.clear()
    os.environ.update(command["environment"])
    os.chdir(command["folder"])
    sys.argv = command["arguments"]
    code = 0
    try:
        if command["arguments"][0] == "mmllm":
            from mmllm.cli import main

            main()
        else:
            import runpy

            sys.argv = sys.argv[1:]
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    connection.sendall(bytes([code]))
    os._exit(code)


def client(address: str, arguments: list[str]) -> int:
    """Has the server run a command; returns its exit code, 70 if it died without one."""
    command = {"folder": os.getcwd(), "environment": dict(os.environ), "arguments": arguments}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file, socket.socket(socket.AF_UNIX) as connection:
        json.dump(command, file)
        file.flush()
        connection.connect(address)
        socket.send_fds(connection, [file.name.encode()], [0, 1, 2])
        return (connection.recv(1) or b"\x46")[0]


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    sys.exit(client(sys.argv[2], sys.argv[3:]))
