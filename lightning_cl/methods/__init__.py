"""A LightningModule for each method that is a model."""

from typing import TYPE_CHECKING

from lightning_cl._lazy import lazy

if TYPE_CHECKING:
    from lightning_cl.methods.classifier import Classifier as Classifier
    from lightning_cl.methods.icarl import ICaRL as ICaRL

__getattr__, __dir__ = lazy(__name__, {"Classifier": "classifier", "ICaRL": "icarl"})
