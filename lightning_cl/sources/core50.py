"""CORe50: videos of household objects, divided by the lists of its authors."""

import re
from pathlib import Path
from typing import Literal

import torch
from typing_extensions import override

from lightning_cl.listed import FileList, ListedSource
from lightning_cl.sources.image_folder import read_list

Scenario = Literal["ni", "nc", "nic", "nicv2_79", "nicv2_196", "nicv2_391"]
BATCHES: dict[Scenario, int] = {"ni": 8, "nc": 9, "nic": 79, "nicv2_79": 79, "nicv2_196": 196, "nicv2_391": 391}
"""Number of training lists of each scenario."""


class CORe50(ListedSource):
    """CORe50 (Lomonaco & Maltoni, CoRL 2017).

    Args:
        root: Folder with ``core50_128x128`` or ``core50_32x32`` and the lists, or the one that holds it as ``core50``.
        scenario: Which lists: ``batches_filelists/{NI,NC,NIC}_inc`` or ``NIC_v2_{79,196,391}``.
        run: Which of the ten orders of batches, 0 to 9.
        labels: ``"object"`` (50) or ``"category"`` (10, of five objects each).
        size: Which images, of 32 or 128 pixels.

    Raises:
        ValueError: If an argument is none of these.
    """

    name = "CORe50"
    options = ("scenario", "run", "labels")
    remedy = (
        "Get core50_128x128.zip or core50_32x32.zip, batches_filelists.zip and, for NICv2, batches_filelists_NICv2.zip "
        "from vlomonaco.github.io/core50 and unpack them there."
    )

    def __init__(
        self,
        root: str = "data",
        scenario: Scenario = "ni",
        run: int = 0,
        labels: Literal["object", "category"] = "object",
        size: Literal[32, 128] = 128,
    ) -> None:
        allowed = {"scenario": [*BATCHES], "run": [*range(10)], "labels": ["object", "category"], "size": [32, 128]}
        for argument, value in {"scenario": scenario, "run": run, "labels": labels, "size": size}.items():
            if value not in allowed[argument]:
                raise ValueError(f"`{argument}` must be one of {allowed[argument]}, got {value!r}.")
        super().__init__(root, "core50", size)
        self.scenario = scenario
        self.run = run
        self.labels = labels
        self.num_classes = 50 if labels == "object" else 10

    @override
    def missing(self) -> list[str]:
        return self.absent([self._images, *self._lists(train=True), *self._lists(train=False)])

    @override
    def lists(self, train: bool) -> list[FileList]:
        found: list[FileList] = [read_list(path, self._images) for path in self._lists(train)]
        if self.labels == "category":
            found = [(paths, torch.tensor([_category(path) for path in paths])) for paths, _ in found]
        return found if train else found * BATCHES[self.scenario]

    @property
    def _images(self) -> Path:
        size = self.input_shape[1]
        return self.place / f"core50_{size}x{size}"

    def _lists(self, train: bool) -> list[Path]:
        kind, _, version = self.scenario.partition("v2_")
        folder = self.place / (f"NIC_v2_{version}" if version else f"batches_filelists/{kind.upper()}_inc")
        batches = [f"train_batch_{batch:02}" for batch in range(BATCHES[self.scenario])]
        return [folder / f"run{self.run}" / f"{name}_filelist.txt" for name in (batches if train else ["test"])]


def _category(path: str) -> int:
    """The category by the folder of the object: NC numbers objects anew in each run, so its labels do not tell."""
    if (found := re.search(r"[/\\]o(\d+)[/\\][^/\\]*$", path)) is None:
        raise ValueError(f"The lists of CORe50 should name files such as 's1/o1/C_01_01_000.png', got {path!r}.")
    return (int(found[1]) - 1) // 5
