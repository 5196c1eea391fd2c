"""The server of `handler.py`: latency when idle, 100 clients at once, and the same beside clients that misbehave.

    python benchmarks/serving.py --seconds 600

The server runs in a process of its own with the default checkpoint, the clients here over keep-alive connections. The
misbehaving ones are 300 connections that send a byte a second, and 5 that send bodies over the limit again and again.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from common import ROOT, parser, report  # type: ignore[import-not-found]

CONFIG = {
    "source": "marin",
    "model size": 134.2,
    "data size": 2.7,
    "optimizer": "adamw",
    "learning rate": 2e-3,
    "batch size": 128,
}
CLIENTS, SLOW, OVERSIZE = 100, 300, 5


def request(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


REQUEST = request(json.dumps({"inputs": CONFIG}).encode())


class Load:
    """What clients have seen: seconds of each request, statuses, and connections that were cut."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.statuses: Counter[str] = Counter()

    async def client(self, port: int, until: float, pause: float) -> None:
        # Clients with a pause come at any time of it: all at once, the first hundred requests would be one queue.
        await asyncio.sleep(pause * 2 * random.random())
        while time.perf_counter() < until:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                while time.perf_counter() < until:
                    start = time.perf_counter()
                    writer.write(REQUEST)
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                    await reader.readexactly(int(length.split(b":")[1]))
                    self.seconds.append(time.perf_counter() - start)
                    self.statuses[head[9:12].decode()] += 1
                    if pause:
                        await asyncio.sleep(pause * 2 * random.random())
                writer.close()
            except (OSError, asyncio.IncompleteReadError) as error:
                self.statuses[type(error).__name__] += 1

    def summary(self, elapsed: float) -> dict[str, Any]:
        ordered = sorted(self.seconds)
        return {
            "requests": len(ordered),
            "per_second": len(ordered) / elapsed,
            "median_ms": statistics.median(ordered) * 1000,
            "p99_ms": ordered[int(0.99 * (len(ordered) - 1))] * 1000,
            "max_ms": ordered[-1] * 1000,
            "statuses": dict(self.statuses),
        }


async def slow(port: int, until: float) -> None:
    """A connection that never finishes its request; opened again when the server gives it up."""
    while time.perf_counter() < until:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
            while time.perf_counter() < until:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(1)
            writer.close()
        except OSError:
            await asyncio.sleep(0.1)


async def oversize(port: int, until: float, refused: Counter[str]) -> None:
    while time.perf_counter() < until:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000000\r\n\r\n" + b"x" * 2**16)
            refused[(await reader.read(12))[9:12].decode()] += 1
            writer.close()
        except OSError:
            refused["reset"] += 1
        await asyncio.sleep(0.2)


async def measure(
    port: int, clients: int, seconds: float, misbehaving: bool = False, pause: float = 0.0
) -> dict[str, Any]:
    load, refused = Load(), Counter[str]()
    start = time.perf_counter()
    until = start + seconds
    work = [load.client(port, until, pause) for _ in range(clients)]
    if misbehaving:
        work += [slow(port, until) for _ in range(SLOW)] + [oversize(port, until, refused) for _ in range(OVERSIZE)]
    await asyncio.gather(*work)
    found = load.summary(time.perf_counter() - start)
    return {**found, "oversize": dict(refused)} if misbehaving else found


def memory_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_server(folder: Path) -> tuple[subprocess.Popen, int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "handler.py"), str(folder), str(port)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    for _ in range(600):
        time.sleep(0.1)
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as probe:
                probe.sendall(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                if probe.recv(12).endswith(b"200"):
                    return process, port
        except OSError:
            continue
    sys.exit("the server does not become ready")


def run(options: argparse.Namespace) -> dict[str, Any]:
    process, port = start_server(options.model)
    # The first answers to so many clients take a second or two.
    unpaced = max(options.seconds / 5, 3.0)
    try:
        asyncio.run(measure(port, 1, 2))
        used = cpu_seconds(process.pid)
        figures: dict[str, Any] = {"idle": asyncio.run(measure(port, 1, 5))}
        figures["idle_cpu_ms"] = (cpu_seconds(process.pid) - used) / figures["idle"]["requests"] * 1000
        figures["memory_mib"] = {"before": memory_mib(process.pid)}
        figures["paced"] = asyncio.run(measure(port, CLIENTS, options.seconds, pause=1.0))
        figures["busy"] = asyncio.run(measure(port, CLIENTS, unpaced))
        figures["memory_mib"]["after"] = memory_mib(process.pid)
        figures["beside"] = asyncio.run(measure(port, CLIENTS, unpaced, misbehaving=True))
        figures["memory_mib"]["end"] = memory_mib(process.pid)
    finally:
        process.terminate()
    return {**figures, "server_exit": process.wait(60)}


def main() -> None:
    arguments = parser(__doc__ or "", "serving")
    arguments.add_argument("--seconds", type=float, default=60, help="of load by 100 clients")
    arguments.add_argument("--model", type=Path, default=ROOT / "ncpl" / "checkpoints" / "ncpl-mini")
    options = arguments.parse_args()
    found = run(options)
    idle, busy, beside, memory = found["idle"], found["busy"], found["beside"], found["memory_mib"]

    def wrong(cell: dict[str, Any]) -> int:
        return sum(count for status, count in cell["statuses"].items() if status != "200")

    paced = found["paced"]
    over_idle = paced["p99_ms"] / idle["median_ms"]
    rows = [
        {"figure": "a forecast when idle, ms (median)", "ours": idle["median_ms"], "target": "<= 20"},
        {"figure": "a forecast when idle, ms of the server's processor time", "ours": found["idle_cpu_ms"]},
        {"figure": "100 clients without a pause, requests per second", "ours": busy["per_second"], "target": ">= 200"},
        {"figure": "100 clients, errors and resets", "ours": wrong(busy) + wrong(paced), "target": "0"},
        {
            "figure": "100 clients with a request a second each, p99 over the idle median",
            "ours": over_idle,
            "target": "<= 10",
        },
        # By Little's law the mean of clients that never pause is 100 over the requests a second, whatever the server.
        {"figure": "100 clients without a pause, p99 over the idle median", "ours": busy["p99_ms"] / idle["median_ms"]},
        {"figure": "beside misbehaving clients, errors and resets", "ours": wrong(beside), "target": "0"},
        {"figure": "beside misbehaving clients, requests per second", "ours": beside["per_second"]},
        {"figure": "memory of the server, growth in MiB", "ours": memory["end"] - memory["before"], "target": "flat"},
    ]
    # A busy machine answers late: how many processes wanted a core at the end, this benchmark's two among them.
    about = f"{options.seconds:g} seconds of 100 clients with pauses, a fifth of it without and beside misbehaving ones"
    about += f"; load average {os.getloadavg()[0]:.0f} at the end, niceness {os.nice(0)}"
    report(options.output, [options.seed], rows, data=about, seconds=options.seconds, **found)


if __name__ == "__main__":
    main()
