"""Run logs as `datasets`: one row a pretraining run, in the schema of the public NCPL logs (arXiv 2602.10300).

A source is one file or a few, read from a local folder or from the public repository; of most, up to three JSON files:

- `SOURCE_processed_data.json`: an array of runs `{name, source, conf, max_step, final_loss}`, perhaps with curves;
- `SOURCE_keys_model_split.json`: the run names of `train`, `in_val` and `ood_val`;
- `SOURCE_unstable_runs.json`: runs of no split (optional; a null `final_loss` is a NaN).

A builder of another format overrides `find_files` and `read_files`, and gives what those three would hold.

`conf` is ordered and free-form, and its order and number types reach the prompt, so a row stores it as a JSON string:
`datasets.Json()` keeps the order but not the numbers (it writes 10 decimals and reads 0.3 as 0.30000000000000004), and
an Arrow struct would give every run every field. `decode_runs` turns it back into the mapping; `load_runs` does so
already.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import yaml

from datasets_scripts.builder import RunsBuilder
from datasets_scripts.public import HUB_LOGS, fetch_from_hub, look_at_hub
from datasets_scripts.reading import COLUMNS, UNSTABLE
from fields_ncpl import SOURCES
from text_ncpl import did_you_mean, short


def load_runs(
    source: str,
    data_dir: str | Path | None = None,
    config: str = "final",
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> datasets.DatasetDict:
    """The runs of one source, with the splits train, in_val, ood_val and unstable.

    Rows come from the cache of `datasets` unless the files, or the code that reads them, changed.

    Args:
        source: "marin", "steplaw" or "steplaw_moe".
        data_dir: folder of the source's files (directly, or in a folder of the source's name); None downloads the
            public ones.
        config: "final" (no curve) or "intermediate" (with the column `curve`).
        revision: commit of the public repository instead of the one whose files were checked; unused with `data_dir`.
        cache_dir: where `datasets` keeps the prepared rows; None: its own cache.

    Returns:
        Rows as `COLUMNS` describes them; `conf` is a dict in the file's own order. (Underneath it stays a JSON string,
        which is what `to_pandas` and `to_parquet` give.)

    Raises:
        MissingRunsError: the folder does not hold the source's runs; a ValueError.
        DownloadError: the public files cannot be downloaded, or are others than were checked; a ValueError.
        ValueError: unknown source or configuration, or a file that is missing, truncated or malformed.

    >>> from datasets_scripts import SAMPLE_DIR
    >>> load_runs("steplaw", SAMPLE_DIR)["train"][0]["conf"]["optimizer"]
    'adamw'
    """
    builder = builder_class(source)(config_name=config, data_dir=data_dir, revision=revision, cache_dir=cache_dir)
    builder.download_and_prepare()
    loaded = builder.as_dataset()
    if UNSTABLE not in loaded:
        loaded[UNSTABLE] = loaded["train"].select([])
    return loaded.with_transform(decode_runs)


def data_hash(
    source: str, data_dir: str | Path | None = None, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> str:
    """SHA-256 of the contents of a source's files, for training records; arguments as in `load_runs`.

    A gzip has the hash of what it holds.

    >>> from datasets_scripts import SAMPLE_DIR
    >>> data_hash("marin", SAMPLE_DIR) == data_hash("marin", SAMPLE_DIR), len(data_hash("marin", SAMPLE_DIR))
    (True, 64)
    """
    return builder_class(source)(data_dir=data_dir, revision=revision, cache_dir=cache_dir).data_hash()


def decode_runs(rows: Mapping[str, Any]) -> dict[str, Any]:
    """One row, or a batch of rows, with `conf` turned from its JSON string into the dict it was in the file.

    >>> decode_runs({"name": "a run", "conf": '{"warmup": 0, "epsilon": 1e-25}'})
    {'name': 'a run', 'conf': {'warmup': 0, 'epsilon': 1e-25}}
    """
    if "conf" not in rows:
        return dict(rows)
    conf = rows["conf"]
    return {**rows, "conf": json.loads(conf) if isinstance(conf, str) else [json.loads(text) for text in conf]}


def builder_class(source: str) -> "type[RunsBuilder]":
    """The builder class of a source.

    Raises:
        ValueError: an unknown source; says the nearest.

    >>> builder_class("steplaw").__name__
    'StepLaw'
    """
    if source not in SOURCES:
        raise ValueError(
            f"source: {short(source)} is unknown, accepted: {sorted(SOURCES)}{did_you_mean(source, SOURCES)}"
        )
    return getattr(import_module(f"datasets_scripts.{source}"), SOURCES[source].title)


def export_parquet(
    source: str, output_dir: str | Path, data_dir: str | Path | None = None, *, revision: str | None = None
) -> Path:
    """Write a source's runs as Parquet, with the card that makes `load_dataset` read them in both configurations.

    Each run is there once, with its curve; the configuration "final" reads every column but that.

    Args:
        source: "marin", "steplaw" or "steplaw_moe".
        output_dir: a new or empty folder; it gets `data/`, with one file a split, and `README.md`.
        data_dir: as in `load_runs`.
        revision: as in `load_runs`.

    Raises:
        ValueError: the folder holds something already, or as in `load_runs`.

    >>> import tempfile
    >>> from datasets_scripts import SAMPLE_DIR
    >>> sorted(path.name for path in export_parquet("marin", tempfile.mkdtemp(), SAMPLE_DIR).iterdir())
    ['README.md', 'data']
    """
    output = Path(output_dir).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output: {output} exists already; accepted: a new or an empty folder")
    builder = builder_class(source)(config_name="intermediate", data_dir=data_dir, revision=revision)
    builder.download_and_prepare(str(output / "data"), file_format="parquet")
    for lock in output.glob("*.lock"):  # left behind by `datasets`
        lock.unlink()
    # Without the card `load_dataset` guesses splits from file names: in_val and ood_val would both be "validation".
    files = [{"split": split, "path": f"data/{source}-{split}*.parquet"} for split in builder.info.splits]
    columns = [name for name in COLUMNS if name != "curve"]
    card = {
        "pretty_name": f"{source} pretraining runs",
        "task_categories": ["tabular-regression"],
        "configs": [
            {"config_name": "final", "default": True, "data_files": files, "columns": columns},
            {"config_name": "intermediate", "data_files": files},
        ],
    }
    text = f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n\n# {source}\n\n{builder.info.description}\n"
    (output / "README.md").write_text(text, encoding="utf-8")
    return output


def main(source: str, arguments: Sequence[str] | None = None) -> None:
    """`python -m datasets_scripts.SOURCE --output FOLDER [--data_dir FOLDER]`: a source's runs as Parquet."""
    parser = argparse.ArgumentParser(
        prog=f"python -m datasets_scripts.{source}",
        description=f"Write the {source} runs as Parquet.",
        epilog=f"example: python -m datasets_scripts.{source} --data_dir logs --output {source}_parquet",
    )
    parser.add_argument("--output", help="a new or empty folder; optional with --hub, which then lists files alone")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument("--data_dir", help="folder of the source's files; default: download the public ones")
    origin.add_argument("--revision", help="commit of the public repository; default: the one that was checked")
    origin.add_argument(
        "--hub", nargs="?", const=HUB_LOGS, help="read a data set of the Hub instead (default: %(const)s)"
    )
    given = parser.parse_args(arguments)
    if given.output is None and given.hub is None:
        parser.error("the following arguments are required: --output")
    names = builder_class(source).file_names()
    try:
        if given.hub is None:
            print(export_parquet(source, given.output, given.data_dir, revision=given.revision))
        elif given.output is None:
            print(look_at_hub(names, given.hub)[0])
        else:
            with tempfile.TemporaryDirectory() as folder:
                print(fetch_from_hub(names, Path(folder), given.hub))
                print(export_parquet(source, given.output, folder))
    except ValueError as error:
        parser.error(str(error))
