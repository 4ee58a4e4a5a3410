"""DomainNet: about 590 000 images of 345 classes in six domains."""

from collections.abc import Sequence
from typing import Any, Literal

from typing_extensions import override

from lightning_cl.listed import ListedStream
from lightning_cl.sources import domainnet


class DomainNet(ListedStream):
    """DomainNet (Peng et al., ICCV 2019): the same classes in one domain after another.

    - ``"official"``: the published lists ``<domain>_{train,test}.txt``. Labels are those of the lists. Class 327
      (t-shirt) has no training image in painting, and class 300 (syringe) no test image: an experience's classes are
      those that it trains on.
    - ``"continuum"``: the cut of Continuum (Douillard & Lesort, 2021), 80 % to train and 20 % to test in each domain by
      scikit-learn's ``train_test_split`` with seed 1, not by class. Labels are in the order of the names of the
      folders, capitals first, as by torchvision: not those of the lists.

    Images are read one by one, by ``num_workers`` processes; with ``image_size`` up to 64 once, and kept in memory.

    Args:
        root: Folder with a folder for each domain, ``<domain>/<class>/*``, and the lists; or the one that holds it as
            ``domainnet``. From ai.bu.edu/M3SDA.
        domains: One experience each, in this order; any of the six.
        split: ``"official"`` or ``"continuum"``.
        num_classes: Number of classes that the files have; another in cuts by others that keep the layout, 126 in
            miniDomainNet (Zhou et al., 2021).
        image_size: Height and width.
        **kwargs: As for :class:`lightning_cl.DomainStream`. Mean and standard deviation are those of ImageNet.

    Raises:
        ValueError: If an argument is out of its range, or the files are not of the published layout.
        FileNotFoundError: If files are missing.

    Example:
        >>> len(DomainNet(domains=["real", "sketch"]))
        2
    """

    source: domainnet.DomainNet

    def __init__(
        self,
        root: str = "data",
        domains: Sequence[str] = domainnet.DOMAINS,
        split: Literal["official", "continuum"] = "official",
        num_classes: int = 345,
        image_size: int = 224,
        **kwargs: Any,
    ) -> None:
        super().__init__(domainnet.DomainNet(root, domains, split, num_classes, image_size), len(domains), **kwargs)

    @override
    def name_of_group(self, group: int) -> str:
        return self.source.domains[group]
