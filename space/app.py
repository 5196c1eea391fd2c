"""The Space: a form, a forecast and a sweep. `python app.py` runs it locally.

Layout alone; what it shows comes from `ncpl.Forecaster`.
"""

from collections.abc import Callable

import gradio as gr
import pandas as pd
import yaml

from ncpl import Forecaster
from ncpl.hub.cards import EXAMPLES

FORECASTER = Forecaster.from_pretrained()
EXAMPLE = next(iter(EXAMPLES.values()))


def forecast(text: str, level: float) -> pd.DataFrame:
    """The forecast of a configuration written as `field: value` lines."""
    return shown(lambda config: FORECASTER.predict(config, level), text)


def sweep(text: str, field: str, values: str) -> pd.DataFrame:
    """The forecast at each of a field's values."""
    return shown(lambda config: FORECASTER.sweep(config, {field: yaml.safe_load(f"[{values}]")}), text)


def shown(answer: Callable[[dict], pd.DataFrame], text: str) -> pd.DataFrame:
    """What is wrong with a configuration is told in the page, as on the command line."""
    try:
        return answer(yaml.safe_load(text)).round(4)
    except (ValueError, yaml.YAMLError) as error:
        raise gr.Error(" ".join(str(error).split())) from error


with gr.Blocks(title="NCPL scaling forecasts") as app:
    gr.Markdown(
        "# What loss will this pretraining run give?\nLosses are nats per token on the source's own evaluation set."
    )
    config = gr.Textbox(yaml.safe_dump(EXAMPLE, sort_keys=False), lines=10, label="Configuration (field: value)")
    gr.Examples([[yaml.safe_dump(example, sort_keys=False)] for example in EXAMPLES.values()], [config])
    level = gr.Slider(0.5, 0.99, 0.9, label="Coverage of the interval")
    gr.Button("Forecast", variant="primary").click(forecast, [config, level], gr.Dataframe(label="Forecast"))
    with gr.Row():
        field = gr.Textbox("learning rate", label="Field to sweep")
        values = gr.Textbox("5.0e-4, 1.0e-3, 2.0e-3, 4.0e-3, 8.0e-3", label="Values")
    gr.Button("Sweep").click(sweep, [config, field, values], gr.Dataframe(label="Sweep"))

if __name__ == "__main__":
    app.launch()
