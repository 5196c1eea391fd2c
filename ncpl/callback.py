"""The final loss while a run trains: a callback for transformers' Trainer; `ncpl.live` is for any loop."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers import TrainerCallback

from fields_ncpl import max_step
from ncpl.configs import one_config
from ncpl.curves import condition, spoken
from ncpl.live import checked, forecast_final

if TYPE_CHECKING:
    from ncpl.forecaster import Forecaster

# Share of the time since the run began that forecasts may take.
_SHARE = 0.005


class ForecastCallback(TrainerCallback):
    """Forecasts the final loss at every log of a `transformers.Trainer`, below the progress bar and in the log.

    The log gets `forecast_loss`, `forecast_lower` and `forecast_upper`. Forecasts read logged losses alone and change
    nothing of the training; they are skipped where they would take more than half a percent of the run's time.

    Args:
        config: of the run, as `Forecaster.predict` takes it; its `max step` is the length of the whole run.
        forecaster: the embedded default when absent.
        level: coverage of the interval.

    >>> config = {"source": "marin", "model size": 300, "data size": 6, "optimizer": "adamw", "learning rate": 4e-3,
    ...           "batch size": 128}
    >>> ForecastCallback(config).steps
    []
    """

    def __init__(self, config: Mapping[str, Any], forecaster: "Forecaster | None" = None, level: float = 0.9) -> None:
        self.config, self.level = one_config(config), level
        self.forecaster = checked(forecaster)
        self.steps: list[int] = []
        self.losses: list[float] = []
        self.latest: dict[str, Any] | None = None
        # Says at once what is wrong with a configuration.
        self.before = self.forecaster.predict(self.config, level).iloc[0]
        self._line: tqdm | None = None
        self._spent, self._began = 0.0, 0.0
        self._told: tuple[str, bool] = ("on course", False)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Checks that the run is the configuration's, and takes what was logged before it was resumed.

        Raises:
            ValueError: the Trainer runs longer than the configuration says.
        """
        total = max_step(self.config)
        if state.max_steps > total:
            raise ValueError(
                f"max step: the configuration ends at {total}, but the Trainer runs {state.max_steps} steps"
            )
        self._began = time.perf_counter()
        logged = [row for row in state.log_history if "loss" in row and "step" in row]
        self.steps, self.losses = [int(row["step"]) for row in logged], [float(row["loss"]) for row in logged]
        if state.is_world_process_zero:
            self._line = tqdm(total=0, position=1, bar_format="{desc}", disable=None, leave=False)
            self._show({str(name): value for name, value in self.before.items()}, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Takes a logged loss, and forecasts."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        started = time.perf_counter()
        self.steps.append(int(state.global_step))
        self.losses.append(float(logs["loss"]))
        if self._spent <= _SHARE * (started - self._began):
            window = (
                self.steps[-1] - self.steps[-2] if len(self.steps) > 1 else min(self.steps[-1], state.logging_steps)
            )
            self.latest = forecast_final(
                self.config, self.steps, self.losses, forecaster=self.forecaster, level=self.level, window=window or 1
            )
            self._show(self.latest, "; ".join(filter(None, (condition(self.latest), self.latest["advice"]))))
            self._tell(self.latest)
            self._spent += time.perf_counter() - started
        if self.latest is not None:
            said = {f"forecast_{name}": round(self.latest[name], 4) for name in ("loss", "lower", "upper")}
            logs.update(said)
            if state.log_history:
                state.log_history[-1].update(said)
        if state.global_step >= state.max_steps:
            # Before the Trainer prints that it is done, into the line.
            self.on_train_end(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Removes the line."""
        if self._line is not None:
            self._line.close()

    def _show(self, forecast: Mapping[str, Any], advice: str | None) -> None:
        if self._line is None:
            return
        text = f"final loss {forecast['loss']:.3f} ({forecast['lower']:.3f} to {forecast['upper']:.3f})"
        self._line.set_description_str(f"{text}; {advice}" if advice else text)

    def _tell(self, report: Mapping[str, Any]) -> None:
        """Says once where it can be read again how the run does, and again when that changes in kind."""
        kind = report["status"], report["advice"] is not None
        if self._line is not None and kind != self._told:
            self._told = kind
            if words := spoken(report):
                tqdm.write(f"ncpl: {words}")
