"""The app as `ncpl app` serves it, in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

ROOT = Path(__file__).parent.parent.parent
COMMAND = "import sys; sys.argv = ['ncpl', 'app', '--port', sys.argv[1]]; import ncpl_cli; ncpl_cli.main()"


class Server(NamedTuple):
    """Where the app answers, and the process that does."""

    address: str
    pid: int


@contextmanager
def served() -> Iterator[Server]:
    """Its address and process, as soon as it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    server = subprocess.Popen([sys.executable, "-c", COMMAND, str(port)], cwd=ROOT, env=environment)
    try:
        for _ in range(600):
            try:
                urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
                break
            except OSError:
                assert server.poll() is None, "the app has ended"
                time.sleep(0.2)
        yield Server(f"http://127.0.0.1:{port}/", server.pid)
    finally:
        server.terminate()
        server.wait(20)
