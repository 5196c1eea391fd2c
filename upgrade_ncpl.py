"""Laws as files hold them: large parts as arrays beside the JSON, and what older releases saved.

The older releases' values are frozen: they are what those files mean.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# Release 0.1's priors, which its files leave out: coefficient -> mean and standard deviation of the common value, and
# standard deviations of the sources' and optimizers' deviations.
_PRIORS_0_1: dict[str, tuple[float, float, float, float]] = {
    "E": (2.0, 1.0, 0.5, 0.0),
    "logA": (-0.6, 0.5, 0.3, 0.0),
    "alpha": (0.28, 0.05, 0.03, 0.0),
    "logB": (-1.4, 0.5, 0.4, 0.0),
    "beta": (0.38, 0.06, 0.05, 0.0),
    "growth": (0.11, 0.12, 0.05, 0.0),
    "beta_n": (0.035, 0.05, 0.02, 0.0),
    "experts": (0.3, 0.15, 0.0, 0.0),
    "head": (0.3, 0.3, 0.0, 0.0),
    "eff": (0.0, 0.01, 0.0, 0.4),
    "eff_n": (0.0, 0.01, 0.0, 0.1),
    "eff_d": (0.0, 0.01, 0.0, 0.12),
    "offset": (0.0, 0.001, 0.0, 0.02),
    "lr": (0.0, 1.0, 1.0, 1.0),
    "lr_n": (-0.4, 0.15, 0.15, 0.05),
    "lr_d": (0.1, 0.2, 0.2, 0.05),
    "lr_b": (0.4, 0.2, 0.2, 0.05),
    "low": (-4.0, 1.0, 1.0, 0.5),
    "low_n": (0.0, 0.05, 0.03, 0.0),
    "low_d": (-0.1, 0.1, 0.1, 0.0),
    "low_b": (0.1, 0.2, 0.2, 0.0),
    "width": (0.0, 0.3, 0.3, 0.0),
    "high": (-4.0, 1.0, 1.0, 0.5),
    "high_n": (0.0, 0.05, 0.03, 0.0),
    "high_d": (-0.1, 0.1, 0.1, 0.0),
    "high_b": (0.0, 0.2, 0.2, 0.0),
    "steep": (-0.2, 0.3, 0.3, 0.0),
    "edge": (1.5, 1.0, 1.0, 1.0),
    "edge_n": (-0.6, 0.2, 0.1, 0.0),
    "edge_d": (0.1, 0.2, 0.2, 0.0),
    "edge_b": (0.2, 0.2, 0.2, 0.0),
    "rough": (0.5, 0.4, 0.3, 0.0),
    "blow": (0.8, 0.7, 0.7, 0.7),
    "blow_n": (-0.6, 0.2, 0.1, 0.0),
    "blow_d": (0.0, 0.2, 0.1, 0.0),
    "blow_b": (0.0, 0.2, 0.1, 0.0),
    "sharp": (1.8, 0.5, 0.3, 0.0),
    "lost": (-1.2, 0.7, 0.5, 0.0),
    "lost_d": (0.0, 0.2, 0.1, 0.0),
    "lost_b": (0.0, 0.2, 0.1, 0.0),
    "floor": (-5.0, 0.5, 0.5, 0.0),
    "floor_n": (0.0, 0.05, 0.03, 0.0),
    "floor_d": (0.2, 0.1, 0.1, 0.0),
    "floor_b": (-1.0, 0.2, 0.2, 0.0),
    "crit": (1.5, 0.7, 0.7, 0.4),
    "crit_n": (0.0, 0.1, 0.05, 0.0),
    "crit_d": (0.3, 0.15, 0.15, 0.0),
}
# What release 0.1 knew of its sources.
_SOURCES_0_1: dict[str, dict[str, int]] = {
    "marin": {"seq len": 4096, "vocab size": 128_256},
    "steplaw": {"seq len": 2048, "vocab size": 65_536},
    "steplaw_moe": {"seq len": 2048, "vocab size": 65_536},
}
_PARENTS_0_1 = {"steplaw_moe": "steplaw"}


def upgrade_law(state: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration law's state in this release's layout.

    Release 0.1 kept no form, no priors, the posterior as ragged rows, optimizers as names, and of the fitted runs the
    residual's coordinates alone, from which the closed form's inputs are computed back here. Its kernel's shared
    surface did not fade with size, and its interaction reached over the learning rate. Later laws kept the least
    distance of early blow-ups from the best rate as a constant of the form.
    """
    if state.get("form") == 2 and "near" not in state["common"]:
        return _with_near(state)
    if "form" in state:
        return dict(state)
    new = dict(state) if "priors" in state else _upgrade_layout(state)
    residuals = {
        source: {**residual, "scales": {**residual["scales"], "wide": 1e9, "lux": residual["scales"]["lu2"]}}
        for source, residual in new["residuals"].items()
    }
    return {**new, "form": 1, "residuals": residuals}


def _with_near(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with the coefficient `near` at what was its constant, which no group moves and no run informs."""
    common = {**state["common"], "near": math.log(0.02)}
    priors = {**state["priors"], "near": {"mean": common["near"], "sd": 0.0, "source": 0.0, "optimizer": 0.0}}
    if not len(state["posterior"]):
        return {**state, "common": common, "priors": priors}
    # The posterior's rows are in the order of the law's columns: common values first, by name.
    packed = np.asarray(state["posterior"], dtype=float)
    order = np.tril_indices(math.isqrt(2 * len(packed)))
    factor = np.zeros((order[0][-1] + 1,) * 2)
    factor[order] = packed
    place = sorted(common).index("near")
    factor = np.insert(np.insert(factor, place, 0.0, axis=0), place, 0.0, axis=1)
    return {**state, "common": common, "priors": priors, "posterior": factor[np.tril_indices(len(factor))]}


def _upgrade_layout(state: Mapping[str, Any]) -> dict[str, Any]:
    new = dict(state)
    names = ("mean", "sd", "source", "optimizer")
    new["priors"] = {name: dict(zip(names, _PRIORS_0_1[name], strict=True)) for name in state["common"]}
    new["posterior"] = [value for row in state.get("posterior", ()) for value in row]
    new["parents"] = {name: parent for name, parent in _PARENTS_0_1.items() if name in state.get("sources", {})}
    new["typical"] = {
        source: {**kinds, "": {**kinds.get("", {}), **_SOURCES_0_1.get(source, {})}}
        for source, kinds in state.get("typical", {}).items()
    }
    new["residuals"] = {
        source: _upgrade_residual(residual, state, source) for source, residual in state.get("residuals", {}).items()
    }
    return new


def _upgrade_residual(residual: Mapping[str, Any], law: Mapping[str, Any], source: str) -> dict[str, Any]:
    runs = {name: np.asarray(values) for name, values in residual["runs"].items()}
    optimizers, place = np.unique(runs["optimizer"], return_inverse=True)
    own = law["sources"].get(source, {})

    def coefficient(name: str) -> np.ndarray:
        by_optimizer = [law["optimizers"].get(optimizer, {}).get(name, 0.0) for optimizer in optimizers.tolist()]
        return law["common"][name] + own.get(name, 0.0) + np.array(by_optimizer)[place]

    n, d, b = runs["size"], runs["data"], runs["batch"] + 0.4 * runs["data"]
    slopes = coefficient("edge_n") * n + coefficient("edge_d") * d + coefficient("edge_b") * b
    inputs = {
        "active": n - coefficient("experts") * runs["idle"] - np.log1p(coefficient("head") * runs["head"]),
        "idle": runs["idle"],
        "head": runs["head"],
        "d": d,
        "b": b,
        "rate": runs["rate"] + coefficient("edge") + slopes,
    }
    return {**residual, "optimizers": optimizers.tolist(), "runs": {**runs, "optimizer": place}, "inputs": inputs}


def closed_form_0_1(c: Mapping[str, Any], n: Any, d: Any, b: Any, rate: Any) -> dict[str, Any]:
    """The closed form of release 0.1, whose lost tokens are a step in the learning rate that is not tied to the valley.

    Arguments and values as `forms_ncpl.closed_form`; beside them `edge`, the rate's log over that of rough training.
    """
    saturation = 0.4

    def power(name: str) -> Any:
        return c[name] + c[f"{name}_n"] * n + c[f"{name}_d"] * d + c[f"{name}_b"] * b

    x = np.clip(rate - power("lr"), -6.0, 5.0)
    u = rate - power("edge")
    width, steep = np.exp(c["width"]), np.exp(c["steep"])
    low = np.exp(power("low")) * (np.sqrt(x * x + width * width) - width)
    high = np.exp(power("high")) * (np.exp(np.clip(steep * x, -40.0, 6.0)) - 1 - steep * x)
    edge = np.exp(np.clip(np.exp(c["rough"]) * u - 4, -60.0, 0.5))
    seen = d + c["eff"] + c["eff_n"] * n + c["eff_d"] * d
    data = np.exp(c["logB"] + c["growth"] * n - (c["beta"] + c["beta_n"] * n) * seen)
    over = b - (c["crit"] + c["crit_n"] * n + c["crit_d"] * d)
    doubled = np.log1p(np.exp(-abs(over))) + (over + abs(over)) / 2
    waste = data * (np.exp(c["beta"] * doubled) - 1)
    blown = 1 / (1 + np.exp(-np.clip(np.exp(c["sharp"]) * (rate - power("blow")), -40.0, 40.0)))
    lost = np.exp(c["lost"] + c["lost_d"] * d + c["lost_b"] * b) * blown
    lost_tokens = data * (np.exp(c["beta"] * lost) - 1)
    rough = saturation * (1 - np.exp(-(high + edge + lost_tokens) / saturation))
    excess = low + rough + np.exp(power("floor")) + waste
    loss = c["E"] + c["offset"] + np.exp(c["logA"] - c["alpha"] * n) + data + excess
    return {"loss": loss, "excess": excess, "valley": x, "edge": u}


# Numbers in a row that stay in the JSON.
_INLINE = 64


def split_arrays(state: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """A law's or calibration's state as JSON, with its large numeric parts moved into arrays.

    Args:
        state: nested mappings, lists and numpy arrays.
        name: what the arrays' names begin with.
        arrays: receives the large ones; in their place the JSON holds `{"array": name}`.

    >>> arrays = {}
    >>> split_arrays({"law": "mine", "weights": np.zeros(100)}, "prior", arrays), list(arrays)
    ({'law': 'mine', 'weights': {'array': 'prior.weights'}}, ['prior.weights'])
    """
    if isinstance(state, Mapping):
        return {str(key): split_arrays(value, f"{name}.{key}", arrays) for key, value in state.items()}
    if isinstance(state, list | tuple) and len(state) > _INLINE and all(isinstance(v, int | float) for v in state):
        state = np.asarray(state)
    if isinstance(state, np.ndarray) and (state.ndim > 1 or state.size > _INLINE):
        arrays[name] = np.ascontiguousarray(state)
        return {"array": name}
    if isinstance(state, np.ndarray | np.generic):
        return state.tolist()
    if isinstance(state, list | tuple):
        return [split_arrays(value, f"{name}.{i}", arrays) for i, value in enumerate(state)]
    return state


def join_arrays(state: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The state that `split_arrays` took apart.

    Raises:
        ValueError: an array is missing.
    """
    if isinstance(state, Mapping):
        if set(state) == {"array"}:
            if state["array"] not in arrays:
                raise ValueError(f"{state['array']}: missing among the law's arrays ({len(arrays)} there)")
            return arrays[state["array"]]
        return {key: join_arrays(value, arrays) for key, value in state.items()}
    return [join_arrays(value, arrays) for value in state] if isinstance(state, list) else state
