"""The server of `handler.py` over real sockets: limits, errors with the field's name, and clients that misbehave."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import handler
from handler import EndpointHandler, serve
from ncpl.hub.bundle import ROOT
from tests.checkpoints import ADAMW
from tests.work import calls

MINI = ROOT / "ncpl" / "checkpoints" / "ncpl-mini"


@pytest.fixture(scope="module")
def called():
    """Calls of functions in the server's threads and here, from before the server starts."""
    with calls() as made:
        yield made


@pytest.fixture(scope="module")
def server(called):
    with serve(str(MINI), port=0) as server:
        running = threading.Thread(target=server.serve_forever, daemon=True)
        running.start()
        assert server.app.loaded.wait(60)
        assert not server.app.failed
        time.sleep(0.1)
        yield server
        server.shutdown()
        running.join(20)
        assert not running.is_alive()


def ask(server, body, method="POST", path="/", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if content[:1] in b"[{" else content
    finally:
        connection.close()


def forecast(server, inputs, **parameters):
    return ask(server, json.dumps({"inputs": inputs, "parameters": parameters}))


def test_one_address_that_this_machine_alone_hears(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"


def test_health_readiness_and_metrics_are_apart(server):
    assert ask(server, None, "GET", "/health") == (200, {"status": "ok"})
    assert ask(server, None, "GET", "/ready") == (200, {"status": "ready"})
    forecast(server, ADAMW)
    status, text = ask(server, None, "GET", "/metrics")
    assert status == 200
    assert b'ncpl_requests_total{status="200"}' in text
    assert b"ncpl_request_seconds_bucket" in text


def test_a_server_lives_before_it_is_ready(monkeypatch):
    loading = threading.Event()
    real = EndpointHandler.__init__
    monkeypatch.setattr(EndpointHandler, "__init__", lambda self, path: (loading.wait(30), real(self, path))[1])
    with serve(str(MINI), port=0) as server:
        running = threading.Thread(target=server.serve_forever, daemon=True)
        running.start()
        assert ask(server, None, "GET", "/health")[0] == 200
        assert ask(server, None, "GET", "/ready") == (503, {"error": "the checkpoint is being loaded"})
        assert forecast(server, ADAMW)[0] == 503
        loading.set()
        assert server.app.loaded.wait(60)
        server.shutdown()
        running.join(20)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 405),
        ("POST", "/health", 405),
        ("POST", "/x", 404),
        ("GET", "/../etc/passwd", 404),
        ("PUT", "/", 405),
    ],
)
def test_only_its_own_paths_are_served(server, method, path, status):
    assert ask(server, b"{}" if method != "GET" else None, method, path)[0] == status


# Of functions, client and server together; the dearest refusal here takes 6,000.
MOST_CALLS = 100_000
BAD = {
    "no JSON": (b"{", "request: not JSON"),
    "deep": (b"[" * 100_000, "request: not JSON"),
    "no text": (b"\xff\xfe\x00", "request: not JSON"),
    "digits": (b'{"inputs": {"learning rate": ' + b"9" * 5000 + b"}}", "request: not JSON"),
    "list": (b"[]", "request: got list"),
    "level text": ({"inputs": ADAMW, "parameters": {"level": "high"}}, "level: got 'high'"),
    "level list": ({"inputs": ADAMW, "parameters": {"level": [0.9]}}, "level: got [0.9]"),
    "level true": ({"inputs": ADAMW, "parameters": {"level": True}}, "level: got True"),
    "level": ({"inputs": ADAMW, "parameters": {"level": 2}}, "level: got 2, expected a coverage"),
    "parameters": ({"inputs": ADAMW, "parameters": [1]}, "parameters: got list"),
    "NaN": (json.dumps({"inputs": {**ADAMW, "learning rate": float("nan")}}).encode(), "learning rate: got nan"),
    "huge": ({"inputs": {**ADAMW, "batch size": 10**400}}, "batch size: got a whole number of 1329 bits"),
    "nested": ({"inputs": {**ADAMW, "optimizer": {"a": 1}}}, "optimizer: got {'a': 1}"),
    "long text": ({"inputs": {**ADAMW, "optimizer": "a" * 16_000}}, "optimizer: got 16000 characters"),
    "long name": ({"inputs": {**ADAMW, "a" * 16_000: 1}}, "a name of 16000 characters"),
    "fields": ({"inputs": {**ADAMW, **{f"field {i}": i for i in range(100)}}}, "got 106 fields"),
    "number": ({"inputs": 3}, "inputs: got 3"),
    "batch": ({"inputs": [ADAMW] * 300}, "inputs: got 300 configurations"),
    "second": ({"inputs": [ADAMW, {**ADAMW, "learning rat": 1}]}, "configs[1]: "),
    "missing": ({"inputs": {"optimizer": "adamw"}}, "source: missing"),
    "control": ({"inputs": {**ADAMW, "source\n\x1b[31m": 1}}, "source"),
}


@pytest.mark.parametrize(("body", "message"), BAD.values(), ids=BAD.keys())
def test_bad_requests_are_400_with_the_fields_name(server, called, body, message):
    before = called.count
    status, answer = ask(server, body if isinstance(body, bytes) else json.dumps(body))
    spent = called.count - before
    assert status == 400
    assert message in answer["error"]
    assert len(answer["error"]) < 300
    assert answer["error"].isprintable()
    assert spent < MOST_CALLS
    assert forecast(server, ADAMW)[0] == 200


def test_large_bodies_are_refused_unread(server):
    big = handler.MOST_BYTES + 1
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {2 * 10**9}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (2**16, b"x" * 2**16)
        for _ in range(big // 2**16 + 1):
            connection.sendall(chunk)
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("length", ["abc", "-1", "9" * 400, "1, 2"])
def test_a_bad_length_ends_the_connection_with_400(server, length):
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{{}}".encode())
        answer = connection.recv(100)
        assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413"))


def test_chunked_requests_keep_their_connection_in_step(server):
    body = json.dumps({"inputs": ADAMW}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    losses = []
    for _ in range(3):
        connection.request("POST", "/", iter([body[:20], body[20:]]), encode_chunked=True)
        answer = connection.getresponse()
        losses.append(json.loads(answer.read())["loss"])
    connection.close()
    assert len(set(losses)) == 1


def test_slow_clients_do_not_hold_the_others(server, monkeypatch):
    """300 connections that send a byte now and then, and 20 clients that are served meanwhile."""
    slow = [socket.create_connection(("127.0.0.1", server.server_port), timeout=10) for _ in range(300)]
    try:
        for i, connection in enumerate(slow):
            connection.sendall(
                b"POST / HTTP/1.1\r\nHost: x\r\n" + (b"Content-Length: 100\r\n\r\n{" if i % 2 else b"X: ")
            )
        with ThreadPoolExecutor(20) as clients:
            answers = list(clients.map(lambda _: forecast(server, ADAMW), range(100)))
        assert {status for status, _ in answers} == {200}
        losses = [answer["loss"] for _, answer in answers]
        assert max(losses) - min(losses) < 1e-12
    finally:
        for connection in slow:
            connection.close()


def test_a_body_that_never_ends_is_given_up(server, monkeypatch):
    monkeypatch.setattr(handler, "BODY_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_a_head_that_never_ends_is_given_up(server, monkeypatch):
    monkeypatch.setattr(handler, "HEAD_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nX: ")
        assert connection.recv(100) == b""


def test_more_requests_than_may_wait_are_told_to_come_again(server, monkeypatch):
    monkeypatch.setattr(handler, "MOST_WAITING", 0)
    assert forecast(server, ADAMW)[0] == 503
    assert ask(server, None, "GET", "/ready")[0] == 503
    assert ask(server, None, "GET", "/health")[0] == 200


def test_requests_forecast_together_give_what_each_gives_alone(server):
    """Many at once, of several levels, some of them wrong: each gets its own answer."""
    endpoint = EndpointHandler(str(MINI))
    inputs = [{**ADAMW, "learning rate": 1e-3 * (1 + i / 40)} for i in range(40)]
    levels = [0.8 if i % 3 else 0.9 for i in range(40)]
    wrong = {7, 23}
    wanted = [
        endpoint({"inputs": config, "parameters": {"level": level}})
        for config, level in zip(inputs, levels, strict=True)
    ]

    def one(i):
        return forecast(server, {**inputs[i], "sauce": 1} if i in wrong else inputs[i], level=levels[i])

    with ThreadPoolExecutor(40) as clients:
        got = list(clients.map(one, range(40)))
    for i, (status, answer) in enumerate(got):
        assert status == (400 if i in wrong else 200)
        if i not in wrong:
            assert answer == pytest.approx(wanted[i], abs=1e-12)


def test_an_error_in_a_forecast_is_a_500_and_no_end(server, monkeypatch, caplog):
    def fail(configs, level):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(server.app.waiting, "forecast", fail)
    status, answer = forecast(server, ADAMW)
    assert (status, answer) == (500, {"error": "an error in the server; its log has the details"})
    monkeypatch.undo()
    assert forecast(server, ADAMW)[0] == 200


WITHOUT_TORCH = """
import json, sys
from handler import EndpointHandler
forecast = EndpointHandler(sys.argv[1])({"inputs": json.loads(sys.argv[2])})
heavy = {"torch", "transformers", "uvicorn", "prometheus_client", "starlette"} & set(sys.modules)
print(json.dumps([forecast, sorted(heavy)]))
"""


def test_a_network_without_effect_is_served_without_torch():
    from ncpl import Forecaster

    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(MINI), json.dumps(ADAMW)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    got, heavy = json.loads(done.stdout)
    assert not heavy
    assert got == pytest.approx(Forecaster.from_pretrained().predict(ADAMW).iloc[0].to_dict(), abs=1e-9)


def start(*arguments: str | Path) -> subprocess.Popen:
    command = [sys.executable, ROOT / "handler.py", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def test_sigterm_finishes_requests_under_way(tmp_path):
    with start(MINI, "0") as process:
        assert process.stderr
        line = process.stderr.readline()
        port = int(line.rpartition(":")[2])
        body = json.dumps({"inputs": ADAMW}).encode()
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as probe:
                    probe.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    if probe.recv(100).startswith(b"HTTP/1.1 200"):
                        break
            except OSError:
                pass
            time.sleep(0.1)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            head = f"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            connection.sendall(head + body[:10])
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            connection.sendall(body[10:])
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert process.wait(20) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("wrong", ["no folder", "port"])
def test_what_does_not_start_is_one_line(tmp_path, server, wrong):
    arguments = (tmp_path / "nothing", "0") if wrong == "no folder" else (MINI, str(server.server_port))
    with start(*arguments) as process:
        assert process.stderr
        assert process.wait(60) == 1
        last = process.stderr.read().strip().splitlines()[-1]
    assert last.startswith("handler.py: ")
    assert len(last) < 320
