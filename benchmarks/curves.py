"""Loss curves: forecasts before a run and while it runs, under seen and unseen schedules, on runs held out.

A run's own curve is never in its fit. Errors are absolute, in nats per token: over fractions 0.1 to 1.0 of a run
(`curve`), of the final loss (`final`), or over the fractions still ahead (`remaining`). The final loss of a run before
it starts comes from the configuration law, fitted to the final losses of the same training runs.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from benchmarks.common import data_folder, parser, report
from benchmarks.lab_curves import curve_run, multipowerlaw, olmo, with_forecasts, xlstm
from curves_ncpl import CurveLaw
from ncpl.fitting import fit
from ncpl.fitting.curves import CurveRun, fit_curves, fit_residuals, fit_shape
from observed_ncpl import Observed, forecast

FRACTIONS = np.arange(1, 11) / 10
PREFIXES = (0.05, 0.1, 0.3, 0.5, 0.8)
# Where the larger runs of the extrapolation start, in million non-embedding parameters.
LARGE = 500
Rows = Sequence[dict[str, Any]]


def chinchilla(size: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> Callable[..., np.ndarray]:
    """`E + A N^-alpha + B D^-beta` by Huber's loss on log losses, the best of nine starts."""

    def value(p: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
        return np.exp(p[0] - p[1] * np.log(n)) + np.exp(p[2] - p[3] * np.log(d)) + p[4]

    def misfit(p: np.ndarray) -> np.ndarray:
        return np.log(np.maximum(value(p, size, tokens), 0.1)) - np.log(losses)

    starts = [[2, a, 0, b, 1.5] for a in (0.2, 0.4, 0.6) for b in (0.2, 0.4, 0.6)]
    best = min((least_squares(misfit, s, loss="huber", f_scale=1e-3) for s in starts), key=lambda found: found.cost)
    return lambda n, d: value(best.x, n, d)


def along(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """(runs, fractions) of sizes in million parameters and of billion tokens seen."""
    size = np.array([[row["conf"]["model size"]] for row in rows]) * np.ones(len(FRACTIONS))
    return size, np.array([[row["conf"]["data size"]] for row in rows]) * FRACTIONS


def truth(rows: Rows) -> np.ndarray:
    """Observed losses at `FRACTIONS`, (runs, fractions)."""
    return np.array([curve_run(row).at(FRACTIONS) for row in rows])


def mean_errors(found: np.ndarray, rows: Rows) -> dict[str, float]:
    errors = np.abs(found - truth(rows))
    return {"curve": float(errors.mean()), "final": float(errors[:, -1].mean())}


def baseline(train: Rows, held: Rows) -> dict[str, float]:
    """Chinchilla's form fitted to curves, tokens seen as data."""
    size, tokens = along(train)
    return mean_errors(chinchilla(size.ravel(), tokens.ravel(), truth(train).ravel())(*along(held)), held)


def final_losses(train: Rows, held: Rows) -> tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Final losses by the configuration law of the training runs, and their standard deviations.

    Beside them the training runs with forecasts by laws that have not seen them: their mean error, widened by the law's
    own uncertainty where a held-out run lies further off, is the deviation.
    """
    known = with_forecasts(train)
    error = 1.25 * float(np.mean([abs(row["final_loss"] - row["forecast"]) for row in known]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        law = fit(train).law()
        configs = [row["conf"] for row in held]
        usual = np.median([row["uncertainty"] for row in known])
        far = law.uncertainty(configs)["known"] / usual
        return law(configs), error * np.maximum(1.0, np.sqrt(far)), known


def before_and_during(train: Rows, held: Rows, more: Rows) -> dict[str, Any]:
    """Errors and coverage of forecasts of held-out runs, before the run and with prefixes of it."""
    finals, deviations, known = final_losses(train, held)
    law = fit_curves([curve_run(row) for row in [*known, *more]], other_labs=False)
    runs, observed = [curve_run(row) for row in held], truth(held)
    ends = list(zip(finals.tolist(), deviations.tolist(), strict=True))
    curves = [forecast(law, run.shape, FRACTIONS, *end) for run, end in zip(runs, ends, strict=True)]
    found = np.array([curve.loss for curve in curves])
    result: dict[str, Any] = {"before": mean_errors(found, held), "final_deviation": float(deviations.mean())}
    result["coverage"] = coverage(curves, observed)
    result["error_by_fraction"] = np.abs(found - observed).mean(0).round(5).tolist()
    for part in PREFIXES:
        given = [
            forecast(law, run.shape, FRACTIONS, *end, prefix(run, part)) for run, end in zip(runs, ends, strict=True)
        ]
        ahead = part + 1e-9 < FRACTIONS
        seen = np.array([curve.loss for curve in given])
        errors, own = np.abs(seen - observed), np.abs(found - observed)
        result[f"{part:.0%} seen"] = {
            "remaining": float(errors[:, ahead].mean()),
            "final": float(errors[:, -1].mean()),
            "remaining_ratio": float(errors[:, ahead].mean() / own[:, ahead].mean()),
            "final_ratio": float(errors[:, -1].mean() / own[:, -1].mean()),
            "coverage": coverage(given, observed, ahead),
        }
    return result


def prefix(run: CurveRun, part: float) -> Observed | None:
    """The first part of a run."""
    seen = (run.shares <= part) & (run.shares < 1)
    return Observed.of(run.shares[seen] * run.shape.steps, run.losses[seen], run.shape)


def coverage(curves: Sequence[Any], observed: np.ndarray, where: Any = slice(None)) -> float:
    """Share of losses within the 90 % intervals."""
    bands = [curve.interval(0.9) for curve in curves]
    inside = [(low <= y) & (y <= high) for (low, high), y in zip(bands, observed, strict=True)]
    return float(np.array(inside)[:, where].mean())


def unseen_schedules(rows: Rows) -> dict[str, Any]:
    """Errors on six schedules of a law fitted to three, by size, and the advantage of WSD over cosine at 24k steps.

    Only the shape is forecast; a size's level is that of its three fitted runs.
    """
    fitted = ("cosine_24000", "constant_24000", "wsdcon_9")
    train = [row for row in rows if row["name"].endswith(fitted)]
    law = fit_shape([curve_run(row) for row in train])
    law = replace(law, residuals=fit_residuals(law, [curve_run(row) for row in train]))
    result: dict[str, Any] = {}
    ends: dict[str, float] = {}
    for size in ("25M", "100M", "400M"):
        own = [row for row in rows if row["group"] == size]
        level = float(np.mean([_level(law, row) for row in own if row in train]))
        errors = []
        for row in own:
            run = curve_run(row)
            losses = level + _along(law, run)
            ends[row["name"]] = float(losses[-1])
            if row not in train:
                errors.append(np.abs(losses - run.losses))
        result[size] = float(np.mean(np.concatenate(errors)))
    final = {row["name"]: row["final_loss"] for row in rows}
    gaps = []
    for size in ("25M", "100M", "400M"):
        wsd, cosine = f"mpl-{size}-wsd_20000_24000", f"mpl-{size}-cosine_24000"
        gaps.append((ends[wsd] - ends[cosine], final[wsd] - final[cosine]))
    result["wsd_minus_cosine"] = {"said": [a for a, _ in gaps], "seen": [b for _, b in gaps]}
    result["wsd_minus_cosine"]["error"] = float(np.mean([abs(a - b) for a, b in gaps]))
    return result


def _along(law: CurveLaw, run: CurveRun) -> np.ndarray:
    """The loss along a run up to a constant that all runs of a size share: the shape over its own start."""
    from curves_ncpl import places, shape_terms

    losses, _ = shape_terms(law.coefficients(run.shape.source), places([run.shape], [run.shares]))
    return losses


def _level(law: CurveLaw, row: dict[str, Any]) -> float:
    run = curve_run(row)
    return float(np.median(run.losses - _along(law, run)))


def final_losses_alone(labs: dict[str, Rows]) -> dict[str, Any]:
    """A lab whose curves are unknown: the others' shape and its own final losses, over Chinchilla along the run."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in (row for rows in labs.values() for row in rows):
        groups.setdefault(row["group"] if "xlstm" in row["source"] else row["source"], []).append(row)
    lab_of = {name: next(lab for lab, all_rows in labs.items() if rows[0] in all_rows) for name, rows in groups.items()}
    shapes = {}
    for lab in set(lab_of.values()) - {"multipowerlaw"}:
        runs = [(name, curve_run(row)) for name, rows in labs.items() for row in rows]
        shapes[lab] = fit_shape([run.ended() if name == lab else run for name, run in runs])
    result = {}
    for name, rows in groups.items():
        if lab_of[name] == "multipowerlaw":
            continue
        size, tokens = along(rows)
        ends = np.array([row["final_loss"] for row in rows])
        plain = chinchilla(size[:, -1], tokens[:, -1], ends)(size, tokens)
        law, last = shapes[lab_of[name]], chinchilla(size[:, -1], tokens[:, -1], ends)(size[:, -1], tokens[:, -1])
        ours = [law.shape(curve_run(row).shape, FRACTIONS) + end for row, end in zip(rows, last, strict=True)]
        a, b = mean_errors(np.array(ours), rows)["curve"], mean_errors(plain, rows)["curve"]
        result[name] = {"ours": a, "plain": b, "ratio": a / b, "runs": len(rows)}
    return result


def speed(law: CurveLaw, rows: Rows) -> dict[str, float]:
    """Milliseconds of one curve of 50 points, and of one conditional on 1,000 observed points."""
    run = curve_run(rows[0])
    shares = np.linspace(0.02, 1, 50)
    steps = np.linspace(1, run.shape.steps / 2, 1000)
    losses = run.at(steps / run.shape.steps)

    def plain() -> None:
        forecast(law, run.shape, shares, 3.0, 0.01)

    def conditional() -> None:
        forecast(law, run.shape, shares, 3.0, 0.01, Observed.of(steps, losses, run.shape))

    return {"curve_ms": _milliseconds(plain), "conditional_ms": _milliseconds(conditional)}


def _milliseconds(work: Callable[[], None], times: int = 20) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return 1e3 * float(np.median(taken))


def main() -> None:
    arguments = parser(__doc__ or "", "curves").parse_args()
    folder: Path = data_folder()
    labs: dict[str, Rows] = {"xlstm": xlstm(folder), "olmo": olmo(folder), "multipowerlaw": multipowerlaw(folder)}
    rows, more = labs["xlstm"], [*labs["olmo"], *labs["multipowerlaw"]]
    fold = np.random.default_rng(arguments.seed).permutation(len(rows)) % 5
    splits = {
        f"fifth {i}": (
            [row for row, f in zip(rows, fold, strict=True) if f != i],
            [row for row, f in zip(rows, fold, strict=True) if f == i],
        )
        for i in range(5)
    }
    splits["N > 500M"] = (
        [row for row in rows if row["conf"]["model size"] <= LARGE],
        [row for row in rows if row["conf"]["model size"] > LARGE],
    )
    results: dict[str, Any] = {"splits": {}}
    for name, (train, held) in splits.items():
        found = {"runs": len(held), "baseline": baseline(train, held), **before_and_during(train, held, more)}
        results["splits"][name] = found
        print(name, found, flush=True)
    results["unseen_schedules"] = unseen_schedules(labs["multipowerlaw"])
    results["final_losses_alone"] = final_losses_alone(labs)
    start = time.perf_counter()
    law = fit_curves([curve_run(row) for row in [*rows, *more]])
    results["fit_seconds"] = time.perf_counter() - start
    results["speed"] = speed(law, rows)
    report(arguments.output, [arguments.seed], table(results), **results)


def table(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The result's rows, each with what it is compared to and its target."""
    fifths = [value for name, value in results["splits"].items() if name.startswith("fifth")]
    rows = []

    def mean(path: Sequence[str], over: Sequence[dict[str, Any]]) -> float:
        return float(np.mean([_at(value, path) for value in over]))

    for title, over, curve, final in (
        ("random fifth", fifths, 0.40 * 0.0363, 0.30 * 0.0264),
        ("N > 500M", [results["splits"]["N > 500M"]], 0.45 * 0.0375, 0.27 * 0.0304),
    ):
        for kind, target in (("curve", curve), ("final", final)):
            plain, ours = mean(("baseline", kind), over), mean(("before", kind), over)
            figure = f"before the run, {title}: error of the {kind}, nats"
            rows.append({"figure": figure, "plain": plain, "ours": ours, "ratio": ours / plain, "target": target})
        rows.append(
            {"figure": f"before the run, {title}: coverage of 90 % bands", "ours": mean(("coverage",), over)}
            | {"target": "0.85 to 0.95"}
        )
        for part in PREFIXES:
            name = f"{part:.0%} seen"
            for kind in ("remaining", "final"):
                ratio = mean((name, f"{kind}_ratio"), over)
                target = {"30% seen": (0.75, 0.9), "50% seen": (0.6, 0.75)}.get(name, (1.02, 1.02))[kind == "final"]
                figure = f"{name}, {title}: error of the {kind} over the forecast without it"
                rows.append({"figure": figure, "ours": ratio, "target": target if title[0] == "r" else 1.02})
            rows.append(
                {"figure": f"{name}, {title}: coverage of 90 % bands", "ours": mean((name, "coverage"), over)}
                | {"target": "0.85 to 0.95"}
            )
    for size, target in (("25M", 0.0038), ("100M", 0.0044), ("400M", 0.0048)):
        figure = f"unseen schedules, {size}: error, nats"
        rows.append({"figure": figure, "ours": results["unseen_schedules"][size], "target": target})
    gap = results["unseen_schedules"]["wsd_minus_cosine"]["error"]
    rows.append({"figure": "WSD minus cosine at equal steps: error, nats", "ours": gap, "target": 0.006})
    for name, value in results["final_losses_alone"].items():
        figure = f"final losses alone known, {name}: error along the run over Chinchilla's"
        rows.append({"figure": figure, "ours": value["ratio"], "target": 0.7})
    rows.append({"figure": "fit of all curves, seconds", "ours": results["fit_seconds"], "target": 300})
    rows.append({"figure": "a curve of 50 points, ms", "ours": results["speed"]["curve_ms"], "target": 10})
    conditional = results["speed"]["conditional_ms"]
    rows.append({"figure": "the same given 1,000 observed points, ms", "ours": conditional, "target": 50})
    return rows


def _at(value: Any, path: Sequence[str]) -> float:
    for name in path:
        value = value[name]
    return float(value)


if __name__ == "__main__":
    main()
