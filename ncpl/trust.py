"""How far an adapted forecast may be believed, from the lab's own runs: what `Forecaster.report` says."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from adapted_ncpl import DEFAULT_OPTIMIZER, RANGE, AdaptedLaw, flops, one_ratio
from datasets_scripts.divergence import suspects
from fields_ncpl import FIELDS
from ncpl import own_fits
from ncpl.adapt import SHAPE, adapt_law
from ncpl.errors import short
from ncpl.suggest import choose

Run = Mapping[str, Any]
# What `largest_size_out` holds beside the methods' errors.
NO_METHOD = ("runs", "model size", "inside_90")


def report(law: AdaptedLaw, source: str) -> dict[str, Any]:
    """What is known of an adapted source, in figures and sentences.

    Returns:
        `runs`, `sizes` and `flops` of the source's runs; `believed_up_to`, FLOPs; `largest_size_out`, the mean absolute
        error on the largest size of forecasts from the smaller ones, None with one size; `learned`, for each
        coefficient of size and data its value, its deviation, and whose runs say it; `more_runs`, how the interval of a
        run of ten times the dearest one's FLOPs would shrink; `fitted`, each run's loss before and after;
        `held_out`, observed and forecast losses of the largest size; `unread`
        fields; `warnings`.
    """
    known = law.adapted[source]
    runs = known.runs
    costs = np.array([flops(run) for run in runs])
    held_out, pairs = largest_size_out(law, runs, source)
    return {
        "source": source,
        "runs": len(runs),
        "sizes": sorted({round(float(run["model size"]), 2) for run in runs}),
        "flops": [float(costs.min()), float(costs.max())],
        "believed_up_to": known.believed_up_to,
        "largest_size_out": held_out,
        "held_out": pairs,
        "learned": _learned(law, source),
        "more_runs": _more_runs(law, source),
        "fitted": fitted(law, source),
        "unread": list(known.unread),
        "warnings": warnings_of(runs, known.unread),
    }


def largest_size_out(
    law: AdaptedLaw, runs: Sequence[Run], source: str
) -> tuple[dict[str, float] | None, list[tuple[float, float]]]:
    """Mean absolute errors on the largest size when only the smaller ones are known; None where there is one size.

    Beside them `runs`, `model size`, and `inside_90`, the share inside the plain 90 % interval. Second, each run's
    observed loss and its adapted forecast.
    """
    largest = max(float(run["model size"]) for run in runs)
    kept = [run for run in runs if float(run["model size"]) < 0.99 * largest]
    held = [{**run, "source": source} for run in runs if float(run["model size"]) >= 0.99 * largest]
    if not kept:
        return None, []
    observed = np.array([float(run["final_loss"]) for run in held])
    others = AdaptedLaw(law.base, {name: own for name, own in law.adapted.items() if name != source})
    adapted = adapt_law(others, kept, source, parent=law.adapted[source].parent).adapted[source]
    found = adapted.forecast(held)
    methods: dict[str, Callable[[], np.ndarray]] = {
        "adapted": lambda: found["loss"],
        "shipped law with an offset": lambda: _offset(law, kept, held),
        "chinchilla": lambda: own_fits.chinchilla(kept, held),
        "constant exponents": lambda: own_fits.constant_exponents(kept, held),
    }
    errors = {name: float(np.abs(method() - observed).mean()) for name, method in methods.items()}
    inside = np.abs(found["loss"] - observed) <= 1.645 * adapted.deviation(found)
    out = {"runs": len(held), "model size": largest, **errors, "inside_90": float(inside.mean())}
    return out, list(zip(observed.tolist(), found["loss"].tolist(), strict=True))


def _offset(law: AdaptedLaw, runs: Sequence[Run], held: Sequence[Run]) -> np.ndarray:
    own, asked = (
        law.base.closed_form([run if run.get("optimizer") else {**run, "optimizer": DEFAULT_OPTIMIZER} for run in some])
        for some in (runs, held)
    )
    return asked + np.median([float(run["final_loss"]) for run in runs] - own)


def _learned(law: AdaptedLaw, source: str) -> dict[str, dict[str, Any]]:
    """Coefficient -> value, deviation, that over the prior's, and whose runs say it."""
    known = law.adapted[source]
    learned = {}
    for name in SHAPE:
        values = np.array([own.common[name] for own in known.laws])
        errors = np.array([own.standard_errors["common"][name] for own in known.laws])
        mean = float(known.weights @ values)
        deviation = math.sqrt(known.weights @ (errors**2 + (values - mean) ** 2))
        before = math.hypot(law.base.standard_errors.get("common", {}).get(name, 0.0), law.base.priors[name].source)
        # The shipped law with an offset learns the level alone: the rest it has of other labs.
        held = np.array([label[0] == "offset" and name != "E" for label in known.labels])
        share = float(known.weights @ np.where(held, 1.0, np.minimum(errors / before, 1.0)))
        said_by = "your runs" if share < 0.5 else "both" if share < 0.85 else "other labs"
        learned[name] = {"value": mean, "deviation": deviation, "over_prior": share, "said_by": said_by}
    return learned


def _more_runs(law: AdaptedLaw, source: str) -> list[dict[str, Any]]:
    """How much 4, 8 and 16 further runs would narrow the interval of one of ten times the dearest one's FLOPs.

    They are of the middle size, of the largest, or of twice that.
    """
    known = law.adapted[source]
    runs: list[dict[str, Any]] = sorted((dict(run) for run in known.runs), key=flops)
    dearest = runs[-1]
    target = {**dearest, **{name: float(dearest[name]) * math.sqrt(10) for name in ("model size", "data size")}}
    larger = {**dearest, "model size": 2 * float(dearest["model size"])}
    for run in (target, larger):
        for name in ("active size", "hidden dim"):
            run.pop(name, None)
    found = []
    for run in (runs[len(runs) // 2], dearest, larger):
        factors = np.geomspace(0.25, 1, 16)
        more = [{**run, "data size": float(run["data size"]) * factor} for factor in factors]
        configs = [{**config, "source": source} for config in [*more, target]]
        covariance, noise = known.covariance(configs), known.noise(known.forecast(configs)["excess"]) ** 2
        now = math.sqrt(covariance[-1, -1])
        for count in (4, 8, 16):
            index = np.linspace(0, len(more) - 1, count).round().astype(int).tolist()
            steps = choose(covariance, noise, np.ones(len(configs)), index, [len(more)], count)
            found.append(
                {
                    "runs": count,
                    "model size": float(run["model size"]),
                    "data size": float(run["data size"]),
                    "flops": float(sum(flops(more[i]) for i in index)),
                    "deviation_now": round(now, 5),
                    "interval_over_now": round(steps[-1].deviation / now, 3),
                }
            )
    return found


def fitted(law: AdaptedLaw, source: str) -> list[dict[str, float]]:
    """A row for each of the source's runs: `observed`, and its loss `before` (the base law, its level moved by the
    median error) and `after` adaptation, nats per token; and its `flops`, `model size` and `data size`."""
    known = law.adapted[source]
    asked = [{**run, "source": source} for run in known.runs]
    before, after = _offset(law, known.runs, known.runs), known.loss(asked)
    return [
        {
            "model size": float(run["model size"]),
            "data size": float(run["data size"]),
            "flops": flops(run),
            "observed": float(run["final_loss"]),
            "before": float(first),
            "after": float(second),
        }
        for run, first, second in zip(known.runs, before, after, strict=True)
    ]


def in_words(said: Mapping[str, Any]) -> list[str]:
    """A `report` as sentences with units: what was learnt, how far to believe it, and what more runs would give."""
    low, high = said["flops"]
    sizes = said["sizes"]
    span = f"{sizes[0]:g} million" if len(sizes) == 1 else f"{sizes[0]:g} to {sizes[-1]:g} million"
    lines = [
        f"Learnt from {_counted(said['runs'], 'run')} of {_counted(len(sizes), 'model size')} ({span} non-embedding "
        f"parameters), {low:.2g} to {high:.2g} FLOPs (6ND) each.",
        f"Believe forecasts up to about {said['believed_up_to']:.2g} FLOPs, {RANGE:g} times the dearest run's.",
    ]
    own = [name for name, found in said["learned"].items() if found["said_by"] == "your runs"]
    others = [name for name, found in said["learned"].items() if found["said_by"] == "other labs"]
    if own:
        lines.append(f"Your runs say {', '.join(own)}; other labs' runs say {', '.join(others) or 'nothing alone'}.")
    # The cheapest of those that narrow it nearly as much as any.
    least = min(row["interval_over_now"] for row in said["more_runs"])
    best = min((row for row in said["more_runs"] if row["interval_over_now"] <= least + 0.03), key=lambda r: r["flops"])
    if least < 0.95:
        lines.append(
            f"{best['runs']} more runs of {best['model size']:g} million parameters ({best['flops']:.2g} FLOPs "
            f"together) would narrow the interval of a run of 10 times the dearest one's FLOPs by "
            f"{100 * (1 - best['interval_over_now']):.0f} %."
        )
    return lines


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def warnings_of(runs: Sequence[Run], unread: Sequence[str]) -> list[str]:
    """What the runs cannot say, and what has gone wrong in like cases, one sentence each."""
    n, d = (np.array([float(run[name]) for run in runs]) for name in ("model size", "data size"))
    costs, sizes = n * d, len(np.unique(n.round(2)))
    found = []
    if len(runs) == 1:
        found.append("One run: nothing but the level of the loss is learnt from it.")
    elif sizes == 1 and len(np.unique(d.round(3))) == 1:
        found.append("One model size and one data size: the effects of both come from other labs' runs.")
    elif sizes == 1:
        found.append("One model size: the effect of size comes from other labs' runs.")
    if len(runs) > 2 and sizes > 1:
        if np.ptp(np.log(costs)) < 0.1:
            found.append("All runs cost the same FLOPs: the gain from more compute comes from other labs' runs.")
        elif ratio := one_ratio(runs):
            found.append(
                f"All runs have {ratio:g} tokens a parameter: the effects of size and data cannot be told apart; "
                "believe no forecast of another ratio."
            )
        elif abs(np.corrcoef(np.log(n), np.log(d))[0, 1]) > 0.95:
            found.append("Data size nearly follows from model size: their effects can hardly be told apart.")
    if sizes > 1 and len(runs) / sizes < 4:
        found.append("Three runs a size or fewer: the interval is taken from other labs, not from these runs.")
    if n.min() < 20:
        found.append(
            f"The smallest model has {n.min():.3g} million parameters: from models under 20 million, errors of 0.1 "
            "nats and more were measured."
        )
    if "learning rate" in unread and any(run.get("learning rate") for run in runs):
        constant = len({float(run["learning rate"]) for run in runs if run.get("learning rate")}) == 1
        said = "never varies" if constant else "follows from model size"
        found.append(f"The learning rate {said}: nothing is said about other learning rates.")
    if len(runs) > 1 and len({run["batch size"] for run in runs if run.get("batch size")}) == 1:
        found.append("The batch size never varies: nothing is said about other batch sizes.")
    if _points_of_one_run(runs):
        found.append("Several rows look like points of one run: undecayed losses lie above those of finished runs.")
    found += _suspicious(runs)
    schedules = {str(run["schedule"]) for run in runs if run.get("schedule")}
    if len(schedules) > 1:
        found.append(f"Schedules are mixed ({', '.join(sorted(schedules))}): their losses do not lie on one law.")
    return found


def _suspicious(runs: Sequence[Run]) -> list[str]:
    """Losses too low to be ones, and sizes of which all are likely in another unit."""
    found = []
    rows = [{"source": "", "conf": run, "final_loss": float(run["final_loss"])} for run in runs]
    for i, nats in suspects(rows).items():
        found.append(
            f"Run {short(runs[i].get('name', i))} lies {nats:.2f} nats below what the other runs allow (final_loss "
            f"{float(runs[i]['final_loss']):g}): check it."
        )
    n, d = (np.array([float(run[name]) for run in runs]) for name in ("model size", "data size"))
    ratios = 1e3 * d / n
    low, high = ratios.min(), ratios.max()
    said = f"All runs have {low:,.2g} to {high:,.2g} tokens a parameter: "
    if low > 1000 and np.median(ratios) > 5000:
        unit = "model size looks like billions" if n.max() < 20 else "data size looks like millions of tokens"
        found.append(f"{said}{unit}; expected million parameters and billion tokens.")
    elif high < 0.2:
        found.append(f"{said}data size looks like trillions of tokens; expected million parameters and billion tokens.")
    return found


# Where a run is, and what follows from that.
_PLACE = ("name", "data size", "max step", "final_loss")


def _points_of_one_run(runs: Sequence[Run]) -> bool:
    """Whether runs of one stem of a name are equal but for their tokens, three or more to a stem in the mean.

    A stem of several sizes is a numbering, and seeds have equal tokens.
    """
    if not all(run.get("name") for run in runs):
        return False
    tokens: dict[str, set[float]] = {}
    others: dict[str, set[str]] = {}
    for run in runs:
        stem = str(run["name"]).rsplit("-", 1)[0]
        tokens.setdefault(stem, set()).add(round(float(run["data size"]), 4))
        fields = {name: value for name, value in run.items() if name in FIELDS and name not in _PLACE}
        others.setdefault(stem, set()).add(repr(sorted(fields.items(), key=lambda item: item[0])))
    points = sum(len(found) for stem, found in tokens.items() if len(others[stem]) == 1)
    return 3 * len(tokens) <= points
