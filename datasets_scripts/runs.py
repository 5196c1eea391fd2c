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
import functools
import gzip
import hashlib
import inspect
import json
import math
import warnings
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import fsspec  # type: ignore[import-untyped]
import yaml

from fields_ncpl import FIELDS, SOURCES

REPOSITORY = "https://github.com/zhqwqwq/Configuration-to-Performance-Scaling-Law"

REVISION = "main"
"""Commit, tag or branch of a source's public repository that is read by default. A branch is downloaded once and then
taken from the cache; give a commit as `revision=` to pin the files. `data_hash` says which contents a training run
really saw."""

SPLITS = ("train", "in_val", "ood_val")
UNSTABLE = "unstable"

DIVERGED_NATS = 0.3
"""A run diverged when its loss is NaN or this far above the best run of the same source, model size (of mixtures of
experts: total and active) and data size."""

COLUMNS = {
    "name": "run name, unique within its source",
    "source": "log the run comes from; losses of two sources do not compare",
    "conf": "the configuration: an ordered JSON object field -> value, in the order of the training prompts",
    "max_step": "optimizer steps of the whole run",
    "final_loss": "loss at the last step, nats per token; null: NaN",
    "curve": "in configuration 'intermediate': steps (optimizer steps) and losses (nats per token); null: not logged",
    "status": f"'finished'; 'diverged': final_loss is null or more than {DIVERGED_NATS} nats above the best run of the "
    "same source, model size (total and active) and data size; 'unstable': not diverged, but in no split",
    "split": "'train', 'in_val' or 'ood_val' (models larger than any in train; of mixtures of experts, by active "
    "parameters); 'unstable': of no split",
}
"""Column -> what it holds, with its unit."""

_FEATURES = {
    "name": datasets.Value("string"),
    "source": datasets.Value("string"),
    "conf": datasets.Value("string"),
    "max_step": datasets.Value("int64"),
    "final_loss": datasets.Value("float64"),
    # Steps are floats because smoothed curves may sit between two optimizer steps.
    "curve": {"steps": datasets.List(datasets.Value("float64")), "losses": datasets.List(datasets.Value("float64"))},
    "status": datasets.Value("string"),
    "split": datasets.Value("string"),
}

_REQUIRED = ("name", "source", "conf", "max_step", "final_loss")
_CURVE_KEYS = {"c4en_steps", "c4en_losses", "smoothed_loss_steps", "smoothed_loss"}
_NOTE = "Note: "


# ------------------------------------------------------------------------------------------------ for users


class MissingRunsError(ValueError):
    """A folder does not hold the runs of a source."""


def load_runs(
    source: str,
    data_dir: str | Path | None = None,
    config: str = "final",
    *,
    revision: str = REVISION,
    cache_dir: str | Path | None = None,
) -> datasets.DatasetDict:
    """The runs of one source, with the splits train, in_val, ood_val and unstable.

    Rows come from the cache of `datasets` unless the files, or the code that reads them, changed.

    Args:
        source: "marin", "steplaw" or "steplaw_moe".
        data_dir: folder of the source's files (directly, or in a folder of the source's name); None downloads the
            public ones.
        config: "final" (no curve) or "intermediate" (with the column `curve`).
        revision: commit of the public repository; unused with `data_dir`.
        cache_dir: where `datasets` keeps the prepared rows; None: its own cache.

    Returns:
        Rows as `COLUMNS` describes them; `conf` is a dict in the file's own order. (Underneath it stays a JSON string,
        which is what `to_pandas` and `to_parquet` give.)

    Raises:
        MissingRunsError: the folder does not hold the source's runs; a ValueError.
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
    source: str, data_dir: str | Path | None = None, *, revision: str = REVISION, cache_dir: str | Path | None = None
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

    >>> builder_class("steplaw").__name__
    'StepLaw'
    """
    if source not in SOURCES:
        raise ValueError(f"source: {source!r} is unknown, accepted: {sorted(SOURCES)}{_nearest(source, SOURCES)}")
    return getattr(import_module(f"datasets_scripts.{source}"), SOURCES[source].title)


def export_parquet(
    source: str, output_dir: str | Path, data_dir: str | Path | None = None, *, revision: str = REVISION
) -> Path:
    """Write both configurations of a source as Parquet, with the card that makes `load_dataset` read them.

    Args:
        source: "marin", "steplaw" or "steplaw_moe".
        output_dir: a new or empty folder; it gets `final/`, `intermediate/` and `README.md`.
        data_dir: as in `load_runs`.
        revision: as in `load_runs`.

    Raises:
        ValueError: the folder holds something already, or as in `load_runs`.

    >>> import tempfile
    >>> from datasets_scripts import SAMPLE_DIR
    >>> sorted(path.name for path in export_parquet("marin", tempfile.mkdtemp(), SAMPLE_DIR).iterdir() if path.is_dir())
    ['final', 'intermediate']
    """
    output = Path(output_dir).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output: {output} exists already; accepted: a new or an empty folder")
    builders = [
        builder_class(source)(config_name=config.name, data_dir=data_dir, revision=revision)
        for config in RunsBuilder.BUILDER_CONFIGS
    ]
    for builder in builders:
        builder.download_and_prepare(str(output / builder.config.name), file_format="parquet")
    for lock in output.glob("*.lock"):  # left behind by `datasets`
        lock.unlink()
    # Without the card `load_dataset` guesses splits from file names: in_val and ood_val would both be "validation".
    card = {
        "pretty_name": f"{source} pretraining runs",
        "task_categories": ["tabular-regression"],
        "configs": [
            {
                "config_name": builder.config.name,
                "default": builder.config.name == RunsBuilder.DEFAULT_CONFIG_NAME,
                "data_files": [
                    {"split": split, "path": f"{builder.config.name}/{source}-{split}*.parquet"}
                    for split in builder.info.splits
                ],
            }
            for builder in builders
        ],
    }
    text = f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n\n# {source}\n\n{builders[-1].info.description}\n"
    (output / "README.md").write_text(text, encoding="utf-8")
    return output


def main(source: str, arguments: Sequence[str] | None = None) -> None:
    """`python -m datasets_scripts.SOURCE --output FOLDER [--data_dir FOLDER]`: a source's runs as Parquet."""
    parser = argparse.ArgumentParser(
        prog=f"python -m datasets_scripts.{source}",
        description=f"Write the {source} runs as Parquet.",
        epilog=f"example: python -m datasets_scripts.{source} --data_dir logs --output {source}_parquet",
    )
    parser.add_argument("--output", required=True, help="a new or empty folder")
    parser.add_argument("--data_dir", help="folder of the source's files; default: download the public ones")
    parser.add_argument("--revision", default=REVISION, help="commit of the public repository (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        print(export_parquet(source, given.output, given.data_dir, revision=given.revision))
    except (ValueError, ConnectionError) as error:
        parser.error(str(error))


# ------------------------------------------------------------------------------------------------ builders


@dataclass
class RunsConfig(datasets.BuilderConfig):
    """A configuration of a run log.

    Args:
        curves: give each row the column `curve`.
        revision: commit of the public repository; unused with `data_dir`.
    """

    curves: bool = False
    revision: str = REVISION


class RunsBuilder(datasets.GeneratorBasedBuilder):
    """What the builders of all sources share; a subclass names its source, its curve keys and where its runs come from.

    Args:
        cache_dir: where `datasets` keeps the prepared rows; None: its own cache.
        config_name: "final" (the default) or "intermediate".
        data_dir: folder of the source's files; None: the public repository. Without a run of no split there is no split
            "unstable".
        kwargs: further arguments of `datasets.DatasetBuilder`, and fields of `RunsConfig`.

    Raises:
        ValueError: a file is missing, or an argument is unknown.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = RunsConfig
    BUILDER_CONFIGS = [  # noqa: RUF012  # `datasets` declares it so
        RunsConfig(name="final", version=VERSION, description="one row a run"),
        RunsConfig(name="intermediate", version=VERSION, description="one row a run, with its loss curve", curves=True),
    ]
    DEFAULT_CONFIG_NAME = "final"

    SOURCE: str
    CURVE_KEYS: tuple[str, str] | None = None
    DESCRIPTION: str
    HOMEPAGE: str

    def __init__(
        self,
        cache_dir: str | Path | None = None,
        *,
        config_name: str | None = None,
        data_dir: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("data_files") is not None:
            raise ValueError("data_files: a run log is read as a whole; accepted: data_dir, a folder of its files")
        data_dir = None if data_dir is None else str(Path(data_dir).expanduser())
        self.files = self.find_files(data_dir, kwargs.get("revision") or REVISION)
        kwargs.setdefault("dataset_name", self.SOURCE)  # `datasets` would take the module's name: `__main__` under -m
        kwargs["hash"] = kwargs.get("hash") or self._fingerprint(local=data_dir is not None)
        super().__init__(
            None if cache_dir is None else str(cache_dir), config_name=config_name, data_dir=data_dir, **kwargs
        )

    @classmethod
    def find_files(cls, data_dir: str | None, revision: str) -> dict[str, str]:
        """Role -> path, or URL without `data_dir`, of the source's files; `runs` is among them.

        Raises:
            ValueError: a file is missing.
        """
        return source_files(cls.SOURCE, data_dir, revision)

    def read_files(self, paths: Mapping[str, str]) -> dict[str, Any]:
        """What the files of the public layout hold: `runs`, `splits` and, where the source has them, `unstable`.

        Args:
            paths: role -> where the file of `self.files` lies, perhaps downloaded.

        Raises:
            ValueError: a file is truncated or malformed.
        """
        return {role: read_json(paths[role], file) for role, file in self.files.items()}

    def _fingerprint(self, local: bool) -> str:
        """Names the cache folder, so that rows are built anew when the files, this code or the descriptions change."""
        digest = hashlib.sha256((_hash_files(self.files, self.files) if local else repr(self.files)).encode())
        for module in (__file__, inspect.getfile(type(self))):
            digest.update(hashlib.sha256(Path(module).read_bytes()).digest())
        digest.update(self._describe().encode())
        return digest.hexdigest()[:16]

    def _describe(self) -> str:
        fields = [f"- `{field.name}`: {field.unit}" for field in FIELDS.values()]
        columns = [f"- `{name}`: {text}" for name, text in COLUMNS.items()]
        return "\n".join(
            [self.DESCRIPTION, "", "Columns:", *columns, "", "Units of the fields of `conf`:", *fields, ""]
        )

    def _info(self) -> datasets.DatasetInfo:
        features = {name: kind for name, kind in _FEATURES.items() if name != "curve" or self.config.curves}
        return datasets.DatasetInfo(
            description=self._describe(), features=datasets.Features(features), homepage=self.HOMEPAGE
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        curve_keys = self.CURVE_KEYS if self.config.curves else None
        contents = self.read_files(self._download(dl_manager))
        rows, notes = check_runs(self.SOURCE, contents, self.files, curve_keys)
        if self.config.curves and not curve_keys:
            notes.append("this log has no curves: the column curve is null")
        # The notes stay with the rows: whoever reads them from the cache is told the same.
        self.info.description = "\n".join([self._describe(), *(_NOTE + note for note in notes)]).rstrip()
        # A tuple, because `datasets` takes a list for shards that it may deal out.
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"rows": tuple(rows[split])})
            for split in (*SPLITS, UNSTABLE)
            if rows[split]  # `datasets` writes an empty split, and then cannot read it
        ]

    def _generate_examples(self, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        for row in rows:
            row = {**row, "conf": json.dumps(row["conf"], ensure_ascii=False)}
            yield row["name"], {name: row[name] for name in self.info.features}

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        super().download_and_prepare(*args, **kwargs)
        self._warn()

    def as_streaming_dataset(self, *args: Any, **kwargs: Any) -> Any:
        stream = super().as_streaming_dataset(*args, **kwargs)
        self._warn()
        return stream

    def _warn(self) -> None:
        for line in self.info.description.splitlines():
            if line.startswith(_NOTE):
                warnings.warn(f"{self.SOURCE}: {line.removeprefix(_NOTE)}", stacklevel=3)

    def _download(self, dl_manager: datasets.DownloadManager) -> dict[str, str]:
        try:
            return dl_manager.download(self.files)
        except OSError as error:
            raise ConnectionError(
                f"{self.SOURCE}: could not download {list(self.files.values())} ({type(error).__name__}: {error}); "
                "to read local files, give data_dir"
            ) from error

    def data_hash(self) -> str:
        """SHA-256 of the contents of the source's files."""
        # Downloads land where, and are reused as, `download_and_prepare` does it.
        download_config = datasets.DownloadConfig(cache_dir=self._cache_downloaded_dir, use_etag=False)
        manager = datasets.DownloadManager(self.dataset_name, download_config=download_config)
        return _hash_files(self.files, self._download(manager))


# ------------------------------------------------------------------------------------------------ reading


def source_files(source: str, data_dir: str | None, revision: str = REVISION) -> dict[str, str]:
    """Paths, or URLs without `data_dir`, of a source's JSON files: `runs`, `splits` and, if it is there, `unstable`."""
    names = {
        "runs": f"{source}_processed_data.json",
        "splits": f"{source}_keys_model_split.json",
        "unstable": f"{source}_unstable_runs.json",
    }
    if data_dir is None:
        # The `raw` road of github.com also serves files that the repository keeps in LFS. It has no unstable runs.
        return {role: f"{REPOSITORY}/raw/{revision}/processed_data/{names[role]}" for role in ("runs", "splits")}
    return local_files(data_dir, names, (source,), ("runs", "splits"))


def local_files(
    data_dir: str, names: Mapping[str, str], subfolders: Sequence[str], required: Sequence[str]
) -> dict[str, str]:
    """Role -> path of the files, or their gzips, that lie in a folder or one of its subfolders beside the runs.

    Args:
        data_dir: the folder.
        names: role -> file name; `runs` is among them.
        subfolders: where to look after the folder itself.
        required: roles without which the source cannot be read.

    Raises:
        MissingRunsError: the file of the role `runs` is in none of the folders.
        ValueError: there is no such folder, or another file is missing.
    """
    if not Path(data_dir).is_dir():
        raise ValueError(f"data_dir: {data_dir} is not a folder; accepted: a folder that holds {names['runs']}")
    folders = [Path(data_dir), *(Path(data_dir) / name for name in subfolders)]
    found = {
        folder: {role: path for role, name in names.items() if (path := _present(folder / name))} for folder in folders
    }
    files = next((files for files in found.values() if "runs" in files), {})
    for role in required:
        if role not in files:
            there = sorted(path.name for folder in folders if folder.is_dir() for path in folder.iterdir())
            error = MissingRunsError if role == "runs" else ValueError
            raise error(
                f"data_dir: no {names[role]} (or {names[role]}.gz) in {' or '.join(map(str, folders))}, which "
                f"hold {there[:8] or 'nothing'}{_nearest(names[role], there)}"
            )
    return files


def check_runs(
    source: str, contents: Mapping[str, Any], files: Mapping[str, str], curve_keys: tuple[str, str] | None = None
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Check what a source's files hold, and turn it into rows.

    Args:
        source: what every run's `source` must be.
        contents: as `RunsBuilder.read_files` gives them: `runs`, `splits` and perhaps `unstable`.
        files: role -> file that they come from, for messages; a role that is not there comes from the one of `runs`.
        curve_keys: a run's keys of the curve's steps and losses; None leaves curves out.

    Returns:
        Split -> rows (`COLUMNS`, `conf` as a dict), in the order of the split file; and what a reader has to know about
        runs and names that are in no row or not where one expects them.

    Raises:
        ValueError: a file is malformed; says which, the run, the field, what came and what is accepted.

    >>> from datasets_scripts import SAMPLE_DIR
    >>> files = source_files("marin", str(SAMPLE_DIR))
    >>> rows, notes = check_runs("marin", {role: read_json(file, file) for role, file in files.items()}, files)
    >>> list(rows), notes
    (['train', 'in_val', 'ood_val', 'unstable'], [])
    """
    files = {role: files.get(role, files["runs"]) for role in contents}
    rows: dict[str, dict[str, Any]] = {}
    unread: Counter[str] = Counter()
    for role in ("runs", "unstable"):
        if role not in contents:
            continue
        entries = contents[role]
        if not isinstance(entries, list) or (role == "runs" and not entries):
            raise _bad(files[role], "the file", entries, "a JSON array of runs" + (", at least one" * (role == "runs")))
        for index, entry in enumerate(entries):
            row = _read_run(entry, index, files[role], source, curve_keys)
            if row["name"] in rows:
                first = rows[row["name"]]["file"]
                raise ValueError(
                    f"{files[role]}: run {row['name']!r} is there twice (first in {first}); accepted: unique names"
                )
            rows[row["name"]] = row | {"role": role, "file": files[role], "split": UNSTABLE}
            unread.update(set(entry) - set(_REQUIRED) - _CURVE_KEYS - {"note"})

    notes = _assign_splits(rows, contents["splits"], files)
    _assign_statuses(rows.values())
    regular = [row for row in rows.values() if row["split"] != UNSTABLE]
    _check_losses(regular)
    if late := sum(row["status"] == "diverged" for row in regular):
        notes.append(
            f"{late} of the {len(regular)} runs of the official split diverged by the rule of {DIVERGED_NATS} nats"
        )
    if curve_keys and (bare := sum(row["curve"] is None for row in rows.values())):
        notes.append(
            f"{bare} of {len(rows)} runs have no curve ({curve_keys[0]}, {curve_keys[1]}): their curve is null"
        )
    if unread:
        notes.append("keys of runs that are not read: " + ", ".join(f"{key!r} ({n} runs)" for key, n in unread.items()))

    by_split: dict[str, list[dict[str, Any]]] = {split: [] for split in (*SPLITS, UNSTABLE)}
    for row in sorted(rows.values(), key=lambda row: row["rank"]):
        by_split[row["split"]].append({name: row[name] for name in COLUMNS})
    return by_split, notes


def _assign_splits(rows: dict[str, dict[str, Any]], keys: Any, files: Mapping[str, str]) -> list[str]:
    """Sets each row's `split`, and its `rank` in it; returns the notes."""
    file, notes = files["splits"], []
    if not isinstance(keys, dict):
        raise _bad(file, "the file", keys, f"a JSON object with the keys {list(SPLITS)}")
    for row in rows.values():
        row["rank"] = len(rows)
    named: dict[str, str] = {}
    for split in SPLITS:
        if split not in keys:
            raise ValueError(f"{file}: key {split!r} is missing; accepted: {list(SPLITS)}{_nearest(split, keys)}")
        names = keys[split]
        if not isinstance(names, list) or not names:
            raise _bad(file, split, names, "a list of at least one run name")
        absent = 0
        for rank, name in enumerate(names):
            if not isinstance(name, str):
                raise _bad(file, f"{split}[{rank}]", name, "a run name")
            if name in named:
                raise ValueError(
                    f"{file}: run {name!r} is named twice (in {named[name]!r} and {split!r}); accepted: once"
                )
            named[name] = split
            if name not in rows:
                absent += 1
                continue
            if rows[name]["role"] == "unstable":
                raise ValueError(
                    f"{file}: {split!r} names run {name!r}, which {rows[name]['file']} holds as a run of no split"
                )
            rows[name] |= {"split": split, "rank": rank}
        if absent == len(names):
            raise ValueError(
                f"{file}: none of the {absent} names of {split!r} has a run in {files['runs']} (first: {names[0]!r})"
            )
        if absent:
            notes.append(
                f"{absent} of the {len(names)} names of {split!r} have no run in {Path(files['runs']).name}: skipped"
            )

    for key in set(keys) - set(SPLITS) - {"note"}:
        notes.append(f"key {key!r} of {Path(file).name} is no split of {list(SPLITS)}: its runs are in 'unstable'")
    loose = sum(row["split"] == UNSTABLE and row["role"] == "runs" for row in rows.values())
    if "unstable" not in files:
        notes.append(f"there is no file of unstable runs: 'unstable' holds the {loose} runs that no split names")
    elif loose:
        notes.append(f"{loose} runs of {Path(files['runs']).name} are named by no split: they are in 'unstable'")
    return notes


def diverged(runs: Collection[Mapping[str, Any]]) -> set[str]:
    """Names of the runs that diverged by the rule of `DIVERGED_NATS`.

    Args:
        runs: all runs of one source, with `name`, `conf` and `final_loss` in nats per token.

    >>> conf = {"model size": 100, "data size": 2}
    >>> losses = {"best": 2.0, "near": 2.3, "far": 2.31, "lost": None}
    >>> sorted(diverged([{"name": name, "conf": conf, "final_loss": loss} for name, loss in losses.items()]))
    ['far', 'lost']
    """
    best: dict[tuple[float | None, ...], float] = {}
    for run in runs:
        if run["final_loss"] is not None:
            best[_scale(run)] = min(run["final_loss"], best.get(_scale(run), math.inf))
    return {
        run["name"]
        for run in runs
        if run["final_loss"] is None or run["final_loss"] > best[_scale(run)] + DIVERGED_NATS
    }


def _assign_statuses(rows: Collection[dict[str, Any]]) -> None:
    """Sets each row's `status`."""
    lost = diverged(rows)
    for row in rows:
        stays = UNSTABLE if row["split"] == UNSTABLE else "finished"
        row["status"] = "diverged" if row["name"] in lost else stays


def _scale(row: Mapping[str, Any]) -> tuple[float | None, ...]:
    """Mixtures of experts of one total size may differ in what is active."""
    return row["conf"]["model size"], row["conf"].get("active size"), row["conf"]["data size"]


def _check_losses(rows: list[dict[str, Any]]) -> None:
    """Only runs of no split may have lost their loss: a null is no target, and a split is whole."""
    for row in rows:
        where, accepted = (
            f"{row['file']}: run {row['name']!r} of split {row['split']!r}",
            "a positive number (nats per token)",
        )
        if row["final_loss"] is None:
            raise _bad(where, "final_loss", None, f"{accepted}; null or NaN in runs of no split alone")
        if row["curve"] and None in row["curve"]["losses"]:
            raise _bad(
                where,
                f"loss {row['curve']['losses'].index(None)} of the curve",
                None,
                f"{accepted}; null or NaN in runs of no split alone",
            )


def _read_run(run: Any, index: int, file: str, source: str, curve_keys: tuple[str, str] | None) -> dict[str, Any]:
    """One checked run, without `split` and `status`."""
    if not isinstance(run, dict):
        raise _bad(f"{file}: run number {index}", "the run", run, f"an object with the keys {list(_REQUIRED)}")
    where = f"{file}: run {run['name']!r}" if "name" in run else f"{file}: run number {index}"
    for key in _REQUIRED:
        if key not in run:
            raise ValueError(f"{where}: key {key!r} is missing (it has {list(run)}){_nearest(key, run)}")
    name, conf, max_step = run["name"], run["conf"], run["max_step"]
    if not isinstance(name, str) or not name:
        raise _bad(where, "name", name, "a text that is not empty")
    if run["source"] != source:
        raise _bad(where, "source", run["source"], repr(source))
    if not isinstance(conf, dict):
        raise _bad(where, "conf", conf, "an object of fields and values")
    for field, value in conf.items():
        if not (value is None or isinstance(value, str | bool | int) or _is_finite(value)):
            raise _bad(where, f"conf[{field!r}]", value, "a text, a finite number, true, false or null")
    for field in ("model size", "data size"):
        if field not in conf:
            raise ValueError(f"{where}: conf has no {field!r} (it has {list(conf)}){_nearest(field, conf)}")
        if not _is_finite(conf[field]) or conf[field] <= 0:
            raise _bad(where, f"conf[{field!r}]", conf[field], f"a positive number ({FIELDS[field].unit})")
    if not _is_finite(max_step) or not 0 < max_step < 2**53 or max_step != int(max_step):
        raise _bad(where, "max_step", max_step, "a positive whole number (optimizer steps)")
    return {
        "name": name,
        "source": source,
        "conf": conf,
        "max_step": int(max_step),
        "final_loss": _read_loss(where, "final_loss", run["final_loss"]),
        "curve": _read_curve(run, where, *curve_keys) if curve_keys else None,
    }


def _read_curve(run: Mapping[str, Any], where: str, steps_key: str, losses_key: str) -> dict[str, list[Any]] | None:
    steps: Any = run.get(steps_key)
    losses: Any = run.get(losses_key)
    if steps is None and losses is None:
        return None
    for key, values in ((steps_key, steps), (losses_key, losses)):
        if not isinstance(values, list):
            raise _bad(where, key, values, f"a list of numbers; {steps_key} and {losses_key} come together")
    if len(steps) != len(losses):
        raise ValueError(
            f"{where}: {steps_key} has {len(steps)} points and {losses_key} {len(losses)}; accepted: equal lengths"
        )
    for i, step in enumerate(steps):
        if not _is_finite(step) or step < 0:
            raise _bad(where, f"{steps_key}[{i}]", step, "a number from 0 up (optimizer steps)")
        if i and step <= steps[i - 1]:
            raise _bad(where, f"{steps_key}[{i}]", step, f"more than the step before it, {steps[i - 1]}")
    if not steps:
        return None
    return {
        "steps": [float(step) for step in steps],
        "losses": [_read_loss(where, f"{losses_key}[{i}]", loss) for i, loss in enumerate(losses)],
    }


def _read_loss(where: str, key: str, loss: Any) -> float | None:
    if loss is None or (isinstance(loss, float) and not math.isfinite(loss)):
        return None
    if not _is_finite(loss) or loss <= 0:
        raise _bad(where, key, loss, "a positive number (nats per token), null or NaN")
    return float(loss)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _present(path: Path) -> str | None:
    """The file itself or its gzip."""
    return next((str(p) for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _read_bytes(path: str, file: str) -> bytes:
    try:
        with fsspec.open(path, "rb", compression="infer") as stream:
            return stream.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file}: not a whole gzip file ({error}); it is truncated or malformed") from error


def read_text(path: str, file: str, kind: str) -> str:
    """The text of a file or its gzip; `file` and `kind` are what messages call it."""
    try:
        return _read_bytes(path, file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error}); accepted: {kind}, or {kind} in a .gz") from error


def read_json(path: str, file: str) -> Any:
    """The content of a JSON file or its gzip; `file` is what messages call it."""
    text = read_text(path, file, "JSON")
    try:
        return json.loads(text, object_pairs_hook=functools.partial(_unique_keys, file))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file}: not whole JSON, it is truncated or malformed: {error.msg} at line {error.lineno} column "
            f"{error.colno} (character {error.pos} of {len(text)}, after {text[max(0, error.pos - 40) : error.pos]!r})"
        ) from error


def _unique_keys(file: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`json` would keep the last of two equal keys and say nothing."""
    result = dict(pairs)
    if len(result) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(
            f"{file}: key {key!r} is there twice in one object: {str(result)[:120]}; accepted: unique keys"
        )
    return result


def _hash_files(files: Mapping[str, str], paths: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for role, file in files.items():
        digest.update(role.encode() + hashlib.sha256(_read_bytes(paths[role], file)).digest())
    return digest.hexdigest()


def _bad(where: str, field: str, value: Any, accepted: str) -> ValueError:
    shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
    return ValueError(f"{where}: {field} is {shown} ({type(value).__name__}); accepted: {accepted}")


def _nearest(name: str, known: Any) -> str:
    near = get_close_matches(str(name), [str(key) for key in known], 1)
    return f"; did you mean {near[0]!r}?" if near else ""
