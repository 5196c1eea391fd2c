"""What is known of a model before it is trained -> tensors for NSP: counts, a table, or a Hub model's `config.json`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    BatchFeature,
    FeatureExtractionMixin,
    PreTrainedConfig,
)

try:
    from .configuration_nsp import DEFAULT_TASKS, FEATURES, NSPConfig, NSPEnsembleConfig
    from .embedded_ncpl import ByName
    from .fields_ncpl import USUAL_TOKENS_PER_PARAMETER, is_code
    from .text_ncpl import as_number, did_you_mean, one_line, parse_count, short, warn_user
except ImportError:
    from configuration_nsp import DEFAULT_TASKS, FEATURES, NSPConfig, NSPEnsembleConfig
    from embedded_ncpl import ByName
    from fields_ncpl import USUAL_TOKENS_PER_PARAMETER, is_code
    from text_ncpl import as_number, did_you_mean, one_line, parse_count, short, warn_user

ALIASES = {
    "n": "params",
    "parameters": "params",
    "num_parameters": "params",
    "d": "tokens",
    "training_tokens": "tokens",
    "compute": "flops",
    "model": "name",
}
FIELDS = ("params", "tokens", "flops", "domain", "moe", "name", "family", "like", "scores", "siblings", "config")
# Accepted counts. What lies outside is a unit slip (7 for 7e9, 2000 for 2e12), not a language model.
RANGES = {"params": (1e6, 1e14), "tokens": (1e7, 1e16), "flops": (1e14, 1e30)}
HINTS = {"params": "7e9 or '7B'", "tokens": "2e12 or '2T'", "flops": "8.4e22"}
# params and tokens say what FLOPs = 6 N D must be; MoE counting and attention explain a factor of two, no more.
FLOPS_TOLERANCE = 3.0


class NSPFeatureExtractor(ByName, FeatureExtractionMixin):
    """Turns descriptions of models into the tensors that `NSPModel` reads.

    Args:
        tasks: benchmark names, in the model's order.
        families: names of families whose fitted effects the model holds, in its order.
        support: (lowest, highest) ln(params / 1e9) and ln(tokens / 1e12) of the training data; beyond, a warning.

    A description is a mapping with

    - `params`: count, > 0 (active parameters of a mixture of experts), a number or such as `"7B"`;
    - `tokens`: pretraining tokens; where missing it is marginalised over, with a warning and wider bands;
    - `flops`: may stand in for params or tokens by FLOPs = 6 N D (Kaplan et al. 2020);
    - `domain`: `"code"` or `"general"`; else read off `name` (`is_code`); else unknown;
    - `moe`: whether it is a mixture of experts; unknown when absent;
    - `config`: a Hub model config (`AutoConfig` or its JSON) whose parameters are counted, instead of `params`;
    - `like`: name of a known family whose data quality is assumed;
    - `scores`: known scores of this very model, task -> accuracy 0..1;
    - `siblings`: models of the same family, each a mapping of the same fields with `scores`, or with the tasks as keys.

    >>> extractor = NSPFeatureExtractor()
    >>> extractor({"params": "7B", "tokens": 2e12})["features"].shape
    torch.Size([1, 4])
    """

    model_input_names = ("features", "feature_mask", "family_ids")

    def __init__(
        self,
        tasks: Sequence[str] = DEFAULT_TASKS,
        families: Sequence[str] = (),
        support: Sequence[Sequence[float]] = ((-2.7, 5.2), (-6.2, 2.8)),
        **kwargs: Any,
    ) -> None:
        self.tasks = list(tasks)
        self.families = list(families)
        self.support = [list(bounds) for bounds in support]
        super().__init__(**kwargs)

    def __call__(self, models: Any, return_tensors: str | None = "pt") -> BatchFeature:
        """Features of one or many models.

        Args:
            models: a description, a list of them, a DataFrame of them, or a Hub model config (or its JSON dict).
            return_tensors: `"pt"` or `"np"`.

        Returns:
            `features` (batch, 4) log params and tokens, code, moe; `feature_mask` 1 where known; `family_ids` (batch,),
            -1 for a new family; and where any scores are known, `score_values`, `score_tasks`, `score_models` (0 the
            model itself, 1.. its siblings), `score_mask`, all (batch, scores), `score_features` and
            `score_feature_mask` (batch, scores, 4).

        Raises:
            ValueError: a field, task or family that is not known, or a value out of range.
        """
        if return_tensors is not None and (not isinstance(return_tensors, str) or return_tensors not in ("pt", "np")):
            raise ValueError(f"return_tensors: got {short(return_tensors)}, accepted: pt, np")
        try:
            rows = [self._read(row, f"model {i}: ") for i, row in enumerate(as_rows(models))]
        except ValueError as error:
            # Lists of known families and tasks are longer than a message may be.
            raise ValueError(one_line(error)) from None
        if not rows:
            raise ValueError(
                "no models given; pass a mapping such as {'params': 7e9, 'tokens': 2e12}, or a list of them"
            )
        self._warn(rows)
        data: dict[str, Any] = {
            "features": np.array([row["features"] for row in rows], np.float32),
            "feature_mask": np.array([row["mask"] for row in rows], np.float32),
            "family_ids": np.array([row["family_id"] for row in rows], np.int64),
        }
        width = max(len(row["known"]) for row in rows)
        if width:
            shape = (len(rows), width)
            data["score_values"] = np.zeros(shape, np.float32)
            data["score_tasks"] = np.zeros(shape, np.int64)
            data["score_models"] = np.zeros(shape, np.int64)
            data["score_mask"] = np.zeros(shape, np.float32)
            data["score_features"] = np.zeros((*shape, len(FEATURES)), np.float32)
            data["score_feature_mask"] = np.zeros((*shape, len(FEATURES)), np.float32)
            for i, row in enumerate(rows):
                for j, (value, task, model, features, mask) in enumerate(row["known"]):
                    data["score_values"][i, j] = value
                    data["score_tasks"][i, j] = task
                    data["score_models"][i, j] = model
                    data["score_mask"][i, j] = 1
                    data["score_features"][i, j] = features
                    data["score_feature_mask"][i, j] = mask
        return BatchFeature(data, tensor_type=return_tensors)

    def _read(self, row: Mapping[str, Any], where: str, sibling: bool = False) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        scores: dict[str, Any] = {}
        for key, value in row.items():
            if not isinstance(key, str):
                raise ValueError(f"{where}got {short(key)} as a field's name, expected text")
            name = ALIASES.get(key.lower(), key)
            missing = _is_missing(value)
            if name in self.tasks:
                if not sibling and not missing:
                    raise ValueError(
                        f"{where}{key} is a benchmark score; known scores go under 'scores', as {{'scores': {{{key!r}: "
                        f"{short(value)}}}}}"
                    )
                scores[name] = value
            elif name not in FIELDS:
                accepted = FIELDS + tuple(self.tasks) if sibling else FIELDS
                raise ValueError(
                    f"{where}unknown field {short(key)}{did_you_mean(name, accepted)}; known: {', '.join(accepted)}"
                )
            elif missing:
                continue
            elif name in fields:
                raise ValueError(f"{where}{name} is given twice, as {short(key)} and under another name")
            else:
                fields[name] = value
        given = fields.get("scores", {})
        if not isinstance(given, Mapping):
            raise ValueError(
                f"{where}scores: {short(given)}, accepted is a mapping of tasks to accuracies, {{'mmlu': 0.45}}"
            )
        scores.update(given)
        features, mask = self._read_size(fields, where)
        known = [(*score, 0, features, mask) for score in self._read_scores(scores, where)]
        siblings = fields.get("siblings")
        for i, other in enumerate(as_rows(siblings) if siblings is not None else [], 1):
            there = f"{where}sibling {i}: "
            read = self._read(other, there, sibling=True)
            if not read["known"]:
                raise ValueError(f"{there}no known scores; known tasks: {', '.join(self.tasks)}")
            known += [(value, task, i, f, m) for value, task, model, f, m in read["known"] if model == 0]
        return {
            "features": features,
            "mask": mask,
            "known": known,
            "family_id": self._family(fields.get("like"), where),
        }

    def _read_size(self, fields: Mapping[str, Any], where: str) -> tuple[list[float], list[float]]:
        params, tokens, flops = (read_count(fields.get(name), name, where) for name in ("params", "tokens", "flops"))
        moe = fields.get("moe")
        if fields.get("config") is not None:
            if params is not None:
                raise ValueError(f"{where}params and config are both given, and one of them says the size")
            total, params = count_parameters(fields["config"])
            moe = total > params if moe is None else moe
        if params is None and tokens is not None and flops is not None:
            params = read_count(flops / (6 * tokens), "params", f"{where}flops / (6 tokens): ")
        if params is None:
            raise ValueError(
                f"{where}params is missing; give the parameter count ({HINTS['params']}), or flops and tokens"
            )
        if tokens is None and flops is not None:
            tokens = read_count(flops / (6 * params), "tokens", f"{where}flops / (6 params): ")
        elif tokens is not None and flops is not None:
            ratio = flops / (6 * params * tokens)
            if not 1 / FLOPS_TOLERANCE < ratio < FLOPS_TOLERANCE:
                raise ValueError(
                    f"{where}flops: {flops:.3g} is {ratio:.2g} times 6 params tokens = {6 * params * tokens:.3g}; "
                    "leave flops out, or correct one of the three"
                )
        code = self._read_domain(fields, where)
        given, moe = moe, bool(moe) if isinstance(moe, bool | np.bool_) else as_number(moe)
        if given is not None and moe not in (True, False):
            raise ValueError(f"{where}moe: {short(given)}, accepted are true and false")
        known = [1.0, float(tokens is not None), float(code is not None), float(moe is not None)]
        values = [math.log(params / 1e9), math.log((tokens or 1e12) / 1e12), float(code or 0), float(moe or 0)]
        return values, known

    @staticmethod
    def _read_domain(fields: Mapping[str, Any], where: str) -> bool | None:
        domain, name = fields.get("domain"), fields.get("name")
        if domain is not None:
            if not isinstance(domain, str) or domain not in ("code", "general"):
                raise ValueError(f"{where}domain: {short(domain)}, accepted are 'code' and 'general'")
            return bool(domain == "code")
        if name is None:
            return None
        if not isinstance(name, str):
            raise ValueError(f"{where}name: {short(name)}, accepted is text")
        return is_code(name)

    def _read_scores(self, scores: Mapping[str, Any], where: str) -> list[tuple[float, int]]:
        read = []
        for task, value in scores.items():
            if not isinstance(task, str) or task not in self.tasks:
                raise ValueError(
                    f"{where}scores: unknown task {short(task)}{did_you_mean(task, self.tasks)}; known: "
                    f"{', '.join(self.tasks)}"
                )
            if _is_missing(value):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
                raise ValueError(f"{where}scores: {task} is {short(value)}, accepted is an accuracy from 0 to 1")
            read.append((float(value), self.tasks.index(task)))
        return read

    def _family(self, like: Any, where: str) -> int:
        if _is_missing(like):
            return -1
        names = [family.lower() for family in self.families]
        if not isinstance(like, str) or like.lower() not in names:
            raise ValueError(
                f"{where}like: unknown family {short(like)}{did_you_mean(like, self.families)}; known: "
                f"{', '.join(self.families) or 'none in this checkpoint'}"
            )
        return names.index(like.lower())

    def _warn(self, rows: Sequence[Mapping[str, Any]]) -> None:
        missing = sum(not row["mask"][1] for row in rows)
        if missing:
            warn_user(
                f"tokens missing for {missing} of {len(rows)} models: taken as usual for their size, with wider bands"
            )
        few, many = USUAL_TOKENS_PER_PARAMETER
        ratios = [math.exp(row["features"][1] - row["features"][0]) * 1e3 for row in rows if row["mask"][1]]
        odd = sum(not few <= ratio <= many for ratio in ratios)
        if odd:
            warn_user(
                f"tokens of {odd} of {len(rows)} models are less than {few:g} or more than {many:g} a parameter, as no "
                "known run's: check the units of params and tokens"
            )
        for column, name, unit in ((0, "params", 1e9), (1, "tokens", 1e12)):
            low, high = self.support[column]
            outside = sum(
                bool(row["mask"][column]) and not low - 1e-6 <= row["features"][column] <= high + 1e-6 for row in rows
            )
            if outside:
                warn_user(
                    f"{name} of {outside} of {len(rows)} models outside the {unit * math.exp(low):.2g} to "
                    f"{unit * math.exp(high):.2g} seen in training: an extrapolation, with wider bands"
                )


def read_count(value: Any, name: str, where: str = "") -> float | None:
    """A count as a float; None where it is missing.

    Args:
        value: a number, or text such as `"7B"`, `"1.5T"`, `"7e9"`.
        name: `"params"`, `"tokens"` or `"flops"`, for the range and the message.
        where: put before the message.

    Raises:
        ValueError: not a positive number, or out of the range of real models (a unit slip).

    >>> read_count("7B", "params")
    7000000000.0
    """
    if _is_missing(value):
        return None
    number = value
    if isinstance(value, str):
        try:
            number = float(value) if (count := parse_count(value)) is None else count
        except ValueError:
            raise ValueError(f"{where}{name}: {short(value)} is not a number; give a count, {HINTS[name]}") from None
    if isinstance(number, bool) or not isinstance(number, int | float | np.number):
        raise ValueError(f"{where}{name}: {short(value)} is not a number; give a count, {HINTS[name]}")
    low, high = RANGES[name]
    if not low <= number <= high:
        rule = "must be positive" if not number > 0 else f"must be a count from {low:.0e} to {high:.0e}"
        raise ValueError(f"{where}{name}: {short(value)} {rule}, {HINTS[name]}")
    return float(number)


def count_parameters(config: Any) -> tuple[float, float]:
    """Total and active parameters of a Hub language model, counted from its config's dimensions without its weights.

    Tied embeddings count once; of a mixture's routed experts the chosen ones are active.

    Args:
        config: a transformers config, or its JSON as a dict with `model_type`.

    Returns:
        (total, active) parameters.

    Raises:
        ValueError: no `model_type`, or one that transformers does not know as a causal language model.

    >>> tiny = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 10, "n_positions": 4}
    >>> count_parameters(tiny)
    (1000.0, 1000.0)
    """
    if isinstance(config, Mapping):
        config = dict(config)
        kind = config.pop("model_type", None)
        if kind is None:
            raise ValueError("config: no model_type, so its dimensions cannot be read; give params instead")
        try:
            config = AutoConfig.for_model(kind, **config)
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"config: model_type {short(kind)} is not known to transformers; give params instead"
            ) from error
    if not isinstance(config, PreTrainedConfig):
        raise ValueError(f"config: {type(config).__name__}, accepted is a transformers config or its JSON as a dict")
    config = config.get_text_config()
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ValueError(f"config: model_type {config.model_type!r} is no causal language model") from error
    total = sum(weight.numel() for weight in model.parameters())
    experts = sum(weight.numel() for name, weight in model.named_parameters() if ".experts." in name)
    if not experts:
        return float(total), float(total)
    number = next(
        getattr(config, key) for key in ("num_local_experts", "num_experts", "n_routed_experts") if hasattr(config, key)
    )
    return float(total), float(total - experts * (1 - config.num_experts_per_tok / number))


def as_rows(models: Any) -> list[Mapping[str, Any]]:
    """Descriptions of models as a list of mappings, whatever they came as: a mapping, a list, a DataFrame, a config.

    Raises:
        ValueError: anything else.

    >>> as_rows({"params": 7e9})
    [{'params': 7000000000.0}]
    """
    if isinstance(models, PreTrainedConfig):
        return [{"config": models}]
    if hasattr(models, "to_dict") and not isinstance(models, Mapping):  # pandas', without importing it
        models = models.to_dict("records") if hasattr(models, "columns") else models.to_dict()
    if isinstance(models, Mapping):
        models = [models]
    if isinstance(models, str) or not isinstance(models, Sequence):
        raise ValueError(f"models: {type(models).__name__}, accepted is a mapping, a list of mappings or a DataFrame")
    rows = []
    for row in models:
        if isinstance(row, PreTrainedConfig):
            row = {"config": row}
        if not isinstance(row, Mapping):
            raise ValueError(f"models: {short(row)}, accepted is a mapping such as {{'params': 7e9, 'tokens': 2e12}}")
        if "model_type" in row:  # a config.json, perhaps with the tokens beside it
            rest = {k: row[k] for k in ("tokens", "domain", "name", "like", "scores", "siblings") if k in row}
            row = {"config": {k: v for k, v in row.items() if k not in rest}, **rest}
        rows.append(row)
    return rows


def _is_missing(value: Any) -> bool:
    if isinstance(value, float | np.floating):
        return math.isnan(value)
    # pandas' own words for what is missing, without importing it.
    absent = value is None or type(value).__name__ in ("NAType", "NaTType")
    return absent or (isinstance(value, str) and not value.strip())


NSPFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
# Imported by itself, not as a checkpoint's own code: transformers' Auto classes then know it.
if not __package__:
    for _config in (NSPConfig, NSPEnsembleConfig):
        AutoFeatureExtractor.register(_config, NSPFeatureExtractor, exist_ok=True)
