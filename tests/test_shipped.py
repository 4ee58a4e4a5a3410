import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lightning_cl import shipped
from lightning_cl.shipped import config_folder, config_names, config_path, import_plugins, overview, plugins


def test_config_names_are_all_files_of_the_folder() -> None:
    files = [path for path in config_folder().glob("**/*") if path.suffix in (".yaml", ".yml")]
    assert len(files) == len(config_names()) > 5
    assert {f"{name}.yaml" for name in config_names()} == {str(path.relative_to(config_folder())) for path in files}
    assert {"quickstart", "methods/replay", "streams/split_fashion_mnist"} <= set(config_names())


@pytest.mark.parametrize("name", ["methods/ewc", "methods/ewc.yaml"])
def test_short_names_are_found_from_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_path(name) == config_folder() / "methods" / "ewc.yaml"


def test_own_files_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()  # a folder is no config
    assert config_path("quickstart") == config_folder() / "quickstart.yaml"
    (tmp_path / "quickstart.yaml").touch()
    assert config_path("quickstart.yaml") == Path("quickstart.yaml")


@pytest.mark.parametrize("name", ["methods/replai", "method/replay.yaml", "replay"])
def test_misspelt_config_names_the_nearest(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^`--config`: there is no file '{name}' .* mean 'methods/replay'"):
        config_path(name)


def test_plugins_are_found_by_their_entry_points() -> None:
    names = {package.__name__ for package in plugins()}
    assert {"lightning_cl.callbacks", "lightning_cl.datamodules", "lightning_cl.methods"} <= names
    import_plugins()
    for module in ("callbacks.replay.replay", "datamodules.split_digits", "methods.classifier"):
        assert f"lightning_cl.{module}" in sys.modules


def test_overview_names_configs_and_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = ModuleType("theirs")
    theirs.Method = type("Method", (), {})  # type: ignore[attr-defined]
    found = [*plugins(), theirs]
    monkeypatch.setattr(shipped, "plugins", lambda: found)
    lines = [line.split() for line in overview().splitlines() if line]
    comment = (config_folder() / "quickstart.yaml").read_text().splitlines()[0]
    assert ["quickstart", *comment.removeprefix("# ").split()] in lines
    assert sum(bool(line) and line[0] in config_names() for line in lines) == len(config_names())
    _, _, streams = overview().partition("  lightning_cl.datamodules ")  # over several lines
    assert {"SplitDigits", "SplitFashionMNIST"} < set(re.split(r"[\s,]+", streams))
    assert ["theirs", "Method"] in lines  # and nothing that begins with an underscore


def test_overview_needs_no_torch() -> None:
    """So that ``lightning-cl --help`` answers at once."""
    code = "import sys; from lightning_cl.shipped import overview; overview(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "lightning", "jsonargparse"} & set(loaded)
