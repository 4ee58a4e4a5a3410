"""What ships with the package and what others register: configs by short name, plugins by class name."""

import importlib
import pkgutil
import textwrap
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from types import ModuleType

from lightning_cl.spelling import nearest

GROUP = "lightning_cl.plugins"

USAGE = """\
usage: lightning-cl <command> [--config <name or file>] ... [--<option> <value>] ...

Continual learning with PyTorch Lightning: a stream of experiences, one after another, in one run.

commands:
  fit        learn a stream; --ckpt_path last goes on with a run that was interrupted
  test       measure a checkpoint on every experience of a stream
  validate   run the validation loop of the current experience
  predict    predict the test samples of a stream

  lightning-cl fit --config quickstart
  lightning-cl fit --config streams/split_fashion_mnist --config methods/replay --trainer.max_epochs 2
  lightning-cl fit --config streams/split_fashion_mnist --config methods/replay --ckpt_path last
  lightning-cl fit --config my_run.yaml --print_config

A later --config changes what an earlier one says; in a file, `callbacks+:` appends where `callbacks:` replaces.
`lightning-cl <command> --help` lists all options, `--model.help CLASS` and `--data.help CLASS` those of a class.
"""


def config_folder() -> Path:
    """The folder of the shipped configuration files."""
    return Path(str(files("lightning_cl.configs")))


def config_names() -> list[str]:
    """Short names of the shipped configuration files.

    Example:
        >>> "quickstart" in config_names(), "methods/replay" in config_names()
        (True, True)
    """
    folder = config_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def config_path(name: str) -> Path:
    """Find a configuration file: as a path, or by short name among the shipped ones.

    Raises:
        FileNotFoundError: If there is neither; names the nearest.

    Example:
        >>> config_path("methods/ewc").name
        'ewc.yaml'
    """
    if Path(name).is_file():
        return Path(name)
    short, names = name.removesuffix(".yaml"), config_names()
    if short in names:
        return config_folder() / f"{short}.yaml"
    raise FileNotFoundError(
        f"`--config`: there is no file {name!r} and no shipped config of that name. {nearest(short, names)}"
    )


def plugins() -> list[ModuleType]:
    """The packages in the entry-point group ``lightning_cl.plugins``: this project's and those of others."""
    return [entry_point.load() for entry_point in sorted(entry_points(group=GROUP), key=lambda e: e.value)]


def import_plugins() -> None:
    """Import every module of every plugin, so that its classes are known by their short names."""
    for package in plugins():
        for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"{package.__name__}."):
            importlib.import_module(module.name)


def overview() -> str:
    """The text of ``lightning-cl --help``."""
    folder = config_folder()
    lines = [USAGE, "configs that ship with the package:"]
    width = max(map(len, config_names()))
    for name in config_names():
        first = (folder / f"{name}.yaml").read_text().splitlines()[0]
        lines.append(f"  {name:<{width}} {first.lstrip('# ') if first.startswith('#') else ''}".rstrip())
    lines += ["", "classes by short name (class_path: <name>):"]
    for package in plugins():
        public = getattr(package, "__all__", None) or [name for name in dir(package) if name[0].isupper()]
        lines += textwrap.wrap(
            ", ".join(public), 100, initial_indent=f"  {package.__name__:<28} ", subsequent_indent=" " * 31
        )
    return "\n".join(lines)
