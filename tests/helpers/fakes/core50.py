"""Files of CORe50: 32 pixels, and the lists of two scenarios."""

from pathlib import Path
from typing import Any

from tests.helpers.fakes._files import colours
from tests.helpers.fakes._lists import write_lines, write_listed

FIRST = [5 * i for i in range(10)]
LATER = [o for o in range(50) if o not in FIRST]
OBJECTS = [FIRST, *(LATER[i : i + 5] for i in range(0, 40, 5))]
"""Objects, from 0, of each batch of NC."""
LABEL = {o: label for label, o in enumerate(o for batch in OBJECTS for o in batch)}
"""Label of each object in NC: objects are numbered in order of appearance."""


def name(session: int, thing: int, frame: int) -> str:
    """Path of an image; sessions and objects are counted from 1 in it."""
    return f"s{session}/o{thing + 1}/C_{session:02}_{thing + 1:02}_{frame:03}.png"


def write(root: Path) -> dict[str, Any]:
    """4 images of each of 50 objects to train, of sessions 1 and 2, and 2 to test, of sessions 3 and 7; NC."""
    train = [name(session, o, frame) for o in range(50) for session in (1, 2) for frame in (0, 1)]
    test = [name(session, o, 0) for o in range(50) for session in (3, 7)]
    write_listed([root / "core50_32x32" / path for path in train + test], colours(), 32)
    folder = root / "batches_filelists" / "NC_inc" / "run0"
    for batch, objects in enumerate(OBJECTS):
        lines = [f"{path} {LABEL[o]}" for o in objects for path in train[4 * o : 4 * o + 4]]
        write_lines(folder / f"train_batch_{batch:02}_filelist.txt", lines)
    write_lines(folder / "test_filelist.txt", [f"{path} {LABEL[i // 2]}" for i, path in enumerate(test)])
    return {"root": str(root), "scenario": "nc", "size": 32}
