"""The user's own Keras settings do no harm: set as needed, or one line that names them."""

import json
import os
import subprocess
import sys

import pytest

from tfds_pap import keras_settings
from tfds_pap.errors import PapError

SETTINGS = """
from tfds_pap import commands
def main(argv):
    commands.prepare_tensorflow()
    import keras, tensorflow as tf
    print(keras.config.image_data_format(), keras.config.floatx(), keras.config.epsilon())
    print(tf.keras.__version__.split(".")[0])
commands.run(main, commands.STARTS_AGAIN)
"""


def test_what_was_left_from_other_projects_is_set_as_needed(tmp_path):
    left = {"floatx": "float16", "epsilon": 1e-3, "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps({**left, "backend": "tensorflow"}))
    ended = subprocess.run(
        [sys.executable, "-c", SETTINGS],
        capture_output=True,
        text=True,
        env=os.environ | {"KERAS_HOME": str(tmp_path), "TF_USE_LEGACY_KERAS": "1"},
    )
    assert (ended.stdout, ended.stderr) == ("channels_last float32 1e-07\n3\n", "")


@pytest.mark.parametrize(
    ("variable", "file", "line"),
    [
        ("theano", None, "KERAS_BACKEND=theano: expected one of tensorflow, jax, torch"),
        (None, {"backend": "theano"}, "keras.json: backend theano: expected one of"),
        ("none_such", None, "KERAS_BACKEND=none_such: its package is not installed; expected tens"),
        (None, {"backend": "none_such"}, "keras.json: backend none_such: its package is not inst"),
        ("tensorflow", {"backend": "theano"}, ""),
        (None, {}, ""),
        (None, ["no object"], ""),
        (None, None, ""),
    ],
)
def test_a_backend_that_is_not_there_is_one_line(tmp_path, monkeypatch, variable, file, line):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setitem(keras_settings._BACKENDS, "none_such", "none_such_package")
    if variable:
        monkeypatch.setenv("KERAS_BACKEND", variable)
    if file is not None:
        (tmp_path / "keras.json").write_text(json.dumps(file))
    if not line:
        keras_settings.check_backend()
        return
    if "none_such" in line:
        with pytest.raises(PapError) as caught:
            keras_settings.check_backend()
    else:
        monkeypatch.delitem(keras_settings._BACKENDS, "none_such")
        with pytest.raises(PapError) as caught:
            keras_settings.check_backend()
    assert line in str(caught.value)
