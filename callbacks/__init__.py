"""Methods that can be added to any training: one family a folder, one method a file."""

from typing import TYPE_CHECKING

from lightning_cl._lazy import lazy

if TYPE_CHECKING:
    from lightning_cl.callbacks.monitors.anytime_accuracy import AnytimeAccuracy as AnytimeAccuracy
    from lightning_cl.callbacks.monitors.flops import FlopsMeter as FlopsMeter
    from lightning_cl.callbacks.regularization.ewc import EWC as EWC
    from lightning_cl.callbacks.regularization.fisher_merge import FisherMerge as FisherMerge
    from lightning_cl.callbacks.regularization.l2_anchor import L2Anchor as L2Anchor
    from lightning_cl.callbacks.regularization.synaptic_intelligence import SynapticIntelligence as SynapticIntelligence
    from lightning_cl.callbacks.regularization.train_only import TrainOnly as TrainOnly
    from lightning_cl.callbacks.replay.replay import Replay as Replay

__getattr__, __dir__ = lazy(
    __name__,
    {
        "AnytimeAccuracy": "monitors.anytime_accuracy",
        "EWC": "regularization.ewc",
        "FisherMerge": "regularization.fisher_merge",
        "FlopsMeter": "monitors.flops",
        "L2Anchor": "regularization.l2_anchor",
        "Replay": "replay.replay",
        "SynapticIntelligence": "regularization.synaptic_intelligence",
        "TrainOnly": "regularization.train_only",
    },
)
