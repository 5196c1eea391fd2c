"""Plain methods beside NSP, under its protocols: laws of size, observational scaling, random forests."""

from collections.abc import Callable, Sequence
from typing import Any

import nsp_sloth as sloth  # type: ignore[import-not-found]
import numpy as np
from scipy.optimize import least_squares
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression

from configuration_nsp import CHANCE, CORE_TASKS
from ncpl.nsp.scores import Scores, triples


def power_law(size: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Traditional law: error `A / N^a + E`, with ln N in units of 1e9 as `size[:, 0]`; the score is 1 - error."""
    return np.asarray(1 - (np.exp(theta[0] - np.exp(theta[1]) * size[:, 0]) + theta[2]))


def extended_law(size: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Extended law: error `A / N^a + B / D^b + E` (Hoffmann et al. 2022, eq. 2, for errors)."""
    params = np.exp(theta[0] - np.exp(theta[1]) * size[:, 0])
    return np.asarray(1 - (params + np.exp(theta[2] - np.exp(theta[3]) * size[:, 1]) + theta[4]))


def sigmoid_law(size: np.ndarray, theta: np.ndarray, chance: float) -> np.ndarray:
    """`chance + (1 - chance) sigmoid(b + n ln N + d ln D)`."""
    logits = theta[0] + size @ theta[1:3]
    return np.asarray(chance + (1 - chance) / (1 + np.exp(-logits)))


def fit_law(
    law: Callable[[np.ndarray, np.ndarray], np.ndarray],
    starts: Sequence[Sequence[float]],
    size: np.ndarray,
    y: np.ndarray,
) -> Callable[[np.ndarray], np.ndarray]:
    """Least squares from several starts; the law with its parameters."""
    found = [least_squares(lambda theta: law(size, theta) - y, start, max_nfev=300) for start in starts]
    best = min(found, key=lambda result: result.cost).x
    return lambda new: law(new, best)


class Errors:
    """Absolute errors of held-out scores, by method, protocol and task."""

    def __init__(self, scores: Scores) -> None:
        self.values = scores.values.double().numpy()
        self.chance = [CHANCE[task] for task in scores.tasks]
        self.found: dict[tuple[str, str], dict[int, list[float]]] = {}

    def add(self, method: str, protocol: str, task: int, predicted: np.ndarray, rows: np.ndarray) -> None:
        error = np.abs(predicted - self.values[rows, task])
        self.found.setdefault((method, protocol), {}).setdefault(task, []).extend(error[~np.isnan(error)].tolist())

    def means(self) -> dict[str, dict[str, float]]:
        """Method -> protocol -> mean over the tasks of the mean error."""
        table: dict[str, dict[str, float]] = {}
        for (method, protocol), by_task in self.found.items():
            table.setdefault(method, {})[protocol] = float(np.mean([np.mean(e) for e in by_task.values()]))
        return table


def baselines(scores: Scores, folds: int = 5) -> dict[str, dict[str, float]]:
    """Mean errors of plain methods under the same protocols: method -> protocol -> mean absolute error.

    `traditional`, `extended` and `sigmoid` laws of size; the sigmoid plus its sibling's residual; observational scaling
    (principal component of the known scores, Ruan et al. 2024); latent skills (Polo et al. 2024); random forests.
    """
    size = scores.features[:, :2].double().numpy()
    core = [scores.tasks.index(task) for task in CORE_TASKS]
    errors = Errors(scores)
    for train, test in scores.folds(folds):
        train = train[scores.mask[train, 1].numpy() > 0]  # the plain methods need tokens
        for protocol, task, predicted, rows in sloth.predictions(scores, train, test):
            errors.add("latent skills (Sloth)", protocol, task, predicted, rows)
        for task in core:
            seen = train[~np.isnan(errors.values[train, task])]
            sigmoid = _size_laws(errors, task, size, seen, test)
            _sibling_methods(errors, scores, core, task, sigmoid, train, test)
            for number, others in enumerate(triples(task, core)):
                # Forests on a seventh of the choices, spread evenly: they are slow.
                _other_scores(errors, size, task, list(others), train, test, forest=number % 7 == 0)
    return errors.means()


def _forest(x: np.ndarray, y: np.ndarray) -> Any:
    return RandomForestRegressor(100, min_samples_leaf=2, random_state=0).fit(x, y)


def _size_laws(errors: Errors, task: int, size: np.ndarray, seen: np.ndarray, test: np.ndarray) -> Any:
    """Laws of params and tokens alone; returns the sigmoid."""
    x, y, chance = size[seen], errors.values[seen, task], errors.chance[task]
    sigmoid_starts = [(-2, 0.3, 0.3), (0, 0.3, 0.3)]
    laws = {
        "traditional law, N": fit_law(power_law, [(-1, -1.5, 0.3), (0, -2.5, 0.1)], x, y),
        "extended law, N and D": fit_law(extended_law, [(-2, -1.5, -2, -1.5, 0.2), (-1, -1, -3, -1, 0.1)], x, y),
        "sigmoid, N and D": fit_law(lambda s, theta: sigmoid_law(s, theta, chance), sigmoid_starts, x, y),
        "random forest": _forest(x, y).predict,
    }
    for method, law in laws.items():
        errors.add(method, "size", task, law(size[test]), test)
    return laws["sigmoid, N and D"]


def _sibling_methods(
    errors: Errors, scores: Scores, core: list[int], task: int, sigmoid: Any, train: np.ndarray, test: np.ndarray
) -> None:
    """The sigmoid plus its sibling's residual, and forests on both models' sizes and the sibling's scores."""
    size, values = scores.features[:, :2].double().numpy(), errors.values
    rows, siblings, x = {}, {}, {}
    for name, models in (("train", train), ("test", test)):
        pairs = [(row, other) for row in models if (other := scores.sibling(row)) is not None]
        rows[name], siblings[name] = np.array(pairs).T
        known = np.nan_to_num(values[siblings[name]][:, core], nan=-0.1)
        x[name] = np.hstack([size[rows[name]], size[siblings[name]], known])
    residual = values[siblings["test"], task] - sigmoid(size[siblings["test"]])
    predicted = sigmoid(size[rows["test"]]) + residual
    errors.add("sigmoid + sibling's residual", "sibling", task, predicted, rows["test"])
    measured = ~np.isnan(values[rows["train"], task])
    grown = _forest(x["train"][measured], values[rows["train"], task][measured])
    errors.add("random forest", "sibling", task, grown.predict(x["test"]), rows["test"])


def _other_scores(
    errors: Errors, size: np.ndarray, task: int, others: list[int], train: np.ndarray, test: np.ndarray, forest: bool
) -> None:
    """Observational scaling on three other scores of the model, and forests on these and its size."""
    values, chance = errors.values, errors.chance[task]
    train, test = (rows[~np.isnan(values[rows][:, others]).any(axis=1)] for rows in (train, test))
    train = train[~np.isnan(values[train, task])]
    if not len(test):
        return
    centre, deviation = values[train][:, others].mean(0), values[train][:, others].std(0)
    known = [(values[rows][:, others] - centre) / deviation for rows in (train, test)]
    direction = np.linalg.svd(known[0], full_matrices=False)[2][0]
    share = ((values[train, task] - chance) / (1 - chance)).clip(0.01, 0.99)
    line = LinearRegression().fit((known[0] @ direction)[:, None], np.log(share / (1 - share)))
    logits = line.predict((known[1] @ direction)[:, None])
    errors.add("observational scaling", "others", task, chance + (1 - chance) / (1 + np.exp(-logits)), test)
    if forest:
        x = [np.hstack([size[rows], values[rows][:, others]]) for rows in (train, test)]
        errors.add("random forest", "others", task, _forest(x[0], values[train, task]).predict(x[1]), test)
