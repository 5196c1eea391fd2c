"""The app."""

import importlib.util
import runpy
from typing import Annotated

import typer

from ncpl.commands.shared import app


@app.command("app")
def serve(
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 7860,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
) -> None:
    """Serve the app to browsers.

    It shows forecasts, curves, sweeps, plans and scores with figures.

    \b
    Example:
      ncpl app --port 7860
    """
    from ncpl.resources import root_file

    if importlib.util.find_spec("gradio") is None:
        raise ValueError("app: needs gradio, install it with: pip install ncpl[space]")
    space = runpy.run_path(str(root_file("space/app.py")))
    try:
        space["launch"](server_name=host, server_port=port)
    except OSError as error:
        raise ValueError(f"app: cannot listen at {host}:{port} ({error})") from None
