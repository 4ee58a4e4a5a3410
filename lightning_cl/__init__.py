"""Continual learning as PyTorch Lightning plugins: callbacks, streams and methods for trainers you already have."""

from typing import TYPE_CHECKING

from lightning_cl._lazy import lazy

if TYPE_CHECKING:
    from lightning_cl.callback import ContinualCallback as ContinualCallback
    from lightning_cl.checkpoint import CheckpointError as CheckpointError
    from lightning_cl.logger import RunLogger as RunLogger
    from lightning_cl.memory import Memory as Memory
    from lightning_cl.metrics import AccuracyMatrix as AccuracyMatrix
    from lightning_cl.rehearsal import Storage as Storage
    from lightning_cl.run import StreamResult as StreamResult
    from lightning_cl.run import evaluate_stream as evaluate_stream
    from lightning_cl.run import fit_stream as fit_stream
    from lightning_cl.samples import ImageFiles as ImageFiles
    from lightning_cl.samples import MapData as MapData
    from lightning_cl.samples import Samples as Samples
    from lightning_cl.samples import TensorData as TensorData
    from lightning_cl.scenarios import ClassStream as ClassStream
    from lightning_cl.scenarios import DomainStream as DomainStream
    from lightning_cl.scenarios import SourceStream as SourceStream
    from lightning_cl.stream import Experience as Experience
    from lightning_cl.stream import StreamDataModule as StreamDataModule

__getattr__, __dir__ = lazy(
    __name__,
    {
        "AccuracyMatrix": "metrics",
        "CheckpointError": "checkpoint",
        "ClassStream": "scenarios",
        "ContinualCallback": "callback",
        "DomainStream": "scenarios",
        "Experience": "stream",
        "ImageFiles": "samples",
        "MapData": "samples",
        "Memory": "memory",
        "RunLogger": "logger",
        "Samples": "samples",
        "SourceStream": "scenarios",
        "Storage": "rehearsal",
        "StreamDataModule": "stream",
        "StreamResult": "run",
        "TensorData": "samples",
        "evaluate_stream": "run",
        "fit_stream": "run",
    },
)
