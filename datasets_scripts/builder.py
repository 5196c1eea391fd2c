"""The `datasets` builder that those of all sources extend."""

import hashlib
import inspect
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from datasets_scripts.public import DownloadError, PublicFiles
from datasets_scripts.reading import (
    COLUMNS,
    SPLITS,
    UNSTABLE,
    check_runs,
    hash_files,
    local_files,
    read_bytes,
    read_json,
)
from fields_ncpl import FIELDS

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

_NOTE = "Note: "


@dataclass
class RunsConfig(datasets.BuilderConfig):
    """A configuration of a run log.

    Args:
        curves: give each row the column `curve`.
        revision: commit of the public repository instead of the one whose files were checked; unused with `data_dir`.
    """

    curves: bool = False
    revision: str | None = None


class RunsBuilder(datasets.GeneratorBasedBuilder):
    """What the builders of all sources share; a subclass names its source, its curve keys and where its runs come from.

    Args:
        cache_dir: where `datasets` keeps the prepared rows; None: its own cache.
        config_name: "final" (the default) or "intermediate".
        data_dir: folder of the source's files; None: the public repository, at the commit that was checked.
            Without a run of no split there is no split "unstable".
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
    PUBLIC: PublicFiles

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
        self.files = self.PUBLIC.urls(kwargs.get("revision")) if data_dir is None else self.find_files(data_dir)
        kwargs.setdefault("dataset_name", self.SOURCE)  # `datasets` would take the module's name: `__main__` under -m
        kwargs["hash"] = kwargs.get("hash") or self._fingerprint(local=data_dir is not None)
        super().__init__(
            None if cache_dir is None else str(cache_dir), config_name=config_name, data_dir=data_dir, **kwargs
        )

    @classmethod
    def file_names(cls) -> dict[str, str]:
        """Role -> name of the source's files; `runs` is among them."""
        return {
            "runs": f"{cls.SOURCE}_processed_data.json",
            "splits": f"{cls.SOURCE}_keys_model_split.json",
            "unstable": f"{cls.SOURCE}_unstable_runs.json",
        }

    @classmethod
    def find_files(cls, data_dir: str) -> dict[str, str]:
        """Role -> path of the source's files in a folder, or in its folder of the source's name.

        Raises:
            ValueError: a file is missing.
        """
        return local_files(data_dir, cls.file_names(), (cls.SOURCE,), ("runs", "splits"))

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
        digest = hashlib.sha256((hash_files(self.files, self.files) if local else repr(self.files)).encode())
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
        if self._public and not self.PUBLIC.pins(self.config.revision):
            notes.append(
                f"read at revision {self.config.revision} of {self.PUBLIC.repository}, whose files were not checked; "
                f"checked is {self.PUBLIC.commit[:10]}"
            )
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
        """Role -> where the file lies; public files at the checked commit are the ones that were checked."""
        paths = {}
        for role, file in self.files.items():
            try:
                paths[role] = dl_manager.download(file)
                if self._public and self.PUBLIC.pins(self.config.revision):
                    self.PUBLIC.check(role, read_bytes(paths[role], file))
            except DownloadError:
                Path(paths[role]).unlink(missing_ok=True)  # or the cache would give it again
                raise
            except OSError as error:
                raise DownloadError(
                    f"{self.SOURCE}: could not download {file} ({type(error).__name__}); offline, give data_dir, a "
                    f"folder with {', '.join(self.file_names().values())}"
                ) from error
        return paths

    @property
    def _public(self) -> bool:
        return self.config.data_dir is None

    def data_hash(self) -> str:
        """SHA-256 of the contents of the source's files."""
        # Downloads land where, and are reused as, `download_and_prepare` does it.
        download_config = datasets.DownloadConfig(cache_dir=self._cache_downloaded_dir, use_etag=False)
        manager = datasets.DownloadManager(self.dataset_name, download_config=download_config)
        return hash_files(self.files, self._download(manager))
