"""The command line: run folders, resuming, errors, logging."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_cl.checkpoint import RUN_STATE
from lightning_cl.cli import ContinualCLI, essence, resolve_configs
from tests.helpers.wandb_file import read

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
FAST = ["--trainer.max_epochs", "1", *QUIET]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("LIGHTNING_CL_RUN_DIR", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.delenv(name, raising=False)


def fit(*arguments: str) -> ContinualCLI:
    return ContinualCLI(["fit", "--config", "quickstart", *FAST, *arguments])


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lightning_cl", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def test_run_folders_are_numbered_resumed_and_never_overwritten() -> None:
    first = fit()
    assert first.result is not None
    assert first.result.run_dir == Path("runs/quickstart")
    summary = Path("runs/quickstart/summary.json").read_bytes()
    assert fit().result.run_dir == Path("runs/quickstart-2")  # type: ignore[union-attr]
    assert fit("--ckpt_path", "last").result.run_dir == Path("runs/quickstart-2")  # type: ignore[union-attr]
    # its own config names the folder
    again = ContinualCLI(["fit", "--config", "runs/quickstart/config.yaml", "--ckpt_path", "last"])
    assert again.result is not None
    assert again.result.run_dir == Path("runs/quickstart")
    assert Path("runs/quickstart/summary.json").read_bytes() == summary
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        fit("--run.dir", "runs/quickstart")


def test_a_checkpoint_in_the_middle_of_a_run_starts_another_one() -> None:
    fit("--run.keep_checkpoints", "all")
    branch = fit("--ckpt_path", "runs/quickstart/checkpoints/experience_1.ckpt")
    assert branch.result is not None
    assert branch.result.run_dir == Path("runs/quickstart-2")
    through, branched = (
        Path(f"runs/{name}/accuracy_matrix.csv").read_bytes() for name in ("quickstart", "quickstart-2")
    )
    assert through == branched


def test_last_without_a_checkpoint_starts_from_the_beginning() -> None:
    assert fit("--ckpt_path", "last").result.run_dir == Path("runs/quickstart")  # type: ignore[union-attr]


def test_config_is_saved_once_and_reproduces_the_run() -> None:
    fit("--seed_everything", "3", "--run.keep_checkpoints", "all")
    saved = yaml.safe_load(Path("runs/quickstart/config.yaml").read_text())
    assert saved["seed_everything"] == 3
    assert saved["data"]["init_args"]["num_experiences"] == 5
    assert saved["trainer"]["callbacks"][0]["init_args"]["capacity"] == 100
    for more in ([], ["--trainer.log_every_n_steps", "7"]):
        for checkpoint in Path("runs/quickstart/checkpoints").glob("*[!2].ckpt"):
            checkpoint.unlink()
        fit("--seed_everything", "3", "--run.keep_checkpoints", "all", "--ckpt_path", "last", *more)
    assert sorted(path.name for path in Path("runs/quickstart").glob("*.yaml")) == ["config.yaml", "config_1.yaml"]


def test_method_configs_append_and_seeds_reach_the_stream() -> None:
    configs = ["--config", "streams/split_digits", "--config", "methods/replay", "--config", "methods/ewc"]
    cli = ContinualCLI(["fit", *configs, *FAST, "--seed_everything", "11", "--trainer.limit_train_batches", "1"])
    kinds = [type(callback).__name__ for callback in cli.trainer.callbacks]  # type: ignore[attr-defined]
    assert kinds[:2] == ["Replay", "EWC"]
    assert cli.datamodule.seed == 11
    assert cli.result is not None
    assert cli.result.run_dir == Path("runs/split_digits-replay-ewc")


def test_joint_training_beats_fine_tuning() -> None:
    accuracies = [
        ContinualCLI(
            ["fit", *FAST, "--config", "streams/split_digits", "--config", f"methods/{name}"]
        ).result.average_accuracy  # type: ignore[union-attr]
        for name in ("joint", "fine_tuning")
    ]
    assert accuracies[0] > 0.6 > 0.3 > accuracies[1]


def test_test_measures_each_experience(capsys: pytest.CaptureFixture[str]) -> None:
    result = fit().result
    ContinualCLI(["test", "--config", "quickstart", *QUIET, "--ckpt_path", "runs/quickstart/last.ckpt"])
    assert result is not None
    printed = capsys.readouterr().out
    assert f"{100 * result.average_accuracy:.1f}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trainer.maxepochs", "3"], "no option `trainer.maxepochs`. Did you mean 'trainer.max_epochs'"),
        (
            ["--data.init_args.batchsize", "3"],
            "`data`: SplitDigits has no argument `batchsize`. Did you mean",
        ),
        (["--data", "SplitDigts"], "`data`: There is no class 'SplitDigts'. Did you mean 'SplitDigits'"),
        (
            ["--trainer.callbacks+=EWC", "--trainer.callbacks.strenght=1"],
            "EWC has no argument `strenght`. Did you mean",
        ),
    ],
)
def test_a_misspelling_is_named_with_what_comes_nearest(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        fit(*arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_misspelt_key_in_a_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text("trainer:\n  max_epocs: 3\n")
    with pytest.raises(SystemExit):
        fit("--config", "mine.yaml")
    assert "no option `trainer.max_epocs`. Did you mean 'trainer.max_epochs'" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="Did you mean 'quickstart'"):
        ContinualCLI(["fit", "--config", "quikstart"])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("data.class_order", "abc", "`data.class_order` must be int or list[int], got abc."),
        ("data.mean", "0.5", "`data.mean` must be list[float], got 0.5."),
        ("data.blurry", "much", "`data.blurry` must be one of ['stochastic', 'fixed', 'i-blurry'], got much."),
        ("data.convention", "other", "`data.convention` must be one of ['pycil', 'facil', 'mammoth'], got other."),
        ("data.num_workers", "x", "`data.num_workers` must be int, got x."),
        ("data.augment", "CropFlip", "There is no class 'CropFlip'. Did you mean 'lightning_cl.augment.CropFlip'?"),
        ("data.revisit", "PowerLow", "There is no class 'PowerLow'. Did you mean 'lightning_cl.revisit.PowerLaw'"),
    ],
)
def test_a_value_of_another_type_is_named(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ContinualCLI(["fit", "--config", "streams/split_digits", f"--{option}", value])
    assert message in capsys.readouterr().err


def test_a_bad_value_ends_the_command_with_its_sentence() -> None:
    for arguments, message in (
        (["--data.shots", "0"], "`shots` must be 1 or more, got 0."),
        (["--trainer.callbacks+=EWC", "--trainer.callbacks.strength=-1"], "`strength` must be 0 or more, got -1.0."),
    ):
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            fit(*arguments)
        assert essence(str(raised.value)) == message


def test_resolve_configs_leaves_other_arguments_alone() -> None:
    arguments, names = resolve_configs(["fit", "-c", "methods/ewc", "--config=streams/split_digits", "--a", "config"])
    assert names == ["ewc", "split_digits"]
    assert arguments[2].endswith("ewc.yaml")
    assert arguments[3].startswith("--config=")
    assert (arguments[0], arguments[4:]) == ("fit", ["--a", "config"])


def test_help_comes_without_importing_torch() -> None:
    code = "import sys; sys.argv = ['lightning-cl', '--help']; from lightning_cl.__main__ import main; main()"
    code += "; assert not {'torch', 'lightning', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "methods/replay" in done.stdout
    assert {"AnytimeAccuracy", "EWC", "GPM", "Replay", "Classifier"} <= set(re.split(r"[\s,]+", done.stdout))


@pytest.mark.slow
def test_command_says_what_is_wrong_without_a_traceback() -> None:
    done = command("fit", "--config", "quickstart", "--ckpt_path", "nowhere.ckpt")
    assert done.returncode == 1
    assert "there is no checkpoint 'nowhere.ckpt'" in done.stderr
    assert "Traceback" not in done.stderr
    shown = command("fit", "--config", "quickstart", "--print_config").stdout
    assert yaml.safe_load(shown)["model"]["class_path"] == "lightning_cl.methods.Classifier"
    assert "run.keep_checkpoints" in command("fit", "--help").stdout


@pytest.mark.slow
def test_wandb_offline_holds_scalars_matrix_and_config_and_is_one_run() -> None:
    wandb = ["--trainer.logger", "WandbLogger", "--trainer.logger.project", "p", "--config", "quickstart"]
    for more in ([], ["--ckpt_path", "last"]):
        done = command("fit", *wandb, *FAST, *more, WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr[-3000:]
    files = sorted(Path("wandb").glob("offline-run-*/*.wandb"))
    config, history, run_id = read(files[0])
    assert [path.name for path in files] == [f"run-{run_id}.wandb"] * 2  # the id is in the checkpoint
    summary = json.loads(Path("runs/quickstart/summary.json").read_text())
    assert history["average_accuracy"] == summary["average_accuracy"]
    assert history["accuracy_matrix/_type"].startswith("image")
    assert config["data"]["class_path"] == "lightning_cl.datamodules.SplitDigits"


@pytest.mark.slow
def test_two_processes_on_one_cpu() -> None:
    done = command("fit", "--config", "quickstart", *FAST, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in Path("runs").iterdir()) == ["quickstart"]
    state = torch.load("runs/quickstart/last.ckpt", weights_only=True)["callbacks"][RUN_STATE]
    assert state["world_size"] == len(state["ranks"]) == 2
    assert state["total"][4].tolist() == [test for _, _, test in state["shape"]["sizes"]]  # every sample once
