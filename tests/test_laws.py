"""The laws: formulas against independent arithmetic, state, fallbacks, fits that recover made-up truth, calibration."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

import forms_ncpl as forms
import laws_ncpl as laws
from calibration_ncpl import Calibration
from datasets_scripts.divergence import cell, diverged
from ncpl import fitting
from ncpl.fitting import residual as fitting_residual
from residual_ncpl import distinct_values, kernel_variance, residual_kernel

CONFIG = {"source": "mine", "model size": 300, "data size": 20, "optimizer": "adamw", "learning rate": 2e-3}
CONFIG |= {"batch size": 256}


@pytest.fixture(scope="module")
def rows():
    """Made-up runs around the law with noise, whose learning rates reach into divergence."""
    noise = np.random.default_rng(0).normal(0, 0.002, 96)
    made = fitting.example_rows()
    return [row | {"final_loss": row["final_loss"] + float(e)} for row, e in zip(made, noise, strict=True)]


@pytest.fixture(scope="module")
def unstable(rows):
    return [
        row | {"conf": row["conf"] | {"learning rate": rate}, "final_loss": None}
        for row in rows
        if row["conf"]["learning rate"] == 4e-3
        for rate in (0.03, 0.06)
    ]


@pytest.fixture(scope="module")
def fit(rows):
    return fitting.fit(rows)


@pytest.fixture(scope="module")
def law(fit):
    return fit.law()


@pytest.fixture(scope="module")
def calibration(fit, unstable):
    return fitting.calibrate(fit, unstable)


def confs(rows):
    return [row["conf"] for row in rows]


def test_closed_form_is_the_sum_it_says():
    v = {name: prior.mean for name, prior in forms.PRIORS.items()}
    # A head of 65,536 entries on a width of 1,000 counts for three tenths.
    n, b, rate = math.log((300 + 0.3 * 65.536) / 300), math.log(256 * 2048 / 2**19), math.log(4e-3 / 2e-3)

    def power(name):
        return v[name] + v[f"{name}_n"] * n + v[f"{name}_b"] * b

    x = rate - power("lr")
    assert x > 0, "above the best rate"
    data = math.exp(v["logB"] + v["growth"] * n)
    waste = data * ((1 + math.exp(b - v["crit"])) ** v["beta"] - 1)

    def over_tangent(y):
        return math.exp(y) - 1 - y

    high = math.exp(power("high")) * over_tangent(math.exp(v["steep"]) * x)
    low = math.exp(power("low")) * (math.sqrt(x * x + math.exp(v["width"]) ** 2) - math.exp(v["width"]))
    rough = math.exp(v["rough"])
    edge = math.exp(rough * (power("lr") - power("edge")) - 4) * over_tangent(rough * x)
    place = math.log1p(math.exp(4 * (power("blow") - power("lr")))) / 4 + math.exp(v["near"])
    step = 1 / (1 + (place / x) ** (2 + math.exp(v["sharp"])))
    setback = data * (math.exp(v["beta"] * math.exp(v["lost"]) * step) - 1)

    def saturated(y):
        return 0.4 * (1 - math.exp(-y / 0.4))

    expected = v["E"] + math.exp(v["logA"] - v["alpha"] * n) + data + waste + low + saturated(high + edge + setback)
    expected += saturated(math.exp(v["floor"] + v["floor_b"] * b))
    config = CONFIG | {"learning rate": 4e-3, "hidden dim": 1000}
    assert laws.ConfigurationLaw.example().closed_form([config]) == pytest.approx([expected], abs=1e-12)


def test_derivatives_are_those_of_small_steps():
    rng = np.random.default_rng(1)
    c = {name: prior.mean + 0.3 * prior.sd * rng.normal(size=60) for name, prior in forms.PRIORS.items()}
    runs = dict(zip(forms.INPUTS, rng.normal(size=(6, 60)), strict=True)) | {"idle": np.zeros(60), "head": np.ones(60)}
    for form in (1, 2):
        names = [name for name in c if form == 2 or name in c]
        extra = {} if form == 2 else {name: np.zeros(60) for name in ("floor_n", "floor_d", "crit_n")}
        found = forms.gradient(c | extra, runs, form)
        for i, name in enumerate(names):
            more, less = (
                forms.law_terms(c | extra | {name: c[name] + step}, runs, form)["loss"] for step in (1e-6, -1e-6)
            )
            np.testing.assert_allclose(found[:, i], (more - less) / 2e-6, atol=2e-7, rtol=1e-5, err_msg=name)


def test_data_term_grows_with_size():
    """At one token count the next doubling of data is worth more to a larger model, by e^(growth n) (beta_n 0)."""
    values = {name: prior.mean for name, prior in forms.PRIORS.items()} | {"beta_n": 0.0, "lost": -60.0}
    assert values["growth"] > 0

    def gain(n):
        less, more = (forms.closed_form(values, n, d, 0.0, values["lr"])["loss"] for d in (0.0, math.log(2)))
        # Without the learning rate's and the batch's own dependence on data.
        floor = forms.closed_form(values | {"logB": -60.0}, n, 0.0, 0.0, values["lr"])["loss"]
        later = forms.closed_form(values | {"logB": -60.0}, n, math.log(2), 0.0, values["lr"])["loss"]
        return (less - floor) - (more - later)

    assert gain(1.0) / gain(0.0) == pytest.approx(math.exp(values["growth"]), rel=1e-9)


@pytest.mark.parametrize(
    "other", [{"learning rate": 2e-4}, {"learning rate": 2e-2}, {"batch size": 16}, {"batch size": 8192}]
)
def test_best_learning_rate_and_batch_lie_inside(other):
    law = laws.ConfigurationLaw.example()
    assert law.closed_form([CONFIG | other])[0] > law.closed_form([CONFIG])[0] + 0.003


def test_order_batching_and_extra_fields_do_not_matter(law, rows):
    some = confs(rows)[::7]
    together = law(some)
    np.testing.assert_allclose(together, [law([conf])[0] for conf in some], atol=1e-12)
    np.testing.assert_allclose(together[::-1], law(some[::-1]), atol=1e-12)
    shuffled = [dict(reversed(conf.items())) | {"colour": "red"} for conf in some]
    np.testing.assert_array_equal(together, law(shuffled))


def test_fit_interpolates_noise_not_more(law, rows):
    error = law(confs(rows)) - [row["final_loss"] for row in rows]
    assert np.abs(error).mean() < 0.003


def test_fit_extrapolates_the_truth(law):
    truth = laws.ConfigurationLaw.example()
    far = [CONFIG | {"model size": 800, "data size": data, "learning rate": 1.5e-3} for data in (8, 32)]
    np.testing.assert_allclose(law(far), truth(far), atol=0.02)


def test_errors_of_parameters_shrink_where_there_are_data(law):
    errors = law.standard_errors["common"]
    assert errors.keys() == forms.PRIORS.keys()
    assert all(0 < errors[name] <= forms.PRIORS[name].sd * 1.001 for name in errors)
    assert errors["E"] < 0.5 * forms.PRIORS["E"].sd


def test_a_cells_level_weighs_as_one_run(fit, rows):
    """Each run of a cell logged three times says more of the shape over rate and batch, nothing new of the level."""
    repeated = [*rows, *2 * [row for row in rows if cell(row) == cell(rows[0])]]
    again = fitting.fit(repeated)
    best = [{**CONFIG, "learning rate": None, "model size": size} for size in (100, 400, 1600)]
    np.testing.assert_allclose(again.law().closed_form(best), fit.law().closed_form(best), atol=5e-4)
    errors = [made.law().standard_errors["common"] for made in (fit, again)]
    assert errors[1]["E"] == pytest.approx(errors[0]["E"], rel=0.02)
    assert errors[1]["lr"] < errors[0]["lr"]


def test_the_level_is_at_its_mode(fit, rows):
    """Its slope against the prior's pull and the shape's; and from another starting point."""
    counts = np.array([sum(cell(other) == cell(row) for other in rows) for row in rows])

    def posterior(z):
        terms = forms.law_terms(fit.layout.coefficients(z, fit.moved), fit.runs)
        misfit = 2.5 * np.log1p(((fit.losses - terms["loss"]) / 0.004) ** 2 / 4) / counts
        off = z - fit.shape[1]
        return misfit.sum() + (z @ z + off @ fit.shape[0] @ off) / 2

    steps = 1e-5 * np.eye(len(fit.z))
    slope = np.array([(posterior(fit.z + step) - posterior(fit.z - step)) / 2e-5 for step in steps])
    assert np.abs(fit._posterior @ slope).max() < 0.03  # what a Newton step would move, in standard scores
    again = fitting.fit(rows, seed=1).law()
    np.testing.assert_allclose(again.closed_form(confs(rows)), fit.law().closed_form(confs(rows)), atol=3e-4)


def test_fit_is_deterministic(rows):
    first, second = (fitting.fit_prior(rows[::4], seed=3) for _ in range(2))
    np.testing.assert_equal(first.to_dict(), second.to_dict())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "rows: got none"),
        ([{"source": "mine", "conf": CONFIG, "final_loss": None}], r"rows\[0\]: final_loss is None"),
    ],
)
def test_fit_refuses(bad, message):
    with pytest.raises(ValueError, match=message):
        fitting.fit(bad)


@pytest.fixture(scope="module")
def sparse():
    """Made-up runs of mixtures of experts, worth a dense model of a third of the way from active to all parameters."""
    law = laws.ConfigurationLaw.example()
    made = fitting.example_rows()[::3]
    confs = []
    for i, row in enumerate(made):
        total = row["conf"]["model size"] * (3 + i % 3)
        active = row["conf"]["model size"]
        confs.append(row["conf"] | {"source": "mixed", "model size": total, "active size": active, "hidden dim": 1024})
    worth = [conf | {"model size": conf["active size"] ** 0.7 * conf["model size"] ** 0.3} for conf in confs]
    # The head counts beside what is active: of the larger dense model it is as large a share if it is wider.
    worth = [conf | {"hidden dim": 1024 * conf["model size"] / conf["active size"]} for conf in worth]
    dense = [{name: value for name, value in conf.items() if name != "active size"} for conf in worth]
    losses = law.closed_form(dense)
    return [
        row | {"source": "mixed", "conf": c, "final_loss": float(y)}
        for row, c, y in zip(made, confs, losses, strict=True)
    ]


def test_mixtures_of_experts_are_worth_what_their_idle_experts_add(sparse):
    law = laws.ConfigurationLaw.example()
    assert law.common["experts"] == 0.3
    expected = [row["final_loss"] for row in sparse]
    np.testing.assert_allclose(law.closed_form(confs(sparse)), expected, atol=1e-12)


def test_mixtures_of_experts_do_not_move_the_shared_coefficients(rows, sparse):
    poisoned = [row | {"final_loss": row["final_loss"] + 0.3} for row in sparse]
    law, other = (fitting.fit([*rows, *mixed]).law() for mixed in (sparse, poisoned))
    assert {**law.common, "experts": 0} == {**other.common, "experts": 0}
    np.testing.assert_array_equal(law(confs(rows)), other(confs(rows)))
    for fitted, mixed in ((law, sparse), (other, poisoned)):
        assert np.abs(fitted(confs(mixed)) - [row["final_loss"] for row in mixed]).mean() < 0.003
    # Alone they are fitted like anything else.
    alone = fitting.fit(sparse).law()
    assert np.abs(alone(confs(sparse)) - [row["final_loss"] for row in sparse]).mean() < 0.003


def test_a_source_of_the_same_lab_starts_from_its_parent(rows, sparse):
    """With few runs of its own it is forecast as its parent is, not as another lab."""
    parent = [row | {"source": "steplaw", "conf": row["conf"] | {"source": "steplaw"}} for row in rows]
    shifted = [row | {"final_loss": row["final_loss"] + 0.5} for row in parent]
    other = [row | {"source": "marin", "conf": row["conf"] | {"source": "marin"}} for row in rows]
    few = [row | {"source": "steplaw_moe", "conf": row["conf"] | {"source": "steplaw_moe"}} for row in sparse[:1]]
    few = [row | {"final_loss": row["final_loss"] + 0.5} for row in few]
    law = fitting.fit([*shifted, *other, *few]).law()
    assert law.sources["steplaw_moe"]["E"] == pytest.approx(law.sources["steplaw"]["E"], abs=0.05)
    assert law.sources["steplaw_moe"]["E"] > law.sources["marin"]["E"] + 0.3


def test_cells_of_mixtures_differ_by_what_is_active(sparse):
    conf = {"model size": 2000, "data size": 2}
    cells = {cell({"source": "mine", "conf": conf | extra}) for extra in ({}, {"active size": 200})}
    assert len(cells) == 2


def test_held_out_forecasts_have_not_seen_their_rows(fit, rows):
    groups = ["a" if i % 5 == 0 else "b" for i in range(len(rows))]
    only = fit.held_out(groups, only="a")
    assert np.isnan(only[1])
    assert np.isfinite(only[::5]).all()
    poisoned = [row | {"final_loss": row["final_loss"] + (5 if i % 5 == 0 else 0)} for i, row in enumerate(rows)]
    losses = np.array([row["final_loss"] for row in poisoned])
    fit_again = replace(fit, rows=poisoned, losses=losses)
    np.testing.assert_allclose(fit_again.held_out(groups, only="a")[::5], only[::5], atol=1e-12)


def test_left_out_errors_are_refits_with_the_kernel_held(fit, rows):
    part = fit.parts["mine"]
    covariance = np.linalg.inv(part.inverse)
    residuals = covariance @ part.alpha
    keep = np.arange(len(rows)) != 5
    inner = covariance[keep][:, keep]
    by_hand = residuals[5] - covariance[5, keep] @ np.linalg.solve(inner, residuals[keep])
    assert fit.left_out_errors("mine")[5] == pytest.approx(float(by_hand), rel=1e-6)


@pytest.mark.parametrize("kind", ["configuration", "chinchilla", "kaplan"])
def test_state_survives_json(kind, law):
    given = {"configuration": law, "chinchilla": laws.ChinchillaLaw(), "kaplan": laws.KaplanLaw()}[kind]
    state = json.loads(json.dumps(given.to_dict(), default=np.ndarray.tolist))
    again = laws.law_from_dict(state)
    config = CONFIG | ({"source": "marin"} if kind == "chinchilla" else {})
    np.testing.assert_array_equal(again([config]), given([config]))
    np.testing.assert_equal(again.to_dict(), given.to_dict())


def test_a_law_saved_before_the_blow_ups_distance_was_fitted_means_the_same(law):
    """Until then it was a constant of the form, 0.02 log units."""
    silent = np.diag([float(name != "near") for *_, name in law.columns])
    constant = replace(
        law,
        common={**law.common, "near": math.log(0.02)},
        sources={name: {k: v for k, v in own.items() if k != "near"} for name, own in law.sources.items()},
        priors={**law.priors, "near": forms.Prior(math.log(0.02), 0.0)},
    )
    kept = [law.columns.index(column) for column in constant.columns]
    constant = replace(constant, posterior=(silent @ law.posterior @ silent)[np.ix_(kept, kept)])
    older = constant.to_dict()
    without = [i for i, (*_, name) in enumerate(constant.columns) if name != "near"]
    factor = constant.posterior[np.ix_(without, without)]
    older |= {
        "common": {name: value for name, value in older["common"].items() if name != "near"},
        "priors": {name: value for name, value in older["priors"].items() if name != "near"},
        "posterior": factor[np.tril_indices(len(factor))],
    }
    again = laws.law_from_dict(older)
    configs = [CONFIG | {"learning rate": rate} for rate in (5e-4, 2e-3, 8e-3, 3e-2)]
    np.testing.assert_array_equal(again(configs), constant(configs))
    np.testing.assert_array_equal(again.posterior, constant.posterior)


def test_unknown_law_is_refused():
    with pytest.raises(ValueError, match="law: 'chincilla' is not a known law"):
        laws.law_from_dict({"law": "chincilla"})


@pytest.mark.parametrize("missing", ["model size", "data size"])
def test_missing_sizes_are_named(missing):
    config = {name: value for name, value in CONFIG.items() if name != missing}
    with pytest.raises(ValueError, match=f"^{missing}: missing"):
        laws.ConfigurationLaw.example()([config])


def test_unknown_source_and_optimizer_fall_back_and_say_so(law):
    unknown = CONFIG | {"source": "yours", "optimizer": "sgdx"}
    assert [note.split(":")[0] for note in law.fallbacks(unknown)] == ["source", "optimizer"]
    with pytest.warns(UserWarning, match="'yours' is not among the fitted"):
        loss = law([unknown])
    assert loss == pytest.approx(law.closed_form([unknown]), abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert law.fallbacks(CONFIG) == []
        assert np.isfinite(law([CONFIG])).all()


def test_what_is_left_out_is_typical_and_the_rate_best(law):
    bare = {name: CONFIG[name] for name in ("source", "model size", "data size", "optimizer")}
    rates = [bare | {"learning rate": rate} for rate in np.geomspace(5e-4, 2e-2, 400)]
    assert law.closed_form([bare]) == pytest.approx(law.closed_form(rates).min(), abs=3e-4)
    typical = law.typical["mine"]["adamw"]
    assert law([bare]) == law([bare | {"batch size": typical["batch size"]}])


def test_residual_fades_far_from_the_runs(law):
    far = CONFIG | {"model size": 3e4, "data size": 9e3}
    assert law([far]) == pytest.approx(law.closed_form([far]), abs=1e-4)


def test_width_that_is_left_out_is_the_sources_own(rows):
    """At another size it goes with the root of the size; a wider head is worth a larger model."""
    wide = [row | {"conf": row["conf"] | {"hidden dim": 64 * row["conf"]["model size"] ** 0.5}} for row in rows]
    law = fitting.fit(wide).law()
    bare, wider = CONFIG | {"model size": 900}, CONFIG | {"model size": 900, "hidden dim": 4096}
    assert law([bare]) == pytest.approx(law([bare | {"hidden dim": 1920}]), abs=1e-6)
    assert law.common["head"] > 0
    assert law.closed_form([wider]) < law.closed_form([bare])


def test_deviation_is_universal_kriging(fit, law, rows):
    """Against a joint Gaussian of coefficients and residuals, conditioned by hand."""
    held = [CONFIG, CONFIG | {"model size": 2000}, CONFIG | {"learning rate": 8e-3, "data size": 100}]
    every = confs(rows) + held

    def moved(group, name, step):
        values = {**law.common, name: law.common[name] + step}
        deviations = {**getattr(law, group).get({"sources": "mine", "optimizers": "adamw"}[group], {})} if group else {}
        if group:
            deviations[name] += step
            return replace(law, **{group: {{"sources": "mine", "optimizers": "adamw"}[group]: deviations}})
        return replace(law, common=values)

    kinds = {"common": "", "source": "sources", "optimizer": "optimizers"}
    slopes = np.stack(
        [
            (moved(kinds[kind], name, 1e-5).closed_form(every) - moved(kinds[kind], name, -1e-5).closed_form(every))
            / 2e-5
            for kind, _, name in law.columns
        ],
        1,
    )
    points = law.evaluate(every).points
    part = law.residuals["mine"]
    kernel = residual_kernel(
        {name: np.asarray(value) for name, value in part.scales.items()},
        *2 * [points | {"fields": np.zeros((len(every), 0))}],
    )
    scales = {name: np.asarray(value) for name, value in part.scales.items()}
    np.testing.assert_allclose(np.diagonal(kernel), kernel_variance(scales, points | {"fields": np.zeros((1, 0))}))
    count = len(rows)
    gain = kernel[count:, :count] @ np.linalg.inv(kernel[:count, :count] + np.diag(part.noise))
    left = kernel[count:, count:] - gain @ kernel[:count, count:]
    slope = (slopes[count:] - gain @ slopes[:count]) @ law.posterior
    expected = np.sqrt(np.diagonal(left + slope @ slope.T))
    np.testing.assert_allclose(law.uncertainty(held)["known"], expected, rtol=1e-3)
    np.testing.assert_allclose(
        [law.uncertainty([conf])["known"][0] for conf in held], law.uncertainty(held)["known"], rtol=1e-9
    )


def test_an_unknown_sources_deviation_is_as_wide_as_its_prior(law):
    unknown = [CONFIG, CONFIG | {"source": "yours"}, CONFIG | {"optimizer": "sgdx"}]
    known, source, optimizer = law.uncertainty(unknown)["known"]
    assert known < 0.02
    assert source > forms.PRIORS["E"].source
    assert known < optimizer < source


def test_what_to_choose_by_keeps_away_from_the_rough_side(law):
    rates = np.geomspace(5e-4, 8e-3, 60)
    grid = [CONFIG | {"learning rate": rate} for rate in rates]
    assert rates[(law(grid) + law.risk(grid)).argmin()] <= rates[law(grid).argmin()]
    near = np.abs(np.log(rates / rates[law(grid).argmin()])) < 0.3
    assert (law.risk(grid)[near] > 0).all()
    certain = replace(law, posterior=0 * law.posterior)
    np.testing.assert_allclose(certain.risk(grid), 0, atol=1e-12)


def test_interval_covers_and_widens(calibration, law, rows):
    loss = law(confs(rows))
    observed = np.array([row["final_loss"] for row in rows])
    widths = {}
    for level in (0.5, 0.9, 0.99):
        lower, upper = calibration.interval(confs(rows), loss, level)
        widths[level] = float((upper - lower).mean())
        assert ((lower <= observed) & (observed <= upper)).mean() >= level - 0.1
    assert widths[0.5] < widths[0.9] < widths[0.99]
    near, far = (calibration.deviation([CONFIG | {"model size": size, "data size": 16}])[0] for size in (400, 3200))
    assert far > 1.5 * near


@pytest.mark.parametrize("level", [0, 0.9999, 1, 1.5])
def test_interval_refuses_levels(calibration, level):
    with pytest.raises(ValueError, match="level: got"):
        calibration.interval([CONFIG], np.array([2.8]), level)


def test_divergence_rises_with_the_learning_rate(calibration):
    calm, wild = calibration.divergence([CONFIG, CONFIG | {"learning rate": 0.05}])
    assert calm < 0.1 < 0.9 < wild


def test_diverged_is_null_or_far_above_the_best():
    losses = [3.0, 3.29, 3.31, None, math.nan]
    made = [{"source": "mine", "conf": CONFIG, "final_loss": loss} for loss in losses]
    assert diverged(made) == [False, False, True, True, True]


def test_extrapolation_names_fields_and_grows(calibration):
    inside = CONFIG | {"data size": 8}
    assert calibration.extrapolation([inside]).tolist() == [0]
    far = inside | {"model size": 800, "learning rate": 8e-3}
    (by_field,) = calibration.extrapolation_by_field([far])
    assert by_field == pytest.approx({"model size": math.log(2), "learning rate": math.log(2)})
    assert calibration.extrapolation([far])[0] == pytest.approx(math.sqrt(2) * math.log(2))
    assert set(calibration.extrapolation_by_field([far | {"source": "yours", "optimizer": "sgdx"}])[0]) >= {
        "source",
        "optimizer",
    }


def test_calibration_survives_json(calibration):
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict(), default=np.ndarray.tolist)))
    configs = [CONFIG, CONFIG | {"source": "yours", "model size": 5000}]
    for name in ("divergence", "extrapolation", "deviation"):
        np.testing.assert_array_equal(getattr(again, name)(configs), getattr(calibration, name)(configs))


def test_trees_equal_scikit_learns(law, rows, unstable):
    from sklearn.ensemble import GradientBoostingClassifier

    labels, probabilities = fitting.cross_validate_divergence(law, rows, unstable, folds=3)
    assert labels.sum() == len(unstable) + sum(diverged(rows))
    assert ((probabilities > 0) & (probabilities < 1)).all()
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    y = x[:, 0] * x[:, 1] > 0
    model = GradientBoostingClassifier(n_estimators=20, random_state=0).fit(x, y)
    np.testing.assert_allclose(fitting.trees_of(model)(x), model.predict_proba(x)[:, 1], rtol=1e-3, atol=1e-4)


def test_baselines_recover_their_own_law():
    law = laws.ChinchillaLaw({"mine": (2.0, 0.3, 0.8, 0.35, 1.9)})
    made = [row | {"final_loss": float(law([row["conf"]])[0])} for row in fitting.example_rows()]
    np.testing.assert_allclose(
        fitting.fit_chinchilla(made)(confs(made)), [row["final_loss"] for row in made], atol=2e-3
    )
    kaplan = laws.KaplanLaw({"mine": (9e7, 0.08, 5e4, 0.1)})
    made = [row | {"final_loss": float(kaplan([row["conf"]])[0])} for row in made]
    np.testing.assert_allclose(fitting.fit_kaplan(made)(confs(made)), [row["final_loss"] for row in made], atol=2e-3)


@pytest.mark.parametrize("name", ["gradient-boosted trees", "gaussian process"])
def test_learned_baselines_interpolate(name, rows):
    held = rows[::4]
    forecasts = fitting.baseline_forecasts(name, [row for i, row in enumerate(rows) if i % 4], held)
    assert np.corrcoef(forecasts, [row["final_loss"] for row in held])[0, 1] > 0.9


def test_random_folds_keep_equal_runs_together(rows):
    twins = [*rows[::3], *rows[::3]]
    half = len(twins) // 2
    folds = fitting.random_folds(twins, 2)
    assert folds[:half] == folds[half:]
    forecasts = fitting.fit(twins).held_out(folds)
    observed = np.array([row["final_loss"] for row in twins])
    assert np.abs(forecasts - observed).mean() > 1e-4  # a twin in the fit would give the answer away
    np.testing.assert_allclose(forecasts[:half], forecasts[half:], atol=1e-9)


def test_the_evidences_slope_is_that_of_small_steps(rows):
    """With hyper-parameters, so that every scale of the kernel counts."""
    varied = [
        row | {"conf": row["conf"] | {"weight decay": 0.1 * (i % 3), "optimizer": ("adamw", "lion")[i % 2]}}
        for i, row in enumerate(rows[:40])
    ]
    part = fitting.fit(varied).parts["mine"]
    points = part.points | {"distinct": distinct_values(part.points["fields"])}
    residuals = np.random.default_rng(0).normal(0, 0.01, len(varied))
    evidence = fitting_residual._Evidence(part, points, residuals)
    z = np.random.default_rng(1).normal(0, 0.3, len(part.z))
    _, slope = evidence(z)
    steps = 1e-5 * np.eye(len(z))
    expected = [(evidence(z + step)[0] - evidence(z - step)[0]) / 2e-5 for step in steps]
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-5)
