"""Exact derivatives of numpy formulas: forward-mode automatic differentiation (Griewank & Walther 2008, chapter 3).

A formula written with numpy's functions is called with `Dual` values in the place of arrays, and gives its value and
its derivatives in one pass. numpy alone is needed, so that a law's uncertainty is computed without torch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np


class Dual(np.lib.mixins.NDArrayOperatorsMixin):
    """Values with their derivatives by some variables.

    Args:
        value: (rows,).
        slopes: (rows, variables), or (1, variables) where all rows have the same derivatives.

    >>> x = Dual(np.array([1.0, 2.0]), np.ones((1, 1)))
    >>> np.sqrt(x * x + 3).slopes[:, 0].round(4).tolist()
    [0.5, 0.7559]
    """

    def __init__(self, value: np.ndarray, slopes: np.ndarray) -> None:
        self.value, self.slopes = value, slopes

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__" or kwargs or ufunc not in _RULES:
            return NotImplemented
        value, partials = _RULES[ufunc](*[x.value if isinstance(x, Dual) else x for x in inputs])
        slopes = [
            partial[..., None] * x.slopes if isinstance(partial, np.ndarray) else partial * x.slopes
            for x, partial in zip(inputs, partials, strict=True)
            if isinstance(x, Dual)
        ]
        return Dual(value, slopes[0] if len(slopes) == 1 else slopes[0] + slopes[1])

    def clip(self, low: float, high: float, out: None = None) -> "Dual":
        """What `np.clip` calls; the derivative is zero where it clips."""
        inside = (low <= self.value) & (self.value <= high)
        return Dual(np.clip(self.value, low, high), inside[..., None] * self.slopes)


# Function -> its value and its partial derivatives by each argument.
_RULES: dict[Any, Callable[..., tuple[Any, tuple[Any, ...]]]] = {
    np.add: lambda a, b: (a + b, (1.0, 1.0)),
    np.subtract: lambda a, b: (a - b, (1.0, -1.0)),
    np.multiply: lambda a, b: (a * b, (b, a)),
    np.divide: lambda a, b: (a / b, (1 / b, -a / b**2)),
    np.negative: lambda a: (-a, (-1.0,)),
    np.absolute: lambda a: (np.abs(a), (np.sign(a),)),
    np.square: lambda a: (a * a, (2 * a,)),
    np.exp: lambda a: (np.exp(a), (np.exp(a),)),
    np.expm1: lambda a: (np.expm1(a), (np.exp(a),)),
    np.log: lambda a: (np.log(a), (1 / a,)),
    np.log1p: lambda a: (np.log1p(a), (1 / (1 + a),)),
    np.sqrt: lambda a: (np.sqrt(a), (0.5 / np.sqrt(a),)),
    np.tanh: lambda a: (np.tanh(a), (1 - np.tanh(a) ** 2,)),
    np.maximum: lambda a, b: (np.maximum(a, b), ((a >= b) * 1.0, (a < b) * 1.0)),
    np.minimum: lambda a, b: (np.minimum(a, b), ((a <= b) * 1.0, (a > b) * 1.0)),
}


def gradient(formula: Callable[[dict[str, Any]], Dual], variables: dict[str, np.ndarray]) -> np.ndarray:
    """Derivatives of a formula by each of its variables.

    Args:
        formula: what is differentiated; each row's result hangs on the same row's variables alone.
        variables: name -> (rows,) values.

    Returns:
        (rows, variables), in the variables' order.

    >>> gradient(lambda v: v["a"] * np.exp(v["b"]), {"a": np.array([2.0]), "b": np.array([0.0])}).tolist()
    [[1.0, 2.0]]
    """
    one = np.eye(len(variables))
    duals = {name: Dual(values, one[i : i + 1]) for i, (name, values) in enumerate(variables.items())}
    result = formula(duals)
    return np.broadcast_to(result.slopes, (len(result.value), len(variables)))
