"""Planning: what a run costs, and the best run for a budget."""

import json

import numpy as np
import pytest

from ncpl import Forecaster
from ncpl.allocations import BESIROGLU, HOFFMANN, effective_tokens
from ncpl.hardware import Shape, checkpoint_gb, memory_gb, nearest_shape, read_hardware, shape_of, smallest_count
from ncpl.plan import BASE, plan
from ncpl.plan_search import Search
from tests.test_cli import as_json, run
from tests.work import calls

# A Llama 7B on 2T tokens.
LLAMA = {
    **{"source": "marin", "optimizer": "adamw", "learning rate": 3e-4, "batch size": 1024, "model size": 6476},
    **{"data size": 2000, "seq len": 4096, "num layers": 32, "hidden dim": 4096, "num heads": 32, "ffn dim": 11008},
}


@pytest.fixture(scope="module")
def forecaster():
    return Forecaster.from_pretrained()


def of_law(law):
    """Losses by a law of parameters and tokens alone."""
    return lambda configs: np.array([law.loss(c["model size"] * 1e6, c["data size"] * 1e9) for c in configs])


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU])
@pytest.mark.parametrize("flops", [1e21, 1e22, 1e23, 1e24, 1e25])
def test_chinchillas_constants_give_the_published_allocations(law, flops):
    """To 1 % of the closed form: dL/dN = 0 along 6 N D = C, solved here by hand."""
    _, params, tokens, _ = Search(of_law(law), BASE, lambda n: 6 * n).lowest(flops)
    # alpha A N^-alpha = beta B D^-beta
    ratio = law.alpha * law.A / (law.beta * law.B)
    expected = (ratio * (flops / 6) ** law.beta) ** (1 / (law.alpha + law.beta))
    assert params == pytest.approx(expected, rel=0.01)
    assert tokens == pytest.approx(flops / 6 / expected, rel=0.01)


@pytest.mark.parametrize(
    ("law", "flops", "params", "tokens"),
    [
        (HOFFMANN, 5.76e23, 3.219e10, 2.982e12),
        (HOFFMANN, 1e22, 5.16e9, 3.23e11),
        (BESIROGLU, 1e22, 9.045e9, 1.843e11),
        (BESIROGLU, 5.76e23, 7.225e10, 1.329e12),
    ],
)
def test_closed_form_is_the_published_one(law, flops, params, tokens):
    assert law.optimum(flops) == pytest.approx((params, tokens), rel=1e-3)


def test_cost_by_hand(forecaster, tmp_path):
    """Every figure from the shape and three facts."""
    own = tmp_path / "mine.toml"
    own.write_text("[accelerators.h100]\nprice_usd_h = 2.0\n[site]\npue = 1.2\n")
    found = forecaster.cost(LLAMA, gpu="H100", count=256, utilisation=0.4, hardware=own)
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 128_256
    flops = (6 * matrices + 12 * 32 * 4096 * 4096) * 2e12
    hours = flops / (989e12 * 0.4) / 3600
    expected = {
        "flops": flops,
        "utilisation": 0.4,
        "gpu_hours": hours,
        "days": hours / 256 / 24,
        "cost_usd": hours * 2,
        "energy_mwh": hours * 700 * 0.85 * 1.1 * 1.2 / 1e6,
        "co2_t": hours * 700 * 0.85 * 1.1 * 1.2 / 1e6 * 0.4,
        "checkpoint_gb": (matrices + 4096 * 128_256) * 14 / 1e9,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=2e-4)
    assert list(found.index[:3]) == ["flops", "utilisation", "gpu_hours"]
    assert found["memory_gb_per_gpu"] < 80
    assert found["fits"]


# Published parameters and, by Megatron's and llm-foundry's utilisation and tokens per second, FLOPs per token.
PUBLIC = {
    "Megatron 22B": (Shape(48, 6144, 64, 64, 24576, 51200, 2048, 2, True), 0.415 * 312e12 / 930.91),
    "Megatron 175B": (Shape(96, 12288, 96, 96, 49152, 51200, 2048, 2, True), 0.514 * 312e12 / 148.95),
    "Megatron 530B": (Shape(105, 20480, 128, 128, 81920, 51200, 2048, 2, True), 0.56 * 312e12 / 54.14),
    "Megatron 1T": (Shape(128, 25600, 160, 160, 102400, 51200, 2048, 2, True), 0.563 * 312e12 / 28.65),
    "MPT 7B": (Shape(32, 4096, 32, 32, 16384, 50432, 2048, 2, True), 0.4644 * 989e12 / 10643),
    "MPT 30B": (Shape(48, 7168, 64, 64, 28672, 50432, 2048, 2, True), 0.4392 * 989e12 / 2308),
    "nanochat d32": (Shape(32, 2048, 16, 16, 8192, 65536, 2048, 2), 4.5396e20 / 37580963840),
    "nanochat d24": (Shape(24, 1536, 12, 12, 6144, 32768, 2048, 2), 4.330784e19 / 8757706752),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_flops_of_public_models(name):
    shape, published = PUBLIC[name]
    # nanochat's d24 alternates short and long attention windows, which its own count knows.
    assert shape.flops_per_token() == pytest.approx(published, rel=0.07 if name == "nanochat d24" else 0.03)


@pytest.mark.parametrize(
    ("shape", "params"),
    [
        (Shape(32, 4096, 32, 32, 11008, 32000, 4096), 6_738_417_664),
        (Shape(32, 4096, 32, 8, 14336, 128256, 8192), 8_030_261_248),
        (Shape(126, 16384, 128, 8, 53248, 128256, 8192), 405_853_388_800),
        (Shape(22, 2048, 32, 4, 5632, 32000, 2048), 1_100_048_384),
    ],
)
def test_parameters_of_public_models(shape, params):
    assert shape.params == pytest.approx(params, rel=1e-3)


def test_sharded_states_are_zeros():
    """ZeRO's worked example: 7.5B parameters, 16 bytes each, over 64."""
    shape = Shape(36, 4096, 32, 32, 11008, 32000, 2048)
    one, many = memory_gb(shape), memory_gb(shape, 64)
    held = ("weights", "gradients", "optimizer")
    assert sum(one[name] for name in held) == pytest.approx(16 * shape.params / 1e9)
    assert sum(many[name] for name in held) == pytest.approx(16 * shape.params / 64e9)
    assert checkpoint_gb(shape) == pytest.approx(14 * shape.params / 1e9)


def test_smallest_count_is_smallest():
    h100 = read_hardware().find("h100")
    shape = nearest_shape(7e10)
    least = smallest_count(shape, h100)
    assert least is not None
    held = [sum(memory_gb(shape, n, 1, "full", tensor=min(8, n)).values()) + 4 for n in (least // 2, least)]
    assert held[0] > 80 >= held[1]


def test_shapes_are_those_asked_for():
    for size in np.geomspace(1e7, 1e12, 26):
        shape = nearest_shape(float(size))
        assert shape.body_params == pytest.approx(size, rel=0.08)
        assert shape.width % shape.heads == 0
    made = shape_of(LLAMA)
    assert (made.layers, made.width, made.ffn) == (32, 4096, pytest.approx(11008, rel=1e-3))


def test_repetition():
    """arXiv 2305.16264: up to 4 epochs are nearly as good as fresh data, 40 are worth 15."""
    worth = [effective_tokens(epochs * 1e9, 1e9) / 1e9 for epochs in (0.5, 1, 2, 4, 16, 40)]
    assert worth == pytest.approx([0.5, 1, 1.968, 3.726, 10.582, 15.167], rel=1e-3)


def test_plan_of_a_budget(forecaster):
    found = forecaster.plan(flops=1e20)
    best = found.best
    assert best["flops"] == pytest.approx(1e20, rel=1e-3)
    assert best["lower"] < best["loss"] < best["upper"]
    assert best["params_low"] < best["params"] < best["params_high"]
    # No size of the valley is better, and both its ends cost 0.005 nats.
    assert found.valley["excess"].min() >= 0
    outside = found.valley[~found.valley["params"].between(best["params_low"], best["params_high"])]
    assert outside["excess"].min() > 0.005
    # The configuration is one that predict takes, and gives the same loss.
    assert forecaster.predict(found.config)["loss"].iloc[0] == pytest.approx(best["loss"])
    assert [row.split()[0] for row in found.references["law"]] == ["Chinchilla", "Chinchilla", "Kaplan", "Step"]


def test_budgets_agree(forecaster):
    """Hours, money and days of the same run, and the loss that it reaches, lead to the same run."""
    first = forecaster.plan(gpu_hours=640, gpu="a100", count=8)
    money = forecaster.plan(cost=640 * read_hardware().find("a100").price_usd_h, gpu="a100", count=8)
    days = forecaster.plan(days=640 / 8 / 24, gpu="a100", count=8)
    assert first["gpu_hours"] == pytest.approx(640, rel=0.01)
    for other in (money, days):
        assert other["params"] == pytest.approx(first["params"])
    target = forecaster.plan(target_loss=float(first["loss"]))
    assert target["flops"] == pytest.approx(first["flops"], rel=0.05)


def test_frontier_and_lines(forecaster):
    found = forecaster.plan(flops=1e20)
    assert found.frontier["loss"].is_monotonic_decreasing
    assert found.frontier["flops"].is_monotonic_increasing
    line = found.iso_loss[np.isclose(found.iso_loss["loss"], found["loss"])]
    # The plan is the cheapest run of its line.
    assert line["flops"].min() > 0.97 * found["flops"]


def test_options(forecaster):
    free = forecaster.plan(flops=1e20)
    fixed = forecaster.plan(flops=1e20, params=3e8)
    assert fixed["params"] == 3e8
    assert fixed.valley_in_words == ""
    assert fixed["loss"] > free["loss"]
    ratio = forecaster.plan(flops=1e20, tokens_per_param=20)
    assert ratio["tokens_per_param"] == pytest.approx(20)
    assert ratio["flops"] == pytest.approx(1e20, rel=5e-3)
    assert ratio.valley_in_words == ""
    served = forecaster.plan(flops=1e21, tokens_per_param=100, inference_tokens=1e12)
    assert served["tokens_per_param"] == pytest.approx(100)
    with pytest.raises(ValueError, match=r"budget: got 1e\+08, expected .* on 20 tokens for each"):
        forecaster.plan(flops=1e8, tokens_per_param=20)
    served = forecaster.plan(flops=1e20, inference_tokens=3e10)
    assert served["params"] < free["params"]
    scarce = forecaster.plan(flops=1e20, unique_tokens=2e9)
    assert scarce["loss"] > free["loss"]
    # More epochs rather than more parameters (its section 5).
    assert scarce["params"] < free["params"]
    assert any("epochs" in note for note in scarce.notes)


def test_optimizers_are_compared(forecaster):
    found = forecaster.plan(flops=1e20, base={"source": "marin", "optimizer": "adamw"}, optimizers=["muon"])
    adamw, muon = found.optimizers.to_dict("records")
    assert adamw["saved"] == 0
    assert 0 < muon["saved"] < 0.6
    assert muon["loss"] < adamw["loss"]


def test_a_plan_tells_nothing_of_its_own_choices(forecaster):
    said = " ".join(forecaster.plan(flops=1e20).notes)
    assert "num layers" not in said
    assert "no source is given: steplaw stands in" in said
    asked = forecaster.plan(flops=1e20, base={"source": "steplaw", "weight decay": 0.3})
    assert any(note.startswith("no effect on this forecast: weight decay (") for note in asked.notes)


def test_mixture_of_experts(forecaster):
    base = {
        **{"source": "steplaw_moe", "optimizer": "adamw", "model size": 2000, "active size": 500, "data size": 20},
        **{"learning rate": 1e-3, "batch size": 256, "num experts": 64, "top k": 8},
    }
    found = forecaster.plan(flops=1e20, base=base)
    assert found["active size"] == pytest.approx(found["params"] / 4 / 1e6)
    assert found["flops"] == pytest.approx(1e20, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "budget: got none, expected exactly one"),
        ({"flops": 1e20, "days": 3}, "budget: got flops, days"),
        ({"flops": -1}, "flops: got -1, expected a number above 0"),
        ({"flops": 1e40}, "budget: got 1e+40"),
        ({"target_loss": 0.5}, "target_loss: got 0.5, expected at least"),
        ({"flops": 1e20, "params": 1e9, "tokens_per_param": 20}, "given with params"),
        ({"flops": 1e20, "params": 1e12}, "budget: got 1e+20, which leaves 1e+12 parameters"),
        ({"flops": 1e20, "params": 5}, "params: got 5, expected"),
        ({"flops": 1e20, "gpu": "h101"}, "gpu: got 'h101', did you mean 'h100'?"),
        ({"flops": 1e20, "count": 0}, "count: got 0"),
        ({"flops": 1e20, "utilisation": 40}, "utilisation: got 40"),
        ({"flops": 1e20, "unique_tokens": 0}, "unique_tokens: got 0"),
        ({"flops": 1e20, "base": {"colour": "red"}}, "colour: not a known field"),
    ],
)
def test_what_cannot_be_planned(forecaster, options, said):
    """One sentence."""
    with pytest.raises(ValueError, match=r"got|known|given") as error:
        forecaster.plan(**options)
    assert said in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[accelerators.h100]\nprice = 2", "h100.price: not a known key"),
        ("[accelerators.h100]\nprice_usd_h = 'two'", "expected a number >= 0"),
        ("[accelerators.mine]\nbf16_tflops = 100", "missing bandwidth_tb_s"),
        ("[gpus.h100]\nprice = 2", "expected [site] and [accelerators.NAME]"),
        ("price =", "Invalid value"),
    ],
)
def test_hardware_files_that_are_refused(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match="hardware: ") as error:
        read_hardware(path)
    assert said in str(error.value)


def test_unreachable_by_a_law_of_its_own():
    with pytest.raises(ValueError, match=r"target_loss: got 1.6, expected at least 1\."):
        plan(of_law(HOFFMANN), target_loss=1.6)


def test_a_target_loss_takes_few_forecasts():
    """The budget is searched for along the frontier, which is not scanned; the run that is found has the loss."""
    law, asked = of_law(HOFFMANN), []

    def counting(configs):
        asked.append(len(configs))
        return law(configs)

    found = plan(counting, target_loss=2.2)
    assert found["loss"] == pytest.approx(2.2, abs=1e-3)
    for_target = sum(asked)
    asked.clear()
    plan(counting, flops=found.budget)
    assert for_target < 6 * sum(asked)


def test_commands(forecaster, tmp_path, capsys):
    picture = tmp_path / "plan.html"
    found = as_json("plan", "--flops", "1e20", "--save", picture, capsys=capsys)
    assert found["best"]["params"] == pytest.approx(forecaster.plan(flops=1e20)["params"])
    assert {"valley", "references", "optimizers", "frontier", "iso_loss", "notes", "config"} < found.keys()
    page = picture.read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert "prefers-color-scheme:dark" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    row = {name: str(value) for name, value in LLAMA.items()}
    words = [f"{name}={value}" for name, value in row.items()]
    (cost,) = as_json("cost", *words, "--gpu", "a100", "--count", "1024", capsys=capsys)
    assert cost["gpu_hours"] == pytest.approx(forecaster.cost(LLAMA, "a100", 1024)["gpu_hours"])
    status, out, told = run("plan", "--flops", "1e24", "--count", "2", capsys=capsys)
    assert status == 0
    assert "Besiroglu" in out
    assert "note: these accelerators do not hold the run" in told
    for arguments in (("plan",), ("plan", "--flops", "many"), ("plan", "--flops", "1e20", "--save", "plan.gif")):
        status, _, told = run(*arguments, capsys=capsys)
        assert status == 2
        assert json.dumps(told).count("error: ") == 1


@pytest.mark.parametrize("suffix", ["png", "html"])
def test_sweeps_are_drawn(tmp_path, capsys, suffix):
    for number, swept in enumerate((["lr=1e-3:1e-2:5", "batch_size=64,128,256"], ["lr=1e-3:1e-2:5"])):
        picture = tmp_path / f"{number}.{suffix}"
        status, _, _ = run("sweep", "examples/marin-1b.yaml", *swept, "--save", picture, capsys=capsys)
        assert status == 0
        assert picture.stat().st_size > 3000
    words = "optimizer=adamw,muon"
    assert run("sweep", "examples/marin-1b.yaml", words, "--save", picture, capsys=capsys)[0] == 0
    status, _, told = run("sweep", "examples/marin-1b.yaml", words, "lr=1e-3,2e-3", "--save", picture, capsys=capsys)
    assert status == 2
    assert "a picture needs one field, or two numeric ones" in told


def test_drawing_changes_nothing_else(tmp_path, forecaster):
    import matplotlib

    before = dict(matplotlib.rcParams)
    forecaster.plan(flops=1e20).plot().save(tmp_path / "plan.png")
    assert dict(matplotlib.rcParams) == before


def test_scores_along_a_plan(forecaster, capsys):
    """The plan's own scores are the model's, and those of the frontier rise with its budget."""
    found = forecaster.plan(flops=1e22)
    along = found.scores(like="Llama-2")
    alone = forecaster.benchmarks([{"params": found["params_total"], "tokens": found["tokens"], "domain": "general",
                                    "moe": False}], like="Llama-2").iloc[0]  # fmt: skip
    assert along["mmlu"].iloc[-1] == pytest.approx(alone["mmlu"])
    assert along["hellaswag"].iloc[:-1].is_monotonic_increasing
    assert len(as_json("plan", "--flops", "1e22", "--like", "Llama-2", capsys=capsys)["scores"]) == len(along)
    status, _, told = run("plan", "--flops", "1e22", "--like", "nobody", capsys=capsys)
    assert status == 2
    assert "nobody" in told


# Of functions; the loss that no run reaches, which is searched for first, takes 930,000, a second some ten million.
MOST_CALLS = 5_000_000
# A grid of a trillion.
_LARGE = ("lr=1e-3:1e-2:10000", "warmup=1:20000:10000", "weight_decay=0.01:1:10000")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["plan", "--target-loss", "0.5"], "expected at least"),
        (["plan", "--flops", "1e21", "--days", "3"], "got flops, days, expected exactly one"),
        (
            ["plan", "--flops", "1e21", "--params", "1B", "--tokens-per-param", "20"],
            "given with params",
        ),
        (["plan", "--flops", "1e10"], "budget: got 1e+10"),
        (["plan", "--flops", "1e21", "--params", "1000T"], "params: got 1e+15"),
        (["sweep", "examples/marin-1b.yaml", "lr=1e-3:1e-2:1000000"], "at most 100000 values"),
        (["sweep", "examples/marin-1b.yaml", *_LARGE], "expected at most"),
        (["sweep", "examples/marin-1b.yaml"], "got"),
        (["sweep", "examples/marin-1b.yaml", "lr=,"], "got"),
    ],
)
def test_what_cannot_be_planned_is_told_at_once(arguments, told, capsys):
    with calls() as made:
        status, _, said = run(*arguments, capsys=capsys)
    assert status == 2
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert told in errors[0]
    assert len(errors[0]) < 320
    assert made.count < MOST_CALLS


def test_what_stands_in_where_the_base_does_not_say_is_told(forecaster):
    bare, said = forecaster.plan(flops=1e19), forecaster.plan(flops=1e19, base=BASE)
    assert any("no source is given: steplaw stands in" in note for note in bare.notes)
    assert any("no optimizer is given: adamw stands in" in note for note in bare.notes)
    assert not any("stands in" in note for note in said.notes)
    assert bare["loss"] == said["loss"]


def test_a_plan_warms_up_as_its_sources_runs_did(forecaster):
    runs = [
        {"model size": n, "data size": n / 50, "learning rate": 2e-3, "batch size": 128, "seq len": 2048,
         "optimizer": "adamw", "warmup": 500, "final_loss": 2 + 14 / n**0.4}
        for n in (50, 100, 200)
    ]  # fmt: skip
    lab = forecaster.adapt(runs, source="acme")
    for base, warmup in (({}, 500), ({"warmup": 2000}, 2000)):
        found = lab.plan(flops=4e19, base={"source": "acme", **base})
        assert found["warmup"] == warmup
        assert any("warmup (" in note for note in found.notes) == (warmup != 500)
        assert not any("in place of" in note for note in found.notes)
        # The runs' law does not read the learning rate, of which a usual one is then chosen.
        assert 5e-4 < found["learning rate"] < 1e-2


def test_a_warmup_too_long_for_the_run_is_cut_and_that_is_said(forecaster):
    found = forecaster.plan(flops=1e18, base={"source": "marin", "optimizer": "adamw", "warmup": 4000})
    assert found["warmup"] == found["max step"] // 20 < 4000
    assert f"warmup: {found['warmup']} steps, a twentieth of the run, in place of the 4000 given" in found.notes


def test_an_optimizer_that_no_run_had_is_told_where_it_is_compared(forecaster):
    found = forecaster.plan(flops=1e20, base=BASE, optimizers=["nobodys"])
    assert found.optimizers["optimizer"].tolist() == ["adamw", "nobodys"]
    assert any(note.startswith("optimizer: 'nobodys' is not among the fitted") for note in found.notes)


def test_a_target_that_every_run_reaches_is_said_to_be_one(forecaster):
    found = forecaster.plan(target_loss=9, base={"source": "steplaw", "optimizer": "adamw"})
    assert found["loss"] < 6
    assert any(note.startswith("target_loss: 9 is reached by every run") for note in found.notes)
    near = forecaster.plan(target_loss=2.5, base={"source": "steplaw", "optimizer": "adamw"})
    assert not any(note.startswith("target_loss") for note in near.notes)
