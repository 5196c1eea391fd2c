"""Training, evaluating, calibrating and saving NSP: the whole of `run_train.py recipes/nsp-base.yaml`."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from configuration_nsp import CHANCE
from datasets_scripts.leaderboard import load_leaderboard
from datasets_scripts.runs import load_runs
from fields_ncpl import SOURCES
from ncpl import record
from ncpl.files import write_json
from ncpl.nsp.fit import fit, set_families
from ncpl.nsp.loss_link import LINK_FILE, LINK_NOTES, RUN_LINK, LossLink, fit_loss_link, fit_offsets
from ncpl.nsp.protocols import calibration, cross_validate, summarize
from ncpl.nsp.scores import Scores
from ncpl.recipe import NSPRecipe


def train(recipe: NSPRecipe, progress: bool = True) -> dict[str, Any]:
    """Trains, evaluates, calibrates and saves NSP into the recipe's `output_dir`.

    Beside the model and its extractor the folder holds the links from loss to scores and `nsp_record.json`. It is
    written at the end, when everything has been computed.

    Args:
        recipe: checked, as `ncpl.blocks.check(NSPRecipe, values)` gives it.
        progress: show bars.

    Returns:
        the record: `recipe`, `metrics` (leave-family-out), `models`, `families`, `seeds`, `hardware`, `versions`,
        `commit`.

    Raises:
        ValueError: files of the leaderboard that are missing or malformed.
    """
    table = load_leaderboard(recipe.data.leaderboard, recipe.data.data_dir)
    tasks = recipe.model.tasks or [t for t in CHANCE if t in table and table[t].notna().sum() >= recipe.data.min_scores]
    scores = Scores.from_table(table, tasks)
    judged = cross_validate(scores, recipe, progress)
    everything, families = np.arange(len(scores.names)), sorted(set(scores.families))
    settings = calibration(judged, tasks, recipe)
    model = fit(scores, everything, recipe, recipe.seed, progress, families=families, **settings)
    set_families(model, scores, everything)
    links = fit_links(recipe.data.data_dir)
    result = {
        "recipe": {
            "model": recipe.model.config,
            "training": recipe.training.model_dump(),
            "evaluation": recipe.evaluation.model_dump(),
            "seed": recipe.seed,
            "leaderboard": recipe.data.leaderboard,
        },
        "metrics": summarize(judged, tasks, recipe),
        "models": len(scores.names),
        "families": len(families),
        "seeds": recipe.evaluation.seeds,
        **record.provenance(),
    }
    output = Path(recipe.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    model.extractor.save_pretrained(output)
    if links:
        _write(output / LINK_FILE, {source: asdict(link) for source, link in links.items()})
    _write(output / "nsp_record.json", result)
    return result


def fit_links(data_dir: str | None) -> dict[str, LossLink]:
    """Links from loss to scores by the leaderboards with losses that a folder holds; a warning for each it lacks."""
    links: dict[str, LossLink] = {}
    for source in LINK_NOTES:
        try:
            losses = load_leaderboard(source, data_dir)
        except ValueError as error:
            warnings.warn(f"no link from loss to scores by {source}: {error}", stacklevel=3)
            continue
        links[source] = fit_loss_link(losses, source)
    if RUN_LINK in links:
        fit_offsets(links[RUN_LINK], _run_logs(data_dir))
    return links


def _run_logs(data_dir: str | None) -> dict[str, list[tuple[Mapping[str, Any], float]]]:
    """Training runs of every source in a folder: (configuration, final loss in nats per token)."""
    found = {}
    for source in SOURCES:
        try:
            runs = load_runs(source, data_dir)["train"]
        except ValueError as error:
            warnings.warn(f"the losses of {source} get no place on the link's scale: {error}", stacklevel=3)
            continue
        found[source] = list(zip(runs["conf"], runs["final_loss"], strict=True))
    return found


def _write(path: Path, content: Any) -> None:
    write_json(path, rounded(content), 1)


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value
