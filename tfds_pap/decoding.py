"""From the bytes of one image to the pixels that a model sees; training and serving share it."""

import tensorflow as tf

#: All use half-pixel centres. "nearest" equals PIL's NEAREST and cv2's INTER_NEAREST_EXACT, not
#: cv2's INTER_NEAREST, which takes corners. "bilinear" looks at four pixels however far it shrinks,
#: as cv2's INTER_LINEAR does and the papers did; "antialiased" is bilinear too, but first smooths
#: what the smaller image cannot hold, as PIL's BILINEAR does.
RESIZE_METHODS = {
    "nearest": None,
    "bilinear": tf.image.ResizeMethod.BILINEAR,
    "antialiased": tf.image.ResizeMethod.BILINEAR,
    "area": tf.image.ResizeMethod.AREA,
}


def decode(data: tf.Tensor) -> tf.Tensor:
    """Decodes one JPEG, PNG, BMP, or GIF (one frame) image to RGB.

    JPEGs use the accurate inverse DCT, so that pixels equal those of cv2 and PIL. Grey, palette
    and CMYK images become RGB, alpha is dropped. 16-bit PNGs keep their high byte; `images` and the
    guard of a served graph refuse them. Pixels stay as the file stores them: an orientation in EXIF
    or TIFF tags is ignored, here and wherever else this package reads or shows an image, so that
    positions are those of the file.

    Args:
        data: Scalar string, the file's bytes.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        tf.errors.InvalidArgumentError: If the bytes are no such image, or a BMP that is neither
            24 nor 32 bits a pixel.
    """
    data = tf.convert_to_tensor(data)
    is_bmp = tf.equal(tf.strings.substr(data, 0, 2), b"BM")
    image = tf.cond(
        is_bmp,
        lambda: _decode_bmp(data),
        # Despite its name the op decodes every format but BMP, and only it takes the DCT method.
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
    )
    image.set_shape([None, None, 3])
    return image


def _decode_bmp(data: tf.Tensor) -> tf.Tensor:
    image = tf.io.decode_bmp(data, channels=0)
    tf.debugging.assert_greater_equal(
        tf.shape(image)[-1], 3, message="BMP images must have 24 or 32 bits a pixel"
    )
    return image[:, :, :3]


def decode_and_resize(data: tf.Tensor, size: int, method: str = "bilinear") -> tf.Tensor:
    """Decodes one image and resizes it to a square; training and serving both call this.

    Args:
        data: Scalar string, the file's bytes; see `decode`.
        size: Height and width in pixels.
        method: One of `RESIZE_METHODS`.

    Returns:
        uint8 RGB `[size, size, 3]`, 0..255; interpolated values are rounded half to even.

    Raises:
        ValueError: If the method is unknown.
        tf.errors.InvalidArgumentError: See `decode`.

    Example:
        >>> white = tf.io.encode_png(tf.fill([4, 6, 3], tf.constant(255, tf.uint8)))
        >>> decode_and_resize(white, 2).shape
        TensorShape([2, 2, 3])
    """
    check_method(method)
    image = decode(data)
    # Most published images have the model's size already.
    image = tf.cond(
        tf.reduce_all(tf.equal(tf.shape(image)[:2], size)),
        lambda: image,
        lambda: resize(image, size, size, method),
    )
    return tf.ensure_shape(image, [size, size, 3])


def check_method(method: str) -> None:
    """Refuses an unknown resize method.

    Args:
        method: One of `RESIZE_METHODS`.

    Raises:
        ValueError: If it is none.
    """
    if method not in RESIZE_METHODS:
        raise ValueError(f"resize method {method!r}: expected one of {', '.join(RESIZE_METHODS)}")


def resize(images: tf.Tensor, height: int, width: int, method: str) -> tf.Tensor:
    """Resizes images as `decode_and_resize` does; a size may be a tensor.

    Args:
        images: uint8 `[..., h, w, 3]`, with one dimension more at most.
        height: Pixels.
        width: Pixels.
        method: One of `RESIZE_METHODS`.

    Returns:
        uint8 `[..., height, width, 3]`; interpolated values are rounded half to even.
    """
    if method == "nearest":
        # tf.image.resize divides in float32 and misses pixels that lie on a boundary.
        before = tf.shape(images)[-3:-1]
        for axis, old, new in ((-3, before[0], height), (-2, before[1], width)):
            images = tf.gather(images, (2 * tf.range(new) + 1) * old // (2 * new), axis=axis)
        return images
    resized = tf.image.resize(
        images,
        [height, width],
        method=RESIZE_METHODS[method],
        antialias=method == "antialiased",
    )
    return tf.saturate_cast(tf.round(tf.cast(resized, tf.float32)), tf.uint8)
