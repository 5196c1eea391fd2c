"""NSP through the user's door: what it predicts and refuses, and what survives saving."""

import copy
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, Qwen2MoeConfig

from configuration_nsp import CORE_TASKS, NSPConfig
from feature_extraction_nsp import NSPFeatureExtractor, count_parameters
from fields_ncpl import check_config
from modeling_nsp import NSPEnsemble, NSPModel
from ncpl.nsp.benchmarks import benchmarks

ROOT = Path(__file__).parent.parent
LLAMA = {"params": 7e9, "tokens": 2e12}


def random_model(seed: int = 0, **config) -> NSPModel:
    """A model whose weights, encoder included, are far from their small initial values."""
    torch.manual_seed(seed)
    model = NSPModel(NSPConfig(**config)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.5 * torch.randn_like(weight))
        model.effect.noise.fill_(math.log(0.02))
    return model


def random_pairs(model: NSPModel, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Sizes, siblings' sizes, siblings' log odds and their differences, whose moments the model then has."""
    regression, random = model.sibling_regression, torch.Generator().manual_seed(seed)
    tasks = len(regression.tasks)
    mixed = torch.randn(60, 5 + tasks, generator=random) @ torch.randn(5 + tasks, 5 + tasks, generator=random)
    sibling = torch.cat([mixed[:, :2] / 5, (mixed[:, 2:3] > 0).float()], 1)
    size = sibling + torch.cat([mixed[:, 3:5].abs() / 5, torch.zeros(60, 1)], 1)
    log_odds = mixed[:, 5:] / 3
    difference = torch.randn(60, tasks, generator=random) + (size - sibling)[:, :2].sum(1, keepdim=True)
    described = torch.cat([sibling, log_odds], 1)
    regression.centre.copy_(described.mean(0))
    regression.deviation.copy_(described.std(0))
    features = regression.described(size, sibling, log_odds, torch.ones_like(log_odds))
    expanded = torch.cat([features, difference], 1)
    regression.moments.copy_(expanded.T @ expanded / 60)
    return size, sibling, log_odds, difference


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def base():
    return NSPModel.from_pretrained("nsp-base").eval()


# --- by construction, for any weights ---


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "context",
    [
        {},
        {"siblings": [{"params": 1e9, "tokens": 1e12, "mmlu": 0.3, "hellaswag": 0.7}]},
        {"siblings": [{"params": 1e9, "gsm8k": 0.3}, {"params": 2e9, "tokens": 1e12, "arc_c": 0.2}]},
    ],
)
@pytest.mark.filterwarnings("ignore:tokens|params:UserWarning")
def test_scores_lie_between_chance_and_one_and_rise_with_size(seed, context):
    model = random_model(seed, regression_tasks=CORE_TASKS)
    random_pairs(model, seed)
    grid = np.logspace(7, 13, 25)
    low = torch.tensor(model.config.chance)
    for rows in (
        [{"params": n, "tokens": 1e12, **context} for n in grid],
        [{"params": 1e10, "tokens": d * 100, **context} for d in grid],
        [{"params": n, **context} for n in grid],
    ):
        scores = model(rows).predictions
        assert (scores >= low - 1e-6).all()
        assert (scores <= 1).all()
        assert (scores.diff(dim=0) >= -1e-5).all()


def test_a_known_score_moves_its_own_task_and_narrows_it(model):
    plain = model(LLAMA)
    high = min(plain.predictions[0, 0].item() + 0.1, 0.95)
    known = model({**LLAMA, "scores": {"mmlu": high}})
    assert abs(known.predictions[0, 0] - high) < abs(plain.predictions[0, 0] - high)
    assert known.logit_deviations[0, 0] < plain.logit_deviations[0, 0]


def test_conditioning_is_the_gaussian_posterior():
    """Against a posterior by brute force: importance sampling of the family's and the model's effects."""
    model = random_model(2, tasks=["mmlu", "gsm8k"], max_shift=0.0)
    with torch.no_grad():
        model.effect.noise.fill_(math.log(0.03))
    features = {"domain": "general", "moe": False}
    sibling = {"params": 1e9, "tokens": 1e12, "scores": {"mmlu": 0.5, "gsm8k": 0.3}, **features}
    given = model({**LLAMA, **features, "siblings": [sibling]})
    prior = [
        model({k: v for k, v in row.items() if k != "scores"}).logits[0] for row in (sibling, {**LLAMA, **features})
    ]
    draws = 400_000
    normal = torch.distributions.MultivariateNormal
    family = normal(torch.zeros(2), model.effect.family_covariance()).sample((draws,))
    own = [normal(torch.zeros(2), model.effect.model_covariance()).sample((draws,)) for _ in range(2)]
    seen, _ = model.heads.scores(prior[0] + family + own[0])
    error = (seen - torch.tensor([0.5, 0.3])) / 0.03
    weight = torch.softmax(-0.5 * error.square().sum(1), 0)
    mean = (weight[:, None] * (prior[1] + family + own[1])).sum(0)
    assert torch.allclose(given.logits[0], mean, atol=0.05)


def test_missing_tokens_widen(base):
    with pytest.warns(UserWarning, match="tokens missing for 1 of 2 models"):
        output = base([{"params": 7e9}, LLAMA])
    assert (output.logit_deviations[0] > output.logit_deviations[1]).all()


def test_a_curve_that_may_dip_rises_unless_a_score_of_its_own_is_known():
    """Inverse scaling is followed where a model was measured; the curve at a fixed family never falls."""
    model = random_model(tasks=["mmlu", "truthfulqa"], dipping_tasks=["mmlu", "truthfulqa"], max_shift=0.0)
    with torch.no_grad():
        model.heads.dip.fill_(3.0)
        model.heads.dip_at.copy_(model.heads(model.scaling(torch.tensor([[2.0, 0.7, 2.7]]))[0])[0])
    grid = [{"params": n, "tokens": 2e12, "domain": "general", "moe": False} for n in np.logspace(8, 12, 30)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        curve = model(grid).predictions
        sibling = {"params": 1e8, "tokens": 2e12, "mmlu": 0.3, "truthfulqa": 0.4}
        with_sibling = model([{**row, "siblings": [sibling]} for row in grid]).predictions
        given = model.extractor(grid)
        free = model._prior(given["features"], given["feature_mask"])[1]
    assert (curve.diff(dim=0) >= -1e-6).all()
    assert (with_sibling.diff(dim=0) >= -1e-6).all()
    assert (free.diff(dim=0) < -1e-3).any(0).all()
    # From its lowest point on the curve is the dip's own.
    bottom = free.argmin(0)
    for task in range(2):
        expected = model.heads.scores(free)[0][bottom[task] :, task]
        torch.testing.assert_close(curve[bottom[task] :, task], expected, atol=2e-3, rtol=0)


def test_the_regression_of_scores_is_ridge_on_products_of_what_is_known():
    """Against scikit-learn's kernel ridge on the same rows, whatever scores are known."""
    from sklearn.kernel_ridge import KernelRidge

    model = random_model(tasks=["mmlu", "gsm8k", "arc_c"], regression_tasks=["mmlu", "gsm8k", "arc_c"])
    regression = model.regression
    values = torch.randn(40, 6) @ torch.randn(6, 6) + 1.0
    regression.centre.copy_(values.mean(0))
    regression.deviation.copy_(values.std(0))
    expanded, _ = regression.products(values, torch.ones_like(values))
    regression.moments.copy_(expanded.T @ expanded)
    standard = ((values - values.mean(0)) / values.std(0)).numpy()
    new = torch.randn(5, 6)
    for used in ([0, 1, 2, 3], [0, 1, 2, 3, 5], [0, 1, 2, 5]):
        known = torch.zeros(5, 6)
        known[:, used] = 1
        found = regression(new, known)
        plain = KernelRidge(alpha=regression.NOISE, kernel="poly", degree=2, gamma=1 / regression.WIDTH, coef0=1)
        plain.fit(standard[:, used], standard[:, 4])
        wanted = plain.predict(((new - values.mean(0)) / values.std(0)).numpy()[:, used])
        wanted = regression.scores(torch.tensor(wanted)[:, None] * values.std(0)[3:] + values.mean(0)[3:])[:, 1]
        torch.testing.assert_close(found[:, 1], wanted.float(), atol=2e-3, rtol=0)


def test_the_regression_on_a_sibling_is_ridge_on_what_is_known():
    """Against scikit-learn's ridge on the same pairs; what grows never lowers a score."""
    from sklearn.linear_model import Ridge

    model = random_model(tasks=["mmlu", "gsm8k", "arc_c"], regression_tasks=["mmlu", "gsm8k", "arc_c"])
    size, sibling, log_odds, difference = random_pairs(model)
    regression = model.sibling_regression
    for used in ([0, 1, 2], [0, 2], [1]):
        known = torch.zeros_like(log_odds)
        known[:, used] = 1
        found = regression(size, sibling, log_odds, known)
        columns = [*range(1, 6), *(6 + task for task in used)]
        features = regression.described(size, sibling, log_odds, known).numpy()[:, columns]
        for task in used:
            plain = Ridge(regression.RIDGE * len(size)).fit(features, difference[:, task].numpy())
            # The constant bears no penalty.
            assert (plain.coef_[:2] >= 0).all()
            wanted = torch.tensor(plain.predict(features)) + log_odds[:, task]
            torch.testing.assert_close(found[:, task], wanted.float(), atol=1e-3, rtol=0)
    regression.moments[1:3, 9:] *= -1
    regression.moments[9:, 1:3] *= -1
    more = regression(size + torch.tensor([1.0, 1.0, 0.0]), sibling, log_odds, torch.ones_like(log_odds))
    torch.testing.assert_close(more, regression(size, sibling, log_odds, torch.ones_like(log_odds)))


def test_extrapolation_widens_and_says_so(base):
    with pytest.warns(UserWarning, match=r"params of 1 of 2 models outside .* extrapolation"):
        output = base([{"params": 5e12, "tokens": 2e12}, LLAMA])
    assert (output.logit_deviations[0] > output.logit_deviations[1]).all()


# --- tensors ---


CASES = [
    LLAMA,
    {"params": "70B", "tokens": "15T", "domain": "code", "moe": True},
    {**LLAMA, "scores": {"mmlu": 0.4, "arc_c": 0.5}, "siblings": [{"params": 1e9, "tokens": 1e12, "winogrande": 0.6}]},
    {**LLAMA, "siblings": [{"params": 2e9, "tokens": 1e12, "hellaswag": 0.6}]},
]


def test_batching_changes_nothing(model):
    together = model(CASES)
    for i, case in enumerate(CASES):
        alone = model(case)
        for name in ("predictions", "uncertainties", "emergence_scores"):
            torch.testing.assert_close(together[name][i : i + 1], alone[name], atol=2e-5, rtol=1e-4)


def test_order_of_known_scores_changes_nothing(model):
    one = model({**LLAMA, "scores": {"mmlu": 0.4, "arc_c": 0.5, "gsm8k": 0.1}})
    other = model({**LLAMA, "scores": {"gsm8k": 0.1, "mmlu": 0.4, "arc_c": 0.5}})
    torch.testing.assert_close(one.predictions, other.predictions, atol=1e-5, rtol=1e-4)


def test_raw_and_extracted_agree(model):
    torch.testing.assert_close(model(model.extractor(CASES)).predictions, model(CASES).predictions)
    torch.testing.assert_close(model(**model.extractor(CASES)).predictions, model(CASES).predictions)
    torch.testing.assert_close(model(pd.DataFrame([LLAMA])).predictions, model(LLAMA).predictions)


def test_states_and_attentions_on_request(model):
    output = model(CASES, output_hidden_states=True, output_attentions=True)
    config = model.config
    seq = 5 + 3  # fixed tokens, at most three known scores
    assert [tuple(h.shape) for h in output.hidden_states] == [(4, seq, config.hidden_size)] * 2
    assert [tuple(a.shape) for a in output.attentions] == [(4, config.num_attention_heads, seq, seq)]
    assert torch.allclose(output.attentions[0].sum(-1), torch.ones(()), atol=1e-5)
    assert model(CASES).hidden_states is None
    assert isinstance(model(CASES, return_dict=False), tuple)


def test_the_loss_masks_missing_scores_and_reaches_every_weight():
    model = random_model(1).train()
    labels = torch.full((4, 12), torch.nan)
    labels[:, :3] = 0.5
    output = model(CASES, labels=labels)
    output.loss.backward()
    assert torch.isfinite(output.loss)
    without = {name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()}
    assert without == set() or without == {"encoder.missing"}
    again = labels.clone()
    again[:, 3:] = torch.nan
    assert model.eval()(CASES, labels=again).loss == model(CASES, labels=labels).loss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(model, dtype):
    half = random_model().to(dtype)
    output = half(CASES)
    assert output.predictions.dtype == dtype
    assert (output.predictions.float() - model(CASES).predictions).abs().max() < 0.03


def test_a_half_precision_default_makes_half_precision_weights():
    """But for the moments, which are nearly singular."""
    model = NSPModel._from_config(NSPConfig(regression_tasks=CORE_TASKS), dtype=torch.bfloat16)
    whole = {name for name, value in model.state_dict().items() if value.dtype == torch.float32}
    assert whole == {name for name in model.state_dict() if "regression." in name}
    assert model.heads.chance.dtype == torch.bfloat16


def test_the_regression_stays_whole_in_half_precision(base, tmp_path):
    """Its moments are nearly singular; both ways to half precision leave them alone."""
    case = {**LLAMA, "scores": {"arc_c": 0.5, "hellaswag": 0.77, "gsm8k": 0.14}}
    wanted = base(case).predictions
    base.save_pretrained(tmp_path)
    loaded = NSPModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    cast = NSPModel.from_pretrained(tmp_path).eval().to(torch.bfloat16)
    for half in (loaded, cast):
        assert half.encoder.norm.weight.dtype == torch.bfloat16
        assert half.regression.moments.dtype == torch.float32
        assert (half(case).predictions.float() - wanted).abs().max() < 0.03


def test_known_scores_of_its_own_bring_the_regression_in(base):
    """It is half of the logit of scores that are not known, and keeps out where a sibling is known."""
    without = copy.deepcopy(base)
    without.regression.moments.zero_()
    scores = {"arc_c": 0.5, "hellaswag": 0.77, "gsm8k": 0.14}
    own = {**LLAMA, "domain": "general", "scores": scores}
    with_sibling = {**own, "siblings": [{"params": 1e9, "tokens": 2e12, "mmlu": 0.3}]}
    assert base(own).predictions[0, 0] != without(own).predictions[0, 0]
    for row in (LLAMA, with_sibling):
        torch.testing.assert_close(base(row).predictions, without(row).predictions)
    known = [base.config.tasks.index(task) for task in scores]
    torch.testing.assert_close(base(own).predictions[0, known], without(own).predictions[0, known])


def test_a_sibling_brings_its_regression_in(base):
    """It is half of the log odds of the scores that a smaller sibling has, and keeps out where more is known."""
    without = copy.deepcopy(base)
    without.sibling_regression.moments.zero_()
    sibling = {"params": 1e9, "tokens": 2e12, "mmlu": 0.3, "hellaswag": 0.6}
    row = {**LLAMA, "domain": "general", "siblings": [sibling]}
    given, regression = base.extractor(row), base.sibling_regression
    sizes = base.regression_sizes(given["features"], given["feature_mask"])
    smaller = base.regression_sizes(given["score_features"], given["score_feature_mask"])[:, 0]
    scores, known = torch.full((1, 8), 0.5), torch.zeros(1, 8)
    for task, value in (("mmlu", 0.3), ("hellaswag", 0.6)):
        at = regression.tasks.index(base.config.tasks.index(task))
        scores[0, at], known[0, at] = value, 1
    regressed = regression(sizes, smaller, regression.log_odds(scores), known)
    own = without(row).predictions
    mean = regression.scores((regression.log_odds(own[:, regression.tasks]) + regressed) / 2)
    wanted = own.clone()
    wanted[:, regression.tasks] = torch.where(known > 0, mean, own[:, regression.tasks])
    torch.testing.assert_close(base(row).predictions, wanted, atol=1e-4, rtol=0)
    for more in ({"scores": {"arc_c": 0.5}}, {"like": base.config.families[0]}):
        torch.testing.assert_close(base({**row, **more}).predictions, without({**row, **more}).predictions)
    # A larger sibling's own opinion of a smaller model never lifts it.
    row = {**row, "params": 5e8}
    assert (base(row).predictions <= without(row).predictions + 1e-6).all()


def test_of_several_siblings_the_largest_is_regressed_on(base):
    """Whatever their order; and the curve rises through the sizes of all."""
    siblings = [
        {"params": 1e9, "tokens": 2e12, "mmlu": 0.3, "hellaswag": 0.6},
        {"params": 3e9, "tokens": 1e12, "mmlu": 0.5},
        {"params": 3e9, "tokens": 2e12, "mmlu": 0.4},
    ]
    grid = [{"params": n, "tokens": 2e12, "domain": "general"} for n in np.logspace(8.5, 10.5, 60)]
    one, other = (base([{**row, "siblings": order} for row in grid]) for order in (siblings, siblings[::-1]))
    torch.testing.assert_close(one.predictions, other.predictions, atol=1e-5, rtol=1e-4)
    assert (one.predictions.diff(dim=0) >= -1e-6).all()


# --- saving ---


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    again, report = NSPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    torch.testing.assert_close(again(CASES).predictions, model(CASES).predictions)


def test_fresh_weights_are_the_same_through_either_door(tmp_path):
    """Weights a checkpoint lacks are initialised as in a new model, buffers included."""
    model = NSPModel(NSPConfig(tasks=["mmlu"]))
    model.save_pretrained(tmp_path)
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in state.items() if "chance" not in k}, tmp_path / "model.safetensors", {"format": "pt"})
    assert NSPModel.from_pretrained(tmp_path).heads.chance.tolist() == [0.25]


REMOTE = """
import sys
from transformers import AutoFeatureExtractor, AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert "transformers_modules" in type(model).__module__, type(model)
extractor = AutoFeatureExtractor.from_pretrained(sys.argv[1], trust_remote_code=True)
output = model(extractor([{"params": 7e9, "tokens": 2e12}]))
print(type(model).__name__, *output.predictions[0].tolist())
"""


def test_the_saved_folder_loads_where_nothing_of_ours_is_installed(model, tmp_path):
    model.save_pretrained(tmp_path / "repo")
    model.extractor.save_pretrained(tmp_path / "repo")
    script = tmp_path / "remote.py"
    script.write_text(REMOTE)
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(tmp_path / "repo")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    name, *values = done.stdout.split()
    assert name == "NSPModel"
    np.testing.assert_allclose([float(v) for v in values], model(LLAMA).predictions[0].tolist(), atol=1e-6)


def test_an_ensemble_is_its_members_mean_and_one_repository(tmp_path):
    members = [random_model(seed) for seed in range(2)]
    ensemble = NSPEnsemble.from_members(members, [1.0, 3.0]).eval()
    wanted = 0.25 * members[0](CASES).predictions + 0.75 * members[1](CASES).predictions
    torch.testing.assert_close(ensemble(CASES).predictions, wanted)
    spread = torch.stack([m(CASES).uncertainties for m in members]).amin(0)
    assert (ensemble(CASES).uncertainties >= spread - 1e-6).all()
    ensemble.save_pretrained(tmp_path)
    again = NSPEnsemble.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(CASES).predictions, ensemble(CASES).predictions)
    with pytest.raises(ValueError, match="one positive weight for each of 2 members"):
        NSPEnsemble.from_members(members, [1.0])


def test_a_folder_of_the_name_comes_first(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "nsp-base")
    monkeypatch.chdir(tmp_path)
    torch.testing.assert_close(NSPModel.from_pretrained("nsp-base")(LLAMA).predictions, model(LLAMA).predictions)


# --- what a user may get wrong ---


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": 2e12}, "model 0: params is missing"),
        ({"params": 7, "tokens": 2e12}, "params: 7 must be a count from 1e\\+06"),
        ({"params": 7e9, "tokens": 2}, "tokens: 2 must be a count"),
        ({"params": "7", "tokens": "2T"}, "params: '7' must be a count"),
        ({"params": 7e9, "tokens": -2e12}, "tokens: -2000000000000.0 must be positive"),
        ({"params": 7e9, "tokens": 2000}, "tokens: 2000 must be a count"),
        ({"params": 0, "tokens": 2e12}, "params: 0 must be positive"),
        ({"params": -7e9, "tokens": 2e12}, "params: -7000000000.0 must be positive"),
        ({"params": 7e9, "tokens": 0}, "tokens: 0 must be positive"),
        ({"params": math.inf, "tokens": 2e12}, "params: inf must be"),
        ({"params": float("nan"), "tokens": 2e12}, "params is missing"),
        ({"params": "seven", "tokens": 2e12}, "params: 'seven' is not a number"),
        ({"params": True, "tokens": 2e12}, "params: True is not a number"),
        ({"parms": 7e9, "tokens": 2e12}, "unknown field 'parms'; did you mean 'params'"),
        ({"params": 7e9, "N": 7e9, "tokens": 2e12}, "unknown field 'N'|given twice"),
        ({"params": 7e9, "tokens": 2e12, "mmlu": 0.4}, "known scores go under 'scores'"),
        ({"params": 7e9, "tokens": 2e12, "scores": {"mmul": 0.4}}, "unknown task 'mmul'; did you mean 'mmlu'"),
        ({"params": 7e9, "tokens": 2e12, "scores": {"mmlu": 40}}, "mmlu is 40, accepted is an accuracy from 0 to 1"),
        ({"params": 7e9, "tokens": 2e12, "scores": 0.4}, "scores: 0.4, accepted is a mapping"),
        ({"params": 7e9, "tokens": 2e12, "flops": 1e20}, "flops: 1e\\+20 is .* leave flops out"),
        ({"params": 7e9, "tokens": 2e12, "domain": "maths"}, "domain: 'maths', accepted are 'code' and 'general'"),
        ({"params": 7e9, "tokens": 2e12, "siblings": [{"params": 1e9}]}, "sibling 1: no known scores"),
        ({"params": 7e9, "tokens": 2e12, "siblings": [{"params": 1, "mmlu": 0.3}]}, "sibling 1: params: 1 must be"),
        ({"params": 7e9, "tokens": 2e12, "like": "Lama"}, "unknown family 'Lama'; did you mean 'Llama'"),
        ({"model_type": "resnet"}, "no causal language model|not known"),
        ({"config": {"hidden_size": 4}}, "no model_type"),
    ],
)
def test_bad_input(row, message):
    extractor = NSPFeatureExtractor(families=["Llama"])
    with pytest.raises(ValueError, match=message):
        extractor(row)


@pytest.mark.parametrize(
    ("models", "message"), [([], "no models given"), ("llama", "accepted is a mapping"), (7, "int")]
)
def test_bad_models(models, message):
    with pytest.raises(ValueError, match=message):
        NSPFeatureExtractor()(models)


def test_a_family_that_cannot_be_printed_is_refused():
    class Unprintable(dict):
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    with pytest.raises(ValueError, match="like: unknown family a Unprintable that cannot be printed; known: "):
        NSPFeatureExtractor(families=["llama"])({**LLAMA, "like": Unprintable()})


@pytest.mark.parametrize("row", [{"params": 7e9, "tokens": 2e7}, {"params": 7e6, "tokens": 2e12}])
def test_a_likely_slip_of_units_is_said(row):
    with pytest.warns(UserWarning, match="check the units of params and tokens"):
        table = benchmarks(row)
    assert table["extrapolation"].all()


def test_both_models_read_counts_with_suffixes():
    run = {"source": "marin", "optimizer": "muon", "learning rate": 8e-3, "batch size": 128}
    config = {**run, "model size": "302M", "data size": "6.04B"}
    assert check_config(config)["model size"] == 302
    assert check_config(config)["data size"] == pytest.approx(6.04)
    assert check_config({**config, "model size": "7B", "data size": "2T"})["data size"] == 2000
    assert NSPFeatureExtractor()({"params": "302M"})["features"][0, 0] == pytest.approx(math.log(0.302))
    with pytest.raises(ValueError, match="learning rate: got '4M'"):
        check_config({**config, "learning rate": "4M"})


def test_equal_numbers_written_differently_are_equal():
    rows = [
        {"params": 7e9, "tokens": 2e12},
        {"params": "7B", "tokens": "2 T"},
        {"parameters": 7000000000, "flops": 8.4e22},
    ]
    features = NSPFeatureExtractor()(rows)["features"]
    assert torch.allclose(features, features[:1].expand(3, -1), atol=1e-5)


# --- parameters counted from a config ---


def llama_params(c, tied):
    kv = c.num_key_value_heads * c.head_dim
    attention = 2 * c.hidden_size * c.num_attention_heads * c.head_dim + 2 * c.hidden_size * kv
    layer = attention + 3 * c.hidden_size * c.intermediate_size + 2 * c.hidden_size
    return c.num_hidden_layers * layer + c.hidden_size + c.vocab_size * c.hidden_size * (1 if tied else 2)


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("groups", [4, 2])
def test_parameters_of_a_llama(tied, groups):
    config = LlamaConfig(**SMALL, num_key_value_heads=groups, head_dim=8, tie_word_embeddings=tied)
    assert count_parameters(config) == (llama_params(config, tied),) * 2
    assert count_parameters(json.loads(config.to_json_string(use_diff=False)))[0] == llama_params(config, tied)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=96, n_positions=16),
        MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2),
        Qwen2MoeConfig(**SMALL, num_key_value_heads=2, num_experts=4, num_experts_per_tok=1, moe_intermediate_size=16,
                       shared_expert_intermediate_size=24),
    ],
)  # fmt: skip
def test_parameters_of_real_models(config):
    real = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    total, active = count_parameters(config)
    assert total == real
    if config.model_type == "mixtral":
        experts = 2 * 4 * 3 * config.hidden_size * config.intermediate_size
        assert active == total - experts / 2


def test_a_hub_config_gives_features():
    config = json.loads(MixtralConfig(hidden_size=512, num_hidden_layers=4, vocab_size=32000).to_json_string())
    extracted = NSPFeatureExtractor()({**config, "tokens": 1e12})
    _, active = count_parameters({"model_type": "mixtral", **config})
    assert extracted["features"][0, 0] == pytest.approx(math.log(active / 1e9), abs=1e-5)
    assert extracted["features"][0, 3] == 1
