"""Methods that can be added to any training: one family a folder, one method a file."""

from typing import TYPE_CHECKING

from lightning_cl._lazy import lazy

if TYPE_CHECKING:
    from lightning_cl.callbacks.monitors.anytime_accuracy import AnytimeAccuracy as AnytimeAccuracy
    from lightning_cl.callbacks.monitors.flops import FlopsMeter as FlopsMeter
    from lightning_cl.callbacks.projection.cuber import CUBER as CUBER
    from lightning_cl.callbacks.projection.gpm import GPM as GPM
    from lightning_cl.callbacks.projection.trgp import TRGP as TRGP
    from lightning_cl.callbacks.regularization.ewc import EWC as EWC
    from lightning_cl.callbacks.regularization.feature_distillation import FeatureDistillation as FeatureDistillation
    from lightning_cl.callbacks.regularization.fisher_merge import FisherMerge as FisherMerge
    from lightning_cl.callbacks.regularization.l2_anchor import L2Anchor as L2Anchor
    from lightning_cl.callbacks.regularization.lwf import LwF as LwF
    from lightning_cl.callbacks.regularization.mas import MAS as MAS
    from lightning_cl.callbacks.regularization.synaptic_intelligence import SynapticIntelligence as SynapticIntelligence
    from lightning_cl.callbacks.regularization.task_free_mas import TaskFreeMAS as TaskFreeMAS
    from lightning_cl.callbacks.regularization.train_only import TrainOnly as TrainOnly
    from lightning_cl.callbacks.replay.der import DER as DER
    from lightning_cl.callbacks.replay.derpp import DERpp as DERpp
    from lightning_cl.callbacks.replay.er_ace import ERACE as ERACE
    from lightning_cl.callbacks.replay.fpf import FPF as FPF
    from lightning_cl.callbacks.replay.gdumb import GDumb as GDumb
    from lightning_cl.callbacks.replay.gss import GSS as GSS
    from lightning_cl.callbacks.replay.kfpf import KFPF as KFPF
    from lightning_cl.callbacks.replay.mir import MIR as MIR
    from lightning_cl.callbacks.replay.refresh_learning import RefreshLearning as RefreshLearning
    from lightning_cl.callbacks.replay.replay import Replay as Replay
    from lightning_cl.callbacks.replay.uer import UER as UER

__getattr__, __dir__ = lazy(
    __name__,
    {
        "AnytimeAccuracy": "monitors.anytime_accuracy",
        "CUBER": "projection.cuber",
        "DER": "replay.der",
        "DERpp": "replay.derpp",
        "ERACE": "replay.er_ace",
        "EWC": "regularization.ewc",
        "FPF": "replay.fpf",
        "FeatureDistillation": "regularization.feature_distillation",
        "FisherMerge": "regularization.fisher_merge",
        "FlopsMeter": "monitors.flops",
        "GDumb": "replay.gdumb",
        "GPM": "projection.gpm",
        "GSS": "replay.gss",
        "KFPF": "replay.kfpf",
        "L2Anchor": "regularization.l2_anchor",
        "LwF": "regularization.lwf",
        "MAS": "regularization.mas",
        "MIR": "replay.mir",
        "RefreshLearning": "replay.refresh_learning",
        "Replay": "replay.replay",
        "SynapticIntelligence": "regularization.synaptic_intelligence",
        "TRGP": "projection.trgp",
        "TaskFreeMAS": "regularization.task_free_mas",
        "TrainOnly": "regularization.train_only",
        "UER": "replay.uer",
    },
)
