"""CLEAR: photographs of the same classes in ten buckets of time, from 2004 to 2014."""

from collections.abc import Sequence
from typing import Any, Literal

from typing_extensions import override

from lightning_cl.listed import ListedStream
from lightning_cl.sources import clear


class CLEAR(ListedStream):
    r"""CLEAR (Lin et al., NeurIPS 2021 Datasets and Benchmarks): one experience per bucket of time.

    ``"clear10"`` has 10 classes and one for the background, ``"clear100"`` 100. Bucket 0, which the authors pre-train
    on, is left out unless ``buckets`` names it.

    - ``"iid"``: an experience is tested on images of its own bucket. The older release has five random splits, 70 % to
      train and 30 % to test; the newer has one, in two folders.
    - ``"streaming"``: an experience trains on its whole bucket, and is tested on the whole next one; so there is one
      experience less. The test images of one experience are the training images of the next: of the accuracies
      :math:`R_{i,j}` after experience :math:`i` only those with :math:`j \geq i` are on images never trained on.

    Images are read one by one, by ``num_workers`` processes; as in Avalanche's example the shorter side is resized to
    ``image_size``, and a random part (to train) or the middle is cut out. With ``image_size`` up to 64 they are read
    once and kept in memory, always the middle.

    Args:
        root: Folder with ``train`` and ``test`` (the newer release) or ``training_folder`` (the older), or the one that
            holds it as ``clear10`` or ``clear100``. From clear-benchmark.github.io.
        data_set: ``"clear10"`` or ``"clear100"``.
        protocol: ``"iid"`` or ``"streaming"``.
        split_seed: Which of the older release's five splits, 0 to 4, for ``"iid"``; ``None`` is 0.
        buckets: Which buckets, by number, in this order; ``None`` is 1 to 10.
        image_size: Height and width.
        **kwargs: As for :class:`lightning_cl.DomainStream`. Mean and standard deviation are those of ImageNet.

    Raises:
        ValueError: If an argument is out of its range, or the files are not of the published layout.
        FileNotFoundError: If files are missing.

    Example:
        >>> len(CLEAR(protocol="iid")), len(CLEAR(protocol="streaming"))
        (10, 9)
    """

    source: clear.CLEAR

    def __init__(
        self,
        root: str = "data",
        data_set: Literal["clear10", "clear100"] = "clear10",
        protocol: Literal["iid", "streaming"] = "iid",
        split_seed: int | None = None,
        buckets: Sequence[int] | None = None,
        image_size: int = 224,
        **kwargs: Any,
    ) -> None:
        source = clear.CLEAR(root, data_set, protocol, split_seed, buckets, image_size)
        super().__init__(source, source.num_experiences, **kwargs)

    @override
    def name_of_group(self, group: int) -> str:
        return f"bucket {self.source.buckets[group]}"
