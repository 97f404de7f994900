import fractions
import io

import cv2
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from conftest import make_tree
from PIL import Image

from tfds_pap import augmentation, decoding, folders, pipeline, preparing, roles


def encode(pixels, form, mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def smooth():
    noise = np.random.default_rng(0).integers(0, 256, (150, 140, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True, "quality": 60}),
        ("JPEG", "L", {}),
        ("PNG", "RGB", {}),
        ("PNG", "L", {}),
        ("PNG", "P", {}),
        ("PNG", "LA", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "1", {}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("BMP", "RGBA", {}),
    ],
)
def test_pixels_equal_those_of_cv2_and_pil(smooth, form, mode, options):
    data = encode(smooth, form, mode, **options)
    decoded = decoding.decode(tf.constant(data)).numpy()
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))
    if form != "GIF":
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(decoded, bgr[:, :, ::-1])


def test_cmyk_equals_pil(smooth):
    data = encode(smooth, "JPEG", "CMYK")
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decoding.decode(data).numpy(), image.convert("RGB"))


def test_sixteen_bit_png_keeps_the_high_byte():
    deep = np.arange(0, 65_536, 257, np.uint16).reshape(16, 16) + 77
    data = cv2.imencode(".png", deep)[1].tobytes()
    np.testing.assert_array_equal(decoding.decode(data).numpy()[:, :, 1], deep >> 8)


@pytest.mark.parametrize("size", [20, 50])
def test_nearest_equals_cv2_and_pil(smooth, size):
    # P1: keras.utils.load_img resizes by PIL, which takes the pixel at the centre of each cell.
    square = cv2.resize(smooth, (150, 150))
    ours = pipeline.decode_and_resize(encode(square, "PNG"), size, "nearest").numpy()
    exact = cv2.resize(square, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    np.testing.assert_array_equal(ours, exact)
    pil = Image.fromarray(square).resize((size, size), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(ours, np.asarray(pil))


def test_nearest_is_not_cv2s_plain_one(smooth):
    # It takes the pixel at the corner of each cell: P1's authors resized by PIL.
    square = cv2.resize(smooth, (150, 150))
    ours = pipeline.decode_and_resize(encode(square, "PNG"), 20, "nearest").numpy()
    corners = cv2.resize(square, (20, 20), interpolation=cv2.INTER_NEAREST)
    assert (ours != corners).any(axis=-1).mean() > 0.5


@pytest.mark.parametrize("size", [20, 64, 224])
def test_antialiased_shrinking_equals_pil(smooth, size):
    square = cv2.resize(smooth, (500, 500))
    square[::2] = 255 - square[::2]
    ours = pipeline.decode_and_resize(encode(square, "PNG"), size, "antialiased").numpy()
    pil = Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR)
    # PIL computes in fixed point.
    assert np.abs(ours.astype(int) - np.asarray(pil)).max() <= 1
    plain = pipeline.decode_and_resize(encode(square, "PNG"), size, "bilinear").numpy()
    assert np.abs(plain.astype(int) - np.asarray(pil)).max() > 20


@pytest.mark.parametrize("size", [7, 50, 200])
def test_nearest_takes_the_pixel_under_the_centre(smooth, size):
    # Exact fractions: cv2 and PIL differ from each other where a centre falls on a boundary.
    half = fractions.Fraction(1, 2)
    rows = [int((i + half) * 150 / size) for i in range(size)]
    columns = [int((i + half) * 140 / size) for i in range(size)]
    ours = pipeline.decode_and_resize(encode(smooth, "PNG"), size, "nearest")
    np.testing.assert_array_equal(ours, smooth[rows][:, columns])


@pytest.mark.parametrize("size", [64, 150, 250])
def test_bilinear_equals_cv2(smooth, size):
    data = encode(smooth, "JPEG")
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    ours = pipeline.decode_and_resize(data, size).numpy()
    floats = cv2.resize(bgr.astype(np.float32), (size, size))[:, :, ::-1]
    # Float arithmetic may fall on the other side of a half.
    assert np.abs(ours - floats).max() <= 0.5 + 1e-3
    fixed_point = cv2.resize(bgr, (size, size))[:, :, ::-1]
    assert np.abs(ours.astype(int) - fixed_point).max() <= 1


def test_image_of_the_right_size_is_not_touched(smooth):
    data = encode(smooth[:140], "PNG")
    for method in decoding.RESIZE_METHODS:
        resized = pipeline.decode_and_resize(data, 140, method)
        np.testing.assert_array_equal(resized, smooth[:140])


def test_area_averages():
    halves = np.zeros((4, 4, 3), np.uint8)
    halves[:, ::2] = 100
    resized = pipeline.decode_and_resize(encode(halves, "PNG"), 2, "area")
    np.testing.assert_array_equal(resized, np.full((2, 2, 3), 50))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"BM",
        b"text",
        b"\xff\xd8\xff\xe0 broken",
        encode(np.zeros((4, 4, 3), np.uint8), "TIFF"),
        encode(np.zeros((4, 4, 3), np.uint8), "BMP", "L"),
        encode(np.zeros((40, 40, 3), np.uint8), "JPEG")[:-20],
    ],
)
def test_undecodable_bytes_raise(data):
    with pytest.raises(tf.errors.InvalidArgumentError):
        pipeline.decode_and_resize(data, 8)


def test_unknown_method():
    with pytest.raises(
        ValueError, match="'cubic': expected one of nearest, bilinear, antialiased, area"
    ):
        pipeline.decode_and_resize(b"", 8, "cubic")


@pytest.fixture(scope="module")
def store(manual_dir, data_dir):
    builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)
    return pipeline.load_images(builder, 24)


def test_store_holds_each_image_under_its_id(store, manual_dir):
    for position in (0, 17, 51):
        id_ = store.index.ids[position]
        data = (manual_dir / "DB_4" / id_).read_bytes()
        expected = pipeline.decode_and_resize(data, 24)
        np.testing.assert_array_equal(store.images([id_])[0], expected)


def test_read_images_decodes_the_named_ones(store, manual_dir, data_dir):
    builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)
    ids = store.index.ids[[40, 3, 51]]
    np.testing.assert_array_equal(pipeline.read_images(builder, ids, 24), store.images(ids))
    with pytest.raises(KeyError, match="ghost"):
        pipeline.read_images(builder, ["ghost"], 24)


def stream(store, *, positions=range(30), **options):
    batches = store.batches(positions, 8, **options).as_numpy_iterator()
    return [(images.tobytes(), labels.tolist()) for images, labels in batches]


def test_without_seed_the_order_is_kept(store):
    images = np.concatenate([i for i, _ in store.batches([5, 3, 9], 2).as_numpy_iterator()])
    np.testing.assert_array_equal(images, store.images(store.index.ids[[5, 3, 9]]))


def test_every_epoch_holds_each_image_once(store):
    positions = list(range(4, 34))
    shown = {row.tobytes() for row in store.images(store.index.ids[positions])}
    for epoch in range(3):
        batches = store.batches(positions, 8, seed=1, epochs=range(epoch, epoch + 1))
        rows = [image.tobytes() for images, _ in batches.as_numpy_iterator() for image in images]
        assert len(rows) == 30
        assert set(rows) == shown


def test_same_seed_gives_the_same_batches(store):
    options = {"epochs": range(2), "augment": augmentation.random_flips}
    first = stream(store, seed=3, **options)
    assert first == stream(store, seed=3, **options)
    assert first != stream(store, seed=4, **options)
    assert first[:4] != first[4:], "epochs differ"


def test_a_resumed_epoch_is_the_epoch_that_was_lost(store):
    whole = stream(store, seed=3, epochs=range(4), augment=augmentation.random_flips)
    rest = stream(store, seed=3, epochs=range(2, 4), augment=augmentation.random_flips)
    assert whole[8:] == rest


def test_cardinality_is_known(store):
    assert int(store.batches(range(30), 8, seed=0, epochs=range(5)).cardinality()) == 20


def test_flips_are_the_eight_symmetries(store):
    image = np.asarray(store.pixels[0])
    turned = [np.rot90(side, k).tobytes() for side in (image, image[:, ::-1]) for k in range(4)]
    assert len(set(turned)) == 8
    many = augmentation.random_flips(tf.repeat(image[None], 200, axis=0), tf.constant([1, 2]))
    assert {view.tobytes() for view in many.numpy()} == set(turned)


def test_file_cache_gives_the_same_batches_and_is_used_again(store, manual_dir, data_dir, tmp_path):
    builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)
    filed = pipeline.load_images(builder, 24, budget_bytes=1, cache_dir=tmp_path)
    assert isinstance(filed.pixels, np.memmap)
    assert stream(filed, seed=3, epochs=range(2)) == stream(store, seed=3, epochs=range(2))
    (cache,) = tmp_path.glob("*.npy")
    written = cache.stat().st_mtime_ns
    pipeline.load_images(builder, 24, budget_bytes=1, cache_dir=tmp_path)
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")] == [written]
    pipeline.load_images(builder, 12, budget_bytes=1, cache_dir=tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_an_interrupted_file_cache_leaves_nothing(manual_dir, data_dir, tmp_path, monkeypatch):
    builder = preparing.prepare("pap_db4", "original", manual_dir, data_dir)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_decode_all", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pipeline.load_images(builder, 24, budget_bytes=1, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_several_shards_and_parts_of_splits(store, manual_dir, tmp_path):
    builder = tfds.builder("pap_db4/original", data_dir=tmp_path)
    config = tfds.download.DownloadConfig(manual_dir=str(manual_dir), num_shards=3)
    builder.download_and_prepare(download_config=config)
    assert len(builder.info.splits["train"].filenames) == 3
    sharded = pipeline.load_images(builder, 24)
    assert sorted(sharded.index.ids) == sorted(store.index.ids)
    for id_ in sharded.index.ids:
        np.testing.assert_array_equal(sharded.images([id_])[0], store.images([id_])[0])

    def ids(split):
        return [e["id"] for e in pipeline.examples(builder, split, 8).as_numpy_iterator()]

    assert ids("train[:25%]") + ids("train[25%:]") == ids("train")
    assert ids("train+validation") == ids("train") + ids("validation")


# Roles


def test_paper_roles_are_the_authors_cut(store):
    found = roles.assign_roles(store.index, "paper", stage=2)
    from sklearn import model_selection

    ids = sorted(id_ for id_ in store.index.ids if id_.startswith("train/"))
    fit, tune = model_selection.train_test_split(ids, test_size=0.2, random_state=1)
    assert store.index.ids[found.train].tolist() == fit
    assert store.index.ids[found.tune].tolist() == tune
    assert set(store.index.splits[found.test]) == {"validation"}


def test_paper_stage1_trains_on_the_whole_folder(store):
    found = roles.assign_roles(store.index, "paper", stage=1)
    assert (len(found.train), len(found.tune), len(found.test)) == (40, 0, 12)


def test_clean_roles_share_no_group_and_hold_every_class(store):
    found = roles.assign_roles(store.index, "clean", stage=2)
    groups = [set(store.index.groups[positions]) for _, positions in found.items()]
    assert not groups[0] & groups[1] and not groups[1] & groups[2] and not groups[0] & groups[2]
    for _, positions in found.items():
        assert set(store.index.labels[positions]) == {0, 1, 2, 3}
    assert sorted(np.concatenate([p for _, p in found.items()])) == list(range(52))


def test_clean_roles_without_groups_are_stratified(manual_dir, data_dir):
    index = pipeline.read_index(preparing.prepare("pap_db3", "original", manual_dir, data_dir))
    found = roles.assign_roles(index, "clean", stage=1)
    assert np.bincount(index.labels[found.tune]).tolist() == [2, 2]


def test_rare_class_reaches_the_tune_role(shared_data):
    tree = folders.read_tree(
        shared_data / "DB_4", {"1": "HSIL", "2": "LSIL", "3": "NILM", "4": "SCC"}
    )
    names = ("NILM", "LSIL", "HSIL", "SCC")
    index = pipeline.Index(
        ids=np.array([file.id for file in tree.files]),
        groups=np.array([file.group for file in tree.files]),
        labels=np.array([names.index(file.label) for file in tree.files]),
        splits=np.array([file.split for file in tree.files]),
        class_names=names,
    )
    found = roles.assign_roles(index, "clean", stage=2)
    share = np.bincount(index.labels[found.tune]) / np.bincount(
        index.labels[index.splits == "train"]
    )
    assert share.min() > 0.05
    assert share.max() < 0.4


def test_too_few_images_or_groups(tmp_path):
    index = pipeline.Index(
        ids=np.array(["a", "b", "c", "d"]),
        groups=np.array([""] * 4),
        labels=np.array([0, 0, 1, 1]),
        splits=np.array(["train"] * 3 + ["validation"]),
        class_names=("background", "cell"),
    )
    with pytest.raises(ValueError, match="a class with 1 images"):
        roles.assign_roles(index, "clean", stage=1)
    make_tree(tmp_path, "DB_3", train=4, validation=2, groups=2)
    built = preparing.prepare("pap_db3", "original", tmp_path, tmp_path / "data")
    with pytest.raises(ValueError, match="has 2 groups; a cut by group needs 5"):
        roles.assign_roles(pipeline.read_index(built), "clean", stage=1)
    with pytest.raises(ValueError, match="'other': expected one of paper, clean"):
        roles.assign_roles(index, "other", stage=1)
