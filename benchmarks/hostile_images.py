"""What hostile images cost that are accepted, beside honest ones; and what a good client notices.

    python benchmarks/hostile_images.py            # results/hostile_images.csv

First table: processor milliseconds of guard and decoder in the graph and of `png_streams`, each
file beside honest ones of its format: one of noise with as many pixels; and of those with at most
as many bytes the dearest drawn field, and the dearest of drawn and white ones. An honest file is a
drawn field of up to 4,096 x 4,096 (JPEG quality 75, baseline) or a white one of up to 2,048 x
1,536, in every way that libjpeg and libpng write it. Then what the graph alone takes a megabyte of
a PNG that goes on behind its last row. Files are those of tests/hostile_images.py, the large ones
included. Last table: a good client's latency alone, and while the files come in a row, a hundred of
them, over the other port.
"""

import contextlib
import io
import sys
import tempfile
import threading
import time
from pathlib import Path

import machine
from absl import app, flags

from tfds_pap import commands

_REPETITIONS = flags.DEFINE_integer("repetitions", 3, "Of each; the fastest counts (default: 3).")
_CLIENT = flags.DEFINE_bool("client", True, "The last table, too (default: on).")
_IN_A_ROW = flags.DEFINE_integer("in_a_row", 100, "Hostile requests in a row (default: 100).", 1)


_CSV = flags.DEFINE_string(
    "csv", "results/hostile_images.csv", "Where to write (default: results/hostile_images.csv)."
)
_COLUMNS = ("part", "file", "bytes or requests", "ms", "p99 ms", "x pixels", "x drawn", "x honest")


def main(argv):
    """Prints both tables and writes them."""
    del argv
    commands.prepare_tensorflow()
    # From here on `serving` is the package and not the script beside this one.
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
    import hostile_images
    import numpy as np

    print(machine.describe())
    files = list(hostile_images.corpus(np.random.default_rng(0), large=True))
    rows = _costs(files) + (_good_client(files) if _CLIENT.value else [])
    machine.write_rows(_CSV.value, (*_COLUMNS, "x quiet"), rows)


def _costs(files):
    import hostile_images
    import numpy as np
    import tensorflow as tf
    from PIL import Image

    from serving.model import guard, png_streams
    from serving.server.errors import ServingError
    from tfds_pap import decoding, phantom, pipeline

    rng = np.random.default_rng(0)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def decode(data):
        return pipeline.decode_and_resize(guard.checked(data), 64)

    def cost(data):
        """Milliseconds, and whether it was taken."""
        best, taken = float("inf"), True
        for _ in range(_REPETITIONS.value):
            start = time.process_time()
            try:
                png_streams.check(np.array([data], object))
                decode(data)
            except (ServingError, tf.errors.InvalidArgumentError):
                taken = False
            best = min(best, time.process_time() - start)
        return 1e3 * best, taken

    def honest_cost(data):
        milliseconds, taken = cost(data)
        assert taken, f"{len(data)} honest bytes are refused"
        return milliseconds

    drawn = phantom.draw_field(0, width=4096, height=4096, cells=64)[0].astype(np.uint8)
    sides = [round(8 * 2 ** (step / 4)) for step in range(37)]

    def white(form, mode, side, **options):
        file = io.BytesIO()
        Image.new(mode, (side, side * 3 // 4), "white").save(file, form, **options)
        return file.getvalue()

    ways = {
        "JPEG": [
            (mode, options)
            for mode in ("RGB", "L")
            for options in ({}, {"optimize": True}, {"progressive": True}, {"subsampling": 0})
        ],
        "PNG": [(mode, {"optimize": True}) for mode in ("L", "RGB", "RGBA")],
    }

    def fields(form):
        """Bytes and milliseconds of honest fields: drawn ones, white ones."""
        files = [
            [hostile_images.encoded(drawn[:side, :side], form) for side in sides],
            [
                white(form, mode, side, **options)
                for mode, options in ways[form]
                for side in sides
                if side <= 2048
            ],
        ]
        return [[(len(data), honest_cost(data)) for data in each] for each in files]

    honest = {form: fields(form) for form in ("JPEG", "PNG")}
    same_pixels = {}

    def of_noise(form, data):
        """Milliseconds of a picture of noise with as many pixels."""
        height, width, _ = decoding.decode(guard.checked(tf.constant(data))).shape
        side = round((width * height) ** 0.5)
        if (form, side) not in same_pixels:
            pixels = np.clip(rng.normal(170, 20, (side, side, 3)), 0, 255).astype(np.uint8)
            same_pixels[form, side] = honest_cost(hostile_images.encoded(pixels, form))
        return same_pixels[form, side]

    def dearest(files, size):
        return max([cost for length, cost in files if length <= size], default=float("nan"))

    found = []
    print("".join(f"{name:>12}" for name in _COLUMNS[2:]), "", "file")
    for name, data in files:
        milliseconds, taken = cost(data)
        times = [""] * 3
        if taken:
            form = "PNG" if name.startswith("PNG") else "JPEG"
            drawn_ones, white_ones = honest[form]
            beside = [dearest(each, len(data)) for each in (drawn_ones, drawn_ones + white_ones)]
            times = [round(milliseconds / each, 1) for each in (of_noise(form, data), *beside)]
        part = "accepted" if taken else "refused"
        found.append((part, name, len(data), round(milliseconds, 2), "", *times))
        print("".join(f"{value:>12}" for value in found[-1][2:]), part, name, flush=True)
    for megabytes in (60, 1_000):
        side = hostile_images.SIDE if megabytes == 60 else 2048
        data = hostile_images.png(side, side, hostile_images.deep(side, side, megabytes))
        start = time.process_time()
        decode(data)
        milliseconds = 1e3 * (time.process_time() - start)
        name = f"PNG of {side} px a side, {megabytes:,} MB behind its last row"
        found.append(("the graph alone", name, len(data), round(milliseconds)))
        print(*found[-1])
    return found


def _good_client(files):
    import grpc
    import hostile
    import numpy as np
    import soaking
    from served import served

    with tempfile.TemporaryDirectory() as folder:
        serving_dir = Path(folder) / "pap_soak"
        soaking._write_model(serving_dir / "1")
        with served(serving_dir) as server:
            channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
            call = channel.unary_unary(soaking._PREDICT)
            pixels = np.full((64, 64, 3), 170, np.uint8)
            good = hostile.image_request("pap_soak", soaking.hostile_images.encoded(pixels, "JPEG"))

            def latencies(until):
                found = []
                while not until(found):
                    start = time.perf_counter()
                    call(good, timeout=60)
                    found.append(1e3 * (time.perf_counter() - start))
                    time.sleep(0.01)
                return found

            latencies(lambda found: len(found) >= 100)
            quiet = latencies(lambda found: len(found) >= 500)
            base, rows = np.percentile(quiet, 99), []

            def note(name, found):
                p50, p99 = np.percentile(found, (50, 99))
                figures = len(found), round(p50, 1), round(p99, 1)
                times = round(p99 / base, 1)
                rows.append(("a good client beside", name, *figures, "", "", "", times))
                print(f"{name:44}", *(f"{value:>8}" for value in (*figures, times)), flush=True)

            print(f"\n{'a good client beside':44} requests      p50      p99  x quiet")
            note("nobody", quiet)
            for name, data in files:
                body = hostile.image_body(data)

                def attack(body=body):
                    with contextlib.suppress(OSError):
                        for _ in range(_IN_A_ROW.value):
                            server.rest("POST", "/v1/models/pap_soak:predict", body, timeout=120)

                thread = threading.Thread(target=attack)
                thread.start()
                beside = latencies(lambda _, thread=thread: not thread.is_alive())
                note(name, beside)
            return rows


if __name__ == "__main__":
    app.run(main)
