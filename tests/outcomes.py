"""What a command found, as one digest a file: equal where a kill and a resume changed nothing.

Used by faulting.py, which kills commands. The only place that says what of a result counts:
numbers, names and pixels; not when, how fast or by which process they were made.
"""

import csv
import hashlib
import io
import json
import re
import zipfile
from pathlib import Path

import h5py
import numpy as np
import tensorflow as tf

#: Entries of JSON files and columns of tables that a second run of the same command changes.
TIMES = {
    *("seconds", "train_seconds", "images_per_second", "durations", "time", "peak_memory_mib"),
    *("seconds_per_trial", "seconds_per_image", "started", "ended", "cpu_seconds", "wall_seconds"),
}

#: Pages hold times, TensorBoard's files the process; a lock is no result, nor is what states it.
_NO_RESULTS = (".html", ".md", ".v2", ".lock", ".pb", "SHA256SUMS", ".index")

#: Keras writes the address that a shared object has in memory into the description of a model.
_ADDRESS = re.compile(rb'"shared_object_id": \d+')


def digests(directory):
    """Returns the digest of each result below a directory, by its name in there."""
    return {
        path.relative_to(directory).as_posix(): digest(path)
        for path in sorted(Path(directory).rglob("*"))
        if path.is_file() and not path.name.endswith(_NO_RESULTS)
    }


def digest(path):
    """Returns the digest of what one file says."""
    total = hashlib.sha256()
    for part in _parts(path):
        total.update(part if isinstance(part, bytes) else repr(part).encode())
        total.update(b"\0")
    return total.hexdigest()[:16]


def _parts(path):
    if path.suffix == ".keras":
        # The archive itself holds the time of day.
        with zipfile.ZipFile(path) as archive:
            yield _ADDRESS.sub(b"", archive.read("config.json"))
            with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
                yield from _arrays(_datasets(file))
    elif path.name == "variables.data-00000-of-00001":
        stored = tf.train.load_checkpoint(str(path.with_name("variables")))
        names = set(stored.get_variable_to_shape_map()) - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
        # Keras numbers them as a set gives them, in each process in another order.
        tensors = [{"": stored.get_tensor(name)} for name in names]
        yield from sorted(repr(list(_arrays(each))) for each in tensors)
    elif path.suffix in (".npz", ".npy"):
        stored = np.load(path)
        yield from _arrays(stored if path.suffix == ".npz" else {"": stored})
    elif path.suffix == ".json":
        yield json.dumps(_timeless(json.loads(path.read_text())), sort_keys=True)
    elif path.suffix == ".csv":
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                yield {name: value for name, value in row.items() if name not in TIMES}
    else:
        yield path.read_bytes()


def _datasets(file):
    found = {}
    file.visititems(lambda name, each: found.update({name: each[()]} if _is_data(each) else {}))
    return found


def _is_data(each):
    return isinstance(each, h5py.Dataset)


def _arrays(arrays):
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        yield from (name, array.dtype.str, array.shape, array.tobytes())


def _timeless(value):
    if isinstance(value, dict):
        return {name: _timeless(each) for name, each in value.items() if name not in TIMES}
    return [_timeless(each) for each in value] if isinstance(value, list) else value
