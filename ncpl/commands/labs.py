"""Commands for a lab's own runs: adapt, compare, suggest."""

from pathlib import Path
from typing import Annotated

import typer

from ncpl.commands.shared import (
    Configs,
    Json,
    Level,
    Model,
    Save,
    app,
    cell,
    check_picture,
    load,
    note,
    print_json,
    print_table,
    records,
    tell,
)


@app.command()
def adapt(
    runs: Annotated[
        str, typer.Argument(metavar="RUNS", help="Finished runs: a file or folder as `ncpl import` reads it.")
    ],
    source: Annotated[str, typer.Option(help="The name by which forecasts ask for these runs' lab.")],
    out: Annotated[Path, typer.Option("--out", "--output", help="Folder for the adapted checkpoint.")],
    parent: Annotated[str | None, typer.Option(help="An adapted source of the same lab.")] = None,
    model: Model = None,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """Adapt the forecaster to a lab's own runs, in seconds.

    --save draws what was learnt and how far it reaches.

    \b
    Example:
      ncpl adapt runs.csv --source acme --out outputs/acme
    """
    from ncpl.trust import NO_METHOD, in_words

    check_picture(save)
    adapted = load(model).adapt(runs, source, parent=parent)
    adapted.save_pretrained(out)
    report = adapted.report
    if save is not None:
        report.plot().save(save)
    if as_json:
        print_json(report)
        return
    for sentence in in_words(report):
        print(f"{source}: {sentence}")
    held_out = report["largest_size_out"]
    if held_out:  # None with one size alone
        print(
            f"mean absolute error on the largest size ({held_out['model size']:g} million parameters, "
            f"{held_out['runs']} runs), forecast from the smaller ones:"
        )
        column = "nats per token"
        print_table(
            [{"method": name, column: cell(value)} for name, value in held_out.items() if name not in NO_METHOD]
        )
    for sentence in report["warnings"]:
        note(sentence)
    print(f"written to {out}; forecast with ncpl predict ... --model {out}")


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A configuration's file.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="FIELD=VALUE", help="Values that change both configurations.")
    ] = None,
    model: Model = None,
    level: Level = 0.9,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """Forecast the difference of two configurations' losses.

    What both share cancels, so that its interval is narrower than theirs.

    \b
    Examples:
      ncpl compare muon.yaml adamw.yaml
      ncpl compare muon.yaml adamw.yaml data_size=100
    """
    from ncpl.configs import read_configs

    check_picture(save)
    rows = [row for path in (first, second) for row in read_configs([path, *(changes or [])])[0]]
    if len(rows) != 2:
        raise ValueError(f"configurations: got {len(rows)}, expected two, one in each file")
    found = load(model).compare(rows[0], rows[1], level)
    tell(found.attrs["notes"])
    if save is not None:
        found.plot((Path(first).stem, Path(second).stem)).save(save)
    if as_json:
        print_json({**found.to_dict(), "notes": found.attrs["notes"]})
    else:
        print_table([{str(name): cell(value) for name, value in found.items()}])


@app.command()
def suggest(
    configs: Configs,
    budget: Annotated[float, typer.Option(help="FLOPs (6ND) for all suggested runs together.")],
    model: Model = None,
    level: Level = 0.9,
    save: Save = None,
    as_json: Json = False,
) -> None:
    """Say which of some candidate runs to make next.

    They are to narrow the forecast of a target: of the candidates beyond the budget or, without any, of the dearest.

    \b
    Example:
      ncpl suggest candidates.csv --budget 1e21 --model outputs/acme
    """
    from ncpl.configs import read_configs

    check_picture(save)
    found = load(model).suggest(read_configs(configs)[0], budget, level=level)
    tell(found.attrs["notes"])
    if save is not None:
        found.plot().save(save)
    if as_json:
        print_json([{"candidate": int(i), **row} for i, row in zip(found.index, records(found), strict=True)])
        return
    names = ("model size", "data size", "flops", "why")
    rows = [
        {"candidate": i, **{name: row[name] for name in names}}
        for i, row in zip(found.index, records(found), strict=True)
    ]
    print_table([{name: cell(value) for name, value in row.items()} for row in rows])
