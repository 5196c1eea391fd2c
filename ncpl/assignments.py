"""Configurations written as Python assignments, parsed and never executed."""

import ast
import math
from typing import Any

_ARITHMETIC = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Pow: lambda a, b: a**b if abs(a) <= 1e6 and abs(b) <= 64 else math.nan,
}


def read_assignments(text: str) -> dict[str, Any]:
    """Top-level assignments of constants; other statements are passed over, nothing runs.

    Raises:
        ValueError: the text is no Python.

    >>> read_assignments("batch_size = 12\\nsteps = 5 * 8\\nname = compute()")
    {'batch_size': 12, 'steps': 40}
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, MemoryError) as error:
        raise ValueError(f"not Python: {error}") from None
    values: dict[str, Any] = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name):
            try:
                values[target.id] = _constant(node.value, values)
            except (_NotConstantError, ArithmeticError, TypeError):
                # A call or a name of elsewhere: what it gives is not known without running it.
                values.pop(target.id, None)
    return values


class _NotConstantError(Exception):
    pass


def _constant(node: ast.expr, names: dict[str, Any]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None):
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_constant(node.operand, names)
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _constant(node.left, names), _constant(node.right, names)
        if all(isinstance(side, int | float) for side in (left, right)):
            return _ARITHMETIC[type(node.op)](left, right)
    if isinstance(node, ast.List | ast.Tuple):
        return [_constant(item, names) for item in node.elts]
    if isinstance(node, ast.Dict):
        pairs = [(key, item) for key, item in zip(node.keys, node.values, strict=True) if isinstance(key, ast.Constant)]
        return {str(key.value): _constant(item, names) for key, item in pairs}
    if isinstance(node, ast.Call) and node.keywords and not node.args:
        # Configurations in Python are nested calls of classes with named arguments.
        return {word.arg: _constant(word.value, names) for word in node.keywords if word.arg is not None}
    raise _NotConstantError
