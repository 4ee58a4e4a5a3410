"""Streams: one data set a file."""

from typing import TYPE_CHECKING

from lightning_cl._lazy import lazy

if TYPE_CHECKING:
    from lightning_cl.datamodules.cifar10_c import CIFAR10C as CIFAR10C
    from lightning_cl.datamodules.cifar100_c import CIFAR100C as CIFAR100C
    from lightning_cl.datamodules.clear import CLEAR as CLEAR
    from lightning_cl.datamodules.core50 import CORe50 as CORe50
    from lightning_cl.datamodules.corrupted_images import CorruptedImages as CorruptedImages
    from lightning_cl.datamodules.dataset_stream import DatasetStream as DatasetStream
    from lightning_cl.datamodules.domainnet import DomainNet as DomainNet
    from lightning_cl.datamodules.i_blurry import IBlurry as IBlurry
    from lightning_cl.datamodules.image_folder_stream import ImageFolderStream as ImageFolderStream
    from lightning_cl.datamodules.imagenet_c import ImageNetC as ImageNetC
    from lightning_cl.datamodules.mnist360 import MNIST360 as MNIST360
    from lightning_cl.datamodules.nevis import NevisStream as NevisStream
    from lightning_cl.datamodules.permuted_mnist import PermutedMNIST as PermutedMNIST
    from lightning_cl.datamodules.rotated_mnist import RotatedMNIST as RotatedMNIST
    from lightning_cl.datamodules.sequence_stream import SequenceStream as SequenceStream
    from lightning_cl.datamodules.sequence_stream import from_scenario as from_scenario
    from lightning_cl.datamodules.split_cifar10 import SplitCIFAR10 as SplitCIFAR10
    from lightning_cl.datamodules.split_cifar100 import SplitCIFAR100 as SplitCIFAR100
    from lightning_cl.datamodules.split_cub200 import SplitCUB200 as SplitCUB200
    from lightning_cl.datamodules.split_digits import SplitDigits as SplitDigits
    from lightning_cl.datamodules.split_emnist import SplitEMNIST as SplitEMNIST
    from lightning_cl.datamodules.split_fashion_mnist import SplitFashionMNIST as SplitFashionMNIST
    from lightning_cl.datamodules.split_imagenet import SplitImageNet as SplitImageNet
    from lightning_cl.datamodules.split_imagenet100 import SplitImageNet100 as SplitImageNet100
    from lightning_cl.datamodules.split_imagenet_r import SplitImageNetR as SplitImageNetR
    from lightning_cl.datamodules.split_kmnist import SplitKMNIST as SplitKMNIST
    from lightning_cl.datamodules.split_mnist import SplitMNIST as SplitMNIST
    from lightning_cl.datamodules.split_svhn import SplitSVHN as SplitSVHN
    from lightning_cl.datamodules.split_tiny_imagenet import SplitTinyImageNet as SplitTinyImageNet
    from lightning_cl.datamodules.tensor_stream import TensorStream as TensorStream

__getattr__, __dir__ = lazy(
    __name__,
    {
        "CIFAR100C": "cifar100_c",
        "CIFAR10C": "cifar10_c",
        "CLEAR": "clear",
        "CORe50": "core50",
        "CorruptedImages": "corrupted_images",
        "DatasetStream": "dataset_stream",
        "DomainNet": "domainnet",
        "IBlurry": "i_blurry",
        "ImageFolderStream": "image_folder_stream",
        "ImageNetC": "imagenet_c",
        "MNIST360": "mnist360",
        "NevisStream": "nevis",
        "PermutedMNIST": "permuted_mnist",
        "RotatedMNIST": "rotated_mnist",
        "SequenceStream": "sequence_stream",
        "SplitCIFAR10": "split_cifar10",
        "SplitCIFAR100": "split_cifar100",
        "SplitCUB200": "split_cub200",
        "SplitDigits": "split_digits",
        "SplitEMNIST": "split_emnist",
        "SplitFashionMNIST": "split_fashion_mnist",
        "SplitImageNet": "split_imagenet",
        "SplitImageNet100": "split_imagenet100",
        "SplitImageNetR": "split_imagenet_r",
        "SplitKMNIST": "split_kmnist",
        "SplitMNIST": "split_mnist",
        "SplitSVHN": "split_svhn",
        "SplitTinyImageNet": "split_tiny_imagenet",
        "TensorStream": "tensor_stream",
        "from_scenario": "sequence_stream",
    },
)
