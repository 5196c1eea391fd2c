"""The Inference Endpoints handler: every shape of request, and the container's server by the Hub's own client."""

import json
import re
import subprocess
import sys
import threading
import tomllib
import urllib.error
import urllib.request

import huggingface_hub.constants
import pytest
from huggingface_hub import InferenceClient
from transformers import pipeline

from handler import EndpointHandler, serve
from ncpl.hub.bundle import ROOT, requirements
from tests.checkpoints import ADAMW, CONFIGS, save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    return str(folder)


@pytest.fixture(scope="module")
def endpoint(folder):
    return EndpointHandler(folder)


@pytest.fixture(scope="module")
def expected(folder):
    return pipeline("scaling-forecast", model=folder, trust_remote_code=True)(CONFIGS, batch_size=len(CONFIGS))


def columns(configs, cell=lambda value: value):
    names = dict.fromkeys(name for config in configs for name in config)
    return {name: [cell(config.get(name, "")) for config in configs] for name in names}


@pytest.mark.parametrize(
    "inputs", [CONFIGS, columns(CONFIGS), columns(CONFIGS, str)], ids=["records", "columns", "columns of strings"]
)
def test_records_and_columns(endpoint, expected, inputs):
    assert json.loads(json.dumps(endpoint({"inputs": inputs}))) == expected


def test_one_record_gives_one_forecast(endpoint, expected):
    assert endpoint({"inputs": ADAMW})["loss"] == pytest.approx(expected[0]["loss"], abs=1e-6)


@pytest.mark.parametrize("wrap", [lambda table: {"inputs": {"table": table}}, lambda table: {"table": table}])
def test_a_table_gives_losses_alone(endpoint, expected, wrap):
    assert endpoint(wrap(columns(CONFIGS, str))) == [result["loss"] for result in expected]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "inputs: missing"),
        ({"inputs": None}, "inputs: missing"),
        ({"inputs": "adamw"}, "inputs: got 'adamw', expected a configuration"),
        ({"inputs": []}, "empty batch"),
        ({"inputs": {**ADAMW, "learning rat": 1}}, "did you mean 'learning rate'"),
        ({"inputs": {"table": {"optimizer": "adamw"}}}, "optimizer: got 'adamw', expected a list"),
        ({"inputs": {"optimizer": ["adamw"], "source": ["marin", "marin"]}}, "columns: got lengths"),
        ({"inputs": ADAMW, "parameters": {"temperature": 1}}, "parameters: got temperature, accepted: level"),
        ({"inputs": ADAMW, "parameters": {"level": 0.5}}, "level: got 0.5, but this checkpoint has no calibration"),
        ([ADAMW], "request: got list"),
    ],
)
def test_bad_requests_are_named(endpoint, request_, message):
    with pytest.raises(ValueError, match=message):
        endpoint(request_)


def test_the_container_serves_the_hubs_client(folder, expected, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with serve(folder, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert server.app.loaded.wait(60)
        url = f"http://127.0.0.1:{server.server_port}"
        table = columns(CONFIGS, str)
        # The client sends both tabular tasks alike, but maps only this one to a server of one's own.
        losses = InferenceClient(base_url=url).tabular_classification(table)
        assert losses == [result["loss"] for result in expected]
        assert json.load(urllib.request.urlopen(f"{url}/health")) == {"status": "ok"}
        bad = urllib.request.Request(url, json.dumps({"inputs": {"optimizer": "adamw"}}).encode())
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(bad)
        assert refusal.value.code == 400
        assert "source: missing" in json.load(refusal.value)["error"]
        server.shutdown()


def test_the_container_installs_what_an_endpoint_does():
    """What the Dockerfile reads from `pyproject.toml`: a pushed requirements.txt, and the server's packages."""
    command = re.search(r'RUN python -c "(.+)" > requirements\.txt', (ROOT / "Dockerfile").read_text())
    assert command
    done = subprocess.run([sys.executable, "-c", command[1]], cwd=ROOT, capture_output=True, text=True, check=True)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(done.stdout.split()) == {*requirements().split(), *extras["serve"]}
