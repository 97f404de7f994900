import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tfds_pap import augmentation


@pytest.fixture
def cell():
    noise = np.random.default_rng(0).integers(0, 256, (41, 41, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3).astype(np.float32)


def test_the_eight_views_are_those_of_pil(cell):
    image = Image.fromarray(cell.astype(np.uint8))
    turned = [image.rotate(90 * turns) for turns in range(4)]
    wanted = {t.tobytes() for t in turned} | {
        t.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes() for t in turned
    }
    batch = tf.repeat(cell[None].astype(np.uint8), 8, axis=0)
    views = augmentation.view(batch, tf.range(8)).numpy()
    assert {view.tobytes() for view in views} == wanted
    np.testing.assert_array_equal(views[0], cell)


def test_stored_views_are_those_that_flips_would_show(cell):
    images = tf.constant(np.stack([cell, cell[::-1]] * 20))
    stored = tf.stack(
        [augmentation.view(images, tf.fill([40], number)) for number in range(8)], axis=1
    )
    seed = tf.constant([3, 4])
    shown = augmentation.random_flips(images, seed)
    picked = augmentation.random_stored_view(tf.reshape(stored, [40, 8, -1]), seed)
    np.testing.assert_array_equal(picked, tf.reshape(shown, [40, -1]))


def test_blur_equals_opencv(cell):
    sigma = np.array([0.7, 3.0], np.float32)
    ours = augmentation.blur(tf.constant(np.stack([cell, cell])), tf.constant(sigma), 9, 5)
    for number, value in enumerate(sigma):
        wanted = cv2.GaussianBlur(
            cell, (5, 9), float(value), sigmaY=float(value), borderType=cv2.BORDER_REFLECT_101
        )
        np.testing.assert_allclose(ours[number], wanted, atol=1e-3)


def test_p3_blurs_over_nine_rows_and_five_columns(monkeypatch):
    # torchvision's GaussianBlur((5, 9)) is 5 wide and 9 high.
    monkeypatch.setattr(augmentation, "rotate", lambda images, degrees: images)
    points = np.zeros((12, 41, 41, 3), np.uint8)
    points[:, 20, 20] = 255
    found = np.asarray(augmentation.random_flips_blur_rotation(points, tf.constant([0, 1])))
    high, wide = (np.any(found, axis=axes).sum(axis=1).max() for axes in ((2, 3), (1, 3)))
    assert (high, wide) == (9, 5)


def test_rotation_equals_pil(cell):
    degrees = [30.0, 48.5, 70.0]
    ours = augmentation.rotate(tf.constant(np.stack([cell] * 3)), tf.constant(degrees)).numpy()
    for number, angle in enumerate(degrees):
        wanted = np.asarray(
            Image.fromarray(cell.astype(np.uint8)).rotate(angle, Image.Resampling.NEAREST)
        )
        # Places that fall between two pixels may go either way.
        same = (np.abs(ours[number].astype(np.uint8) - wanted.astype(int)) == 0).all(axis=-1)
        assert same.mean() > 0.99
        assert (ours[number][0, 0] == 0).all()


def test_p3_changes_every_image_and_repeats_with_its_seed(cell):
    images = tf.constant(np.stack([cell.astype(np.uint8)] * 6))
    first = augmentation.random_flips_blur_rotation(images, tf.constant([0, 1]))
    again = augmentation.random_flips_blur_rotation(images, tf.constant([0, 1]))
    other = augmentation.random_flips_blur_rotation(images, tf.constant([0, 2]))
    assert first.dtype == tf.uint8 and first.shape == images.shape
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len({image.numpy().tobytes() for image in first}) == 6
    # A turn by 30 to 70 degrees leaves the corners black.
    assert np.asarray(first)[:, [0, 0, -1, -1], [0, -1, 0, -1]].max() == 0
