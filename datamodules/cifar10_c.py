"""CIFAR-10-C: the test images of CIFAR-10 under 15 corruptions, for test-time adaptation."""

from lightning_cl.segments import CorruptedFiles
from lightning_cl.sources.cifar import CIFAR10


class CIFAR10C(CorruptedFiles):
    """CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019), 10 000 images for each corruption and severity.

    Arguments are those of :class:`lightning_cl.segments.CorruptedFiles`.
    """

    folder = "CIFAR-10-C"
    clean = CIFAR10
    test_only = (
        "CIFAR-10-C has test images only: train with `lightning-cl fit --config streams/split_cifar10 "
        "--data.num_experiences 1`, then `lightning-cl test --config streams/cifar10_c --ckpt_path ...`."
    )
