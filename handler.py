"""Inference Endpoints: the Hub's toolkit makes an `EndpointHandler` of a checkpoint and calls it with requests.

`python handler.py FOLDER` serves the same over HTTP by itself, for containers (`serve`); only that needs uvicorn and
prometheus-client.
"""

import argparse
import asyncio
import json
import logging
import math
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

try:
    from .calibration_ncpl import forecast_columns
    from .checkpoint_ncpl import head_is_zero, read_law, read_settings
    from .fields_ncpl import check_config, training_order
    from .text_ncpl import check_level, one_line, short
except ImportError:
    from calibration_ncpl import forecast_columns
    from checkpoint_ncpl import head_is_zero, read_law, read_settings
    from fields_ncpl import check_config, training_order
    from text_ncpl import check_level, one_line, short

BATCH_SIZE = 32
"""Configurations a forward pass."""
LEVEL = 0.9
"""Coverage of the intervals where a request names none."""
ACCEPTED = ("inputs", "parameters", "table", "options")
"""Keys of a request; `options` is meant for the Hub's router, which passes it on."""
MOST_CONFIGS = 256
"""Configurations in a request."""
MOST_FIELDS = 64
"""Fields of a configuration."""
MOST_TEXT = 200
"""Characters of a field's name or value."""
MOST_BYTES = 2**20
"""Bytes of a request's body."""
MOST_WAITING = 512
"""Requests that wait for their forecast; more are told to come again."""
MOST_CONNECTIONS = 2000
BODY_SECONDS, FORECAST_SECONDS, IDLE_SECONDS, HEAD_SECONDS, SHUTDOWN_SECONDS = 10.0, 30.0, 30, 60.0, 30
"""How long a body may take to arrive, a forecast to be made, a connection to be idle, a request's head to arrive, and
requests under way to be finished when the server stops."""

Forecast = Callable[[Sequence[Mapping[str, Any]], float | None], list[dict[str, float]]]
"""Checked configurations and the coverage of the intervals, where there are any -> a forecast for each."""
_log = logging.getLogger("ncpl.serving")


class EndpointHandler:
    """Forecasts for requests to an endpoint.

    Where the network has no effect (its head is zero), forecasts are the law's, without torch and transformers.

    Args:
        path: folder of a checkpoint.

    Raises:
        ValueError: the folder does not hold a whole checkpoint.
    """

    def __init__(self, path: str = "") -> None:
        try:
            self.strict = bool(read_settings(Path(path)).get("strict", True))
            self.forecast, self.calibrated = _law_forecast(Path(path)) or _network_forecast(str(path))
        except Exception as error:
            # A damaged file fails wherever the damage shows, in whatever library reads it.
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ValueError(f"{path}: the checkpoint cannot be loaded ({reason.strip()[:180]})") from error

    def __call__(self, data: Mapping[str, Any]) -> list[dict[str, float]] | list[float] | dict[str, float]:
        """Answers one request.

        Args:
            data: `inputs`, and perhaps `parameters` with `level`, the coverage of the intervals. `inputs` is a
                configuration (field -> value), a list of them, columns (field -> list of values), or
                `{"table": columns}`, which may also stand in the place of `inputs`. Values may be strings.

        Returns:
            As `pipeline("scaling-forecast")`: a dict for a configuration, a list of dicts for a list or columns. For a
            table a list of losses in nats per token, as the Hub's tabular regression asks for.

        Raises:
            ValueError: there are no inputs, they have another form, a configuration is not accepted, or a level is
                named where the checkpoint is not calibrated.
        """
        configs, level, form = self.read(data)
        forecasts = [forecast for batch in _batches(configs) for forecast in self.forecast(batch, level)]
        return form(_finite(forecasts))

    def read(self, data: Any) -> tuple[list[dict[str, Any]], float | None, Callable[[list[dict[str, float]]], Any]]:
        """A request's checked configurations, its level, and what makes the answer of their forecasts."""
        if not isinstance(data, Mapping):
            raise ValueError(f"request: got {type(data).__name__}, expected a JSON object with inputs")
        if unknown := sorted(one_line(name, 60) for name in set(data) - set(ACCEPTED)):
            raise ValueError(f"request: got {', '.join(unknown[:3])}, accepted: {', '.join(ACCEPTED)}")
        level = _level(data.get("parameters"), self.calibrated)
        inputs: Any = data["inputs"] if data.get("inputs") is not None else {"table": data.get("table")}
        form: Callable[[list[dict[str, float]]], Any] = list
        if isinstance(inputs, Mapping) and "table" in inputs:
            if not isinstance(inputs["table"], Mapping):
                raise ValueError("inputs: missing, expected a configuration, a list of them, columns, or a table")
            inputs, form = columns_to_records(inputs["table"]), _losses
        elif isinstance(inputs, Mapping) and any(isinstance(value, list) for value in inputs.values()):
            inputs = columns_to_records(inputs)
        elif isinstance(inputs, Mapping):
            inputs, form = [inputs], _only
        if not isinstance(inputs, list):
            raise ValueError(
                f"inputs: got {short(inputs)}, expected a configuration, a list of them, columns, or a table"
            )
        if not 0 < len(inputs) <= MOST_CONFIGS:
            what = "an empty batch" if not inputs else f"{len(inputs)} configurations"
            raise ValueError(f"inputs: got {what}, expected 1 to {MOST_CONFIGS} configurations")
        return [self._checked(config, i, form is not _only) for i, config in enumerate(inputs)], level, form

    def _checked(self, config: Any, index: int, several: bool) -> dict[str, Any]:
        try:
            _check_values(config)
            return training_order(check_config(config, self.strict))
        except ValueError as error:
            raise ValueError(f"configs[{index}]: {error}" if several else str(error)) from None


def columns_to_records(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Columns of equal length as a record a row; an empty cell (None or "") means that the field is absent.

    Raises:
        ValueError: a column that is no list, or columns of several lengths.

    >>> columns_to_records({"optimizer": ["adamw", "muon"], "warmup": [100, None]})
    [{'optimizer': 'adamw', 'warmup': 100}, {'optimizer': 'muon'}]
    """
    for name, values in columns.items():
        if not isinstance(values, list):
            raise ValueError(f"{one_line(name, 60)}: got {short(values)}, expected a list with a value for each row")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns: got lengths {short(lengths)}, expected equal ones")
    if len(columns) > MOST_FIELDS:
        raise ValueError(f"columns: got {len(columns)}, expected at most {MOST_FIELDS}")
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return [{name: value for name, value in row.items() if value not in (None, "")} for row in rows]


def _level(parameters: Any, calibrated: bool) -> float | None:
    """The coverage that a request asks for; None where the checkpoint has no intervals."""
    if parameters is not None and not isinstance(parameters, Mapping):
        raise ValueError(f"parameters: got {type(parameters).__name__}, expected a JSON object")
    unknown = sorted(one_line(name, 60) for name in set(parameters or {}) - {"level"})
    if unknown:
        raise ValueError(f"parameters: got {', '.join(unknown[:3])}, accepted: level")
    if parameters and "level" in parameters:
        return check_level(parameters["level"], calibrated)
    return LEVEL if calibrated else None


def _check_values(config: Any) -> None:
    """What JSON can hold and no configuration does; the fields themselves are `check_config`'s."""
    if not isinstance(config, Mapping):
        raise ValueError(f"got {short(config)}, expected a configuration (field -> value)")
    if len(config) > MOST_FIELDS:
        raise ValueError(f"got {len(config)} fields, expected at most {MOST_FIELDS}")
    for name, value in config.items():
        shown = one_line(name, 60)
        if len(str(name)) > MOST_TEXT:
            raise ValueError(f"{shown}: a name of {len(name)} characters, expected at most {MOST_TEXT}")
        if not isinstance(value, str | int | float | None):
            raise ValueError(f"{shown}: got {short(value)}, expected a number or a text")
        if isinstance(value, str) and len(value) > MOST_TEXT:
            raise ValueError(f"{shown}: got {len(value)} characters, expected at most {MOST_TEXT}")
        if isinstance(value, int) and value.bit_length() > 64:
            raise ValueError(f"{shown}: got a whole number of {value.bit_length()} bits, expected at most 64")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{shown}: got {value}, expected a finite number")


def _finite(forecasts: list[dict[str, float]]) -> list[dict[str, float]]:
    if not all(math.isfinite(forecast["loss"]) for forecast in forecasts):
        raise ArithmeticError("the checkpoint forecasts a loss that is not finite; its weights or its law are damaged")
    return forecasts


def _losses(forecasts: list[dict[str, float]]) -> list[float]:
    return [forecast["loss"] for forecast in forecasts]


def _only(forecasts: list[dict[str, float]]) -> dict[str, float]:
    return forecasts[0]


def _batches(configs: Sequence[Any]) -> list[Sequence[Any]]:
    return [configs[start : start + BATCH_SIZE] for start in range(0, len(configs), BATCH_SIZE)]


def _law_forecast(folder: Path) -> tuple[Forecast, bool] | None:
    """The law of a checkpoint whose network has no effect, and whether it is calibrated; None where it has one."""
    if not head_is_zero(folder):
        return None
    law, calibration = read_law(folder)

    def forecast(configs: Sequence[Mapping[str, Any]], level: float | None) -> list[dict[str, float]]:
        columns = forecast_columns(law, calibration, configs, level=level or LEVEL)
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    return forecast, calibration is not None


def _network_forecast(path: str) -> tuple[Forecast, bool]:
    from transformers import AutoModel, AutoProcessor
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    # Not by `pipeline`, which fills tensors that are missing with random numbers and says so in a log alone.
    model, info = AutoModel.from_pretrained(path, trust_remote_code=True, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{len(missing)} tensors are missing, the first {missing[0]!r}")
    made = get_class_from_dynamic_module("pipeline_ncpl.ScalingForecastPipeline", path)
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    pipe = made(model=model, processor=processor)
    calibrated = processor.calibrator is not None
    return lambda configs, level: pipe(list(configs), batch_size=BATCH_SIZE, level=level), calibrated


# Serving ------------------------------------------------------------------------------------------------------------


class Waiting:
    """Requests that wait for their forecasts: those that came while others were made are made together.

    Args:
        forecast: of an `EndpointHandler`.
    """

    def __init__(self, forecast: Forecast) -> None:
        self.forecast = forecast
        self.queue: deque[tuple[Sequence[Mapping[str, Any]], float | None, asyncio.Future]] = deque()
        self.came = asyncio.Event()
        # One: forecasts are one after the other, and the event loop keeps the second core.
        self.worker = ThreadPoolExecutor(1)

    async def __call__(self, configs: Sequence[Mapping[str, Any]], level: float | None) -> list[dict[str, float]]:
        answer: asyncio.Future = asyncio.get_running_loop().create_future()
        self.queue.append((configs, level, answer))
        self.came.set()
        return await answer

    async def run(self) -> None:
        """Makes forecasts until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self.came.wait()
            self.came.clear()
            while self.queue:
                together = self._next()
                configs = [config for wanted, _, _ in together for config in wanted]
                try:
                    made = []
                    for batch in _batches(configs):
                        made += await loop.run_in_executor(self.worker, self.forecast, batch, together[0][1])
                except Exception as error:
                    # Each of the requests is answered, and the next ones are served.
                    for _, _, answer in together:
                        if not answer.done():
                            answer.set_exception(error)
                    continue
                for wanted, _, answer in together:
                    own, made = made[: len(wanted)], made[len(wanted) :]
                    if not answer.done():
                        answer.set_result(own)

    def _next(self) -> list[tuple[Sequence[Mapping[str, Any]], float | None, asyncio.Future]]:
        """Requests of one level from the front of the queue, as many as fit a batch; at least one."""
        together = [self.queue.popleft()]
        count = len(together[0][0])
        while self.queue and self.queue[0][1] == together[0][1] and count + len(self.queue[0][0]) <= BATCH_SIZE:
            count += len(self.queue[0][0])
            together.append(self.queue.popleft())
        return together


class RefusedError(Exception):
    """A request that is answered with an error's status."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class App:
    """The ASGI application: `POST /` forecasts, `GET /health` lives, `/ready` can forecast, `/metrics` for Prometheus.

    Args:
        folder: of the checkpoint, which is loaded after the server has started.
    """

    def __init__(self, folder: str) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.folder = folder
        self.handler: EndpointHandler | None = None
        self.waiting: Waiting | None = None
        self.failed: Exception | None = None
        self.loaded = threading.Event()
        self.registry = CollectorRegistry()
        self.requests = Counter("ncpl_requests", "Requests, by status.", ["status"], registry=self.registry)
        self.forecasts = Counter("ncpl_forecasts", "Configurations forecast.", registry=self.registry)
        self.seconds = Histogram(
            "ncpl_request_seconds", "Time of a forecast request at the server.", registry=self.registry
        )
        self.under_way = Gauge("ncpl_requests_under_way", "Requests being answered.", registry=self.registry)

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
            return
        started = time.perf_counter()
        self.under_way.inc()
        headers: dict[str, str] = {}
        try:
            status, content = await self.route(scope, receive)
        except RefusedError as refusal:
            status, content, headers = refusal.status, {"error": one_line(refusal)}, refusal.headers
        except Exception:
            _log.exception("a request failed")
            status, content = 500, {"error": "an error in the server; its log has the details"}
        finally:
            self.under_way.dec()
        self.requests.labels(status).inc()
        if scope["path"] == "/":
            self.seconds.observe(time.perf_counter() - started)
        kind = "application/json"
        if isinstance(content, bytes):
            kind = "text/plain; version=0.0.4"
        else:
            content = json.dumps(content).encode()
        sent = {
            "content-type": kind,
            "content-length": str(len(content)),
            "x-content-type-options": "nosniff",
            **headers,
        }
        encoded = [(name.encode(), value.encode()) for name, value in sent.items()]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": content if scope["method"] != "HEAD" else b""})

    async def live(self, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        """From the server's start to its end; the checkpoint is loaded beside."""
        await receive()
        loop = asyncio.get_running_loop()
        work = loop.create_task(self.work())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        work.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def work(self) -> None:
        try:
            handler = await asyncio.get_running_loop().run_in_executor(None, EndpointHandler, self.folder)
        except Exception as error:
            # Whatever it was: the server ends, and says so.
            self.failed = error
            self.loaded.set()
            return
        self.waiting, self.handler = Waiting(handler.forecast), handler
        self.loaded.set()
        await self.waiting.run()

    async def route(self, scope: Any, receive: Callable[[], Awaitable[Any]]) -> tuple[int, Any]:
        path, method = scope["path"], scope["method"]
        if path not in ("/", "/health", "/ready", "/metrics"):
            raise RefusedError(404, "no such path, there are POST / and GET /health, /ready, /metrics")
        if method not in (("POST",) if path == "/" else ("GET", "HEAD")):
            allowed = "POST" if path == "/" else "GET, HEAD"
            raise RefusedError(405, f"{method} {path}: not served, accepted: {allowed}", allow=allowed)
        if path == "/health":
            return 200, {"status": "ok"}
        if path == "/metrics":
            from prometheus_client import generate_latest

            return 200, generate_latest(self.registry)
        if self.handler is None or self.waiting is None:
            raise RefusedError(503, "the checkpoint is being loaded", **{"retry-after": "1"})
        if len(self.waiting.queue) >= MOST_WAITING:
            raise RefusedError(503, f"{MOST_WAITING} requests are waiting, come again", **{"retry-after": "1"})
        if path == "/ready":
            return 200, {"status": "ready"}
        return 200, await self.answer(self.handler, self.waiting, await self.body(scope, receive))

    async def body(self, scope: Any, receive: Callable[[], Awaitable[Any]]) -> bytes:
        """The request's body, within its limits of size and time."""
        too_large = RefusedError(413, f"body: expected at most {MOST_BYTES} bytes", connection="close")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > MOST_BYTES:
            raise too_large
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RefusedError(400, "body: the connection was closed before its end")
                    parts.append(message.get("body", b""))
                    if sum(map(len, parts)) > MOST_BYTES:
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise RefusedError(408, f"body: not whole after {BODY_SECONDS:g} seconds", connection="close") from None

    async def answer(self, handler: EndpointHandler, waiting: Waiting, body: bytes) -> Any:
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            reason = "nested too deep" if isinstance(error, RecursionError) else error
            raise RefusedError(400, f"request: not JSON that can be read ({reason})") from None
        try:
            configs, level, form = handler.read(request)
        except ValueError as error:
            raise RefusedError(400, str(error)) from None
        try:
            forecasts = await asyncio.wait_for(waiting(configs, level), FORECAST_SECONDS)
        except TimeoutError:
            raise RefusedError(503, f"no forecast after {FORECAST_SECONDS:g} seconds", **{"retry-after": "1"}) from None
        except ValueError as error:
            raise RefusedError(400, str(error)) from None
        self.forecasts.inc(len(configs))
        return form(_finite(forecasts))


class Server:
    """A running server's socket and its end; `serve_forever` runs it.

    Args:
        app: what is served.
        host, port: to listen on; port 0 takes a free one.
    """

    def __init__(self, app: App, host: str, port: int) -> None:
        import uvicorn

        self.app = app
        self.socket = socket.create_server((host, port), backlog=2048)
        # Connections inherit it: an answer's head and body are two writes, the second must not wait for an ACK.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server_port = self.socket.getsockname()[1]
        self.uvicorn = uvicorn.Server(
            uvicorn.Config(
                app,
                http=_protocol(),
                ws="none",
                lifespan="on",
                access_log=False,
                log_level="warning",
                server_header=False,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def serve_forever(self) -> None:
        """Serves until SIGTERM, SIGINT or `shutdown`; requests under way are finished."""
        self.uvicorn.run(sockets=[self.socket])

    def shutdown(self) -> None:
        self.uvicorn.should_exit = True


def _protocol() -> type:
    """uvicorn's protocol, with a limit on how long a request's head may take to arrive."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.head = self.loop.call_later(HEAD_SECONDS, self.give_up)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.head.cancel()
            self.head = self.loop.call_later(HEAD_SECONDS, self.give_up)

        def connection_lost(self, exc: Exception | None) -> None:
            self.head.cancel()
            super().connection_lost(exc)

        def give_up(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Protocol


def serve(folder: str, port: int = 8080, host: str = "127.0.0.1") -> Server:
    """A server for one checkpoint, to be run with `serve_forever`.

    Args:
        folder: of the checkpoint.
        port: to listen on; 0 takes a free one.
        host: address to listen on; this machine alone hears the default.

    Raises:
        OSError: the port is taken.
    """
    return Server(App(folder), host, port)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves a checkpoint's forecasts over HTTP.")
    parser.add_argument("folder", help="of a checkpoint")
    parser.add_argument("port", nargs="?", type=int, default=8080)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    given = parser.parse_args()
    if not (Path(given.folder) / "config.json").is_file():
        sys.exit(f"handler.py: folder: no checkpoint at {given.folder[:200]!r}, expected a folder with config.json")
    try:
        server = serve(given.folder, given.port, given.host)
    except ModuleNotFoundError as error:
        sys.exit(f"handler.py: {error}; the server needs: pip install uvicorn prometheus-client")
    except (OSError, ImportError) as error:
        sys.exit(f"handler.py: {error}")

    def stop_if_failed() -> None:
        server.app.loaded.wait()
        if server.app.failed:
            server.shutdown()

    threading.Thread(target=stop_if_failed, daemon=True).start()
    print(f"serving {given.folder} on http://{given.host}:{server.server_port}", file=sys.stderr)
    server.serve_forever()
    if server.app.failed:
        sys.exit(f"handler.py: {one_line(server.app.failed)}")


if __name__ == "__main__":
    main()
