"""Files of the repository's root that the package uses: the endpoint's handler, card templates, recipes, examples."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def root_file(name: str) -> Path:
    """Where a file or folder of the repository's root lies: in a clone at its root, in a wheel inside the package.

    Args:
        name: path from the root, such as `"handler.py"` or `"recipes/ncpl-mini.yaml"`.

    Raises:
        FileNotFoundError: neither has it.

    >>> root_file("handler.py").name
    'handler.py'
    """
    # A wheel's packages lie in site-packages, where a file of this name may be anybody's.
    packed = PACKAGE / "root_files"
    path = (packed if packed.is_dir() else PACKAGE.parent) / name
    if not path.exists():
        raise FileNotFoundError(f"{name}: not installed with the package, expected at {path}")
    return path
