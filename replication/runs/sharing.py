"""One batch shared among several devices, so that the weights are those of one device.

Each device takes an equal part of a batch; gradients are means over the whole of it, and so are
what BatchNorm normalises with. TensorFlow's MirroredStrategy runs the step once a device, and
BatchNorm must be told to look at the others (`synchronized`); JAX compiles one step for all of
them, whose sums are over the whole batch by themselves.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tfds_pap.errors import PapError

#: Divides the processor into so many devices, on which sharing can be tried without GPUs.
CPU_DEVICES = "PAP_CPU_DEVICES"

#: From a batch to what a network says of it.
Forward = Callable[[Any], Any]


def _as_it_is(forward: Forward) -> Forward:
    return forward


@dataclasses.dataclass(frozen=True)
class Sharing:
    """How a batch is shared.

    Attributes:
        scope: Returns the context in which models are built and trained.
        devices: How many there are.
        forward: From a function of a batch, `[b, ...]`, to one whose batch the devices share; b
            divides by their number. The model is built in `scope`.
    """

    scope: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    devices: int = 1
    forward: Callable[[Forward], Forward] = _as_it_is


def among_all() -> Sharing:
    """Shares among every accelerator, or every device that the processor is divided into.

    Raises:
        PapError: If Keras's backend is neither TensorFlow nor JAX.
    """
    import keras

    backend = keras.backend.backend()
    if backend not in ("tensorflow", "jax"):
        raise PapError(f"--strategy=mirrored needs KERAS_BACKEND=tensorflow or jax, not {backend}")
    return _among_jax_devices() if backend == "jax" else _among_tensorflow_devices()


def _among_jax_devices() -> Sharing:
    import keras

    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)

    def shared(forward: Forward) -> Forward:
        import jax

        def of_parts(batch: Any) -> Any:
            layout = distribution.get_data_layout(batch.shape).backend_layout
            return forward(jax.device_put(np.asarray(batch), layout))

        return of_parts

    return Sharing(distribution.scope, distribution.num_model_replicas, shared)


def _among_tensorflow_devices() -> Sharing:
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy([device.name for device in devices])

    def shared(forward: Forward) -> Forward:
        def of_parts(batch: Any) -> Any:
            parts = tf.split(batch, len(devices))
            given = strategy.experimental_distribute_values_from_function(
                lambda context: parts[context.replica_id_in_sync_group]
            )
            answers = strategy.run(forward, args=(given,))
            return tf.concat(strategy.experimental_local_results(answers), axis=0)

        return of_parts

    return Sharing(strategy.scope, len(devices), shared)


def divide_processor() -> None:
    """Divides the processor as `CPU_DEVICES` says, before a backend computes.

    Raises:
        PapError: If the variable is no number from 1.
    """
    text = os.environ.get(CPU_DEVICES)
    if text is None:
        return
    if not text.isdecimal() or int(text) < 1:
        raise PapError(f"{CPU_DEVICES}={text}: expected a number of devices, 1 or more")
    import keras

    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_num_cpu_devices", int(text))
        return
    import tensorflow as tf

    (processor,) = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration()] * int(text)
    tf.config.set_logical_device_configuration(processor, parts)


def evenly(dataset: Any, devices: int) -> Any:
    """Returns batches that divide by the number of devices, and teach the same.

    The last batch of an epoch may not: then each device gets all of it, so that mean loss, mean
    gradient and the statistics of BatchNorm are those of the batch itself. It counts as often as
    there are devices in the epoch's own loss and accuracy, and may need that much more memory.

    Args:
        dataset: `tf.data.Dataset` of tuples of tensors `[b, ...]`.
        devices: That share a batch.
    """
    if devices == 1:
        return dataset
    import tensorflow as tf

    def repeated(*batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        count = tf.shape(batch[0])[0]
        times = tf.where(count % devices == 0, 1, devices)
        rows = tf.tile(tf.range(count), [times])
        return tuple(tf.gather(part, rows) for part in batch)

    return dataset.map(repeated, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def devices_of(model: Any) -> int:
    """Returns how many devices share the batches of `model.predict`, here and now.

    Args:
        model: A Keras model.
    """
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        return model.distribute_strategy.num_replicas_in_sync
    distribution = keras.distribution.distribution() if backend == "jax" else None
    return 1 if distribution is None else distribution.num_model_replicas


@contextlib.contextmanager
def synchronized(layers: Iterator[Any], devices: int) -> Iterator[None]:
    """Has BatchNorm normalise with the whole batch while TensorFlow trains; changes no saved model.

    Args:
        layers: Of the model, nested ones in place of their models.
        devices: That share a batch.
    """
    import keras

    normalizations = []
    if devices > 1 and keras.backend.backend() == "tensorflow":
        normalizations = [
            layer
            for layer in layers
            if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized
        ]
    for layer in normalizations:
        layer.synchronized = True
    try:
        yield
    finally:
        for layer in normalizations:
            layer.synchronized = False
