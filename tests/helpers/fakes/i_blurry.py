"""Files of i-Blurry: CIFAR-10 in two experiences."""

import json
from pathlib import Path
from typing import Any

from tests.helpers.fakes._files import colours
from tests.helpers.fakes._lists import write_lines, write_listed

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
COUNTS = [(4, 0)] * 4 + [(0, 4)] * 4 + [(8, 4), (4, 8)]
"""Training images of each class in each experience: ships and trucks are blurry."""


def write(root: Path) -> dict[str, Any]:
    """56 images to train and 20 to test, all lists in mixed order."""
    lists: list[list[str]] = [[], []]
    for name, counts in zip(NAMES, COUNTS, strict=True):
        images = iter(f"train/{name}/{k:04}.png" for k in range(sum(counts)))
        for part, count in zip(lists, counts, strict=True):
            part += [next(images) for _ in range(count)]
    tested = [f"test/{name}/{k:04}.png" for k in range(2) for name in NAMES]
    folder = root / "cifar10"
    write_listed([folder / path for path in (*lists[0], *lists[1], *tested)], colours(), 32)
    collection = root / "collections" / "cifar10"
    for t, (part, key) in enumerate(zip(lists, ("filepath", "file_name"), strict=True)):  # the published ones have both
        records = [{key: path, "klass": path.split("/")[1], "label": 99} for path in part[::-1]]
        write_lines(collection / f"cifar10_split2_n50_m10_rand1_task{t}.json", [json.dumps(records)])
    records = [{"klass": path.split("/")[1], "file_name": path, "label": 99} for path in tested]
    write_lines(collection / "cifar10_val.json", [json.dumps(records)])
    return {"root": str(root), "num_experiences": 2}
