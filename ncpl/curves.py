"""Loss curves of runs: forecasts with bands, conditional on a run's first part, and what to say of a run that goes on.

`Forecaster.curve`, `ncpl watch` and `ForecastCallback` are made of this; the law itself is `curves_ncpl`.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import save_file

from curves_ncpl import CurveLaw, RunShape
from ncpl.errors import short
from observed_ncpl import Curve, Observed, forecast
from schedules_ncpl import Schedule
from text_ncpl import as_number, listed
from upgrade_ncpl import join_arrays, split_arrays

FILE = "curves.safetensors"
MOST_POINTS = 100_000
"""Points of a curve."""
EMBEDDED = Path(__file__).parent / "checkpoints" / "ncpl-mini"
# Nats by which a final loss is off where its forecast has no interval.
_UNKNOWN = 0.05
# A run is failing this far above its forecast, in nats and in standard deviations of it, from this step on.
_FAILING_NATS, _FAILING_DEVIATIONS, _FAILING_STEP = 0.3, 4.0, 100
# It is off course so many standard deviations from its forecast.
_OFF_DEVIATIONS = 3.0
# A run is advised against if it ends this far above its forecast, in nats, with 95 % probability.
_WORSE = 0.02
# The 95th percentile of the normal law.
_ONE_SIDED = 1.645
# Share of a run whose logged losses are the loss that it ended at.
_LAST = 0.02
# Losses are in another unit where these shares of them lie so close to the forecast in nats when they are converted.
_LIKENESS = {0.5: 0.1, 0.8: 0.3}


def save_law(law: CurveLaw, folder: Path) -> None:
    """Writes the law's arrays into `curves.safetensors`, everything else into its header."""
    arrays: dict[str, np.ndarray] = {}
    state = split_arrays(law.to_dict(), "curves", arrays)
    halved = {name: np.asarray(value, dtype=np.float32) for name, value in arrays.items()}
    save_file(halved, folder / FILE, metadata={"law": json.dumps(state, sort_keys=True)})


@lru_cache(maxsize=8)
def read_law(folder: Path) -> CurveLaw:
    """The law of curves of a checkpoint; the embedded default's where it has none.

    Raises:
        ValueError: the file is damaged.

    >>> sorted(read_law(EMBEDDED).scores)
    ['0.05', '0.1', '0.3', '0.5', '0.8', 'before']
    """
    file = folder / FILE
    with safe_open(file if file.exists() else EMBEDDED / FILE, framework="numpy") as opened:
        header = (opened.metadata() or {}).get("law")
        if header is None:
            raise ValueError(f"{file}: its header holds no law of curves, expected a file that save_law wrote")
        arrays = {name: opened.get_tensor(name).astype(float) for name in opened.keys()}  # noqa: SIM118
    return CurveLaw.from_dict(join_arrays(json.loads(header), arrays))


@dataclass(frozen=True)
class Final:
    """A run's forecast final loss, in nats per token, and its interval of `level`."""

    loss: float
    lower: float
    upper: float
    level: float

    def deviation(self, scores: Sequence[float]) -> float:
        """Its standard deviation, with which the curve's bands end in this interval."""
        half = (self.upper - self.lower) / 2
        return half / float(np.interp(self.level, np.linspace(0, 1, len(scores)), scores))

    @property
    def sides(self) -> tuple[float, float]:
        """Its lower and its upper part over half its width: it is bounded on both sides and so lopsided."""
        half = (self.upper - self.lower) / 2
        return (self.loss - self.lower) / half, (self.upper - self.loss) / half


def curve(
    law: CurveLaw,
    config: Mapping[str, Any],
    final: Final,
    points: int = 50,
    observed: Any = None,
    level: float = 0.9,
    window: float = 1.0,
) -> pd.DataFrame:
    """The forecast curve of a run.

    Args:
        law: of curves.
        config: a checked configuration.
        final: its forecast final loss.
        points: how many, evenly spaced over the run; the last is its end.
        observed: the run's first part, as `read_observed` takes it, or None.
        level: coverage of the bands.
        window: steps that each observed loss is the mean of, ending at its step.

    Returns:
        A row for each point: `step`, `tokens` (billions), `loss`, `lower`, `upper` (nats per token), all of the loss
        without a log's noise. `.attrs["schedule"]` are the fields of its schedule, `.attrs["level"]` is its level. With
        `observed`, `.attrs["report"]` is what `report` says of the run, `.attrs["seen"]` its last step and
        `.attrs["notes"]` say what was left out; of a run that has ended the last row is the log's own end.

    Raises:
        ValueError: no such points, or an observed part without steps and losses.
    """
    count, steps_seen = as_number(points), as_number(window)
    if count is None or not 1 <= count <= MOST_POINTS or count != int(count):
        raise ValueError(f"points: got {short(points)}, expected a whole number, 1 to {MOST_POINTS}")
    if steps_seen is None or not steps_seen >= 1:
        raise ValueError(f"window: got {short(window)}, expected training steps, 1 or more")
    run = RunShape.of(config)
    steps = np.unique(np.ceil(np.linspace(0, run.steps, int(count) + 1)[1:]).astype(int))
    deviation = final.deviation(law.scores["before"])
    known = math.isfinite(deviation)
    read = None if observed is None else read_observed(observed, run.steps, run.tokens)
    seen = None if read is None else Observed.of(read.steps, read.losses, run, steps_seen)
    found = forecast(law, run, steps / run.steps, final.loss, deviation if known else _UNKNOWN, seen)
    lower, upper = found.interval(level, *final.sides) if known else (np.nan * steps, np.nan * steps)
    table = pd.DataFrame(
        {"step": steps, "tokens": run.tokens * steps / run.steps, "loss": found.loss, "lower": lower, "upper": upper}
    )
    table.attrs["level"] = level
    table.attrs["schedule"] = {name: config[name] for group in _SCHEDULE_FIELDS for name in group if name in config}
    if read is not None:
        end = forecast(law, run, np.array([1.0]), final.loss, deviation if known else _UNKNOWN, seen)
        now = float(end.loss[0]), float(end.deviation[0])
        said = report(law, run, final, read.steps, read.losses, *now)
        if said["status"] not in ("nan", "wrong unit") and has_ended(float(read.steps.max()), run.steps):
            logged = _own_end(law, run, final.loss, read, steps_seen, level)
            _goes_over(table, run, logged)
            said = _ended(said, logged, final.loss)
        table.attrs["report"] = said
        table.attrs["seen"], table.attrs["notes"] = float(read.steps.max()), read.notes
    return table


def has_ended(step: float, total: float) -> bool:
    """Whether a log's last step is its run's last, which logs that count from 0 call one less.

    >>> has_ended(9, 10), has_ended(8, 10)
    (True, False)
    """
    return step >= total - 1


def _own_end(law: CurveLaw, run: RunShape, expected: float, seen: "Seen", window: float, level: float) -> Final:
    """The loss that a run ended at: the mean of its last logged losses, each brought to the end along the law's curve.

    Its interval is that of the mean, by how much these losses scatter.

    Args:
        law, run: of the curve.
        expected: the final loss as forecast before the run.
        seen: the log.
        window: steps that each loss is the mean of.
        level: coverage.
    """
    order = np.argsort(seen.steps, kind="stable")
    order = order[np.isfinite(seen.losses[order])]
    shares = np.clip((seen.steps[order] - (window - 1) / 2) / run.steps, 1 / run.steps, 1.0)
    count = int((shares >= shares[-1] - _LAST).sum())
    # Of few losses the ones before tell the noise.
    last = slice(-max(count, min(5, len(shares))), None)
    curve = forecast(law, run, np.append(shares[last], 1.0), expected, _UNKNOWN).loss
    ends = seen.losses[order][last] - curve[:-1] + curve[-1]
    # A single loss says nothing of its own noise.
    noise = float(np.std(ends, ddof=1)) if len(ends) > 1 else _UNKNOWN
    half = statistics.NormalDist().inv_cdf((1 + level) / 2) * noise / math.sqrt(count)
    loss = float(ends[-count:].mean())
    return Final(loss, loss - half, loss + half, level)


def _goes_over(table: pd.DataFrame, run: RunShape, end: Final) -> None:
    """Lets a forecast curve go over into what the log itself says of the end."""
    columns = ["loss", "lower", "upper"]
    own, last = np.array([end.loss, end.lower, end.upper]), table[columns].iloc[-1].to_numpy()
    near = np.exp((table["step"].to_numpy() / run.steps - 1) / _LAST)
    table[columns] += near[:, None] * (own - np.where(np.isfinite(last), last, own))
    table.loc[table.index[-1], columns] = own


def _ended(said: Mapping[str, Any], end: Final, expected: float) -> dict[str, Any]:
    """What is said of a run that has ended.

    Args:
        said: what `report` says of its log.
        end: the loss that it ended at.
        expected: the same as forecast before the run.
    """
    off = end.loss - expected
    where = f"{abs(off):.4f} {'above' if off > 0 else 'below'} its forecast before the run"
    reason = f"the run has ended: the log's own end, {end.loss:.4f}, lies {where}"
    return {**said, "status": "ended", "reason": reason, "advice": None}


# Fields of a schedule, in the groups of which one field stands for the others.
_SCHEDULE_FIELDS = (("lr_schedule", "lr points"), ("warmup", "lr points"), ("decay",), ("min_lr_ratio", "min_lr"))


def with_usual_schedule(
    config: Mapping[str, Any], typical: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> dict[str, Any]:
    """A configuration with its source's usual schedule where it leaves the schedule out.

    Args:
        config: a checked configuration.
        typical: source -> optimizer -> field -> value, `""` for any other optimizer (`ConfigurationLaw.typical`).

    >>> with_usual_schedule({"source": "a", "min_lr": 0.0}, {"a": {"": {"warmup": 2000, "min_lr_ratio": 0.1}}})
    {'source': 'a', 'min_lr': 0.0, 'warmup': 2000}
    """
    by_optimizer = typical.get(str(config.get("source")), {})
    usual = by_optimizer.get(str(config.get("optimizer")), by_optimizer.get("", {}))
    filled = dict(config)
    for names in _SCHEDULE_FIELDS:
        if not any(name in config for name in names):
            filled |= {name: usual[name] for name in names if usual.get(name) is not None}
    return filled


def stand_ins(config: Mapping[str, Any], filled: Mapping[str, Any]) -> list[str]:
    """A note on the fields of the schedule that were not given, and what stands in for them.

    Args:
        config: the checked configuration.
        filled: the same from `with_usual_schedule`.

    >>> stand_ins({"warmup": 100}, {"warmup": 100, "lr_schedule": "cosine"})
    ['no lr_schedule, min_lr_ratio given: the curve is that of lr_schedule cosine, min_lr_ratio 0.1']
    """
    if "lr points" in filled:
        return []
    schedule = Schedule.of(filled, math.inf)
    used = {"lr_schedule": "cosine", "warmup": 0, **filled}
    if schedule.decay > 0 and "min_lr" not in used:
        used.setdefault("min_lr_ratio", schedule.end)
    names = [name for group in _SCHEDULE_FIELDS for name in group if name in used and name not in config]
    told = ", ".join(f"{name} {used[name]:g}" if name != "lr_schedule" else f"{name} {used[name]}" for name in names)
    return [f"no {', '.join(names)} given: the curve is that of {told}"] if names else []


class Seen(NamedTuple):
    """The first part of a run: training steps and losses in the order of the log, and notes on what was left out."""

    steps: np.ndarray
    losses: np.ndarray
    notes: list[str]


def read_observed(observed: Any, total: float, tokens: float) -> Seen:
    """Steps and losses of a run's first part.

    Where the log goes back to an earlier step the run was started again there: what was logged from that step on before
    is left out. A log that goes back at every second or third point is not in order, and all of it counts.

    Args:
        observed: a mapping or table with `loss` and `step`, or `tokens` (seen so far, in billions or one by one).
        total: training steps of the whole run.
        tokens: billions of the whole run.

    Raises:
        ValueError: no such columns, of different lengths, not numbers, or steps beyond the run's end.
    """
    try:
        by_step = "step" in observed
        steps, losses = _numbers(observed["step" if by_step else "tokens"]), _numbers(observed["loss"])
        told = list(observed["notes"]) if "notes" in observed else []
    except (ArithmeticError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        raise ValueError('observed: expected {"step": [...], "loss": [...]} of numbers, or a table with both') from None
    if len(steps) != len(losses) or not len(steps):
        raise ValueError(f"observed: got {len(steps)} steps and {len(losses)} losses, expected as many, at least one")
    if not by_step:
        # No run has as many billions of tokens as tokens.
        billions = steps.max() <= tokens * (1 + 1e-9)
        steps = steps * total / (tokens if billions else tokens * 1e9)
    if not np.isfinite(steps).all() or steps.min() < 0 or steps.max() > total * (1 + 1e-9):
        found = f"steps from {np.nanmin(steps):g} to {np.nanmax(steps):g}"
        longer = f"; a longer run is max_step={steps.max():.0f}" if steps.max() > total else ""
        raise ValueError(f"observed: {found}, expected 0 to the run's {total:g}{longer}")
    return _resumed(steps, losses, told)


def _resumed(steps: np.ndarray, losses: np.ndarray, notes: list[str]) -> Seen:
    """A log without what a restart from an earlier step took the place of."""
    back = np.flatnonzero(np.diff(steps) < 0)
    if not 0 < len(back) <= len(steps) / 4:
        return Seen(steps, losses, notes)
    starts = np.full(len(steps), np.inf)
    starts[back] = steps[back + 1]
    kept = steps < np.minimum.accumulate(starts[::-1])[::-1]
    again = f"{len(back)} times, first" if len(back) > 1 else "once,"
    note = (
        f"the log goes back {again} from step {steps[back[0]]:g} to {steps[back[0] + 1]:g}, as a run does that starts "
        f"again there: {(~kept).sum()} earlier losses are left out"
    )
    return Seen(steps[kept], losses[kept], [*notes, note])


def _numbers(given: Any) -> np.ndarray:
    """One number or several, as floats."""
    if not isinstance(given, np.ndarray | pd.Series):
        several = listed(given, "observed")
        given = [given] if several is None else several
    return np.asarray(given, dtype=float).ravel()


def report(
    law: CurveLaw,
    run: RunShape,
    final: Final,
    steps: np.ndarray,
    losses: np.ndarray,
    loss: float,
    deviation: float,
) -> dict[str, Any]:
    """What to say of a run that goes on.

    Args:
        law: of curves.
        run: which run.
        final: its final loss as forecast before the run.
        steps, losses: its observed part.
        loss, deviation: its final loss as forecast now, and the standard deviation of that.

    Returns:
        `status`: `"on course"`, `"off course"` (far from its forecast), `"failing"`, `"nan"` or `"wrong unit"`, and
        from `curve` `"ended"`; `reason`; `recovers`, the probability that a failing run ends within 0.3 nats of its
        forecast; and `advice`, None or one sentence.
    """
    order = np.argsort(steps, kind="stable")
    steps, losses = steps[order], losses[order]
    said: dict[str, Any] = {"status": "on course", "reason": None, "recovers": 1.0, "advice": None}
    if not np.isfinite(losses[-1]):
        # Where the last stretch without a number begins: what was saved after that is of no use.
        first = int(np.flatnonzero(np.isfinite(losses))[-1]) + 1 if np.isfinite(losses).any() else 0
        return said | {
            "status": "nan",
            "reason": f"the loss is {losses[first]:g} from step {steps[first]:g} on",
            "recovers": 0.0,
            "advice": "stop: a loss that is not a number does not recover; restart from a checkpoint before it",
        }
    finite = np.isfinite(losses)
    steps, losses = steps[finite], losses[finite]
    above, before, _ = _off(law, run, final.loss, _UNKNOWN, steps, losses)
    # A failing run recovers as often as others did, and no likelier than its own log says, which is never sure of it.
    back = max(0.01, 0.5 * (1 + math.erf((final.loss + _FAILING_NATS - loss) / deviation / math.sqrt(2))))
    if unit := _unit(law, run, final.loss, steps, losses):
        return said | {"status": "wrong unit", "recovers": back} | unit
    if steps[-1] >= _FAILING_STEP and above > max(_FAILING_NATS, _FAILING_DEVIATIONS * float(before.deviation[-1])):
        reason = f"the loss stands {above:.2f} nats above its forecast at step {steps[-1]:g}"
        if losses.min() > run.chance:
            reason += f"; all losses lie above {run.chance:.1f}, those of guessing: are they nats per token?"
        return said | _failing(reason, min(law.recovery(above), back))
    risen = _risen(losses)
    if risen > 0:
        reason = f"the loss has risen by {risen:.2f} nats"
        return said | _failing(reason, min(law.recovery(max(above, risen)), back))
    deviation_before = final.deviation(before.scores)
    said |= _off_course(*_off(law, run, final.loss, deviation_before, steps, losses))
    surely = loss - _ONE_SIDED * deviation - final.loss
    if surely > _WORSE:
        said["advice"] = f"this run ends {surely:.2f} nats or more above its forecast with 95 %; consider to stop it"
    return said


def _unit(law: CurveLaw, run: RunShape, final: float, steps: np.ndarray, losses: np.ndarray) -> dict[str, Any]:
    """What is said where losses are the run's in another unit than nats per token; nothing elsewhere."""
    late = (steps >= _FAILING_STEP) & (losses > 0)
    if late.sum() < 5:
        return {}
    expected = forecast(law, run, steps[late] / run.steps, final, _UNKNOWN).loss
    # Losses in nats lie near, or are of a run of its own.
    if np.median(np.abs(losses[late] - expected)) <= _FAILING_NATS:
        return {}
    units = (
        ("perplexity", np.log(losses[late]), "their natural logarithm follows", "give their natural logarithm"),
        ("bits", losses[late] * math.log(2), "they are 1.44 times", "multiply them by 0.6931"),
    )
    for name, nats, how, advice in units:
        off = np.abs(nats - expected)
        if all(np.quantile(off, part) <= most for part, most in _LIKENESS.items()):
            return {"reason": f"the loss looks like {name}: {how} the forecast in nats per token", "advice": advice}
    return {}


def _off(
    law: CurveLaw, run: RunShape, final: float, deviation: float, steps: np.ndarray, losses: np.ndarray
) -> tuple[float, Curve, float]:
    """How far the last losses of a log lie above their forecast before the run, that, and their own noise."""
    last = slice(-min(9, len(losses)), None)
    expected = forecast(law, run, steps[last] / run.steps, final, deviation if math.isfinite(deviation) else _UNKNOWN)
    off = losses[last] - expected.loss
    noise = 1.48 * float(np.median(np.abs(off - np.median(off)))) / math.sqrt(len(off))
    return float(np.median(off)), expected, noise


def _off_course(off: float, expected: Curve, noise: float) -> dict[str, Any]:
    """What is said where the end of a log lies further from its forecast than forecasts err; nothing elsewhere."""
    scores = abs(off) / math.hypot(expected.score(0.9) / _ONE_SIDED * float(expected.deviation[-1]), noise)
    if scores < _OFF_DEVIATIONS or abs(off) < _WORSE:
        return {}
    where = "above" if off > 0 else "below"
    reason = f"the log lies {abs(off):.2f} {where} its forecast ({scores:.1f} standard deviations)"
    return {"status": "off course", "reason": reason}


def spoken(said: Mapping[str, Any] | None) -> str:
    """What a report says in words; nothing of a run on course."""
    return "; ".join(text for text in (said["reason"], said["advice"]) if text) if said else ""


# What has to happen for the forecast of a run to hold, by the report's status.
_CONDITIONS = {
    "failing": "if it recovers",
    "nan": "if it is restarted before that",
    "wrong unit": "if these were nats per token",
}


def condition(said: Mapping[str, Any] | None) -> str:
    """Under what a run's forecast holds; nothing where it holds anyway.

    >>> condition({"status": "failing"}), condition({"status": "on course"})
    ('if it recovers', '')
    """
    return _CONDITIONS.get(said["status"], "") if said else ""


def _failing(reason: str, recovers: float) -> dict[str, Any]:
    advice = "consider to stop it" if recovers < 0.5 else "watch it"
    return {
        "status": "failing",
        "reason": reason,
        "recovers": recovers,
        "advice": f"{advice}: it recovers with {recovers:.0%}",
    }


def _risen(losses: np.ndarray) -> float:
    """By how much the last quarter of a run lies above the quarter before it, 0 within three times the noise."""
    if len(losses) < 12:
        return 0.0
    quarter = len(losses) // 4
    new, old = losses[-quarter:], losses[-2 * quarter : -quarter]
    noise = 1.48 * np.median(np.abs(np.diff(losses[-2 * quarter :]))) / math.sqrt(2)
    risen = float(np.median(new) - np.median(old))
    return risen if risen > max(0.05, 3 * noise) else 0.0
