"""Training by a recipe, in this process."""

from pathlib import Path
from typing import Annotated

import typer

from ncpl.commands.shared import app


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": ["--help"]}
)
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of one of the package's recipes.")],
) -> None:
    """Train a forecaster or a score predictor by a recipe.

    --KEY VALUE overrides one of its keys, such as --stages.full.epochs 10. On several processes: accelerate launch
    run_train.py RECIPE, which takes the same arguments.

    \b
    Examples:
      ncpl train quickstart --output_dir outputs/quickstart
      ncpl train recipes/ncpl-mini.yaml --seed 7
    """
    from ncpl.resources import root_file
    from ncpl.training.command import main

    if not Path(recipe).exists() and "/" not in recipe:
        known = sorted(path.stem for path in root_file("recipes").glob("*.yaml"))
        name = recipe.removesuffix(".yaml")
        if name not in known:
            raise ValueError(f"{recipe}: no such file; accepted: a YAML file, or {', '.join(known)}")
        recipe = str(root_file(f"recipes/{name}.yaml"))
    main([recipe, *context.args], program="ncpl train")
