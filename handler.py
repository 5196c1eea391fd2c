"""Inference Endpoints: the Hub's toolkit makes an `EndpointHandler` of a checkpoint and calls it with requests.

`python handler.py FOLDER [PORT]` serves the same over HTTP by itself, for containers.
"""

import json
import sys
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from transformers import pipeline

BATCH_SIZE = 32
"""Configurations a forward pass."""


class EndpointHandler:
    """Forecasts for requests to an endpoint.

    Args:
        path: folder of a checkpoint.
    """

    def __init__(self, path: str = "") -> None:
        self.forecast = pipeline("scaling-forecast", model=str(path), trust_remote_code=True)

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
            ValueError: there are no inputs, they have another form, or a configuration is not accepted.
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"request: got {type(data).__name__}, expected a JSON object with inputs")
        inputs: Any = data["inputs"] if data.get("inputs") is not None else {"table": data.get("table")}
        parameters = data.get("parameters") or {}
        unknown = sorted(set(parameters) - {"level"})
        if unknown:
            raise ValueError(f"parameters: got {', '.join(unknown)}, accepted: level")
        if isinstance(inputs, Mapping) and "table" in inputs:
            if not isinstance(inputs["table"], Mapping):
                raise ValueError("inputs: missing, expected a configuration, a list of them, columns, or a table")
            records = columns_to_records(inputs["table"])
            return [result["loss"] for result in self.forecast(records, batch_size=BATCH_SIZE, **parameters)]
        if isinstance(inputs, Mapping) and any(isinstance(value, list) for value in inputs.values()):
            inputs = columns_to_records(inputs)
        if not isinstance(inputs, Mapping | list):
            raise ValueError(f"inputs: got {inputs!r}, expected a configuration, a list of them, columns, or a table")
        return self.forecast(inputs, batch_size=BATCH_SIZE, **parameters)


def columns_to_records(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Columns of equal length as a record a row; an empty cell (None or "") means that the field is absent.

    Raises:
        ValueError: a column that is no list, or columns of several lengths.

    >>> columns_to_records({"optimizer": ["adamw", "muon"], "warmup": [100, None]})
    [{'optimizer': 'adamw', 'warmup': 100}, {'optimizer': 'muon'}]
    """
    for name, values in columns.items():
        if not isinstance(values, list):
            raise ValueError(f"{name}: got {values!r}, expected a list with a value for each row")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns: got lengths {lengths}, expected equal ones")
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return [{name: value for name, value in row.items() if value not in (None, "")} for row in rows]


def serve(folder: str, port: int = 8080) -> ThreadingHTTPServer:
    """A server for one checkpoint, to be run with `serve_forever`: POST / answers requests, GET /health says ok.

    Args:
        folder: of the checkpoint.
        port: to listen on; 0 takes a free one.
    """
    handler = EndpointHandler(folder)

    class Requests(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(200 if self.path == "/health" else 404, {"status": "ok"} if self.path == "/health" else {})

        def do_POST(self) -> None:
            try:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.answer(200, handler(json.loads(body)))
            except ValueError as error:
                self.answer(400, {"error": str(error)})

        def answer(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer(("", port), Requests)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8080).serve_forever()
