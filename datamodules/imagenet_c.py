"""ImageNet-C: the validation images of ImageNet under 15 corruptions, for test-time adaptation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from lightning_cl.corruptions import Segment
from lightning_cl.samples import ImageFiles, center_crop
from lightning_cl.segments import SegmentStream
from lightning_cl.sources.image_folder import check_listed, expect_classes, image_shape, scan

GROUPS = ("noise", "blur", "weather", "digital")


class ImageNetC(SegmentStream):
    """ImageNet-C (Hendrycks & Dietterich, ICLR 2019).

    Args:
        root: Folder with ``<corruption>/<severity>/<wnid>/*.JPEG``; the corruptions may also be in the folders
            ``noise``, ``blur``, ``weather`` and ``digital`` of the published archives, and all of it in a folder
            ``ImageNet-C``.
        image_list: Text file with the images to use, one ``<wnid>/<name>.JPEG`` a line (a path before it and a label
            after it are passed over); RobustBench has one of 5 000, on which results are published. ``None`` is all.
        image_size: Height and width in pixels; the published images have 224.
        eval_batch_size: Images per batch.
        mean: Mean that is subtracted from pixels in ``[0, 1]``.
        std: Standard deviation that is divided by.
        **kwargs: As for :class:`lightning_cl.segments.SegmentStream`.

    Raises:
        FileNotFoundError: If a corruption is missing.
        ValueError: If a listed image is missing, or there are not 1 000 classes: labels are their positions.
    """

    test_only = (
        "ImageNet-C has test images only: take a model that is trained on ImageNet "
        "(`--model.backbone_args.pretrained true`) and run `lightning-cl test --config streams/imagenet_c`."
    )

    def __init__(
        self,
        root: str = "data",
        *,
        image_list: str | None = None,
        image_size: int = 224,
        eval_batch_size: int = 64,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        **kwargs: Any,
    ) -> None:
        super().__init__(1000, image_shape(image_size), eval_batch_size=eval_batch_size, mean=mean, std=std, **kwargs)
        self.root = Path(root).expanduser()
        self.image_list = image_list
        self._files: dict[Segment, ImageFiles] = {}

    @override
    def prepare_data(self) -> None:
        for segment in dict.fromkeys(self.segments):
            self._folder(*segment)

    @override
    def dataset(self, experience: int, train: bool) -> ImageFiles:
        if train:
            raise ValueError(self.test_only)
        segment = self.segments[experience]
        if segment not in self._files:
            self._files[segment] = self._read(self._folder(*segment))
        return self._files[segment]

    def _read(self, folder: Path) -> ImageFiles:
        classes = expect_classes(folder, self.num_classes)
        if self.image_list is None:
            paths, labels = scan(folder, classes)
        else:
            names, position = self._listed(), {name: label for label, name in enumerate(classes)}
            paths = [str(folder / name) for name in names]
            check_listed(paths, Path(self.image_list))
            labels = torch.tensor([position[name.split("/")[0]] for name in names])
        return ImageFiles(paths, labels, center_crop(self.input_shape[1]))

    def _folder(self, corruption: str, severity: int) -> Path:
        bases = [self.root, self.root / "ImageNet-C"]
        places = [base / inner / corruption for base in bases for inner in ("", *GROUPS)]
        for place in places:
            if (place / str(severity)).is_dir():
                return place / str(severity)
        raise FileNotFoundError(
            f"ImageNet-C is missing: looked for {corruption}/{severity} in `root` {str(self.root)!r}, its folder "
            f"'ImageNet-C', and in {', '.join(GROUPS)} of both. Get the archives from Zenodo (Hendrycks & Dietterich, "
            "ICLR 2019) and unpack them there."
        )

    def _listed(self) -> list[str]:
        assert self.image_list is not None
        path = Path(self.image_list).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"`image_list` {str(path)!r} is no file.")
        lines = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
        return ["/".join(line.split("/")[-2:]) for line in lines]
