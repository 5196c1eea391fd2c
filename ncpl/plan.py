"""From a budget or a target loss to a run: how large a model, on how many tokens, with which shape and hyperparameters.

Along a budget every model size leaves so many tokens; learning rate and batch size are tuned at each, and the size of
the lowest loss is the plan. Sizes that cost less than 0.005 nats more make the valley: how well the optimum is known.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fields_ncpl import (
    check_config,
    training_order,
)
from ncpl import drawing
from ncpl.allocations import VALLEY, effective_tokens, reference_allocations
from ncpl.configs import by_name
from ncpl.errors import short
from ncpl.hardware import Hardware, check_count, check_utilisation, cost, nearest_shape, read_hardware, run_utilisation
from ncpl.hardware import shape_of as model_shape
from ncpl.plan_search import SHAPE_FIELDS, SIZES, TOKENS, Config, Losses, Run, Search, active_share, lowest_between
from text_ncpl import as_number, listed

if TYPE_CHECKING:
    from ncpl.drawing import Picture

# Largest and smallest budgets that a target loss is looked for in, in FLOPs.
_BUDGETS = (1e15, 1e29)
BASE = {"source": "steplaw", "optimizer": "adamw"}


@dataclass(frozen=True)
class Plan:
    """A run for a budget.

    Args:
        best: the run: `params` (non-embedding) and `params_total`, `tokens`, the fields of its configuration,
            `loss` with `lower` and `upper`, `params_low` and `params_high` (the valley), and what `cost` gives.
        config: its configuration.
        valley: sizes along the budget: `params`, `tokens`, `loss`, `excess` over the lowest.
        references: what published laws give for the same FLOPs.
        optimizers: the lowest loss of each optimizer, and the share of the compute that it would save.
        notes: what has to be known of it, a sentence each.
    """

    best: pd.Series
    config: dict[str, Any]
    valley: pd.DataFrame
    references: pd.DataFrame
    optimizers: pd.DataFrame
    notes: tuple[str, ...]
    search: Search = field(repr=False)
    budget: float = field(repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.best[name]

    @property
    def valley_in_words(self) -> str:
        """How well the size is known, a sentence; empty where it was fixed."""
        low, high = self.best["params_low"], self.best["params_high"]
        if low == high:
            return ""
        low, high = drawing.count(low), drawing.count(high)
        return f"Sizes from {low} to {high} parameters are as good to {VALLEY:g} nats."

    @cached_property
    def frontier(self) -> pd.DataFrame:
        """The best run of budgets from a thirtieth to thirty times this one: `flops`, `params`, `params_total`,
        `tokens`, `loss`."""
        search, rows = self.search, []
        for factor in np.geomspace(1 / 30, 30, 9):
            try:
                # The best size grows about as the square root of the budget.
                ends = (1.0,) if search.is_fixed else search.sizes(self.budget * factor, 2)
                middle = self.best["params"] * math.sqrt(factor)
                sizes = [search.fixed(self.budget * factor)] if search.is_fixed else _within(ends, middle, 3.0, 9)
            except ValueError:
                # Beyond the ranges of the fields.
                continue
            pairs = [(n, search.tokens(n, self.budget * factor)) for n in sizes]
            tuned = search.tuned(pairs)
            loss, size = lowest_between(sizes, [loss for loss, _ in tuned])
            at = min(range(len(sizes)), key=lambda i: abs(math.log(sizes[i] / size)))
            tokens = search.tokens(size, self.budget * factor)
            best = {**tuned[at][1], "model size": size / 1e6, "data size": tokens / 1e9}
            whole = model_shape(best).params
            row = {"flops": train_flops(best), "params": size, "params_total": whole, "tokens": tokens, "loss": loss}
            rows.append(row)
        return pd.DataFrame(rows)

    def scores(self, like: str | None = None, level: float = 0.9) -> pd.DataFrame:
        """Benchmark scores along the frontier (`ncpl.nsp.benchmarks.benchmarks_along`); the plan's run is its last row.

        Args:
            like: a known family whose data quality is assumed.
            level: coverage of the intervals.

        Raises:
            ValueError: a family that is not known.
        """
        # Only now, because it brings torch.
        from ncpl.nsp.benchmarks import benchmarks_along

        params = [*self.frontier["params_total"], self.best["params_total"]]
        return benchmarks_along(params, [*self.frontier["tokens"], self.best["tokens"]], like, level)

    @cached_property
    def iso_loss(self) -> pd.DataFrame:
        """Lines of equal loss: for five losses and every size, the `tokens` and `flops` that reach it."""
        sizes = np.geomspace(self.best["params"] / 10, min(SIZES[1], self.best["params"] * 10), 9)
        data = np.geomspace(max(TOKENS[0], self.best["tokens"] / 30), min(TOKENS[1], self.best["tokens"] * 30), 11)
        pairs = [(n, d) for n in sizes.tolist() for d in data.tolist()]
        losses = np.array([loss for loss, _ in self.search.tuned(pairs)]).reshape(len(sizes), -1)
        rows = []
        for level in self.best["loss"] + np.array([-0.1, -0.05, 0, 0.05, 0.1]):
            for size, line in zip(sizes, losses, strict=True):
                falling = np.minimum.accumulate(line)
                if falling[-1] <= level <= falling[0]:
                    tokens = float(np.exp(np.interp(-level, -falling, np.log(data))))
                    flops = train_flops(self.search.config(size, tokens, 1e-3, 256))
                    rows.append({"loss": level, "params": size, "tokens": tokens, "flops": flops})
        return pd.DataFrame(rows, columns=["loss", "params", "tokens", "flops"])

    def plot(self) -> "Picture":
        """Loss over size along the budget, the frontier, and lines of equal loss."""
        from ncpl import plots

        return plots.plan(self)

    def to_dict(self, curves: bool = False) -> dict[str, Any]:
        """Everything as plain values; with `curves` the frontier and the lines of equal loss too.

        Raises:
            ValueError: `curves` is neither true nor false.
        """
        tables = {"valley": self.valley, "references": self.references, "optimizers": self.optimizers}
        if not isinstance(curves, bool):
            raise ValueError(f"curves: got {short(curves)}, expected true or false")
        if curves:
            tables |= {"frontier": self.frontier, "iso_loss": self.iso_loss}
        plain = {name: table.to_dict("records") for name, table in tables.items()}
        return {"best": self.best.to_dict(), "config": self.config, **plain, "notes": list(self.notes)}


def _within(ends: Any, middle: float, factor: float, points: int) -> list[float]:
    """Sizes around a middle, evenly over their logarithms, between two ends."""
    middle = min(max(middle, ends[0]), ends[1])
    return np.geomspace(max(ends[0], middle / factor), min(ends[1], middle * factor), points).tolist()


def train_flops(config: Config) -> float:
    """Training FLOPs of a configuration, by its shape."""
    return model_shape(config).flops_per_token() * float(config["data size"]) * 1e9


def plan(
    losses: Losses,
    base: Config | None = None,
    *,
    flops: float | None = None,
    gpu_hours: float | None = None,
    cost_usd: float | None = None,
    days: float | None = None,
    target_loss: float | None = None,
    gpu: str = "h100",
    count: int = 64,
    utilisation: float | None = None,
    params: float | None = None,
    tokens_per_param: float | None = None,
    optimizers: Sequence[str] = (),
    inference_tokens: float = 0.0,
    unique_tokens: float | None = None,
    forecast: Callable[[Sequence[Config]], pd.DataFrame] | None = None,
    hardware: Hardware | None = None,
    envelope: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    idle: Callable[[Config], Collection[str]] = lambda config: (),
    strict: bool = True,
) -> Plan:
    """The best run for a budget, or the cheapest for a loss.

    Args:
        losses: checked configurations -> expected losses in nats per token.
        base: fields that are kept, `source` and `optimizer` above all; StepLaw's recipe with AdamW if absent.
        flops, gpu_hours, cost_usd, days, target_loss: exactly one of them. Days are of `count` accelerators.
        gpu, count, utilisation: what it runs on (`ncpl.hardware.cost`).
        params, tokens_per_param: non-embedding parameters, or tokens for each of them, where that is fixed.
        optimizers: others to compare.
        inference_tokens: to be served over the model's life; their FLOPs come out of the budget.
        unique_tokens: how many tokens there are; more are repetitions.
        forecast: checked configurations -> `loss`, `lower`, `upper`, `divergence`, `extrapolation`.
        hardware: facts; ours if absent.
        envelope: source -> field -> its runs' ends (`Calibration.envelope`), between which the chosen warmup stays.
        idle: checked configuration -> its fields that move no forecast; of the plan's own choices nothing is told.
        strict: whether fields of the base that are not known are errors.

    Raises:
        ValueError: no budget or several, contradictory constraints, a loss that no run reaches.
    """
    asked: Mapping[str, Any] = {} if base is None else base
    base = _checked_base(asked, strict)
    limits = {"flops": flops, "gpu_hours": gpu_hours, "cost": cost_usd, "days": days, "target_loss": target_loss}
    constraints = {"params": params, "tokens_per_param": tokens_per_param, "unique_tokens": unique_tokens}
    unit, value = _budget(limits)
    fixed = _fixed(constraints, inference_tokens)
    accelerator, count = (hardware or read_hardware()).find(gpu), check_count(count)
    warmups = (envelope or {}).get(str(base["source"]), {}).get("warmup")
    search = Search(losses, base, _flops_per_token(base), **fixed, warmups=warmups)
    if unit in ("gpu_hours", "cost", "days"):
        hours = value * {"gpu_hours": 1, "cost": 1 / accelerator.price_usd_h, "days": 24 * count}[unit]
        search, budget = replace(search, per_token=_hours_per_token(base, accelerator, utilisation)), hours
    else:
        budget = search.cheapest(value, _BUDGETS) if unit == "target_loss" else value
    price = partial(cost, gpu=gpu, count=count, utilisation=utilisation, hardware=hardware)
    found = _plan(search, budget, _optimizers(optimizers), _without(idle, base, forecast), price)
    return replace(found, notes=(*_stand_ins(asked), *_reached(unit, value, found["loss"]), *found.notes))


def _without(
    idle: Callable[[Config], Collection[str]], base: Config, forecast: Callable[[Sequence[Config]], pd.DataFrame] | None
) -> Callable[[Config], pd.DataFrame] | None:
    """The forecast of a plan's configuration, without the idle fields that the user did not ask for."""
    if forecast is None:
        return None
    return lambda config: forecast([{n: value for n, value in config.items() if n in base or n not in idle(config)}])


def _reached(unit: str, target: float, loss: float) -> list[str]:
    """That a target loss is none, because the cheapest run is far below it."""
    said = f"target_loss: {target:g} is reached by every run within the ranges; this is the cheapest of them"
    return [said] if unit == "target_loss" and loss < 0.99 * target else []


def _stand_ins(base: Config) -> list[str]:
    """Which source and optimizer stand in where the base names none."""
    absent = {name: value for name, value in BASE.items() if name not in by_name(base)}
    said = {
        "source": "the loss is that of its recipe, data and evaluation set; source=NAME asks for another",
        "optimizer": "optimizer=NAME asks for another",
    }
    return [f"no {name} is given: {value} stands in; {said[name]}" for name, value in absent.items()]


def _plan(
    search: Search,
    budget: float,
    optimizers: Sequence[str],
    forecast: Callable[[Config], pd.DataFrame] | None,
    price: Callable[[Config], dict[str, Any]],
) -> Plan:
    """The best run of a budget, with everything that is told of it."""
    runs = search.best(budget)
    loss, size, tokens, config = min(runs, key=lambda run: run.loss)
    config = training_order(_rounded(config))
    costs = price(config)
    valley = _valley(runs, loss, size)
    low, high = (size, size) if search.is_fixed else _flat(valley, size)
    table: dict[Any, Any] = {"loss": loss}
    told: list[str] = []
    if forecast is not None:
        forecasts = forecast(search.worth(config))
        table, told = forecasts.iloc[0].to_dict(), forecasts.attrs.get("notes", [])
    ratio = {"params": size, "tokens": tokens, "tokens_per_param": tokens / size}
    ends = {"params_low": low, "params_high": high}
    shown = {name: config[name] for name in _SHOWN if name in config}
    values: dict[Any, Any] = {**ratio, "params_total": costs.pop("params"), **ends, **shown, **table, **costs}
    references = reference_allocations(costs["flops"], size, tokens, search.seq_len)
    compared = _compare(search, budget, loss, optimizers)
    if forecast is not None:
        others = [{**config, "optimizer": name} for name in compared["optimizer"][1:]]
        own = [note for other in others for note in forecast(other).attrs.get("notes", [])]
        # What is told of an optimizer alone: of the rest the first forecast has told.
        told = [*told, *(note for note in dict.fromkeys(own) if note.startswith("optimizer: "))]
    notes = (*told, *_notes(search, config, tokens, costs))
    return Plan(pd.Series(values), config, valley, references, compared, notes, search, budget)


_SHOWN = (
    *("active size", "num layers", "num heads", "hidden dim", "ffn dim", "optimizer"),
    *("learning rate", "batch size", "warmup", "max step"),
)


LARGEST = 1e300
"""Of a budget or constraint: what it is multiplied with leaves the range of a float."""


def _above_0(name: str, value: object) -> float:
    number = as_number(value)
    if number is None or not 0 < number < LARGEST:
        raise ValueError(f"{name}: got {short(value)}, expected a number above 0")
    return float(number)


def _budget(limits: Mapping[str, Any]) -> tuple[str, float]:
    """The one limit that is given, and its value."""
    given = {name: value for name, value in limits.items() if value is not None}
    if len(given) != 1:
        came = ", ".join(given) or "none"
        raise ValueError(f"budget: got {came}, expected exactly one of flops, gpu_hours, cost, days and target_loss")
    ((name, value),) = given.items()
    return name, _above_0(name, value)


def _optimizers(given: Any) -> list[str]:
    """The names of optimizers to compare, checked."""
    names = listed(given, "optimizers")
    if names is None or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"optimizers: got {short(given)}, expected a list of names, such as ['muon']")
    return names


def _fixed(constraints: Mapping[str, Any], inference_tokens: object) -> dict[str, Any]:
    """What holds whatever the budget, checked."""
    fixed = {name: None if value is None else _above_0(name, value) for name, value in constraints.items()}
    params = fixed["params"]
    if params is not None and fixed["tokens_per_param"] is not None:
        raise ValueError(
            "tokens_per_param: given with params, which together leave a budget nothing to decide; give one of them, "
            "or ask cost what the run costs"
        )
    if params is not None and not SIZES[0] <= params <= SIZES[1]:
        raise ValueError(f"params: got {params:g}, expected {SIZES[0]:g} to {SIZES[1]:g} non-embedding parameters")
    if fixed["unique_tokens"] is not None and fixed["unique_tokens"] < 1:
        raise ValueError(f"unique_tokens: got {fixed['unique_tokens']:g}, expected a number of tokens, at least 1")
    served = as_number(inference_tokens)
    if served is None or not 0 <= served < LARGEST:
        raise ValueError(f"inference_tokens: got {short(inference_tokens)}, expected a number of tokens, at least 0")
    return {**fixed, "inference_tokens": float(served)}


def _checked_base(base: Config, strict: bool) -> dict[str, Any]:
    """The base under the registry's names; source and optimizer are StepLaw's and AdamW where it has none."""
    if not isinstance(base, Mapping):
        raise ValueError(f"base: got {short(base)}, expected a mapping of fields to values")
    named = {**BASE, **by_name(base)}
    if "model size" not in named:
        named = {name: value for name, value in named.items() if name not in SHAPE_FIELDS}
    stand_in = {"model size": 1000, "data size": 20, "learning rate": 1e-3, "batch size": 256}
    return {name: value for name, value in check_config(stand_in | named, strict).items() if name in named}


def _flops_per_token(base: Config) -> Callable[[float], float]:
    share = active_share(base)
    kept = {name: base[name] for name in ("source", "seq len", "num experts", "top k") if name in base}

    def per_token(params: float) -> float:
        sizes = {"model size": params / 1e6}
        if "num experts" in kept:
            sizes["active size"] = params / 1e6 * share
        return model_shape(kept | sizes).flops_per_token()

    return per_token


def _hours_per_token(base: Config, accelerator: Any, utilisation: float | None) -> Callable[[float], float]:
    flops, active = _flops_per_token(base), active_share(base)
    share = None if utilisation is None else check_utilisation(utilisation)

    def per_token(params: float) -> float:
        kept = run_utilisation(accelerator, nearest_shape(params * active)) if share is None else share
        return flops(params) / (accelerator.bf16_tflops * 1e12 * kept * 3600)

    return per_token


def _rounded(config: dict[str, Any]) -> dict[str, Any]:
    """Values as people write them."""
    rounded = {name: float(f"{config[name]:.3g}") for name in ("learning rate", "adam_lr") if name in config}
    return config | rounded


def _valley(runs: Sequence[Run], loss: float, size: float) -> pd.DataFrame:
    """Runs of one budget from a tenth of the best size to ten times it."""
    near = [run for run in runs if size / 10 <= run.params <= size * 10]
    rows = [{"params": n, "tokens": d, "loss": found, "excess": found - loss} for found, n, d, _ in near]
    return pd.DataFrame(rows)


def _flat(valley: pd.DataFrame, size: float) -> tuple[float, float]:
    """The sizes on either side of the best where the loss has risen by `VALLEY`; the valley's ends where it has not."""
    sizes, excess = np.log(valley["params"].to_numpy()), valley["excess"].to_numpy()
    at = int(np.argmin(excess))
    ends = []
    for side in (range(at, -1, -1), range(at, len(sizes))):
        order = list(side)
        beyond = next((i for i in range(1, len(order)) if excess[order[i]] > VALLEY), None)
        if beyond is None:
            ends.append(float(np.exp(sizes[order[-1]])))
            continue
        pair = [order[beyond - 1], order[beyond]]
        ends.append(float(np.exp(np.interp(VALLEY, excess[pair], sizes[pair]))))
    return min(ends[0], size), max(ends[1], size)


def _compare(search: Search, budget: float, loss: float, optimizers: Sequence[str]) -> pd.DataFrame:
    """Each optimizer's lowest loss with the budget, and the share of it that the base's loss would cost."""
    rows = []
    for name in dict.fromkeys((str(search.base["optimizer"]), *(name.strip().lower() for name in optimizers))):
        own = replace(search, base={**search.base, "optimizer": name})
        same = name == search.base["optimizer"]
        lowest = loss if same else own.lowest(budget, 13, 3).loss
        share = 1.0 if same else own.cheapest(loss, (budget / 30, budget * 30)) / budget
        rows.append({"optimizer": name, "loss": lowest, "compute": share, "saved": 1 - share})
    return pd.DataFrame(rows)


def _notes(search: Search, config: Config, tokens: float, costs: Mapping[str, Any]) -> list[str]:
    notes = []
    stated = search.base.get("warmup")
    if stated is not None and config["warmup"] < stated:
        notes.append(f"warmup: {config['warmup']} steps, a twentieth of the run, in place of the {stated:g} given")
    if not costs["fits"]:
        least = costs["smallest_count"]
        needed = "no count of them holds it" if least is None else f"the least count is {least}"
        notes.append(f"these accelerators do not hold the run, {costs['memory_gb_per_gpu']:.0f} GB each: {needed}")
    if search.unique_tokens is not None and tokens > search.unique_tokens:
        notes.append(
            f"{tokens / search.unique_tokens:.1f} epochs of {search.unique_tokens:.3g} unique tokens, worth "
            f"{effective_tokens(tokens, search.unique_tokens):.3g} fresh ones (arXiv 2305.16264)"
        )
    if search.inference_tokens:
        share = search.inference_tokens / 3 / (tokens + search.inference_tokens / 3)
        notes.append(f"serving {search.inference_tokens:.3g} tokens takes {share:.0%} of the FLOPs")
    return notes
