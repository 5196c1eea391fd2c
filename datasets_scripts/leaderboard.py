"""Public benchmark scores as `datasets`: one row a measured model, whatever leaderboard it stands on.

Configurations:

- `obs_scaling`: public base models (Ruan, Maddison, Hashimoto 2024, arXiv 2405.10938; github.com/ryoungj/ObsScaling);
- `olmo_ladder`: checkpoints of AI2's model ladder with their C4 loss (Bhagia et al. 2024, arXiv 2412.04403);
- `gadre_open_lm`: over-trained runs with their C4 loss (Gadre et al. 2024, arXiv 2403.08540);
- `table`: any Open LLM Leaderboard style CSV, given as `data_files`: a column `model`, counts `params`, `tokens` and
  `flops` where known, `family`, `loss`, and a column of accuracies 0..1 (or 0..100 throughout) for each task.

The settings differ (shots, wording, normalisation), so tasks of `olmo_ladder` and `gadre_open_lm` have names of their
own.
"""

import argparse
import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd

from fields_ncpl import is_code

COLUMNS = {
    "model": "name, unique within its source",
    "source": "configuration it comes from; scores of two sources do not compare",
    "family": "models trained alike, by the same people on the same kind of data",
    "params": "parameters; the source's count, of mixtures of experts at times the active ones",
    "tokens": "pretraining tokens; null: not published",
    "flops": "training FLOPs, 6 params tokens; null without tokens",
    "code": "whether the name says that it was trained on code",
    "moe": "whether it is a mixture of experts",
    "loss": "C4 validation loss, nats per token of the source's own tokenizer; null: not measured",
    "scores": "task -> accuracy 0..1, as a JSON object",
    "flag": "caveat of the source; null: none",
}
# Options to choose from; 0: a free answer. Chance is 1 / options; elsewhere (mixed tasks) it is said by itself.
OPTIONS: dict[str, int] = {
    "mmlu": 4, "arc_c": 4, "hellaswag": 4, "winogrande": 2, "truthfulqa": 4, "gsm8k": 0, "xwinograd": 2, "humaneval": 0,
    "lbv2_gpqa": 4, "lbv2_ifeval": 0, "lbv2_math_hard": 0, "lbv2_mmlu_pro": 10, "lbv2_musr": 3,
    "bb_parsinlu_qa_2_acc": 4,
    "olmo_mmlu": 4, "olmo_hellaswag": 4, "olmo_arc_easy": 4, "olmo_arc_challenge": 4, "olmo_boolq": 2, "olmo_csqa": 5,
    "olmo_openbookqa": 4, "olmo_piqa": 2, "olmo_socialiqa": 3, "olmo_winogrande": 2,
    "gadre_arc_easy": 4, "gadre_arc_challenge": 4, "gadre_hellaswag": 4, "gadre_hellaswag_zeroshot": 4, "gadre_mmlu": 4,
    "gadre_mmlu_zeroshot": 4, "gadre_piqa": 2, "gadre_openbook_qa": 4, "gadre_copa": 2, "gadre_boolq": 2,
    "gadre_commonsense_qa": 5, "gadre_siqa": 3, "gadre_winogrande": 2, "gadre_winograd": 2,
}  # fmt: skip
MIXED_CHANCE = {"lbv2_bbh": 0.3}
PUBLIC_OBS = "https://raw.githubusercontent.com/ryoungj/ObsScaling/4d6e1e43fd/eval_results/base_llm_benchmark_eval.csv"
# Columns of the public table -> ours, with the factor to counts.
PUBLIC_COLUMNS = {
    "Model": "model", "Model Family": "family", "Model Size (B)": "params", "Pretraining Data Size (T)": "tokens",
    "FLOPs (1E21)": "flops", "MMLU": "mmlu", "ARC-C": "arc_c", "HellaSwag": "hellaswag", "Winograd": "winogrande",
    "TruthfulQA": "truthfulqa", "GSM8K": "gsm8k", "XWinograd": "xwinograd", "HumanEval": "humaneval",
}  # fmt: skip
PUBLIC_UNITS = {"params": 1e9, "tokens": 1e12, "flops": 1e21}
FILES = {
    "obs_scaling": ("models.csv",),
    "olmo_ladder": ("benchmarks.csv",),
    "gadre_open_lm": ("benchmarks.csv", "runs.csv"),
}


_CONFIGS = [datasets.BuilderConfig(name=name, version=datasets.Version("1.0.0")) for name in (*FILES, "table")]


def chance(task: str) -> float:
    """Accuracy of a blind guess: 1 / options, 0 for a free answer or an unknown task.

    >>> chance("winogrande"), chance("gsm8k")
    (0.5, 0.0)
    """
    if task in MIXED_CHANCE:
        return MIXED_CHANCE[task]
    options = OPTIONS.get(task, 0)
    return 1 / options if options else 0.0


def load_leaderboard(
    config: str = "obs_scaling", data_dir: str | Path | None = None, *, cache_dir: str | Path | None = None
) -> pd.DataFrame:
    """A leaderboard as a table: the fields of `COLUMNS`, and a column for each task instead of `scores`.

    Args:
        config: `obs_scaling`, `olmo_ladder` or `gadre_open_lm`.
        data_dir: folder of the source's files, or of a folder named after it; None downloads `obs_scaling`.
        cache_dir: where `datasets` keeps the prepared rows; None: its own cache.

    Raises:
        ValueError: an unknown configuration, or files that are missing or malformed.
    """
    builder = Leaderboard(cache_dir, config_name=config, data_dir=data_dir)
    builder.download_and_prepare()
    rows = builder.as_dataset(split="train").to_pandas()
    scores = pd.DataFrame([json.loads(text) for text in rows.pop("scores")], index=rows.index)
    return pd.concat([rows, scores], axis=1)


class Leaderboard(datasets.GeneratorBasedBuilder):
    """Builder of the leaderboards; see the module's head for its configurations.

    Args:
        cache_dir: where `datasets` keeps the prepared rows; None: its own cache.
        config_name: `obs_scaling` (the default), `olmo_ladder`, `gadre_open_lm` or `table`.
        data_dir: folder of the source's files, or of a folder named after it.
        data_files: for `table`, one CSV file.
        kwargs: further arguments of `datasets.DatasetBuilder`.

    Raises:
        ValueError: an unknown configuration, or a file that is missing or malformed.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIGS = _CONFIGS
    DEFAULT_CONFIG_NAME = "obs_scaling"

    def __init__(
        self,
        cache_dir: str | Path | None = None,
        *,
        config_name: str | None = None,
        data_dir: str | Path | None = None,
        data_files: str | Path | None = None,
        **kwargs: Any,
    ) -> None:
        name = config_name or self.DEFAULT_CONFIG_NAME
        if name not in (*FILES, "table"):
            raise ValueError(f"leaderboard: unknown configuration {name!r}; known: {', '.join((*FILES, 'table'))}")
        self.paths = _find_files(name, data_dir, data_files)
        kwargs.setdefault("dataset_name", "leaderboard")
        # New rows when the files or this code change; a plain builder would return the old ones from its cache.
        digest = hashlib.sha256(Path(__file__).read_bytes())
        for path in self.paths:
            digest.update(Path(path).read_bytes() if Path(path).is_file() else path.encode())
        kwargs["hash"] = digest.hexdigest()[:16]
        super().__init__(None if cache_dir is None else str(cache_dir), config_name=name, **kwargs)

    def _info(self) -> datasets.DatasetInfo:
        text, number, flag = datasets.Value("string"), datasets.Value("float64"), datasets.Value("bool")
        kinds = {"params": number, "tokens": number, "flops": number, "loss": number, "code": flag, "moe": flag}
        features = datasets.Features({name: kinds.get(name, text) for name in COLUMNS})
        lines = [f"- `{name}`: {meaning}" for name, meaning in COLUMNS.items()]
        return datasets.DatasetInfo(description="\n".join([str(__doc__), *lines]), features=features)

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        try:
            paths = [str(path) for path in dl_manager.download(self.paths)]
        except OSError as error:
            raise ConnectionError(
                f"leaderboard: could not download {self.paths} ({type(error).__name__}: {error}); give data_dir"
            ) from error
        table = read_table(self.config.name, paths)
        return [datasets.SplitGenerator(name="train", gen_kwargs={"table": table})]

    def _generate_examples(self, table: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any]]]:
        tasks = [column for column in table.columns if column not in COLUMNS]
        for row in table.to_dict("records"):
            scores = {task: row[task] for task in tasks if not pd.isna(row[task])}
            fields = {name: None if pd.isna(row.get(name)) else row[name] for name in COLUMNS if name != "scores"}
            yield str(row["model"]), {**fields, "scores": json.dumps(scores)}


def read_table(config: str, paths: list[str]) -> pd.DataFrame:
    """The rows of a source as a table with the fields of `COLUMNS` (without `scores`) and a column for each task.

    Raises:
        ValueError: a column is missing, or scores are not accuracies.
    """
    table = pd.read_csv(paths[0])
    if config == "olmo_ladder":
        table = _read_olmo(table)
    elif config == "gadre_open_lm":
        table = _read_gadre(table, pd.read_csv(paths[1]))
    elif "Model Size (B)" in table.columns:
        table = table[[c for c in PUBLIC_COLUMNS if c in table.columns]].rename(columns=PUBLIC_COLUMNS)
        for column, unit in PUBLIC_UNITS.items():
            table[column] = table[column] * unit
        table.loc[table["tokens"] > 1e14, ["tokens", "flops"]] = np.nan  # one row of the public table says 627 T
    if "model" not in table.columns or "params" not in table.columns:
        raise ValueError(f"{paths[0]}: columns 'model' and 'params' are needed, found {', '.join(table.columns)}")
    if table["model"].duplicated().any():
        raise ValueError(
            f"{paths[0]}: model {table['model'][table['model'].duplicated()].iloc[0]!r} stands there twice"
        )
    table = table.drop(columns=[c for c in table.columns if c.startswith("in_")])
    flag = table.get("flag", pd.Series(index=table.index, dtype=object))
    name = table["model"].astype(str)
    table = table.assign(
        source=config,
        family=table["family"].astype(str) if "family" in table.columns else name,
        flag=flag,
        code=name.map(is_code),
        moe=flag.fillna("").str.startswith("MoE") | name.str.contains(r"-MoE|\d+x\d+B|-A\d+B", case=False),
    )
    for column in ("tokens", "flops", "loss"):
        if column not in table.columns:
            table[column] = np.nan
    table["flops"] = table["flops"].fillna(6 * table["params"] * table["tokens"])
    tasks = [column for column in table.columns if column not in COLUMNS]
    scores = table[tasks].apply(pd.to_numeric, errors="coerce")
    lost = [task for task in tasks if scores[task].notna().sum() < table[task].notna().sum()]
    if lost:
        raise ValueError(
            f"{paths[0]}: column {lost[0]!r} is no known field and holds no numbers, so it is no task either"
        )
    if scores.max().max() > 1:
        if scores.max().max() > 100 or scores.min().min() < 0:
            raise ValueError(
                f"{paths[0]}: scores from {scores.min().min()} to {scores.max().max()}, accepted is 0 to 1"
            )
        scores = scores / 100
        warnings.warn(f"{paths[0]}: scores above 1 are read as percent", stacklevel=2)
    table[tasks] = scores
    return table.reset_index(drop=True)


def _read_olmo(table: pd.DataFrame) -> pd.DataFrame:
    scores = {c: "olmo_" + c.split("_val_")[0].split("_test_")[0] for c in table.columns if c.endswith("_acc")}
    kept = table[["run", "step", "tokens", "is_final", "loss_c4", *scores]].rename(columns=scores)
    size = table["run"].str.split("-").str[1]
    kept["model"] = kept["run"] + "-step" + kept["step"].astype(str)
    # Final checkpoints alone have run through their decay; the others are flagged.
    kept["flag"] = kept["is_final"].map({0: "not the last checkpoint of its run"})
    kept["family"] = "OLMo-ladder-" + size
    kept["params"] = table["params_no_input_emb"]
    mmlu = [c for c in kept.columns if c.startswith("olmo_mmlu_")]
    kept["olmo_mmlu"] = kept[mmlu].mean(axis=1)
    return kept.rename(columns={"loss_c4": "loss"}).drop(columns=["run", "step", "is_final", *mmlu])


def _read_gadre(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    tasks = {c: "gadre_" + c for c in table.columns[4:]}
    kept = table.merge(runs[["run", "loss_c4_val"]], on="run", how="left").rename(columns=tasks)
    kept = kept.rename(columns={"run": "model", "dataset": "family", "params_total": "params", "loss_c4_val": "loss"})
    kept["family"] = "open_lm-" + kept["family"].astype(str)
    return kept


def _find_files(name: str, data_dir: str | Path | None, data_files: str | Path | None) -> list[str]:
    if name == "table":
        if data_files is None or not Path(str(data_files)).is_file():
            raise ValueError(f"leaderboard: configuration 'table' reads one CSV file, data_files is {data_files!r}")
        return [str(data_files)]
    if data_dir is None:
        if name == "obs_scaling":
            return [PUBLIC_OBS]
        raise ValueError(f"leaderboard: {name} is read from local files; give data_dir, a folder with {FILES[name]}")
    folder = Path(data_dir).expanduser()
    folder = folder / name if (folder / name).is_dir() else folder
    for file in FILES[name]:
        if not (folder / file).is_file():
            raise ValueError(f"leaderboard: {folder / file} is missing; {name} needs {', '.join(FILES[name])}")
    return [str(folder / file) for file in FILES[name]]


def main() -> None:
    """`python -m datasets_scripts.leaderboard --config NAME --data_dir FOLDER --output FOLDER`: the rows as Parquet."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets_scripts.leaderboard", description="Write scores as Parquet."
    )
    parser.add_argument("--output", required=True, help="a new or empty folder")
    parser.add_argument("--config", default="obs_scaling", help="(default: %(default)s)")
    parser.add_argument("--data_dir", help="folder of the source's files; default: download (obs_scaling)")
    parser.add_argument("--data_files", help="the CSV file of the configuration 'table'")
    given = parser.parse_args()
    try:
        builder = Leaderboard(config_name=given.config, data_dir=given.data_dir, data_files=given.data_files)
        builder.download_and_prepare(given.output, file_format="parquet")
    except (ValueError, ConnectionError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
