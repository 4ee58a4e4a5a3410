"""Every shipped config is found by listing the folder, so that a new one is tested unasked."""

from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_cl.cli import ContinualCLI
from lightning_cl.shipped import config_folder

FILES = sorted(path.relative_to(config_folder()).with_suffix("").as_posix() for path in config_folder().rglob("*.yaml"))
STREAMS = [name for name in FILES if name.startswith("streams/")]
FRAGMENTS = [name for name in FILES if name.startswith(("methods/", "trainer/", "tta/"))]
WHOLE = [name for name in FILES if "/" not in name]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What ``--print_config`` says of a command line."""
    with pytest.raises(SystemExit) as exit_:
        ContinualCLI(["fit", *arguments, "--print_config"])
    out, err = capsys.readouterr()
    assert exit_.value.code == 0, err
    return yaml.safe_load(out)


def options(*names: str) -> list[str]:
    return [argument for name in names for argument in ("--config", name)]


def keeps(found: Any, said: Any) -> bool:
    """Whether everything that is said is found, beside what is left out and gets its default."""
    if not isinstance(said, dict):
        return bool(found == said)
    return all(key == "class_path" or keeps(found[key], value) for key, value in said.items())


def test_configs_were_found_and_each_is_of_a_known_kind() -> None:
    assert len(STREAMS) >= 30
    assert len(FRAGMENTS) >= 4
    assert "quickstart" in WHOLE
    assert sorted(STREAMS + FRAGMENTS + WHOLE) == FILES


@pytest.mark.parametrize("name", FILES)
def test_first_line_says_what_it_is(name: str) -> None:
    first = (config_folder() / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) <= 120
    assert not first.endswith(".")


@pytest.mark.parametrize("name", [*WHOLE, *STREAMS])
def test_whole_configs_parse_and_keep_what_they_say(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = yaml.safe_load((config_folder() / f"{name}.yaml").read_text())
    found = printed(capsys, *options(name))
    for part in ("data", "model"):
        assert found[part]["class_path"].endswith(f".{said[part]['class_path']}")
        arguments = {key: value for key, value in said[part]["init_args"].items() if key != "optimizer"}
        assert keeps(found[part]["init_args"], arguments)


LONGER = max(len(STREAMS), len(FRAGMENTS))
PAIRS = [*zip(islice(cycle(STREAMS), LONGER), islice(cycle(FRAGMENTS), LONGER), strict=True)]
"""Each stream with a fragment and each fragment with a stream: all with all would be thousands."""


@pytest.mark.parametrize(("stream", "fragment"), [*PAIRS, *product(["streams/split_digits"], FRAGMENTS)])
def test_fragments_go_with_streams(stream: str, fragment: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = yaml.safe_load((config_folder() / f"{fragment}.yaml").read_text())
    found = printed(capsys, *options(stream, fragment))
    callbacks = [callback["class_path"].split(".")[-1] for callback in found["trainer"]["callbacks"] or ()]
    assert callbacks == [callback["class_path"] for callback in said.get("trainer", {}).get("callbacks+", ())]
    for key, value in said.get("data", {}).get("init_args", {}).items():
        assert found["data"]["init_args"][key] == value


def test_fragments_append_callbacks(capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, *options("quickstart", "methods/ewc"), "--trainer.max_epochs", "7")
    assert [callback["class_path"].split(".")[-1] for callback in found["trainer"]["callbacks"]] == ["Replay", "EWC"]
    assert found["trainer"]["max_epochs"] == 7


@pytest.mark.parametrize("name", STREAMS + WHOLE)
def test_objects_are_made(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli = ContinualCLI([*options(name), "--trainer.accelerator", "cpu", "--trainer.logger", "false"], run=False)
    assert cli.model(torch.zeros(2, *cli.datamodule.input_shape)).shape == (2, cli.datamodule.num_classes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["SplitDigits", "SplitFashionMNIST"])
def test_options_of_the_base_are_those_of_each_stream(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ContinualCLI(["fit", "--data.help", name])
    text = " ".join(capsys.readouterr().out.split())
    for option in ("num_experiences", "class_order", "batch_size", "eval_batch_size", "seed", "val_fraction", "mean"):
        assert f"--data.{option} " in text
    assert "held out for validation" in text  # the words of the base


def test_options_of_the_base_reach_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flip = "torchvision.transforms.v2.RandomVerticalFlip"
    changes = ["--data.val_fraction", "0.25", "--data.augment", flip, "--data.augment.p", "1.0"]
    cli = ContinualCLI([*options("quickstart"), "--trainer.logger", "false", *changes], run=False)
    assert cli.datamodule.val_fraction == 0.25
    x = torch.arange(4, dtype=torch.uint8).view(1, 1, 4, 1)
    plain, flipped = (cli.datamodule.transform_batch([x], augment=augment)[0] for augment in (False, True))
    assert torch.equal(flipped, plain.flip(2))
