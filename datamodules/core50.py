"""CORe50: 164 866 images of 50 household objects in 11 sessions, in the authors' six scenarios."""

from typing import Any, Literal

from typing_extensions import override

from lightning_cl.listed import ListedStream
from lightning_cl.sources import core50


class CORe50(ListedStream):
    """CORe50 (Lomonaco & Maltoni, CoRL 2017) by the published lists of files.

    50 objects of 10 categories were filmed in 11 sessions (places, light); three of them (3, 7 and 10) are for testing.
    As the protocol has it the test set is complete and fixed: each experience is tested on all of it, once for all
    of them.

    - ``"ni"`` (new instances): 8 experiences, one session each; all objects from the start.
    - ``"nc"`` (new classes): 9 experiences, ten objects, then five each. Objects are numbered in order of appearance,
      hence differently in each run.
    - ``"nic"`` (both): 79 experiences; ``"nicv2_79"``, ``"nicv2_196"`` and ``"nicv2_391"`` (Lomonaco et al., CVPR
      Workshops 2020) have as many as they say.

    Args:
        root: Folder with ``core50_128x128`` or ``core50_32x32``, ``batches_filelists`` and ``NIC_v2_*``, or the one
            that holds it as ``core50``. From vlomonaco.github.io/core50.
        scenario: One of the six.
        run: Which of the ten published orders, 0 to 9.
        labels: ``"object"`` (50 classes) or ``"category"`` (10, of five objects each: 1 to 5, 6 to 10, ...).
        size: 128, read one by one by ``num_workers`` processes, or 32, read once and kept in memory.
        **kwargs: As for :class:`lightning_cl.DomainStream`. Mean and standard deviation are those of ImageNet.

    Raises:
        ValueError: If an argument is out of its range.
        FileNotFoundError: If files are missing.

    Example:
        >>> len(CORe50(scenario="nicv2_196", run=3))
        196
    """

    def __init__(
        self,
        root: str = "data",
        scenario: core50.Scenario = "ni",
        run: int = 0,
        labels: Literal["object", "category"] = "object",
        size: Literal[32, 128] = 128,
        **kwargs: Any,
    ) -> None:
        source = core50.CORe50(root, scenario, run, labels, size)
        super().__init__(source, core50.BATCHES[scenario], **kwargs)

    @override
    def test_of(self, experience: int) -> int:
        return 0
