"""Nothing of a training is lost, and nothing goes on silently with other weights, data or recipes."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from transformers import TrainerCallback

import run_train
from datasets_scripts import SAMPLE_DIR
from ncpl.training.checkpoints import checkpoints
from ncpl.training.output import LOCK, RECORD
from tests.trainings import ROOT, TINY, Died, Interrupt, launch, weights


def refused(capsys, arguments, message, status=2):
    """The command ends with one short line that holds the message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_train.main(arguments)
    error = capsys.readouterr().err.strip()
    assert caught.value.code == status
    assert message in error, error
    assert len(error.splitlines()) == 1
    assert len(error) < 450
    return error


def interrupted(arguments, stage="full", step=5):
    """A training that died with checkpoints at the steps before."""
    with suppress(Died):
        run_train.main(arguments, callbacks=[Interrupt(stage, step)])


def same(folder, other):
    ours, theirs = weights(folder), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


# ------------------------------------------------------------------------------------------------ the folder


def test_two_trainings_on_one_folder(tiny_recipe, tmp_path, capsys):
    """The second stops; the lock of a process that has died does not stop anyone."""
    arguments = tiny_recipe("out", stages__full="null")
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / LOCK):
        refused(capsys, arguments, "out is being trained by another process; wait until it ends, or give another")
    (tmp_path / "out" / LOCK).write_text("left by a process that died")
    run_train.main(arguments)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".training")]


def test_a_running_training_names_itself(tiny_recipe, capsys, tmp_path):
    arguments = tiny_recipe("out", stages__full__epochs=200)
    first = launch(arguments, "--cpu", "--num_processes", "1")
    try:
        while not (tmp_path / "out" / "recipe.yaml").exists() and first.poll() is None:
            time.sleep(0.05)
        assert "is being trained by process" in refused(capsys, arguments, "since 20")
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()


def test_a_mistake_before_the_first_checkpoint_holds_no_folder(tiny_recipe, tmp_path, capsys):
    """A wrong recipe or data that cannot be read; the mended one goes on in the same folder."""
    logs = tmp_path / "logs"
    shutil.copytree(SAMPLE_DIR, logs)
    file = logs / "steplaw_processed_data.json"
    whole = file.read_text()
    file.write_text("[]")
    refused(capsys, tiny_recipe("out", data__data_dir=logs), "steplaw")
    refused(capsys, tiny_recipe("out", data__data_dir=tmp_path / "elsewhere"), "elsewhere")
    file.write_text(whole)
    run_train.main(tiny_recipe("out", data__data_dir=logs, stages__full="null"))
    assert (tmp_path / "out" / "training_record.json").exists()


def test_a_cut_recipe_is_mended(tiny_recipe, trained, tmp_path):
    arguments = tiny_recipe("out")
    interrupted(arguments)
    file = tmp_path / "out" / "recipe.yaml"
    whole = file.read_bytes()
    for cut in (whole[:40], b""):
        file.write_bytes(cut)
        interrupted(arguments, step=6)
        assert file.read_bytes() == whole


def test_other_data_are_refused_at_resume(tiny_recipe, tmp_path, capsys):
    """All losses 0.3 higher than when the training began; and at a training that is finished."""
    logs = tmp_path / "logs"
    shutil.copytree(SAMPLE_DIR, logs)
    arguments = tiny_recipe("out", data__data_dir=logs, stages__full="null")
    interrupted(arguments, "frozen", 3)
    file = logs / "steplaw_processed_data.json"
    before = file.read_text()
    runs = json.loads(before)
    for run in runs:
        run["final_loss"] += 0.3
    file.write_text(json.dumps(runs))
    refused(capsys, arguments, "data: the runs of steplaw have changed since the training in")
    file.write_text(before)
    run_train.main(arguments)
    file.write_text(json.dumps(runs))
    refused(capsys, arguments, "data: the runs of steplaw have changed since the training in")


def test_a_finished_folder_without_its_weights_is_not_saved(tiny_recipe, trained, tmp_path, capsys):
    copy = tmp_path / "out"
    shutil.copytree(trained, copy)
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(capsys, tiny_recipe("out"), "holds a finished training, but model.safetensors is altered")
    file.unlink()
    refused(capsys, tiny_recipe("out"), "holds a finished training, but model.safetensors is missing")
    file.write_bytes(whole)
    run_train.main(tiny_recipe("out"))


@pytest.mark.parametrize("place", ["/dev/null/out", "/proc/out"])
def test_a_folder_that_cannot_be_written(tiny_recipe, capsys, place):
    refused(capsys, [*tiny_recipe()[:1], "--output_dir", place], "output_dir: ")


# ------------------------------------------------------------------------------------------------ checkpoints


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))


DAMAGES = {
    "cut weights": ("model.safetensors", lambda file: file.write_bytes(file.read_bytes()[:100])),
    "flipped bit": ("model.safetensors", flip),
    "flipped bit of the optimizer": ("optimizer.pt", flip),
    "no optimizer": ("optimizer.pt", lambda file: file.unlink()),
    "no scheduler": ("scheduler.pt", lambda file: file.unlink()),
    "no random state": ("rng_state.pth", lambda file: file.unlink()),
    "empty state": ("trainer_state.json", lambda file: file.write_text("[]")),
    "manifest of another kind": ("manifest.json", lambda file: file.write_text("[]")),
}


@pytest.fixture(scope="module")
def half_trained(tmp_path_factory):
    """The tiny training as it died in stage 2, to be copied."""
    folder = tmp_path_factory.mktemp("half")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    interrupted([str(folder / "tiny.yaml"), "--output_dir", str(folder / "out")])
    return folder / "out"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_passed_over(tiny_recipe, half_trained, trained, tmp_path, capsys, damage):
    """The newest whole one is resumed from, and it is said; the result is the unbroken training's."""
    shutil.copytree(half_trained, tmp_path / "out")
    stage = tmp_path / "out" / "stages" / "full"
    (stage / "checkpoint-old").mkdir()
    newest, older = checkpoints(stage)
    name, harm = DAMAGES[damage]
    harm(newest / name)
    run_train.main(tiny_recipe("out"))
    out = capsys.readouterr().out
    assert f"{newest.name}: {name} is " in out
    assert f"stage full: resumes from {older.name}" in out
    assert same(tmp_path / "out", trained)
    assert (stage / "checkpoint-old").exists()


def test_no_whole_checkpoint_starts_the_stage_anew(tiny_recipe, half_trained, trained, tmp_path, capsys):
    shutil.copytree(half_trained, tmp_path / "moved")
    for checkpoint in checkpoints(tmp_path / "moved" / "stages" / "full"):
        (checkpoint / "optimizer.pt").unlink()
    # A folder may move between two commands.
    run_train.main(tiny_recipe("moved"))
    assert "stage full: starts anew" in capsys.readouterr().out
    assert same(tmp_path / "moved", trained)


def test_a_damaged_first_stage_is_trained_again(tiny_recipe, half_trained, trained, tmp_path, capsys):
    shutil.copytree(half_trained, tmp_path / "out")
    flip(tmp_path / "out" / "stages" / "frozen" / "model" / "model.safetensors")
    run_train.main(tiny_recipe("out"))
    assert "model.safetensors is damaged; the stage frozen is trained again" in capsys.readouterr().out
    assert same(tmp_path / "out", trained)


# ------------------------------------------------------------------------------------------------ data and losses


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda run: run.update(final_loss=1e300), "final_loss is 1e+300, expected 0 to 100 nats per token"),
        (lambda run: run.update(final_loss=1e6), "final_loss is 1000000.0, expected 0 to 100 nats per token"),
        (lambda run: run["smoothed_loss"].__setitem__(0, 1e300), "expected 0 to 100 nats per token"),
        (lambda run: run["conf"].update({"model size": 1e-300}), "model size is 1e-300, expected 0.1 to 1e+07"),
        (lambda run: run["conf"].update({"learning rate": 1e300}), "learning rate is 1e+300, expected"),
    ],
)
def test_absurd_runs_are_named(tiny_recipe, tmp_path, capsys, harm, message):
    logs = tmp_path / "logs"
    shutil.copytree(SAMPLE_DIR, logs)
    file = logs / "steplaw_processed_data.json"
    runs = json.loads(file.read_text())
    train = json.loads((logs / "steplaw_keys_model_split.json").read_text())["train"]
    run = next(run for run in runs if run["name"] == train[0])
    harm(run)
    file.write_text(json.dumps(runs))
    arguments = tiny_recipe("out", data__data_dir=logs, data__config="intermediate")
    error = refused(capsys, arguments, message)
    assert f"run {run['name']!r}" in error
    assert "steplaw train" in error


class Poison(TrainerCallback):
    """An infinite weight before a step."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3:
            model.head.weight.data.fill_(float("inf"))


def test_a_loss_that_is_not_finite_stops_with_step_and_runs(tiny_recipe, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run_train.main(tiny_recipe("out", stages__full="null"), callbacks=[Poison()])
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert "step 4: loss or gradient norm is " in error
    assert "lies furthest from the prior in final_loss or curve" in error
    assert len(error.splitlines()) == 1
    # The checkpoints before are there still.
    assert checkpoints(tmp_path / "out" / "stages" / "frozen")[0].name == "checkpoint-3"


@pytest.mark.parametrize("rate", ["1e300", "11"])
def test_an_absurd_learning_rate_is_refused(tiny_recipe, capsys, rate):
    refused(capsys, tiny_recipe(stages__full__learning_rate=rate), "expected at most 10")


# ------------------------------------------------------------------------------------------------ stopping


def until(process, there):
    while process.poll() is None and not there():
        time.sleep(0.01)


# A training that gets a signal from the system at the end of its second stage's fourth step.
PRESSED = """
import os, sys
import run_train
from transformers import TrainerCallback

class Press(TrainerCallback):
    stage = 0
    def on_train_begin(self, args, state, control, **kwargs):
        self.stage += 1
    def on_step_end(self, args, state, control, **kwargs):
        if (self.stage, state.global_step) == (2, 4):
            os.kill(os.getpid(), int(sys.argv[1]))

run_train.main(sys.argv[2:], callbacks=[Press()])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tiny_recipe, trained, tmp_path, number):
    arguments = tiny_recipe("out")
    command = [sys.executable, "-c", PRESSED, str(int(number)), *arguments]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 128 + number, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line == "run_train.py: stopped in stage full after step 4 of 6; the same command resumes there", done.stderr
    assert checkpoints(tmp_path / "out" / "stages" / "full")[0].name == "checkpoint-4"
    run_train.main(arguments)
    assert same(tmp_path / "out", trained)


def test_a_full_disk_is_one_line(tiny_recipe, trained, tmp_path):
    """A limit on the size of files, which the system enforces as it does a full disk; then the same command ends."""
    arguments = tiny_recipe("out")
    command = [sys.executable, "run_train.py", *arguments]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    size = (Path(trained) / "model.safetensors").stat().st_size
    assert size < 60_000 < 2 * size
    done = subprocess.run(command, cwd=ROOT, env=env, preexec_fn=limit, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "could not be written" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    run_train.main(arguments)
    assert same(tmp_path / "out", trained)
    assert (tmp_path / "out" / RECORD).exists()
