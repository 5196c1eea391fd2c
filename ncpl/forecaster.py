"""Forecasts from configurations: a checkpoint's law, its calibration and, where it adds something, its network."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from adapted_ncpl import AdaptedLaw
from calibration_ncpl import Calibration, forecast_columns
from fields_ncpl import training_order
from ncpl import checkpoint
from ncpl.configs import as_configs, by_name, check_configs, known_columns, one_config, places, vary
from ncpl.errors import CheckpointError, as_path, short
from ncpl.grid import Grid, Rows, check_rows, named_fields
from ncpl.hardware import cost, read_hardware
from ncpl.plan import Plan, plan
from ncpl.results import Comparison, Curve, Forecasts, Optimum, Report, Suggestions, Sweep
from ncpl.sweep_files import forecast_grid
from text_ncpl import check_level, warn_user

if TYPE_CHECKING:
    from modeling_nsp import NSPModel
    from ncpl.inference import Network

COLUMNS = ("loss", "lower", "upper", "divergence", "extrapolation")


class Forecaster:
    """Forecasts the final loss of pretraining runs from their configurations.

    Args:
        law: the prior law; configurations -> losses in nats per token.
        calibration: intervals, divergence and extrapolation; None where there is none.
        network: adds its residuals to the law's forecasts; None where forecasts are the law's alone.
        strict: whether unknown fields and implausible values are errors (`fields_ncpl.check_config`).
        folder: the checkpoint's; its network is loaded only where it is asked for.

    >>> forecaster = Forecaster.from_pretrained()
    >>> config = {"source": "marin", "model size": 300, "data size": 6, "optimizer": "adamw", "learning rate": 4e-3,
    ...           "batch size": 128}
    >>> list(forecaster.predict(config))
    ['loss', 'lower', 'upper', 'divergence', 'extrapolation']
    """

    def __init__(
        self,
        law: Any,
        calibration: Calibration | None = None,
        network: "Network | None" = None,
        strict: bool = True,
        folder: Path = checkpoint.DEFAULT,
    ) -> None:
        self.law, self.calibration, self.network = law, calibration, network
        self.strict, self.folder = strict, folder
        self._told: set[str] = set()

    @classmethod
    def from_pretrained(cls, path_or_repo: str | Path | None = None, *, device: Any = None, **hub: Any) -> Self:
        """Loads a checkpoint. torch and transformers are imported only if its network adds something to its law.

        Args:
            path_or_repo: a folder, the name of an embedded checkpoint, or a Hub id; the embedded default, `ncpl-mini`,
                when absent.
            device: where its network computes; a GPU if there is one. float32 on CPU, bfloat16 elsewhere.
            hub: for a Hub id: `revision`, `token`, `cache_dir`, `local_files_only`, ...

        Raises:
            CheckpointError: there is no such checkpoint, it is incomplete, or of another kind of model.
        """
        read = checkpoint.read(checkpoint.find(path_or_repo, **hub))
        network = None
        if not read.law_alone:
            from ncpl.inference import Network

            network = Network.load(read.folder, device)
        return cls(read.law, read.calibration, network, read.strict, read.folder)

    @classmethod
    def of(cls, model: Any, processor: Any, device: Any = None) -> Self:
        """A forecaster of a model and its processor.

        Args:
            model: an `NCPLForecaster`.
            processor: its `NCPLProcessor`.
            device: where to compute; a GPU if there is one.
        """
        from ncpl.inference import Network

        return cls(processor.law, processor.calibrator, Network(model, processor, device), processor.strict)

    def save_pretrained(self, folder: str | Path) -> None:
        """Saves an ordinary checkpoint folder, which `AutoModel` and `from_pretrained` load.

        Args:
            folder: receives the network and tokenizer it was loaded with, and this law and calibration.
        """
        folder = as_path(folder, "folder", "the path of a folder")
        checkpoint.save_law(self.folder, folder, self.law, self.calibration)
        if isinstance(self.law, AdaptedLaw):
            from ncpl.own_runs import write_card

            write_card(self.law, folder)

    def __repr__(self) -> str:
        network = "has no effect: forecasts are the law's alone" if self.network is None else "adds to the law"
        known = ", ".join(self.sources) or "none"
        return f"{type(self).__name__}({self.folder.name}; sources: {known}; the network {network})"

    @property
    def sources(self) -> list[str]:
        """The sources whose runs it knows, those adapted to among them."""
        return sorted({*getattr(self.law, "sources", ()), *getattr(self.law, "adapted", ())})

    def predict(self, configs: Any, level: float = 0.9) -> Forecasts:
        """Forecasts final losses.

        Args:
            configs: a configuration (field -> value, in any order), a list of them, or a DataFrame with a column for
                each field, in which a missing cell means that the field is absent. Columns of other names are kept
                aside, which is told once.
            level: coverage of the interval, between 0 and 1.

        Returns:
            A row for each configuration, under the DataFrame's own index: `loss` and the interval's `lower` and `upper`
            in nats per token; `divergence`, the probability that the run diverges; `extrapolation`, the distance from
            the training runs, 0 within them. All but `loss` are NaN where the checkpoint has no calibration. What has
            to be known of these forecasts is in `.attrs["notes"]`, a sentence each.

        Raises:
            ValueError: no configurations, or one that is not accepted; says which, the field and what is accepted.
        """
        check_level(level)
        if self.strict and isinstance(configs, pd.DataFrame):
            configs, aside = known_columns(configs)
            self._tell(aside)
        rows, index = self._given(configs)
        return self.predict_checked(rows, level).set_index(index)

    def predict_checked(self, configs: Sequence[Mapping[str, Any]], level: float = 0.9) -> Forecasts:
        """`predict` for configurations that `fields_ncpl.check_config` has passed, such as logged runs."""
        configs = [training_order(config) for config in configs]
        table = self._columns(configs, self._residuals(configs), level)
        table.attrs["notes"] += self._farthest(configs, table)
        return table

    def _farthest(self, configs: Sequence[Mapping[str, Any]], table: pd.DataFrame) -> list[str]:
        """What lies outside the training runs, and what the forecast losses leave out."""
        if self.calibration is None or not len(configs):
            return []
        far = self.calibration.farthest(configs, table["extrapolation"].to_numpy())
        return far + self.calibration.warnings(configs, table["divergence"].to_numpy())

    def notes(self, configs: Sequence[Mapping[str, Any]]) -> list[str]:
        """What has to be known of forecasts of checked configurations, a sentence each."""
        if hasattr(self.law, "notes"):
            return list(self.law.notes(configs))
        fallbacks: Any = getattr(self.law, "fallbacks", lambda config: [])
        return list(dict.fromkeys(note for config in configs for note in fallbacks(config)))

    def _given(self, configs: Any, name: str = "configs") -> tuple[list[dict[str, Any]], pd.Index]:
        """What a user gives as configurations, checked, and their index."""
        rows, index = as_configs(configs, name)
        return self.check(rows, places(configs, index, name)), index

    def check(self, configs: Sequence[Any], origins: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Configurations, completed with what an adapted source's runs leave unsaid, checked, in training order."""
        completed = [self._completed(config) for config in configs]
        return [training_order(config) for config in check_configs(completed, self.strict, origins)]

    def _completed(self, config: Any) -> Any:
        """A configuration with what an adapted source's runs leave unsaid."""
        if isinstance(self.law, AdaptedLaw) and isinstance(config, Mapping):
            known = self.law.adapted.get(str(config.get("source")))
            return config if known is None else {**known.usual, **by_name(config)}
        return config

    def _tell(self, notes: Sequence[str]) -> None:
        """Each note once in the forecaster's life."""
        for note in notes:
            if note not in self._told:
                self._told.add(note)
                warn_user(note)

    def _residuals(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray | float:
        """What the network adds to the law for configurations in training order, in nats; 0 where there is none."""
        return 0.0 if self.network is None else self.network.residuals(configs)

    def _columns(self, configs: Sequence[Mapping[str, Any]], residuals: np.ndarray | float, level: float) -> Forecasts:
        """`predict`'s columns for checked configurations in training order, from what the network adds to the law."""
        notes = self.notes(configs)
        if self.calibration is None:
            notes.insert(0, "this checkpoint has no calibration: lower, upper, divergence and extrapolation are NaN")
        self._tell(notes)
        forecast = forecast_columns(self.law, self.calibration, configs, residuals, level)
        if not all(np.isfinite(values).all() for values in forecast.values()):
            raise CheckpointError(f"{self.folder}: it forecasts what is no number; its weights or its law are damaged")
        table = Forecasts(forecast).reindex(columns=COLUMNS)
        table.attrs["notes"] = notes
        return table

    def window(self, grid: Grid, start: int, stop: int, level: float) -> pd.DataFrame:
        """Forecasts some combinations of a grid: the swept fields, then `predict`'s columns, under their numbers."""
        configs = grid.configs(start, stop)
        residuals = 0.0 if self.network is None else self.network.window_residuals(grid, start, configs)
        rows = pd.RangeIndex(start, stop)
        forecast = self._columns(configs, residuals, level)
        table = pd.concat([grid.frame(rows), forecast.set_index(rows)], axis=1)
        table.attrs["notes"] = forecast.attrs["notes"]
        return table

    def sweep(self, config: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], level: float = 0.9) -> Sweep:
        """Forecasts every combination of some fields' values.

        Args:
            config: the configuration that is varied; its `max step` follows data size, batch size and sequence length.
            grid: field -> values.
            level: coverage of the interval.

        Returns:
            A row for each combination, the last field varying fastest: the swept fields, then `predict`'s columns.

        Raises:
            ValueError: a field that is unknown or has no values, more combinations than memory holds, and what
                `predict` refuses.

        >>> base = {"source": "marin", "model size": 300, "data size": 6, "optimizer": "adamw", "batch size": 128}
        >>> list(Forecaster.from_pretrained().sweep(base, {"learning rate": [1e-3, 4e-3]})["learning rate"])
        [0.001, 0.004]
        """
        check_level(level)
        check_rows(grid)
        combinations = Grid(self._completed(one_config(config)), grid, self.strict)
        frames = list(forecast_grid(self, combinations, level))
        table = Sweep(pd.concat(frames))
        notes = dict.fromkeys(note for frame in frames for note in frame.attrs["notes"])
        table.attrs["notes"] = [*notes, *self._farthest(Rows(combinations), table)]
        return table

    def optimize(
        self,
        config: Mapping[str, Any],
        bounds: Mapping[str, Any],
        level: float = 0.9,
        *,
        constraints: Mapping[str, float] | None = None,
        within: float = 0.002,
    ) -> Optimum:
        """Finds the values of some fields with the lowest forecast loss, by `ncpl.optimize`; nothing is random.

        Args:
            config: the configuration that is varied; its `max step` follows data size, batch size and sequence length.
            bounds: numeric field -> (low, high), both included; any field -> a list of choices.
            level: coverage of the interval.
            constraints: the highest `divergence` (0.5 when absent: a run that diverges has no loss to be low); the most
                `batch tokens`; for a counted field, such as `batch size`, the number that its values are multiples of.
            within: nats over the lowest loss that count as equally good.

        Returns:
            The optimised fields, then `predict`'s columns at them; from a calibrated checkpoint `risk`, the expected
            excess loss from uncertainty in the optimal learning rate, and `expected`, the loss plus that. `FIELD low`
            and `FIELD high`, between which the loss is `within` the lowest, the other fields held. Where `config`
            states a field, `FIELD start`, and `FIELD worth`, the nats given up if it stays there and the others move.

        Raises:
            ValueError: bounds that are no range, an unknown constraint, more than six fields, and what `predict`
                refuses.

        >>> base = {"source": "marin", "model size": 300, "data size": 6, "optimizer": "adamw", "batch size": 128}
        >>> bool(1e-3 < Forecaster.from_pretrained().optimize(base, {"learning rate": (1e-4, 0.1)}).iloc[0] < 0.02)
        True
        """
        from ncpl import optimize as search

        check_level(level)
        base, fields = dict(by_name(self._completed(one_config(config)))), named_fields(bounds)
        limits, within = search.Constraints.of(constraints), search.check_within(within)
        axes, choices = search.axes_of(fields, limits.multiples)
        ends: dict[str, Sequence[Any]] = {axis.name: [axis.value(0), axis.value(1)] for axis in axes}
        held = search.resting(base, ends | choices, self._idle(Grid(base, ends | choices, self.strict).base))

        def whole(point: dict[str, Any]) -> dict[str, Any]:
            return self.check([vary(base, held | point)])[0]

        searched = search.Search(self._cheap, whole, *search.moving(axes, choices, held), limits)
        best = searched.lowest(base)[1]
        table = self.predict_checked([whole(best)], level)
        found: dict[str, Any] = {name: (held | best)[name] for name in fields}
        found |= {str(name): value for name, value in table.iloc[0].items()}
        if self.calibration is not None:
            found["risk"] = float(self.calibration.law.risk([whole(best)])[0])
            found["expected"] = found["loss"] + found["risk"]
        found |= searched.flat(best, within) | searched.worth(found["loss"], base)
        # As objects, whole numbers stay whole beside the losses.
        result = Optimum(found, dtype=object)
        result.attrs["notes"] = [*table.attrs["notes"], *searched.at_bounds(best)]
        self._tell(searched.at_bounds(best))
        return result

    def _cheap(self, configs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """`loss` and `divergence` of checked configurations alone, without notes."""
        losses = self._losses(configs)
        divergence = math.nan if self.calibration is None else self.calibration.divergence(configs)
        return pd.DataFrame({"loss": losses, "divergence": divergence})

    def _idle(self, config: Mapping[str, Any]) -> set[str]:
        """The fields of a checked configuration that move no forecast; a network reads all of them."""
        found: Any = getattr(self.law, "idle_fields", lambda config: [])
        return set() if self.network is not None else set(found(config))

    def adapt(
        self, runs: Any, source: str, *, parent: str | None = None, eval: Mapping[str, str] | None = None
    ) -> Self:
        """A forecaster that knows a source from its own runs, and all that this one knows.

        With the runs of an earlier adaptation of the same source it learns from all of them together.

        Args:
            runs: finished runs: a DataFrame, a list of dicts or a file, with the registry's fields and `final_loss` in
                nats per token. Model size and data size are needed; whatever else is known is used.
            source: the name by which forecasts ask for it.
            parent: an adapted source of the same lab, with other data or another evaluation set; the new one deviates
                from it less than from other labs.
            eval: name of an evaluation set -> column of its losses: each becomes a source `SOURCE/NAME` whose parent
                is `source`.

        Raises:
            ValueError: no finished run, a run without sizes or loss, or a checkpoint whose prior is another law.

        >>> runs = [{"model size": n, "data size": d, "final_loss": 3 + 20 / n + 0.4 / d}
        ...         for n in (50, 100) for d in (1, 2, 4)]
        >>> lab = Forecaster.from_pretrained().adapt(runs, source="mine")
        >>> bool(lab.predict({"source": "mine", "model size": 200, "data size": 8})["loss"].iloc[0] < 3.3)
        True
        """
        from ncpl.own_runs import adapted, checked_eval, read_runs

        rows, diverged = read_runs(runs, source, list((further := checked_eval(eval)).values()))
        residuals = None if self.network is None else self.network.residuals
        law, calibration = adapted(self.law, self.calibration, rows, source, parent, residuals, diverged)
        for name, column in further.items():
            child = [{**row, "final_loss": row[column]} for row in rows if row.get(column) is not None]
            law, calibration = adapted(law, calibration, child, f"{source}/{name}", source, residuals, diverged)
        return type(self)(law, calibration, self.network, self.strict, self.folder)

    @property
    def report(self) -> Report:
        """What the lab's own runs say and how far to believe it (`ncpl.trust.report`), of the source adapted to last.

        Raises:
            ValueError: this forecaster was not adapted.
        """
        from ncpl.trust import report

        law = self.law
        if not isinstance(law, AdaptedLaw):
            raise ValueError("report: this checkpoint was not adapted to a lab's runs, call adapt first")
        return Report(report(law, [name for name, known in law.adapted.items() if known.parent is None][-1]))

    def compare(self, config_a: Any, config_b: Any, level: float = 0.9) -> Comparison:
        """The difference of two configurations' losses, in which what both share cancels: an unknown lab's level too.

        Args:
            config_a, config_b: two configurations (field -> value).
            level: coverage of the interval, between 0 and 1.

        Returns:
            `difference` (a - b), `lower` and `upper` in nats per token, and `p_better`, the probability that a ends
            lower than b.

        Raises:
            ValueError: what `predict` refuses, or a checkpoint without calibration.

        >>> base = {"source": "marin", "model size": 300, "data size": 6, "learning rate": 4e-3, "batch size": 128}
        >>> found = Forecaster.from_pretrained().compare(base | {"optimizer": "muon"}, base | {"optimizer": "adamw"})
        >>> list(found.index), bool(found["difference"] < 0)
        (['difference', 'lower', 'upper', 'p_better'], True)
        """
        check_level(level)
        if self.calibration is None:
            raise ValueError("compare: this checkpoint has no calibration, so no interval of the difference is known")
        configs = self.check([one_config(config) for config in (config_a, config_b)])
        sources = [config["source"] for config in configs]
        if sources[0] != sources[1]:
            raise ValueError(
                f"source: got {short(sources[0])} and {short(sources[1])}, expected one source; losses on "
                "two evaluation sets do not compare"
            )
        self._tell(notes := self.notes(configs))
        found = {name: getattr(self.calibration, name)(configs) for name in ("extrapolation", "divergence")}
        notes += self._farthest(configs, pd.DataFrame(found))
        first, second = self._losses(configs)
        result = Comparison.of(float(first - second), *self.calibration.difference(configs, level))
        result.attrs["notes"] = notes
        return result

    def suggest(self, candidates: Any, budget_flops: float, target: Any = None, level: float = 0.9) -> Suggestions:
        """The runs to make next: those that narrow the target's interval most for their FLOPs, one after the other.

        Args:
            candidates: configurations that could be run, as `predict` takes them.
            budget_flops: FLOPs (6ND) for all suggested runs together.
            target: the configurations that are to be forecast; the candidates beyond the budget, or else the dearest
                one, when absent.
            level: coverage of the interval.

        Returns:
            A row for each suggested run in the order to make them, under its candidate's index: its fields, `flops`,
            `interval` (the half-width of the target's interval once it is made, nats per token), and `why`. They end
            where no candidate narrows the interval by 1 %; `.attrs["notes"]` names the target and says so.

        Raises:
            ValueError: a budget that no candidate fits into, and what `predict` refuses.

        >>> table = pd.DataFrame({"source": "mylab", "model size": [100, 200, 800], "data size": [2, 4, 16]})
        >>> table = table.assign(**{"optimizer": "adamw", "learning rate": 2e-3, "batch size": 256})
        >>> Forecaster.from_pretrained().suggest(table, budget_flops=1e19)["model size"].tolist()
        [100, 200]
        """
        from ncpl.suggest import check_budget, suggestions

        budget_flops = check_budget(budget_flops)
        check_level(level)
        if self.calibration is None:
            raise ValueError("suggest: this checkpoint has no calibration, so no interval is known")
        pool, index = self._given(candidates, "candidates")
        targets = [] if target is None else self._given(target, "target")[0]
        found = suggestions(self.calibration, pool, index, targets, budget_flops, level)
        result = Suggestions(found)
        result.attrs |= found.attrs
        return result

    def plan(
        self,
        *,
        flops: float | None = None,
        gpu_hours: float | None = None,
        cost: float | None = None,
        days: float | None = None,
        target_loss: float | None = None,
        base: Mapping[str, Any] | None = None,
        gpu: str = "h100",
        count: int = 64,
        hardware: str | Path | None = None,
        level: float = 0.9,
        **options: Any,
    ) -> Plan:
        """Finds the best run for a budget, or the cheapest for a loss (`ncpl.plan.plan`).

        Args:
            flops, gpu_hours, cost, days, target_loss: exactly one: training FLOPs, accelerator-hours, US dollars, days
                of all accelerators, nats per token.
            base: what is kept of a configuration, its source and optimizer above all; StepLaw with AdamW if absent.
            gpu, count: accelerators, `ncpl/hardware.toml` names them.
            hardware: TOML file of your own facts and prices.
            level: coverage of the loss's interval.
            options: `utilisation`, `params` (fixed non-embedding parameters), `tokens_per_param`, `optimizers` to
                compare, `inference_tokens`, `unique_tokens`.

        Raises:
            ValueError: no budget or several, contradictory constraints, a loss that no run reaches.

        >>> planned = Forecaster.from_pretrained().plan(flops=1e20)
        >>> bool(2e8 < planned["params_low"] < planned["params"] < planned["params_high"] < 4e9)
        True
        """
        check_level(level)
        return plan(
            self._losses,
            self._completed(base),
            flops=flops,
            gpu_hours=gpu_hours,
            cost_usd=cost,
            days=days,
            target_loss=target_loss,
            gpu=gpu,
            count=count,
            hardware=read_hardware(hardware),
            forecast=lambda configs: self.predict_checked(configs, level),
            envelope=None if self.calibration is None else self.calibration.envelope,
            idle=self._idle,
            strict=self.strict,
            **options,
        )

    def cost(
        self,
        config: Mapping[str, Any],
        gpu: str = "h100",
        count: int = 64,
        utilisation: float | None = None,
        hardware: str | Path | None = None,
    ) -> pd.Series:
        """What a run costs (`ncpl.hardware.cost`): FLOPs, hours, days, US dollars, energy, memory.

        Args:
            config: a configuration.
            gpu, count: accelerators, `ncpl/hardware.toml` names them.
            utilisation: share of the peak over the whole run; what whole runs usually keep if absent.
            hardware: TOML file of your own facts and prices.

        Raises:
            ValueError: what `predict` refuses, an accelerator that is not known, a count or a share that is not one.

        >>> config = {"source": "marin", "model size": 300, "data size": 6, "optimizer": "adamw", "batch size": 128}
        >>> bool(Forecaster.from_pretrained().cost(config | {"learning rate": 4e-3})["flops"] > 6 * 300e6 * 6e9)
        True
        """
        (checked,) = self.check([one_config(config)])
        return pd.Series(cost(checked, gpu, count, utilisation, read_hardware(hardware)))

    def _losses(self, configs: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Losses of checked configurations, in nats per token, without the law's notes, which `notes` tells once."""
        configs = [training_order(config) for config in configs]
        with warnings.catch_warnings(action="ignore"):
            return np.asarray(self.law(configs) + self._residuals(configs))

    def benchmarks(
        self, models: Any, like: str | None = None, level: float = 0.9, model: "NSPModel | str" = checkpoint.PREDICTOR
    ) -> pd.DataFrame:
        """Forecasts benchmark scores of models (`ncpl.nsp.benchmarks`).

        Args:
            models: a description such as `{"params": 7e9, "tokens": 2e12}`, or a configuration as `predict` takes it; a
                list of either, or a DataFrame.
            like: a known family whose data quality is assumed.
            level: coverage of the intervals.
            model: NSP: a model, a folder, a Hub id, or the name of an embedded one.

        Returns:
            A row for each model: for each task TASK, TASK_lower, TASK_upper and TASK_emergence, and `extrapolation`.
            Configurations also have their forecast `loss` with its interval, which widens the bands, scores in the
            setting of AI2's model ladder (`olmo_...`), and `assumption`: how the loss was put on that ladder's scale.

        Raises:
            ValueError: a field, task or family that is not known, or a value out of range.

        >>> bool(0 < Forecaster.from_pretrained().benchmarks({"params": 7e9, "tokens": 2e12})["mmlu"].item() < 1)
        True
        """
        # Only now, because it brings another model.
        from ncpl.nsp.benchmarks import are_configurations, benchmarks, benchmarks_of_runs

        if not are_configurations(models):
            return benchmarks(models, like, level, model)
        check_level(level)
        configs = self._given(models, "models")[0]
        forecast = self.predict_checked(configs, level)
        table = benchmarks_of_runs(configs, forecast, like, level, model)
        table.attrs["notes"] = forecast.attrs["notes"]
        return table

    def curve(
        self, config: Mapping[str, Any], points: int = 50, observed: Any = None, level: float = 0.9, window: float = 1
    ) -> Curve:
        """Forecasts the loss curve of a run, before it is run or from its first part.

        Args:
            config: a configuration (field -> value, in any order); `lr_schedule`, `warmup`, `decay`, `cooldown shape`,
                `min_lr` or `min_lr_ratio`, or `lr points`, say how its learning rate goes.
            points: how many, evenly spaced over the run; the last is its end.
            observed: what is seen of the run: a mapping or DataFrame with `loss`, and `step` or `tokens`.
            level: coverage of the bands, between 0 and 1.
            window: steps that each observed loss is the mean of, ending at its step.

        Returns:
            A row for each point: `step` (training steps), `tokens` (billions), and `loss`, `lower`, `upper` (nats per
            token). The last is `predict`'s forecast where nothing is observed. With `observed`, `.attrs["report"]` says
            how the run does (`ncpl.curves.report`).

        Raises:
            ValueError: what `predict` refuses, no such points, or an observed part that is not one of this run.

        >>> config = {"source": "marin", "model size": 300, "data size": 6, "optimizer": "adamw", "learning rate": 4e-3,
        ...           "batch size": 128}
        >>> list(Forecaster.from_pretrained().curve(config, points=2))
        ['step', 'tokens', 'loss', 'lower', 'upper']
        """
        from ncpl import curves

        check_level(level)
        (checked,) = self.check([one_config(config)])
        # The bands' deviation must not depend on the level where a run is observed.
        asked = level if observed is None else 0.9
        forecast = self.predict_checked([checked], asked)
        end = forecast.iloc[0]
        final = curves.Final(float(end["loss"]), float(end["lower"]), float(end["upper"]), asked)
        config = curves.with_usual_schedule(checked, getattr(self.law, "typical", {}))
        drawn = curves.curve(curves.read_law(self.folder), config, final, points, observed, level, window)
        table = Curve(drawn)
        table.attrs |= drawn.attrs
        if observed is None and self.network is not None and self.network.model.config.curves:
            moved = self.network.curve(checked, table["step"].tolist()) - table["loss"]
            table[["loss", "lower", "upper"]] = table[["loss", "lower", "upper"]].add(moved, axis=0)
        table.attrs["stand_ins"] = rest = curves.stand_ins(checked, config)
        table.attrs["notes"] = [*forecast.attrs["notes"], *rest, *drawn.attrs.get("notes", [])]
        return table
