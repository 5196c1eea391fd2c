"""What runs cost, and the best run for a budget."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ncpl.commands.shared import (
    Configs,
    Json,
    Level,
    Model,
    Save,
    app,
    cell,
    check_folder,
    check_picture,
    load,
    note,
    print_json,
    print_table,
    quiet_loading,
    records,
)

if TYPE_CHECKING:
    import pandas as pd

    from ncpl.plan import Plan

Gpu = Annotated[str, typer.Option(help="Accelerator: h100, a100, h200, b200, mi300x, tpu-v5p, ...")]
Count = Annotated[int, typer.Option(help="How many accelerators.")]
Utilisation = Annotated[float | None, typer.Option(help="Share of the peak over the whole run, 0 to 1.")]
HardwareFile = Annotated[Path | None, typer.Option(help="TOML file of your own accelerators and prices.")]


@app.command()
def cost(
    configs: Configs,
    gpu: Gpu = "h100",
    count: Count = 64,
    utilisation: Utilisation = None,
    hardware: HardwareFile = None,
    model: Model = None,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """Say what runs cost: GPU-hours, days, money, memory.

    \b
    Example:
      ncpl cost examples/marin-1b.yaml --gpu h100 --count 64
    """
    from ncpl.configs import read_configs

    check_picture(save)
    rows, origins = read_configs(configs)
    forecaster = load(model)
    found = [forecaster.cost(row, gpu, count, utilisation, hardware).to_dict() for row in rows]
    if save is not None:
        from ncpl import plots

        plots.costs(found, origins).save(save)
    if as_json:
        print_json([{"configuration": origin, **row} for origin, row in zip(origins, found, strict=True)])
        return
    for origin, row in zip(origins, found, strict=True):
        if len(rows) > 1:
            print(origin)
        print_table(_pairs(cost_in_words(row, gpu, count)))


@app.command()
def plan(
    configs: Annotated[
        list[str] | None, typer.Argument(metavar="[CONFIG]", help="What is kept: a file and FIELD=VALUE.")
    ] = None,
    flops: Annotated[str | None, typer.Option(help="Budget: training FLOPs, such as 1e21.")] = None,
    gpu_hours: Annotated[str | None, typer.Option(help="Budget: accelerator-hours.")] = None,
    money: Annotated[str | None, typer.Option("--cost", help="Budget: US dollars.")] = None,
    days: Annotated[str | None, typer.Option(help="Budget: days of all accelerators.")] = None,
    target_loss: Annotated[str | None, typer.Option(help="Instead: the cheapest run with this loss.")] = None,
    gpu: Gpu = "h100",
    count: Count = 64,
    utilisation: Utilisation = None,
    hardware: HardwareFile = None,
    params: Annotated[str | None, typer.Option(help="Fixed non-embedding parameters, such as 7B.")] = None,
    tokens_per_param: Annotated[str | None, typer.Option(help="Fixed tokens for each of them.")] = None,
    compare: Annotated[str, typer.Option(help="Other optimizers to compare, such as muon,soap.")] = "",
    inference_tokens: Annotated[str, typer.Option(help="Tokens to be served over the model's life.")] = "0",
    unique_tokens: Annotated[str | None, typer.Option(help="Tokens there are; more are repetitions.")] = None,
    scores: Annotated[bool, typer.Option("--scores", help="Benchmark scores too, along all budgets.")] = False,
    like: Annotated[str | None, typer.Option(help="Family whose data quality the scores assume.")] = None,
    model: Model = None,
    level: Level = 0.9,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """Find the best run for a budget, or the cheapest for a loss.

    \b
    Examples:
      ncpl plan --flops 1e21
      ncpl plan source=marin optimizer=muon --cost 10000 --gpu h100 --count 64
      ncpl plan --target-loss 2.2 --compare muon
      ncpl plan --flops 1e22 --like Llama-2
    """
    from ncpl.configs import read_configs

    check_picture(save)
    rows = read_configs(configs)[0] if configs else [{}]
    if len(rows) > 1:
        raise ValueError(f"configurations: got {len(rows)}, expected one")
    texts = {"flops": flops, "gpu_hours": gpu_hours, "cost": money, "days": days, "target_loss": target_loss}
    texts |= {"params": params, "tokens_per_param": tokens_per_param}
    texts |= {"inference_tokens": inference_tokens, "unique_tokens": unique_tokens}
    options: dict[str, Any] = {name: _quantity(name, text) for name, text in texts.items() if text is not None}
    options |= {"gpu": gpu, "count": count, "utilisation": utilisation, "hardware": hardware}
    options["optimizers"] = [name for name in compare.split(",") if name.strip()]
    found = load(model).plan(base=rows[0], level=level, **options)
    if save is not None:
        found.plot().save(save)
    if scores or like is not None:
        quiet_loading(None)
    along = found.scores(like, level) if scores or like is not None else None
    if as_json:
        print_json(found.to_dict(curves=True) | ({} if along is None else {"scores": records(along)}))
        return
    tables = plan_in_words(found, gpu, count, level)
    for table in tables if along is None else [*tables, scores_in_words(along, level)]:
        print_table(table)
    for told in found.notes:
        note(told)


@app.command()
def report(
    configs: Configs,
    out: Annotated[Path, typer.Option(help="The page to write (.html).")] = Path("report.html"),
    gpu: Gpu = "h100",
    count: Count = 64,
    model: Model = None,
    level: Level = 0.9,
    as_json: Json = False,
) -> None:
    """Write one page about a run, to be shown to others.

    Forecast, curve, valley, plan, scores, risks and sources are in it, and it needs no network to be read.

    \b
    Example:
      ncpl report examples/marin-1b.yaml --out report.html
    """
    from ncpl.configs import read_configs
    from ncpl.files import write_text
    from ncpl.views.report import report as page

    check_folder(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out: got {out}, expected a file that ends in .html")
    rows, origins = read_configs(configs)
    if len(rows) > 1:
        raise ValueError(f"configurations: got {len(rows)}, the second {origins[1]}, expected one")
    quiet_loading(model)
    forecaster = load(model)
    (config,) = forecaster.check(rows)
    write_text(out, page(forecaster, config, gpu, count, level))
    if as_json:
        print_json({"report": str(out), "bytes": out.stat().st_size})
    else:
        print(f"written to {out}, {out.stat().st_size / 1000:.0f} kB")


def cost_in_words(row: Mapping[Any, Any], gpu: str, count: int) -> dict[str, str]:
    """What `Forecaster.cost` gives, in people's units."""
    least = row["smallest_count"]
    return {
        "training FLOPs": f"{row['flops']:.3g}",
        "utilisation (of the bf16 peak, whole run)": f"{row['utilisation']:.0%}",
        f"{gpu} hours": f"{row['gpu_hours']:,.0f}" if row["gpu_hours"] >= 10 else f"{row['gpu_hours']:.2g}",
        f"days on {count}": f"{row['days']:.3g}",
        "cost (US dollars)": f"{row['cost_usd']:,.0f}",
        "energy (MWh)": f"{row['energy_mwh']:.3g}",
        "CO2 (tonnes)": f"{row['co2_t']:.3g}",
        "memory (GB of each)": f"{row['memory_gb_per_gpu']:.1f}, recomputation {row['recomputation']}",
        "smallest count that holds it": "none" if least is None else str(least),
        "checkpoint with optimizer (GB)": f"{row['checkpoint_gb']:.3g}",
    }


def scores_in_words(along: "pd.DataFrame", level: float) -> list[dict[str, str]]:
    """The plan's scores, the last row of them, and the budget from which each task leaves chance."""
    from ncpl.figures import task_name
    from ncpl.nsp.benchmarks import by_task, emergence_marks

    marks = emergence_marks(along.iloc[:-1], level).set_index("task")["flops"]
    first = float(along["flops"].iloc[0])

    def left(task: str) -> str:
        at = marks.get(task, math.nan)
        return "beyond" if math.isnan(at) else "before" if at == first else f"{at:.1g}"

    return [
        {
            "task": task_name(row["task"]),
            "score": f"{row['score']:.3f}",
            f"{level * 100:g} % interval": f"{row['lower']:.3f} to {row['upper']:.3f}",
            "leaves chance at FLOPs": left(str(row["task"])),
        }
        for row in records(by_task(along.iloc[-1]))
    ]


def plan_in_words(found: "Plan", gpu: str, count: int, level: float) -> list[list[dict[str, str]]]:
    """The tables that a person is shown of a plan."""
    from ncpl.allocations import VALLEY

    best = found.best
    low, high = best["params_low"], best["params_high"]
    run = {
        "parameters (non-embedding)": f"{best['params']:.3g}",
        **({f"  within {VALLEY:g} nats": f"{low:.3g} to {high:.3g}"} if low < high else {}),
        "tokens": f"{best['tokens']:.3g} ({best['tokens_per_param']:.3g} for each parameter)",
        "loss (nats per token)": f"{best['loss']:.4f}",
    }
    if "lower" in best:
        run[f"  {level * 100:g} % interval"] = f"{best['lower']:.4f} to {best['upper']:.4f}"
    names = ("num layers", "hidden dim", "num heads", "ffn dim", "optimizer", "learning rate", "batch size", "warmup")
    run |= {name: cell(best[name]) for name in (*names, "max step") if name in best}
    tables = [_pairs(run), _pairs(cost_in_words(best.to_dict(), gpu, count))]
    references = [
        {
            "published law": row["law"].replace(" et al.", ""),
            "counts": row["counts"],
            "params": f"{row['params']:.3g}",
            "tokens": f"{row['tokens']:.3g}",
            "lr": "" if math.isnan(row["learning rate"]) else f"{row['learning rate']:.3g}",
            "batch": "" if math.isnan(row["batch size"]) else f"{row['batch size']:.0f}",
        }
        for row in records(found.references)
    ]
    tables.append(references)
    if len(found.optimizers) > 1:
        tables.append(
            [
                {
                    "optimizer": row["optimizer"],
                    "loss with this budget": f"{row['loss']:.4f}",
                    "compute for the plan's loss": f"{row['compute']:.0%}",
                }
                for row in records(found.optimizers)
            ]
        )
    return tables


def _pairs(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"": name, "value": text} for name, text in values.items()]


def _quantity(name: str, text: str) -> float:
    from text_ncpl import parse_count, read_number, short

    number = parse_count(text)
    number = read_number(text) if number is None else number
    if number is None:
        raise ValueError(f"{name}: got {short(text)}, expected a number such as 1e21, 7B or 1.5T")
    return float(number)
