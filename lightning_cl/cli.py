"""``lightning-cl``: LightningCLI, with streams for data, run folders, and configs found by short name."""

import importlib
import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

from lightning_cl.checkpoint import CheckpointError, find_last
from lightning_cl.logger import RunLogger
from lightning_cl.report import print_accuracies, print_report, write_atomic
from lightning_cl.run import StreamResult, evaluate_stream, fit_stream, holds_a_run
from lightning_cl.shipped import config_path, import_plugins, plugins
from lightning_cl.spelling import nearest
from lightning_cl.stream import StreamDataModule

RUN_DIR = "LIGHTNING_CL_RUN_DIR"
"""Environment variable by which the first process tells those that it starts the folder of the run."""


OTHERS = {
    "CropFlip": "augment",
    **dict.fromkeys(["PowerLaw", "Uniform", "Exponential", "RisingPower"], "revisit"),
}
"""Classes for arguments of streams, which have no short name: a part of :mod:`lightning_cl` for each."""


class ContinualParser(LightningArgumentParser):
    """A parser that says what is wrong in a line or two and names what comes nearest to a misspelt key or class."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> Any:
        if not self.exit_on_error:
            return super().error(message, ex)  # a parser within: the outermost one speaks
        if match := re.search(r"(?i:does not accept option '|unrecognized arguments: --)([\w.]+)", message):
            message = f"There is no option `{match[1]}`. {nearest(match[1], self._keys())}"
        print(f"lightning-cl: {essence(message)}\n(`{self.prog} --help` lists all options.)", file=sys.stderr)
        sys.exit(2)

    def _keys(self) -> list[str]:
        """The options of this parser, or of its first subcommand."""
        for action in self._actions:
            if isinstance(action.choices, dict) and action.choices:
                return list(next(iter(action.choices.values())).get_defaults().keys())
        return list(self.get_defaults().keys())


def essence(message: str) -> str:
    """Reduce jsonargparse's account of every type that it tried to the sentence that helps."""
    key = re.search(r'Parser key "([\w.]+)"', message)
    if mistyped := _mistyped(message):
        return mistyped
    bullets = re.findall(r"^ *- (.+?)(?=^ *- |^ *Given value|\Z)", message, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r" Got value: Namespace\(.*", "", " ".join(bullet.split())) for bullet in bullets]
    lines = [re.sub(r"^Problem with given class_path '[\w.]+': Parser key \"\w+\": ?", "", line) for line in lines]
    tried = r"NoneType|'lightning\.Callback'|not accessible|^Not a valid subclass|^a class path|^a dict with"
    lines = [line for line in lines if line and not re.search(tried, line)]
    said = " ".join(dict.fromkeys(map(_with_hint, lines))) if lines else message
    return f"`{key[1]}`: {said}" if key and lines else said


def _mistyped(message: str) -> str:
    """What to give instead of a value that is of none of an argument's types; empty if that is not what happened."""
    inner = message[max(message.rfind('Parser key "'), 0) :]
    kind = r"<class '[\w.]+'>|typing\.Literal\[.*\]|collections\.abc\.\S+"
    if single := re.search(rf"Expected a ({kind})\. Got value: (.*)", inner):
        types, value = single.groups()
    else:
        errors = re.findall(r"^ *- (.*)", inner.partition("Given value")[0], re.MULTILINE)
        several = re.search(r"Subtypes: \[(.*)\](?s:.*?)Given value: (.*)", inner)
        if not (several and errors and all(re.match(rf"Expected a ({kind})", error) for error in errors)):
            return ""
        types, value = several.groups()
    known = r"<class '(\w+)'>|collections\.abc\.Sequence\[<?(?:class )?'?(\w+)'?>?\]|typing\.Literal(\[[^\]]*\])"
    found = re.findall(known, types)
    key = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message)))
    if not key or re.sub(known, "", types).strip(", "):
        return ""  # of a class: its arguments are the matter
    words = [name for name, _, _ in found if name not in ("", "NoneType")]
    words += [f"list[{item}]" for _, item, _ in found if item] + [
        f"one of {choices}" for _, _, choices in found if choices
    ]
    return f"`{key}` must be {' or '.join(words)}, got {value.partition('. Got value: ')[0]}."


def _with_hint(line: str) -> str:
    """Add the nearest names to an error about an unknown argument or class."""
    if match := re.search(r"class_path '([\w.]+)': Option '([\w.]+)' is not accepted", line):
        module, _, name = match[1].rpartition(".")
        parser = LightningArgumentParser()
        parser.add_class_arguments(getattr(importlib.import_module(module), name))
        return f"{name} has no argument `{match[2]}`. {nearest(match[2], list(parser.get_defaults().keys()))}"
    if match := re.search(r"Expected a dot import path string: (\S+)", line):
        names = [name for package in plugins() for name in dir(package) if name[0].isupper()]
        hint = nearest(match[1], [*names, *OTHERS])
        for name, module in OTHERS.items():
            hint = hint.replace(f"'{name}'", f"'lightning_cl.{module}.{name}'")
        return f"There is no class {match[1]!r}. {hint}"
    return line


class RunConfigCallback(SaveConfigCallback):
    """Write ``config.yaml`` to the run folder and the config to the loggers; never over that of an earlier start."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.already_saved or stage != "fit" or not trainer.is_global_zero:
            return
        self.already_saved = True
        logger = trainer.loggers[0] if trainer.loggers else None
        if not isinstance(logger, RunLogger):
            return
        config = self.config.clone()
        config["run.dir"] = str(logger.run_dir)
        config["ckpt_path"] = None
        text = self.parser.dump(config, skip_none=False)
        path = logger.run_dir / "config.yaml"
        versions = sorted(logger.run_dir.glob("config*.yaml"))
        if not any(version.read_text() == text for version in versions):  # resumed with other options: keep both
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path if not versions else path.with_name(f"config_{len(versions)}.yaml"), text)
        for other in trainer.loggers[1:]:
            other.log_hyperparams({key: value for key, value in config.as_dict().items() if key != "config"})


class ContinualCLI(LightningCLI):
    """LightningCLI for streams: ``fit`` learns a stream in a run folder, ``test`` measures every experience of it.

    Args:
        args: Command line as a list; ``None`` takes that of the process.
        run: Run the subcommand; off, the objects are made only.
    """

    def __init__(self, args: list[str] | None = None, run: bool = True) -> None:
        import_plugins()
        for package in ("fabric", "pytorch"):
            logging.getLogger(f"lightning.{package}.utilities.rank_zero").addFilter(_is_news)
        arguments, self.config_names = resolve_configs(sys.argv[1:] if args is None else args)
        self.result: StreamResult | None = None
        self._preparing = ""
        super().__init__(
            LightningModule,
            StreamDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=ContinualParser,
            parser_kwargs={"prog": "lightning-cl"},
            save_config_callback=RunConfigCallback,
            seed_everything_default=0,
            trainer_defaults={"max_epochs": 1, "num_sanity_val_steps": 0},
            auto_configure_optimizers=False,
            args=arguments,
            run=run,
        )

    @classmethod
    def run_command(cls) -> None:
        """Run the command line of this process; what a user can put right is said in one sentence."""
        try:
            cls()
        except SIGTERMException:
            sys.exit(143)
        except (CheckpointError, FileExistsError, FileNotFoundError, ValueError, TypeError) as error:
            if "LIGHTNING_CL_TRACEBACK" in os.environ:
                raise
            print(f"lightning-cl: {essence(str(error))}\n(LIGHTNING_CL_TRACEBACK=1 shows where.)", file=sys.stderr)
            sys.exit(1)

    # -- the parser -------------------------------------------------------------------------------------------------

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        loaders = {"model", "dataloaders", "datamodule", "weights_only"}
        return {
            "fit": loaders | {"train_dataloaders", "val_dataloaders"},
            "test": loaders | {"verbose"},
            "validate": loaders,
            "predict": loaders,
        }

    @override
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        self._preparing = subcommand
        return super()._prepare_subcommand_parser(klass, subcommand, **kwargs)

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name in ("num_classes", "input_shape"):
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        if self._preparing == "fit":
            parser.add_argument(
                "--run.dir",
                type=str | None,
                default=None,
                help="Folder of the run. By default runs/<names of the configs>, with a number if that is taken.",
            )
            parser.add_function_arguments(fit_stream, "run", skip={"trainer", "model", "stream", "ckpt_path"})

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    @override
    def _parse_ckpt_path(self) -> None:
        """Let the config and the command line decide, not the hyper-parameters in a checkpoint."""

    # -- the run folder ---------------------------------------------------------------------------------------------

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.subcommand] if self.subcommand else self.config_init
        logger = config["trainer"]["logger"]
        loggers = [] if logger in (None, True, False) else logger if isinstance(logger, list) else [logger]
        if self.subcommand == "fit" and logger is not False:
            loggers = [RunLogger(self._run_dir()), *loggers]
        return super().instantiate_trainer(logger=loggers or False, **kwargs)

    def _run_dir(self) -> Path:
        """The folder that was asked for, that of the checkpoint, or the next free one by the names of the configs."""
        config = self.config_init["fit"]
        ckpt_path, given = config["ckpt_path"], config["run"]["dir"]
        if "LOCAL_RANK" in os.environ and RUN_DIR in os.environ:
            return Path(os.environ[RUN_DIR])
        stream = type(config["data"]).__name__
        folder = Path(given) if given else Path("runs", "-".join(self.config_names) or stream)
        if not given and ckpt_path not in (None, "last"):
            own = Path(ckpt_path).resolve().parent
            own = own.parent if own.name == "checkpoints" else own
            if find_last([own / "checkpoints"]) == Path(ckpt_path).resolve():
                folder = given = own
        if not given:
            taken = [path for path in _numbered(folder) if holds_a_run(path) or (path / "config.yaml").exists()]
            if ckpt_path == "last":
                folder = taken[-1] if taken else folder
            elif taken:
                folder = _number(folder, len(_numbered(folder)) + 1)
        if not getattr(rank_zero_only, "rank", 0):
            os.environ[RUN_DIR] = str(folder)
        return folder

    # -- the subcommands --------------------------------------------------------------------------------------------

    def fit(
        self, model: LightningModule, datamodule: StreamDataModule | None = None, ckpt_path: str | None = None
    ) -> None:
        """Learn the stream."""
        datamodule = _given(datamodule)
        options = {key: value for key, value in self.config_init["fit"]["run"].items() if key != "dir"}
        self.result = fit_stream(self.trainer, model, datamodule, ckpt_path, **options)
        if self.trainer.is_global_zero and self.trainer.progress_bar_callback is None:  # else it is printed there
            print_report(self.result.accuracy_matrix, self.result.summary, self.result.run_dir)

    def test(
        self, model: LightningModule, datamodule: StreamDataModule | None = None, ckpt_path: str | None = None
    ) -> None:
        """Measure a checkpoint on every experience of the stream."""
        stream = _given(datamodule)
        with warnings.catch_warnings():  # a checkpoint is only read: where further ones would go is of no interest
            warnings.filterwarnings("ignore", "The dirpath has changed from")
            accuracies = evaluate_stream(self.trainer, model, stream, ckpt_path)
        if self.trainer.is_global_zero:
            print_accuracies(accuracies, [stream.name_of(j) for j in range(len(stream))])


def resolve_configs(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Replace short names behind ``--config`` by paths; also return the names without their folders.

    Example:
        >>> resolve_configs(["fit", "--config", "methods/replay", "--trainer.max_epochs", "2"])[1]
        ['replay']
    """
    resolved, names, expected = [], [], False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if expected:
            flag, value = "", argument
        if expected or (flag in ("--config", "-c") and equals):
            path = config_path(value)
            names.append(path.stem)
            argument = f"{flag}{equals if flag else ''}{path}"
            expected = False
        else:
            expected = argument in ("--config", "-c")
        resolved.append(argument)
    return resolved, names


def _given(datamodule: StreamDataModule | None) -> StreamDataModule:
    if datamodule is None:
        raise ValueError(
            "`--data` is missing: give a stream, e.g. `--config streams/split_digits` or `--data SplitDigits`."
        )
    return datamodule


def _is_news(record: logging.LogRecord) -> bool:
    """Advertisements and the list of devices that are not there are none."""
    return not record.getMessage().startswith(("\U0001f4a1", "TPU available", "GPU available: False", "Seed set to"))


def _number(folder: Path, number: int) -> Path:
    return folder if number == 1 else folder.with_name(f"{folder.name}-{number}")


def _numbered(folder: Path) -> list[Path]:
    """The folder and its numbered siblings, as far as they exist without a gap."""
    found: list[Path] = []
    while (path := _number(folder, len(found) + 1)).exists():
        found.append(path)
    return found
