"""Copies of the bundle in the embedded checkpoints, so that each works when it is copied, zipped or installed.

python -m ncpl.hub.embed
"""

import json
from pathlib import Path

from ncpl.hub.bundle import CODE, ROOT, bundle_files, model_of, renewed

CHECKPOINTS = ROOT / "ncpl" / "checkpoints"


def embed(folder: Path) -> list[str]:
    """Makes a checkpoint hold the bundle's files for its model, as files of its own and no others.

    Args:
        folder: with a `config.json` of one of our models.

    Returns:
        Names of the files that were written or removed, none when everything was in place. The card's tested versions
        are renewed too.
    """
    model = model_of(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type"))
    if model is None:
        raise ValueError(f"{folder / 'config.json'}: expected a model_type of NCPL or NSP")
    wanted = bundle_files(model)
    held = {path.name: path for pattern in (*CODE, "handler.py") for path in folder.glob(pattern)}
    changed = []
    for name in sorted(held.keys() | wanted.keys()):
        path = folder / name
        content = wanted[name].read_bytes() if name in wanted else None
        if path.exists() and not path.is_symlink() and path.read_bytes() == content:
            continue
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        changed.append(name)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8")
    if renewed(text) != text:
        card.write_text(renewed(text), encoding="utf-8")
        changed.append(card.name)
    return changed


def main() -> None:
    for config in sorted(CHECKPOINTS.glob("*/config.json")):
        changed = embed(config.parent)
        print(f"{config.parent.relative_to(ROOT)}: {', '.join(changed) or 'unchanged'}")


if __name__ == "__main__":
    main()
