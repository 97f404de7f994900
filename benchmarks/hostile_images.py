"""What hostile images cost that are accepted, beside honest ones; and what a good client notices.

    python benchmarks/hostile_images.py

First table: processor milliseconds of guard and decoder in the graph, each file beside honest ones
of its format: one of noise with as many pixels; and of those with at most as many bytes the dearest
drawn field (JPEG quality 75), and the dearest of drawn and white fields (2,048 x 1,536 at most).
Then what the graph alone takes a megabyte of a PNG that goes on behind its last row. Files are
those of tests/hostile_images.py, the large ones included. Last table: a good client's latency
alone, and while the files come in a row, a hundred of them, over the other port.
"""

import contextlib
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


def main(argv):
    """Prints both tables."""
    del argv
    commands.prepare_tensorflow()
    # From here on `serving` is the package and not the script beside this one.
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
    print(machine.describe())
    files = _costs()
    if _CLIENT.value:
        _good_client(files)


def _costs():
    import hostile_images
    import numpy as np
    import tensorflow as tf

    from serving.model import guard, png_streams
    from serving.server.errors import ServingError
    from tfds_pap import phantom, pipeline

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

    def noise(form, side):
        pixels = np.clip(rng.normal(170, 20, (side, side, 3)), 0, 255).astype(np.uint8)
        return hostile_images.encoded(pixels, form)

    drawn = phantom.draw_field(0, width=4096, height=4096, cells=64)[0].astype(np.uint8)
    sides = (8, 16, 32, 64, 128, 250, 362, 512, 724, 1024, 1448, 2048, 2896, 4096)

    def fields(form):
        """Bytes and milliseconds of honest fields: drawn ones, white ones."""
        whites = [np.full((side * 3 // 4, side, 3), 255, np.uint8) for side in sides if side < 2049]
        compact = {"progressive": True} if form == "JPEG" else {"optimize": True}
        files = [
            [hostile_images.encoded(drawn[:side, :side], form) for side in sides],
            [hostile_images.encoded(white, form, **compact) for white in whites],
        ]
        return [[(len(data), cost(data)[0]) for data in each] for each in files]

    honest = {form: fields(form) for form in ("JPEG", "PNG")}
    same_pixels = {
        (form, side): cost(noise(form, side))[0]
        for form in ("JPEG", "PNG")
        for side in (8, 250, 2048, 4096)
    }

    def dearest(files, size):
        return max([cost for length, cost in files if length <= size], default=float("nan"))

    files = list(hostile_images.corpus(rng, large=True))
    heads = f"{'x pixels':>9} {'x drawn':>8} {'x honest':>9}"
    print(f"{'file':32} {'bytes':>10} {'ms':>9} {heads}")
    for name, data in files:
        milliseconds, taken = cost(data)
        if not taken:
            print(f"{name:32} {len(data):>10,} {milliseconds:>9.2f}   refused")
            continue
        form = "PNG" if name.startswith("PNG") else "JPEG"
        side = 8 if "chunks" in name or "8 MB" in name else 250
        side = 4096 if "16 MP" in name else 2048 if "4 MP" in name else side
        drawn_ones, white_ones = honest[form]
        print(
            f"{name:32} {len(data):>10,} {milliseconds:>9.2f} "
            f"{milliseconds / same_pixels[form, side]:>9.1f} "
            f"{milliseconds / dearest(drawn_ones, len(data)):>8.1f} "
            f"{milliseconds / dearest(drawn_ones + white_ones, len(data)):>9.1f}",
            flush=True,
        )
    for megabytes in (60, 1_000):
        side = hostile_images.SIDE if megabytes == 60 else 2048
        data = hostile_images.png(side, side, hostile_images.deep(side, side, megabytes))
        start = time.process_time()
        decode(data)
        seconds = time.process_time() - start
        print(
            f"PNG of {side} px a side with {megabytes:,} MB behind its last row, the graph alone: "
            f"{len(data):,} bytes, {seconds:.2f} s, {seconds / len(data) * 1e6:.2f} s a megabyte"
        )
    return files


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
            heads = f"{'requests':>9} {'p50 ms':>8} {'p99 ms':>8} {'x quiet':>8}"
            print(f"\n{'a good client beside':32} {heads}")
            base = np.percentile(quiet, 99)
            print(f"{'nobody':32} {len(quiet):>9} {np.median(quiet):>8.1f} {base:>8.1f}")
            for name, data in files:
                body = hostile.image_body(data)

                def attack(body=body):
                    with contextlib.suppress(OSError):
                        for _ in range(_IN_A_ROW.value):
                            server.rest("POST", "/v1/models/pap_soak:predict", body, timeout=120)

                thread = threading.Thread(target=attack)
                thread.start()
                beside = latencies(lambda _, thread=thread: not thread.is_alive())
                p99 = np.percentile(beside, 99)
                print(
                    f"{name:32} {len(beside):>9} {np.median(beside):>8.1f} {p99:>8.1f} "
                    f"{p99 / base:>8.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)
