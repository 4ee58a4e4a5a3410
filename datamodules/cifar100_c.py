"""CIFAR-100-C: the test images of CIFAR-100 under 15 corruptions, for test-time adaptation."""

from lightning_cl.segments import CorruptedFiles
from lightning_cl.sources.cifar import CIFAR100


class CIFAR100C(CorruptedFiles):
    """CIFAR-100-C (Hendrycks & Dietterich, ICLR 2019), 10 000 images for each corruption and severity.

    Arguments are those of :class:`lightning_cl.segments.CorruptedFiles`.
    """

    folder = "CIFAR-100-C"
    clean = CIFAR100
    test_only = (
        "CIFAR-100-C has test images only: train with `lightning-cl fit --config streams/split_cifar100 "
        "--data.num_experiences 1`, then `lightning-cl test --config streams/cifar100_c --ckpt_path ...`."
    )
