"""Files for everybody, full disks, models that hold code: what export makes of them."""

import errno
import os
import re
import stat
import zipfile

import pytest

from replication.runs import results
from serving.model import exporting
from serving.store import publish
from tfds_pap.errors import PapError


def test_everybody_may_read_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:

        def write(folder):
            (folder / "variables").mkdir()
            (folder / "saved_model.pb").write_bytes(b"1")
            (folder / "variables" / "variables.index").write_bytes(b"1")

        version = publish.publish(tmp_path / "models" / "pap", write)
    finally:
        os.umask(before)
    found = tmp_path / "models" / "pap"
    for path in (found, *found.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o755 if path.is_dir() else 0o644), path
    assert version == 1


def test_a_config_that_everybody_may_read(tmp_path):
    from serving.store import model_config

    (tmp_path / "pap" / "1").mkdir(parents=True)
    before = os.umask(0o077)
    try:
        config = model_config.ModelConfig(tmp_path / "pap")
        config.assign("stable", 1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(config.path.stat().st_mode) == 0o644


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line(number, tmp_path):
    expected = f"--serving_dir={tmp_path}: {os.strerror(number)}; nothing was published"
    with pytest.raises(PapError, match=re.escape(expected)), exporting._one_line(tmp_path):
        raise OSError(number, os.strerror(number), "variables.data")


def test_what_tensorflow_says_of_a_full_disk_is_an_os_error():
    import tensorflow as tf

    # As SaveV2 says it on a tmpfs of 100 kB.
    text = "variables/part-00000-of-00001.data.tempstate1; No space left on device [Op:SaveV2]"
    with pytest.raises(OSError, match="No space left") as raised, publish.disk_errors():
        raise tf.errors.ResourceExhaustedError(None, None, text)
    assert raised.value.errno == errno.ENOSPC
    with pytest.raises(tf.errors.ResourceExhaustedError), publish.disk_errors():
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")


def fit_of(path):
    class Fit:
        model_path = path

    return Fit


def test_a_model_that_holds_code_is_one_line(tmp_path):
    import keras

    path = tmp_path / "model.keras"
    layers = [keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)]
    keras.Sequential(layers).save(path)
    with pytest.raises(PapError, match=r"can be loaded: .*Lambda") as refused:
        results.load_model(fit_of(path))
    assert str(refused.value).startswith(str(path)) and "\n" not in str(refused.value)


def test_a_damaged_model_is_one_line(tmp_path):
    path = tmp_path / "model.keras"
    for content in (None, b"", b"no archive"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(PapError, match="not a model that can be loaded"):
            results.load_model(fit_of(path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(PapError, match="not a model that can be loaded"):
        results.load_model(fit_of(path))
