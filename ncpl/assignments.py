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
    """Top-level assignments of constants, and those of classes such as a dataclass of hyper-parameters; the defaults
    of `add_argument`. Other statements are passed over, nothing runs.

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
    _assign(tree.body, values)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in classes:
        inner: dict[str, Any] = {}
        _assign(node.body, inner)
        if inner:
            values.setdefault(node.name, inner)
    return values


def _assign(body: list[ast.stmt], values: dict[str, Any]) -> None:
    """What assignments and `add_argument` of a block give, in place."""
    for node in body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            option = _option(node.value, values)
            if option is not None:
                values[option[0]] = option[1]
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Name):
            try:
                values[target.id] = _constant(node.value, values)
            except (_NotConstantError, ArithmeticError, TypeError):
                # A call or a name of elsewhere: what it gives is not known without running it.
                values.pop(target.id, None)


def _option(call: ast.Call, values: dict[str, Any]) -> tuple[str, Any] | None:
    """The name and the default of `parser.add_argument("--name", default=...)`."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "add_argument":
        return None
    names = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    default = next((word.value for word in call.keywords if word.arg == "default"), None)
    name = next((name for name in names if name.startswith("--")), None)
    if name is None or default is None:
        return None
    try:
        return name.lstrip("-").replace("-", "_"), _constant(default, values)
    except (_NotConstantError, ArithmeticError, TypeError):
        return None


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
