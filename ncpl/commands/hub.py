"""The Hugging Face Hub and checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from ncpl.commands.shared import Json, app, print_json


@app.command()
def push(
    names: Annotated[list[str], typer.Argument(metavar="[FOLDER] REPO", help="What to push, and where: owner/name.")],
    space: Annotated[bool, typer.Option("--space", help="Push the demo Space; takes REPO alone.")] = False,
    dataset: Annotated[
        str | None, typer.Option(help="Push the runs of marin, steplaw or steplaw_moe; takes REPO alone.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the run logs; default: the public ones.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, created if need be, or refs/pr/N.")] = None,
    pr: Annotated[bool, typer.Option("--pr", help="Open a pull request.")] = False,
    tag: Annotated[str | None, typer.Option(help="Name for the commit.")] = None,
    message: Annotated[str | None, typer.Option(help="Title of the commit.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Repo id of an adapter's base, if it names a folder.")] = None,
    code_only: Annotated[bool, typer.Option("--code-only", help="Renew a repository's code alone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent; send nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Push a checkpoint, a data set or the Space to the Hub.

    A checkpoint may be an adapter. Each push is one commit to the Hugging Face Hub.

    \b
    Examples:
      ncpl push outputs/quickstart me/quickstart --dry-run
      ncpl push outputs/quickstart me/quickstart --tag v1
      ncpl push --dataset marin me/ncpl-marin
      ncpl push --code-only me/ncpl-mini
    """
    kinds = [space, dataset is not None, code_only]
    if len(names) != (1 if any(kinds) else 2) or sum(kinds) > 1:
        raise ValueError(
            f"push: got {' '.join(names)}; expected FOLDER REPO, or REPO with --space, --code-only or --dataset SOURCE"
        )
    from ncpl import hub

    repo_id = names[-1]
    options: hub.PushOptions = {"revision": revision, "create_pr": pr, "tag": tag, "message": message}
    options["private"], options["dry_run"] = private or None, dry_run
    if space:
        pushed = hub.push_space(repo_id, **options)
    elif code_only:
        pushed = hub.push_code(repo_id, **options)
    elif dataset is not None:
        pushed = hub.push_dataset(dataset, repo_id, data_dir=data_dir, **options)
    else:
        pushed = hub.push(names[0], repo_id, base_model=base_model, **options)
    if as_json:
        print_json({"url": pushed.url, "commit": pushed.commit, "changed": list(pushed.changed)})
    else:
        print(pushed)


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="A checkpoint or an adapter, with its result files.")],
    repo: Annotated[str, typer.Argument(help="Where it will go: owner/name.")],
    as_json: Json = False,
) -> None:
    """Write a checkpoint's model card from its result files.

    The card is README.md; the files beside it are training_record.json, evaluation.json (of ncpl evaluate --output)
    and widget.json, forecasts for the card's examples, which is made here if there is none.

    \b
    Example:
      ncpl card outputs/ncpl-mini me/ncpl-mini
    """
    from ncpl.files import write_json, write_text
    from ncpl.hub import cards

    text = cards.checkpoint_card(folder, repo)
    widget = folder / cards.WIDGET
    if not widget.exists() and cards.is_forecaster(folder):
        write_json(widget, cards.widget_examples(folder))
        text = cards.checkpoint_card(folder, repo)
    write_text(folder / "README.md", text)
    if as_json:
        print_json({"card": str(folder / "README.md")})
    else:
        print(folder / "README.md")


@app.command()
def convert(
    published: Annotated[str, typer.Argument(help="Folder with pytorch_model.bin, the file, or a repo id.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, absent or empty.")],
    backbone: Annotated[
        str, typer.Option(help="Folder or repo id of the language model, for configuration and tokenizer.")
    ] = "Qwen/Qwen3-1.7B",
    revision: Annotated[str | None, typer.Option(help="Of the published repository.")] = None,
    curves: Annotated[bool, typer.Option("--curves", help="Trained on loss curves, as NCPL-intermediate.")] = False,
    as_json: Json = False,
) -> None:
    """Convert a published NCPL checkpoint, and verify it.

    AutoModel loads the folder that is written.

    \b
    Example:
      ncpl convert OptimizerStudy/NCPL-final ncpl-qwen3-1.7b
    """
    from ncpl.hub.convert import convert

    written = convert(published, out, backbone, revision, curves)
    if as_json:
        print_json({"folder": str(written)})
    else:
        print(written)


@app.command()
def merge(
    adapter: Annotated[str, typer.Argument(help="Folder or repo id of an adapter.")],
    out: Annotated[Path, typer.Argument(help="Folder for the merged checkpoint.")],
    as_json: Json = False,
) -> None:
    """Merge an adapter into its base, as a whole checkpoint.

    \b
    Example:
      ncpl merge me/ncpl-mini-lora merged
    """
    from ncpl.checkpoint import find
    from ncpl.training.model import merge_adapter

    merge_adapter(find(adapter), out)
    if as_json:
        print_json({"folder": str(out)})
    else:
        print(out)
