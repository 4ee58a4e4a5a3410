"""The base of every method that is a callback: the five ways to touch a training that is not ours."""

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.func import functional_call
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from lightning_cl.forwards import OUTPUT, Forward, Forwards, scores_in
from lightning_cl.importance import Estimator
from lightning_cl.stream import Competing, StreamDataModule
from lightning_cl.utilities import at_least_float32, isolated_rng

Unpack = Callable[[Any], tuple[Tensor, Tensor]]

INPUT_KEYS = ("x", "input", "inputs", "image", "images", "pixel_values")
TARGET_KEYS = ("y", "target", "targets", "label", "labels")
SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


class ContinualCallback(Callback):
    """A callback that works on any LightningModule and any Trainer, alone or among others of its kind.

    A method overrides what it needs of:

    ============================ ======================================================================================
    gradient                     Lightning's own ``on_before_optimizer_step``: unscaled, reduced over ranks, once per
                                 optimizer step, before clipping
    loss                         :meth:`extra_loss`: added to the loss that ``training_step`` returns
    batch                        Lightning's own ``on_train_batch_start``, with :func:`replace_columns`
    weights                      :meth:`after_optimizer_step`: after each true step, not after one the scaler skipped
    test time                    ``adapts_at_test_time = True``: gradients can be enabled in test and predict loops
    ============================ ======================================================================================

    and of :meth:`check` (before training), :meth:`start` (before the first batch of a fit) and :meth:`consolidate`
    (at the end of each experience). What training changes belongs into ``state_dict``, as tensors, numbers and strings.

    Two callbacks of one kind may stand in one trainer if their arguments differ.
    """

    adapts_at_test_time: ClassVar[bool] = False
    needs_whole_parameters: ClassVar[bool] = False
    """Whether it reads or writes weights or gradients, of which every process must then hold the whole."""

    def __init__(self) -> None:
        self._first_epoch: int | None = None
        self._step_hooks: list[Any] = []
        self._with_inference_mode: list[Any] = []
        self._state_key: str | None = None  # made once per fit or test: Lightning asks for it at every hook

    # -- what a method overrides ----------------------------------------------------------------------------------

    def check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise an error that names the argument to change if the callback cannot serve this trainer and module."""

    def start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare for training; also called when a fit goes on from a checkpoint, whose state arrives on the CPU."""

    def consolidate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what the method does at the end of an experience: the module is on its device in its final state."""

    def extra_loss(self, trainer: Trainer, pl_module: LightningModule, batch: Any, outputs: Any) -> Tensor | None:
        """Return a scalar that is added to the loss of each batch; ``outputs`` is what ``training_step`` returned.

        ``None`` adds nothing.

        Runs inside the forward of DDP and under the trainer's precision. Unlike the loss in ``outputs`` it is not
        divided by anything: Lightning divides the sum by ``accumulate_grad_batches``.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `extra_loss`.")

    def after_optimizer_step(self, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Change weights after each step that the optimizer truly made."""
        raise NotImplementedError(f"{type(self).__name__} has no `after_optimizer_step`.")

    # -- what a method may ask --------------------------------------------------------------------------------------

    def watch(self, trainer: Trainer, pl_module: LightningModule, place: str = OUTPUT) -> None:
        """Keep what is computed at a place while ``training_step`` runs; called in :meth:`start`.

        Places are those of :func:`lightning_cl.forwards.values_at`.
        """
        _LossTerms.install(trainer, pl_module).forwards.watch(place)

    def forward_of(self, pl_module: LightningModule, x: Tensor) -> Forward:
        """Return the forward that ``training_step`` made of the inputs ``x``; called in :meth:`extra_loss`.

        It is the only one with gradients, or if there were several the last that got ``x`` itself. What it does not
        hold, as ``training_step`` called parts of the module and not the module, costs one more forward when asked for.
        """
        return _LossTerms.of(pl_module).forwards.of(x)

    def forwards_in(self, pl_module: LightningModule) -> Forwards:
        """What listens to ``training_step``, after :meth:`watch`: inputs may join its forward, scores be changed."""
        return _LossTerms.of(pl_module).forwards

    def scores(self, pl_module: LightningModule, x: Tensor, outputs: Any) -> Tensor:
        """Return the scores ``(B, C)`` of a batch, with their graph; called in :meth:`extra_loss` after :meth:`watch`.

        They are ``outputs["logits"]`` if ``training_step`` returns a dict with it, else those of :meth:`forward_of`.
        """
        if isinstance(outputs, Mapping) and "logits" in outputs:
            return scores_in(outputs)
        return scores_in(self.forward_of(pl_module, x)[OUTPUT])

    def epoch_of_experience(self, trainer: Trainer) -> int:
        """The epoch counted from the start of the current experience, also after a resume."""
        assert self._first_epoch is not None
        return trainer.current_epoch - self._first_epoch

    def logged_as(self, trainer: Trainer) -> str:
        """The name of the class, with a number from the second one of it in the trainer on."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        index = [callback for callback in callbacks if type(callback) is type(self)].index(self)
        return type(self).__name__ + (f"_{index + 1}" if index else "")

    # -- how it is wired --------------------------------------------------------------------------------------------

    def _has(self, method: str) -> bool:
        return getattr(type(self), method) is not getattr(ContinualCallback, method)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._state_key = self._generate_state_key(**self.arguments)
        if stage == "fit":
            self._first_epoch = None  # an earlier fit may have failed; a resumed one has its state loaded after this
            if self._has("extra_loss") and not pl_module.automatic_optimization:
                raise ValueError(
                    f"{type(self).__name__} adds to the loss that `training_step` returns, which is not used with "
                    "`automatic_optimization=False`: let Lightning optimize the module, or leave the callback out."
                )
        if self.needs_whole_parameters and isinstance(trainer.strategy, SHARDED):
            raise ValueError(
                f"{type(self).__name__} needs whole parameters in every process, of which "
                f"{type(trainer.strategy).__name__} gives each a part: set `strategy` to 'ddp'."
            )
        if stage == "fit" or self.adapts_at_test_time:
            self.check(trainer, pl_module)
        if self.adapts_at_test_time:
            for loop in (trainer.test_loop, trainer.predict_loop):
                if loop.inference_mode:
                    loop.inference_mode = False
                    self._with_inference_mode.append(loop)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._first_epoch is None:
            self._first_epoch = trainer.current_epoch
        if self._has("on_before_optimizer_step"):
            self._check_unscaled(trainer)
        if self._has("extra_loss"):
            _LossTerms.install(trainer, pl_module)
        if self._has("after_optimizer_step"):
            for optimizer in trainer.optimizers:
                self._step_hooks.append(
                    optimizer.register_step_post_hook(lambda opt, *_: self._after_step(pl_module, opt))
                )
        self.start(trainer, pl_module)

    def _check_unscaled(self, trainer: Trainer) -> None:
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled and any(getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in trainer.optimizers):
            raise ValueError(
                f"{type(self).__name__} changes gradients, which a fused optimizer keeps scaled until its step in "
                "'16-mixed' precision: make the optimizer with `fused=False`, or train with `precision='bf16-mixed'`."
            )

    def _after_step(self, pl_module: LightningModule, optimizer: Optimizer) -> None:
        # A fused optimizer is always called and skips inside; it has this attribute while a GradScaler calls it.
        skipped = getattr(optimizer, "found_inf", None)
        if skipped is None or not skipped:
            self.after_optimizer_step(pl_module, optimizer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with isolated_rng():  # iterating any loader draws from the global generator
            self.consolidate(trainer, pl_module)
        self._first_epoch = None

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release(pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release(pl_module)

    def _release(self, pl_module: LightningModule) -> None:
        self._state_key = None
        _LossTerms.remove(pl_module)
        while self._step_hooks:
            self._step_hooks.pop().remove()
        while self._with_inference_mode:
            self._with_inference_mode.pop().inference_mode = True

    @property
    def arguments(self) -> dict[str, str]:
        """What the callback was made with, as text."""
        values = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        texts = {name: getattr(value, "__qualname__", None) or repr(value) for name, value in values.items()}
        return {name: re.sub(" at 0x[0-9a-f]+", "", text) for name, text in texts.items()}  # equal in the next process

    @property
    @override
    def state_key(self) -> str:
        return self._state_key or self._generate_state_key(**self.arguments)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"first_epoch": self._first_epoch}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first_epoch = state_dict["first_epoch"]


class _LossTerms:
    """Stands in for ``training_step`` during a fit and adds the ``extra_loss`` of every callback that has one."""

    def __init__(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trainer = trainer
        self.pl_module = pl_module
        self.training_step = pl_module.training_step  # the class's method, or what torch.compile made of it
        self.was_compiled = "training_step" in vars(pl_module)
        self.__wrapped__ = getattr(
            self.training_step, "__wrapped__", self.training_step
        )  # Lightning reads its signature
        self.forwards = Forwards(pl_module)

    @classmethod
    def install(cls, trainer: Trainer, pl_module: LightningModule) -> "_LossTerms":
        if not isinstance(vars(pl_module).get("training_step"), cls):
            pl_module.training_step = cls(trainer, pl_module)  # type: ignore[method-assign]
        return cls.of(pl_module)

    @staticmethod
    def of(pl_module: LightningModule) -> "_LossTerms":
        installed = vars(pl_module)["training_step"]
        assert isinstance(installed, _LossTerms)
        return installed

    @classmethod
    def remove(cls, pl_module: LightningModule) -> None:
        installed = vars(pl_module).get("training_step")
        if isinstance(installed, cls):
            installed.forwards.release()
            del pl_module.training_step
            if installed.was_compiled:
                pl_module.training_step = installed.training_step  # type: ignore[method-assign]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self.forwards.during(lambda: self.training_step(*args, **kwargs))
        if outputs is None:
            self.forwards.forget()
            return None
        batch = kwargs["batch"] if "batch" in kwargs else args[0]
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ContinualCallback) and callback._has("extra_loss"):
                extra = callback.extra_loss(self.trainer, self.pl_module, batch, outputs)
                loss = loss if extra is None else loss + extra
        self.forwards.forget()  # the graph is the loss's to keep
        return {**outputs, "loss": loss} if isinstance(outputs, Mapping) else loss


# -- batches -----------------------------------------------------------------------------------------------------------


def unpack_batch(batch: Any) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of a batch ``(x, y)``, ``(x, y, task)`` or a dict with the usual keys.

    Raises:
        TypeError: If the batch is of another form.

    Example:
        >>> unpack_batch({"image": torch.ones(2), "label": torch.zeros(2)})
        (tensor([1., 1.]), tensor([0., 0.]))
    """
    if isinstance(batch, list | tuple) and len(batch) >= 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        x = next((batch[key] for key in INPUT_KEYS if key in batch), None)
        y = next((batch[key] for key in TARGET_KEYS if key in batch), None)
        if x is not None and y is not None:
            return x, y
    form = f"a dict with the keys {list(batch)}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
    raise TypeError(
        f"A batch must be (x, y), (x, y, task) or a dict with inputs under one of {INPUT_KEYS} and labels under one of "
        f"{TARGET_KEYS}, got {form}: pass `unpack`, a function from your batch to (x, y), or change your `collate_fn`."
    )


def columns_of(batch: Any, owner: str) -> dict[str, Tensor]:
    """Return the tensors of a batch that can be changed in place, by name or position.

    Args:
        batch: A list or dict of tensors.
        owner: Who asks, for the error.

    Raises:
        TypeError: If the batch is a tuple, or holds something that is not a tensor with a first dimension.
    """
    if isinstance(batch, tuple):
        raise TypeError(
            f"{owner} changes the batch in place, which a tuple does not allow: let the `collate_fn` of your data "
            "loader return a list or a dict (torch's default_collate does, for samples that are tuples)."
        )
    items: Iterable[tuple[Any, Any]]
    if isinstance(batch, list):
        items = enumerate(batch)
    elif isinstance(batch, MutableMapping):
        items = batch.items()
    else:
        raise TypeError(f"{owner} needs a batch that is a list or a dict of tensors, got a {type(batch).__name__}.")
    columns = {str(key): value for key, value in items}
    for key, value in columns.items():
        if not isinstance(value, Tensor) or value.ndim == 0:
            raise TypeError(
                f"{owner} needs a tensor with one row per sample in each column of the batch, got a "
                f"{type(value).__name__} in column {key}: leave it out in your `collate_fn`."
            )
    return columns


def replace_columns(batch: Any, columns: Mapping[str, Tensor]) -> None:
    """Put ``columns`` (as named by :func:`columns_of`) into the batch that ``training_step`` will get.

    Example:
        >>> batch = [torch.zeros(1), torch.ones(1)]
        >>> replace_columns(batch, {"0": torch.zeros(2)})
        >>> batch
        [tensor([0., 0.]), tensor([1.])]
    """
    keys = range(len(batch)) if isinstance(batch, list) else list(batch)
    for key in keys:
        if str(key) in columns:
            batch[key] = columns[str(key)]


def prepared(trainer: Trainer, columns: Mapping[str, Tensor], augment: bool = True) -> dict[str, Tensor]:
    """Turn stored samples into what ``training_step`` gets: on the device, augmented afresh if so, normalised."""
    moved = {name: column.to(trainer.strategy.root_device, non_blocking=True) for name, column in columns.items()}
    stream = getattr(trainer, "datamodule", None)
    if not isinstance(stream, StreamDataModule):
        return moved
    return dict(zip(moved, stream.transform_batch(list(moved.values()), augment=augment), strict=True))


def scores_aside(
    trainer: Trainer, pl_module: LightningModule, x: Tensor, parameters: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return the scores ``(B, C)``, in float32 at least, of a forward beside the training, of which nothing stays.

    The module is in the mode that it is in and works on copies of its buffers (the statistics of batch normalisation).
    The random state is put back, so that dropout draws what the next forward draws.

    Args:
        trainer: The trainer, while it fits.
        pl_module: The module.
        x: Inputs ``(B, *)``.
        parameters: Stand in for those of the module, by name.
    """
    buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}
    tensors = {**buffers, **(parameters or {})}
    # Compiled code may not see that the tensors are others.
    eagerly = torch.compiler.set_stance("force_eager")
    with isolated_rng(), eagerly, trainer.precision_plugin.forward_context():
        scores = scores_in(functional_call(pl_module, tensors, (x,)))
    return scores.to(at_least_float32(scores.dtype))


def mean_gradients(trainer: Trainer, loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor] | None:
    """Differentiate a loss of this process and average the gradients over all processes, in one collective.

    Neither ``grad`` nor the optimizer nor DDP's reducer is touched. In ``'16-mixed'`` precision the loss is multiplied
    by the present scale of the trainer's GradScaler, which is read only.

    Args:
        trainer: The trainer, while it fits.
        loss: A scalar.
        parameters: What to differentiate by.

    Returns:
        A gradient for each parameter, 0 for one that the loss does not depend on; or ``None``, on all processes, if
        ``'16-mixed'`` precision overflowed on one.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = 1.0 if scaler is None else scaler.get_scale()
    gradients = list(torch.autograd.grad(loss * scale, parameters, materialize_grads=True))
    if trainer.world_size == 1 and scaler is None:
        return gradients
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    flat = sum_over_ranks(trainer, flat) / (trainer.world_size * scale)
    if scaler is not None and not flat.isfinite().all():
        return None
    parts = flat.split_with_sizes([gradient.numel() for gradient in gradients])
    return [part.view_as(g).to(g.dtype) for part, g in zip(parts, gradients, strict=True)]


# -- passes over the data at the end of an experience ------------------------------------------------------------------


def statistics_batches(trainer: Trainer, samples: int | None = None) -> Iterator[Any]:
    """Yield the training data of the current experience, on the device, as deterministic as the data allows.

    With a :class:`StreamDataModule` every sample comes exactly once, on one rank, without augmentation. With other
    data it is one pass over the training loader as it is (what it augments, drops or repeats stays so).

    Args:
        trainer: The trainer, while it fits.
        samples: Only so many samples, of all ranks together: of a stream a random choice that depends on its seed, of
            other data the first batches of the pass that hold as many; ``None`` is all.
    """
    data = getattr(trainer, "datamodule", None)
    plain: AbstractContextManager[None] = nullcontext()
    if isinstance(data, StreamDataModule):
        loader: Iterable[Any] = data.statistics_dataloader(samples)
        plain = data.without_augmentation()
    else:
        assert trainer.train_dataloader is not None
        loader = (batch for batch, _, _ in CombinedLoader(trainer.train_dataloader, "max_size_cycle"))
        loader = loader if samples is None else _first(loader, -(-samples // trainer.world_size))
    with plain:
        for batch in loader:
            batch = trainer.precision_plugin.convert_input(batch)
            batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
            yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def check_pass(samples: int | None, classes: Competing | None = None, estimator: Estimator = "empirical") -> None:
    """Check the arguments of a pass over the data.

    Raises:
        ValueError: If one is out of its range.
    """
    if samples is not None and samples < 1:
        raise ValueError(f"`samples` must be 1 or more, or None for all, got {samples}.")
    if classes not in (None, *get_args(Competing)):
        raise ValueError(f"`classes` must be None or one of {get_args(Competing)}, got {classes!r}.")
    if estimator not in get_args(Estimator):
        raise ValueError(f"`estimator` must be one of {get_args(Estimator)}, got {estimator!r}.")


def _first(batches: Iterable[Any], samples: int) -> Iterator[Any]:
    """The first batches that together hold as many samples."""
    for batch in batches:
        if samples <= 0:
            return
        yield batch
        samples -= next(len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))


def competing_logits(trainer: Trainer, which: Competing | None) -> Callable[[Any], Tensor]:
    """Return a function from what a module returns to its logits ``(B, C)``, of which some may not compete.

    Those of classes that do not are minus infinity.

    Args:
        trainer: The trainer, while it fits.
        which: The classes that do (see :meth:`StreamDataModule.competing`); ``None`` is ``"current"`` in a stream with
            task labels, where each task has its own part of the head, and else ``"all"``.

    Raises:
        ValueError: If ``which`` needs a stream and there is none.
    """
    stream = getattr(trainer, "datamodule", None)
    if not isinstance(stream, StreamDataModule):
        if which in (None, "all"):
            return scores_in
        raise ValueError(f"`classes={which!r}` needs a StreamDataModule, which knows them: set `classes` to 'all'.")
    which = which or ("current" if stream.task_labels else "all")
    if which == "all":
        return scores_in
    classes = torch.tensor(stream.competing(which), device=trainer.strategy.root_device)

    def competing(output: Any) -> Tensor:
        logits = scores_in(output)
        return logits.new_full(logits.shape, -torch.inf).index_copy(1, classes, logits[:, classes])

    return competing


def mean_importance(
    trainer: Trainer,
    measure: Callable[..., tuple[dict[str, Tensor], int]],
    parameters: Collection[str],
    *,
    samples: int | None,
    classes: Competing | None,
    unpack: Unpack | None,
) -> dict[str, Tensor]:
    """Measure the importance of parameters on the training data of the current experience, of all processes.

    Args:
        trainer: The trainer, while it fits.
        measure: :func:`lightning_cl.importance.squared_scores` or another function that is called like it.
        parameters: Their names.
        samples: As in :func:`statistics_batches`.
        classes: As in :func:`competing_logits`.
        unpack: Function from a batch to ``(x, y)``, where that is not its form.
    """
    batches = map(unpack or unpack_batch, statistics_batches(trainer, samples))
    logits = competing_logits(trainer, classes)
    return mean_over_ranks(trainer, *measure(trainer.lightning_module, batches, parameters=parameters, logits=logits))


def mean_over_ranks(trainer: Trainer, sums: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Divide the sums of all processes by the count of all processes (a collective)."""
    device = next(iter(sums.values())).device if sums else trainer.strategy.root_device
    total = sum_over_ranks(trainer, torch.tensor(count, device=device))
    return {name: sum_over_ranks(trainer, value) / total for name, value in sums.items()}


def is_logged(trainer: Trainer) -> bool:
    """Whether what is logged in the current batch goes to a logger (``log_every_n_steps``)."""
    return bool(trainer.loggers) and trainer._logger_connector.should_update_logs


def sum_over_ranks(trainer: Trainer, value: Tensor) -> Tensor:
    """Add up a tensor over all processes (a collective: every rank must call it)."""
    total = trainer.strategy.reduce(value.clone(), reduce_op="sum")  # it works in place
    assert isinstance(total, Tensor)
    return total


def gather_rows(trainer: Trainer, rows: Tensor) -> Tensor:
    """Concatenate ``(n_r, *)`` of all ranks in rank order; the ``n_r`` may differ (a collective)."""
    if trainer.world_size == 1:
        return rows
    device = trainer.strategy.root_device
    counts = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(trainer.world_size)]
    torch.distributed.all_gather(counts, torch.tensor([len(rows)], device=device))
    longest = int(max(counts))
    padded = torch.zeros((longest, *rows.shape[1:]), dtype=rows.dtype, device=device)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    torch.distributed.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)]).to(rows.device)


def gather_objects(trainer: Trainer, value: Any) -> list[Any]:
    """Return ``value`` of every rank, in rank order (a collective)."""
    if trainer.world_size == 1:
        return [value]
    gathered: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(gathered, value)
    return gathered
