"""CIFAR-100-C: the test images of CIFAR-100 under 15 corruptions, for test-time adaptation."""

from collections.abc import Sequence
from typing import Any

from lightning_cl.segments import CorruptedFiles


class CIFAR100C(CorruptedFiles):
    """CIFAR-100-C (Hendrycks & Dietterich, ICLR 2019), 10 000 images for each corruption and severity.

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
        "CIFAR-100-C has test images only: train with `lightning-cl fit --config streams/split_cifar100 "
        "--data.num_experiences 1`, then `lightning-cl test --config streams/cifar100_c --ckpt_path ...`."
    )

    def __init__(
        self,
        root: str = "data",
        *,
        eval_batch_size: int = 200,
        mean: Sequence[float] = (0.5071, 0.4867, 0.4408),
        std: Sequence[float] = (0.2675, 0.2565, 0.2761),
        **kwargs: Any,
    ) -> None:
        super().__init__(root, "CIFAR-100-C", 100, eval_batch_size=eval_batch_size, mean=mean, std=std, **kwargs)
