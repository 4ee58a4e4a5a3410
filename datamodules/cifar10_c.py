"""CIFAR-10-C: the test images of CIFAR-10 under 15 corruptions, for test-time adaptation."""

from collections.abc import Sequence
from typing import Any

from lightning_cl.segments import CorruptedFiles


class CIFAR10C(CorruptedFiles):
    """CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019), 10 000 images for each corruption and severity.

    CoTTA's continual protocol is the default: all 15 corruptions at severity 5, in batches of 200.

    Args:
        root: Folder of the files ``<corruption>.npy`` and ``labels.npy``, or its parent.
        eval_batch_size: Images per batch.
        mean: Mean that is subtracted from pixels in ``[0, 1]``. The robust models of RobustBench normalise by
            themselves: 0 and 1 for them.
        std: Standard deviation that is divided by.
        **kwargs: As for :class:`lightning_cl.segments.SegmentStream`.
    """

    test_only = (
        "CIFAR-10-C has test images only: train with `lightning-cl fit --config streams/split_cifar10 "
        "--data.num_experiences 1`, then `lightning-cl test --config streams/cifar10_c --ckpt_path ...`."
    )

    def __init__(
        self,
        root: str = "data",
        *,
        eval_batch_size: int = 200,
        mean: Sequence[float] = (0.4914, 0.4822, 0.4465),
        std: Sequence[float] = (0.2470, 0.2435, 0.2615),
        **kwargs: Any,
    ) -> None:
        super().__init__(root, "CIFAR-10-C", 10, eval_batch_size=eval_batch_size, mean=mean, std=std, **kwargs)
