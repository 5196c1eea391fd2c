"""The app: a form, and a tab for each question. `ncpl app` runs it, and so does `python app.py` in a Space.

Layout alone; what it shows comes from `ncpl.views`.
"""

import os
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

# Several people ask at a time: a thread for each does more than threads that share one answer's small matrices.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gradio as gr

from fields_ncpl import FIELDS
from ncpl import Forecaster, views
from ncpl.drawing import label
from ncpl.views.inputs import FORM, INPUTS, MORE, OPTIONS, PRESETS, form_help, from_query
from ncpl.views.planning import BUDGETS

FORECASTER = Forecaster.from_pretrained()
TITLE = "NCPL scaling forecasts"
# Gradio keeps what every session saw last, a quarter of a MiB: 10,000 of them unless told. The oldest go first.
SESSIONS = 200
CSS = """
.ncpl-headline { font-size: 1.25rem; margin: 0.25rem 0 0.5rem; }
.ncpl-answer strong { font-weight: 700; }
.ncpl-answer figure { margin: 0.5rem 0; }
.ncpl-answer svg { width: 100%; height: auto; max-width: 42rem; }
.ncpl-notes { border-left: 4px solid #b35900; padding: 0.25rem 0 0.25rem 1.75rem; margin: 0.5rem 0; list-style: disc; }
.ncpl-error { border-left: 4px solid #c00000; padding: 0.5rem 0.75rem; font-weight: 600; }
.ncpl-table { overflow-x: auto; max-height: 24rem; }
.ncpl-table table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.ncpl-table th, .ncpl-table td { padding: 0.25rem 0.6rem; text-align: left; border-bottom: 1px solid #88888855; }
.ncpl-answer dt { font-weight: 600; } .ncpl-answer dd { margin: 0 0 0.4rem 1rem; }
.ncpl-answer pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: 0.5rem; }
.ncpl-answer summary { cursor: pointer; padding: 0.4rem 0; font-weight: 600; }
.ncpl-link { color: #1e40af; text-decoration: underline; }
.ncpl-link { margin-right: 1rem; display: inline-block; padding: 0.25rem 0; }
.dark .ncpl-link { color: #bfdbfe; }
.dark { --ncpl-main: #56B4E9; }
"""
# Keeps the page's address up to date, in a Space's frame too.
ADDRESS = """(query) => {
    history.replaceState(null, "", "?" + query);
    if (window.parent !== window) window.parent.postMessage({ queryString: query }, "https://huggingface.co");
}"""

Made = dict[str, Any]


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as app:
        gr.Markdown(
            "# What loss will this pretraining run give?\n"
            "Forecasts before the run, in nats per token on the source's own evaluation set."
        )
        made: Made = {}
        lab = gr.State(None, time_to_live=4 * 3600)
        query, opened = gr.Textbox(visible="hidden", elem_id="query"), {}
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                read = _form(made)
            with gr.Column(scale=3, min_width=320), gr.Tabs(overflow_behavior="wrap") as tabs:
                for title, tab, controls in TABS:
                    with gr.Tab(title, id=tab):
                        button, files = controls(made)
                        opened[tab] = (gr.HTML(), button, files)
        inputs = [made[name] for name in INPUTS]
        for tab, (shown, button, files) in opened.items():
            own = [made[name] for name in INPUTS if name.startswith(f"{tab}.")]
            own += [made[name] for name in (*FORM, "level")] if tab == "forecast" else []
            entered = [box.submit for box in own if isinstance(box, gr.Textbox) and box.lines == 1]
            more = [] if files is None else [files]
            gr.on(
                [button.click, *entered],
                _answering(tab),
                [lab, *more, *inputs],
                [lab, made["source"], shown, query],
                api_name=tab,
            ).then(None, [query], None, js=ADDRESS)
        read(lab, inputs, opened["forecast"][0], query, tabs)
        app.load(
            _opening(list(opened)), None, [tabs, *inputs, *(shown for shown, *_ in opened.values())], api_name="open"
        )
    return app


def _answering(tab: str) -> Callable[..., tuple[Any, str, str, str]]:
    def answering(request: gr.Request, lab: Forecaster | None, *values: Any) -> tuple[Any, str, str, str]:
        files, texts = values[: len(values) - len(INPUTS)], _named(values[len(values) - len(INPUTS) :])
        if lab is None and tab != "runs" and not any(files):
            answer = _asked(tab, *texts.values())
        else:
            answer = views.answer(tab, lab or FORECASTER, texts, *files)
        if answer.state is not None:
            _LEARNT[str(request.session_hash)] = answer.inputs["source"]
            if len(_LEARNT) > 100 * SESSIONS:
                del _LEARNT[next(iter(_LEARNT))]
        return answer.state or lab, answer.inputs["source"], _kept(request, lab, answer), answer.query

    return answering


# Examples and addresses are asked for again and again; 256 answers take 30 MiB.
@lru_cache(maxsize=256)
def _asked(tab: str, *texts: str) -> views.Answer:
    """The default forecaster's answer to the page's inputs."""
    return views.answer(tab, FORECASTER, _named(texts))


# Session -> the source that it learnt; names alone, which outlive the session's forecaster.
_LEARNT: dict[str, str] = {}


def _kept(request: gr.Request, lab: Forecaster | None, answer: views.Answer) -> str:
    """An answer, and before it what is said where its source was learnt but is no longer kept."""
    source = answer.inputs["source"].strip().lower()
    lost = lab is None and answer.view != "runs" and _LEARNT.get(str(request.session_hash)) == source
    return (views.forgotten(source) if lost else "") + answer.html


def _named(texts: Any) -> dict[str, str]:
    return {name: "" if text is None else str(text) for name, text in zip(INPUTS, texts, strict=True)}


def _opening(tabs: list[str]) -> Callable[[gr.Request], list[Any]]:
    """What an address asks for: its inputs, its tab, and that tab's answer."""

    def opening(request: gr.Request) -> list[Any]:
        tab, inputs = from_query(str(request.query_params))
        # Uploaded files are no part of an address.
        shown = [_asked(tab, *map(inputs.get, INPUTS)).html if tab == name != "runs" else "" for name in tabs]
        return [gr.Tabs(selected=tab), *(inputs[name] for name in INPUTS), *shown]

    return opening


def _form(made: Made) -> Callable[..., None]:
    """The configuration, which all tabs share; gives what connects its file reader."""
    presets = gr.Dropdown(list(PRESETS), value=None, label="Start from an example")
    choices = {"source": views.sources(), "optimizer": views.optimizers(FORECASTER)}
    for pair in (("source", "optimizer"), ("model size", "data size"), ("learning rate", "batch size")):
        with gr.Row():
            for name in pair:
                if name in choices:
                    made[name] = gr.Dropdown(choices[name], label=label(name), allow_custom_value=True, min_width=140)
                else:
                    made[name] = gr.Textbox(label=label(name), info=form_help(name), min_width=140, max_lines=1)
    made[MORE] = gr.Textbox(
        label="Further fields", info="one a line, such as lr_schedule: cosine", lines=3, max_lines=12
    )
    made["level"] = gr.Textbox("0.9", label="Coverage of the intervals", info="between 0 and 1", max_lines=1)
    with gr.Accordion("Paste or upload a configuration", open=False):
        text = gr.Textbox(label="Any framework's configuration", info="YAML, JSON, CSV, …", lines=4, max_lines=12)
        file = gr.File(label="or a file", type="filepath", height=120)
        button = gr.Button("Read and forecast")
    with gr.Accordion("All fields", open=False):
        gr.HTML(f'<div class="ncpl-answer">{views.fields_html()}</div>')

    def connect(lab: Any, inputs: list[Any], shown: Any, query: Any, tabs: Any) -> None:
        presets.input(views.preset, [presets], [made[name] for name in (*FORM, MORE)], api_name="preset")
        button.click(_reading, [lab, file, text, *inputs], [tabs, shown, query, *inputs], api_name="read").then(
            None, [query], None, js=ADDRESS
        )

    return connect


def _reading(request: gr.Request, lab: Forecaster | None, file: str | None, text: str, *values: str) -> list[Any]:
    answer = views.answer("forecasts", lab or FORECASTER, _named(values), file, text)
    html = _kept(request, lab, answer)
    return [gr.Tabs(selected="forecast"), html, answer.query, *(answer.inputs[name] for name in INPUTS)]


def _forecast_tab(made: Made) -> tuple[Any, Any]:
    return gr.Button("Forecast", variant="primary"), None


def _compare_tab(made: Made) -> tuple[Any, Any]:
    made["compare.with"] = gr.Textbox(
        OPTIONS["compare.with"],
        label="Compare with the same run, but",
        info="field: value, one a line",
        lines=3,
        max_lines=10,
    )
    return gr.Button("Compare", variant="primary"), None


def _runs_tab(made: Made) -> tuple[Any, Any]:
    gr.Markdown("Upload your finished runs: a table, an export of a tracker, configurations with their logs, ...")
    files = gr.File(label="Runs", type="filepath", file_count="multiple", height=140)
    made["runs.source"] = gr.Textbox(
        OPTIONS["runs.source"], label="Name of your lab", info="the source that forecasts ask for", max_lines=1
    )
    return gr.Button("Learn from these runs", variant="primary"), files


def _plan_tab(made: Made) -> tuple[Any, Any]:
    with gr.Row():
        made["plan.budget"] = gr.Dropdown(
            list(BUDGETS), value=OPTIONS["plan.budget"], label="Budget, or what is to be reached", min_width=140
        )
        for name, title in (("amount", "Amount"), ("gpu", "Accelerator"), ("count", "How many")):
            made[f"plan.{name}"] = gr.Textbox(OPTIONS[f"plan.{name}"], label=title, min_width=110, max_lines=1)
    gr.Markdown("Source, optimizer and further fields are kept; size, tokens, learning rate and batch size are found.")
    return gr.Button("Plan", variant="primary"), None


def _curve_tab(made: Made) -> tuple[Any, Any]:
    with gr.Accordion("Is it running already?", open=False):
        made["curve.observed"] = gr.Textbox(
            label="Log of its first part", info="CSV or JSON lines with step and loss", lines=4, max_lines=10
        )
        files = gr.File(label="or a file", type="filepath", height=120)
    return gr.Button("Forecast the curve", variant="primary"), files


def _sweep_tab(made: Made) -> tuple[Any, Any]:
    fields = [name for name in FIELDS if name != "max step"]
    for number, title in (("", "Field"), (" 2", "Second field, if any")):
        with gr.Row():
            name = f"sweep.field{number}"
            made[name] = gr.Dropdown(fields, value=OPTIONS[name], label=title, min_width=140)
            made[f"sweep.values{number}"] = gr.Textbox(
                OPTIONS[f"sweep.values{number}"],
                label=f"Values of the {'second ' if number else ''}field",
                info="low:high:count, or a list",
                min_width=140,
                max_lines=1,
            )
    return gr.Button("Sweep", variant="primary"), None


def _benchmarks_tab(made: Made) -> tuple[Any, Any]:
    with gr.Row():
        for name, title, info in (
            ("params", "Parameters", "7B"), ("tokens", "Tokens", "2T"), ("like", "As good as family", "if any"),
        ):  # fmt: skip
            made[f"benchmarks.{name}"] = gr.Textbox(
                OPTIONS[f"benchmarks.{name}"], label=title, info=info, min_width=120, max_lines=1
            )
    return gr.Button("Forecast the scores", variant="primary"), None


TABS = (
    ("Forecast", "forecast", _forecast_tab),
    ("Compare", "compare", _compare_tab),
    ("Curve", "curve", _curve_tab),
    ("Sweep", "sweep", _sweep_tab),
    ("Plan", "plan", _plan_tab),
    ("Your runs", "runs", _runs_tab),
    ("Benchmarks", "benchmarks", _benchmarks_tab),
)


def theme() -> Any:
    """No fonts from elsewhere, and grey text that is dark enough to read."""
    base = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    grey = {"block_info_text_color": "*neutral_600", "body_text_color_subdued": "*neutral_600"}
    dark = {f"{name}_dark": "*neutral_300" for name in grey}
    return base.set(**grey, **dark, button_primary_background_fill="*primary_700")


def launch(**where: Any) -> None:
    """Serves the page.

    Args:
        where: Gradio's `server_name`, `server_port`, ...
    """
    app = build().queue(default_concurrency_limit=8)
    app.launch(
        theme=theme(),
        css=CSS,
        max_file_size="64mb",
        state_session_capacity=SESSIONS,
        footer_links=[],
        prevent_thread_lock=True,
        **where,
    )
    # Nobody's first question has to wait for what is imported once. Only now: Gradio asks its own address first, and
    # gives up where imports keep it waiting.
    threading.Thread(target=views.warm_up, args=(FORECASTER,), daemon=True).start()
    app.block_thread()


if __name__ == "__main__":
    launch()
