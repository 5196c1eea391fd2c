"""What each coefficient and scale of the laws means, as tables for docs/coefficients.md."""

from collections.abc import Mapping

from curves_ncpl import CurveLaw
from forms_ncpl import PRIORS, Prior
from residual_ncpl import FIELD_SCALES, FIXED_SCALES, SCALES

# Coefficient -> unit, meaning. `x` is the logarithm of the learning rate over the best one.
COEFFICIENTS: dict[str, tuple[str, str]] = {
    "E": ("nats", "loss that no size and no data removes, of the source's own evaluation set"),
    "logA": ("log nats", "logarithm of the size term at the reference size"),
    "alpha": ("1", "exponent of the size term"),
    "logB": ("log nats", "logarithm of the data term at the reference size and data size"),
    "beta": ("1", "exponent of the data term"),
    "growth": ("1", "exponent with which the data term grows with size"),
    "beta_n": ("1", "change of the data exponent with log size"),
    "experts": ("1", "exponent of total over active parameters in the effective size of a mixture of experts"),
    "head": ("1", "share of the output head's parameters that counts as size"),
    "eff": ("log units", "logarithm of the optimizer's data efficiency: its tokens count e^eff times"),
    "eff_n": ("1", "change of that logarithm with log size"),
    "eff_d": ("1", "change of that logarithm with log data size"),
    "offset": ("nats", "the optimizer's constant difference in loss"),
    "lr": ("log units", "logarithm of the best learning rate over 2e-3, at the reference run"),
    "low": ("log nats", "logarithm of the height of the loss from a learning rate below the best one"),
    "width": ("log units", "logarithm of the half-width of the flat part around the best rate, in x"),
    "high": ("log nats", "logarithm of the height of the loss from slow progress above the best rate"),
    "steep": ("1", "logarithm of the steepness in x of that loss"),
    "edge": ("log units", "logarithm of the learning rate over 2e-3 at which training turns rough"),
    "rough": ("1", "logarithm of the steepness in x of the loss from rough training"),
    "blow": ("log units", "logarithm of the learning rate over 2e-3 at which runs blow up early and recover"),
    "near": ("log", "logarithm of the log units by which that rate lies above the best one at least"),
    "sharp": ("1", "logarithm of how sharply that sets in with the learning rate, over a least sharpness of 2"),
    "lost": ("log units", "logarithm of the log units of data that such a run loses"),
    "lost_d": ("1", "change of that logarithm with log data size"),
    "lost_b": ("1", "change of that logarithm with log batch size"),
    "floor": ("log nats", "logarithm of the loss from gradient noise at the reference batch"),
    "floor_b": ("1", "exponent of that loss with batch size"),
    "crit": ("log units", "logarithm of the critical batch size over 2^19 tokens, at the reference data size"),
    "crit_d": ("1", "exponent of the critical batch size with data size"),
}
_AXES = {"n": "log size", "d": "log data size", "b": "log batch size"}
_OF_AXES = ("lr", "low", "high", "edge", "blow")

CURVE_COEFFICIENTS: dict[str, tuple[str, str]] = {
    "logB": ("log nats", "logarithm of the progress term at the reference size and tokens"),
    "growth": ("1", "exponent with which the progress term grows with size"),
    "beta": ("1", "exponent of the progress term with tokens on the clock"),
    "beta_n": ("1", "change of that exponent with log size"),
    "B_b": ("1", "exponent of the progress term with batch size"),
    "logK": ("log nats", "logarithm of the start term at 300 steps on the clock"),
    "K_n": ("1", "exponent of the start term with size"),
    "kappa": ("1", "exponent of the start term with steps on the clock"),
    "logh": ("log nats", "logarithm of the annealing gain of a fall from the peak to nothing"),
    "h_n": ("1", "exponent of that gain with size"),
    "h_rate": ("1", "exponent of that gain with the peak learning rate"),
    "speed": ("log units", "logarithm of how fast annealing gains, per unit sum of learning rates"),
    "speed_rate": ("1", "change of that logarithm with the log peak learning rate"),
    "gamma": ("1", "exponent of that speed with the relative rate after the fall"),
    "power": ("1", "logarithm of the exponent with which the gain saturates"),
}


def definition(name: str) -> tuple[str, str]:
    """Unit and meaning of a coefficient of the closed form; `lr_n` is how `lr` changes with size.

    >>> definition("lr_d")
    ('1', 'change of `lr` with log data size')
    """
    stem, _, axis = name.rpartition("_")
    if stem in _OF_AXES and axis in _AXES:
        return "1", f"change of `{stem}` with {_AXES[axis]}"
    return COEFFICIENTS[name]


def _prior(prior: Prior) -> str:
    spreads = [f"{spread:g}" if spread else "" for spread in (prior.sd, prior.source, prior.optimizer)]
    return " | ".join([f"{prior.mean:g}", *spreads])


def coefficients_table() -> str:
    """Every coefficient of the closed form with its prior."""
    lines = [
        "| coefficient | unit | meaning | prior mean | sd | sd of a source | sd of an optimizer |",
        "|---" * 7 + "|",
    ]
    for name, prior in PRIORS.items():
        lines.append(f"| `{name}` | {' | '.join(definition(name))} | {_prior(prior)} |")
    return "\n".join(lines)


def scales_table() -> str:
    """Every scale of the residual's kernel with its prior; those of `FIELD_SCALES` have a value a hyper-parameter."""
    lines = ["| scale | unit | meaning | prior median | sd of its logarithm |", "|---" * 5 + "|"]
    for name, scale in {**SCALES, **FIELD_SCALES}.items():
        each = ", for each hyper-parameter" if name in FIELD_SCALES else ""
        lines.append(f"| `{name}` | {scale.unit} | {scale.meaning}{each} | {scale.median:g} | {scale.sd:g} |")
    fixed = {
        "wide": "length in size and data size over which the shared surface fades",
        "lux": "length of the interaction in the learning rate (so large that the interaction does not depend on it)",
    }
    for name, value in FIXED_SCALES.items():
        lines.append(f"| `{name}` | log units | {fixed[name]} | {value:g}, fixed | |")
    return "\n".join(lines)


def curve_coefficients_table() -> str:
    """Every coefficient of the curves' shape, with the common value that the shipped law has."""
    lines = ["| coefficient | unit | meaning | prior mean |", "|---" * 4 + "|"]
    known: Mapping[str, float] = CurveLaw.example().common
    for name, value in known.items():
        lines.append(f"| `{name}` | {' | '.join(CURVE_COEFFICIENTS[name])} | {value:g} |")
    return "\n".join(lines)
