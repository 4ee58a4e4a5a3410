"""Read what an offline Weights & Biases run has in its file, which is a LevelDB log of protocol buffers."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768


def records(path: Path) -> Iterator[bytes]:
    """The payloads of the log: 7 bytes of header, then blocks of fragments (checksum, length, type)."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or its last fragment
            yield whole
            whole = b""


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The config, the last value of each logged key, and the id of the run."""
    from wandb.proto.wandb_internal_pb2 import Record

    config: dict[str, Any] = {}
    history: dict[str, Any] = {}
    run_id = ""
    for data in records(path):
        record = Record()
        record.ParseFromString(data)
        run_id = record.run.run_id or run_id
        for target, items in ((config, record.run.config.update), (config, record.config.update)):
            target.update({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        for item in record.history.item:
            history[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return config, history, run_id
