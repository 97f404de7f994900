"""Images that cost far more to decode than they look; shared by tests, benchmark and soak.

for name, data in corpus(rng):         # bytes, drawn anew for each generator
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from serving.model import guard

#: Pixels of a side, whole blocks; 16 megapixels are what a server takes at most, 3 in a few bytes.
SIDE, FREE, LARGE = 248, 1760, 4096


def slow_jpeg(side, scans, *, refined=False, frame=0xC2, components=1):
    """A flat progressive JPEG whose one scan of AC coefficients is repeated.

    Args:
        side: Pixels, a multiple of eight.
        scans: Of AC coefficients.
        refined: Each refines the last bit of all coefficients, which takes ten times as long.
        frame: Marker of the frame: Huffman coding, or 0xCA for arithmetic coding.
        components: 1 is grey, 3 have colours at every pixel, 4 are CMYK.
    """
    blocks = (side // 8) ** 2
    one = bytes([1] + [0] * 15)
    names = range(1, components + 1)
    sampling = b"".join(bytes([name, 0x11, 0]) for name in names)
    jpeg = b"\xff\xd8" + segment(0xDB, b"\0" + b"\x01" * 64)
    jpeg += segment(frame, struct.pack(">BHHB", 8, side, side, components) + sampling)
    jpeg += segment(0xC4, b"\x00" + one + b"\x00") + segment(0xC4, b"\x10" + one + b"\xe0")
    tables = b"".join(bytes([name, 0]) for name in names)
    first = bytes([components]) + tables + b"\0\0\0"
    jpeg += segment(0xDA, first) + _packed_bits("0" * blocks * components)
    left, runs = blocks, ""
    while left >= 1 << 14:
        run = min(left, (1 << 15) - 1)
        runs += "0" + format(run - (1 << 14), "014b")
        left -= run
    bits = _packed_bits(runs)
    for scan in range(scans):
        jpeg += segment(0xDA, bytes([1, names[scan % components], 0, 1, 63, 0x10 * refined])) + bits
    return jpeg + b"\xff\xd9"


def segment(marker, data=b""):
    """A marker of a JPEG with its length and content."""
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data


def chunk(name, data=b""):
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, pixels, *, extra=b"", behind=b"", depth=8, colour=2, interlaced=0):
    """A PNG of packed pixels, with chunks before and behind them."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + extra + chunk(b"IDAT", pixels) + behind + chunk(b"IEND")


def flat(width, height, sample_bytes=3, filter_type=0):
    """The packed rows of a flat picture."""
    return zlib.compress((bytes([filter_type]) + b"\1" * (width * sample_bytes)) * height, 9)


def interlaced(width, height, sample_bytes=3, filter_type=0):
    """The packed rows of the seven passes of a flat picture."""
    passes = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2))
    rows = b""
    for left, across, top, down in (*passes, (0, 1, 1, 2)):
        row = bytes([filter_type]) + b"\1" * (-(-(width - left) // across) * sample_bytes)
        rows += row * -(-(height - top) // down)
    return zlib.compress(rows, 9)


def deep(width, height, megabytes):
    """Packed rows of a flat picture, and zeros that go on behind the last of them."""
    packer = zlib.compressobj(9)
    packed = packer.compress(b"\0" * (height * (3 * width + 1)))
    packed += packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    # Behind a full flush the same bytes unpack to the same zeros, as often as they stand there.
    again = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return packed + again * (megabytes - 1) + packer.flush()


def encoded(pixels, form, **options):
    """A picture's bytes in a format of PIL."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, form, **options)
    return data.getvalue()


def with_segments(jpeg, segments):
    """A JPEG with more segments in front."""
    return jpeg[:2] + segments + jpeg[2:]


def corpus(rng, *, large=False):
    """Yields names and bytes, each another attack.

    Args:
        rng: A numpy generator.
        large: Also those whose files or pictures have megabytes.
    """
    pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    jpeg = encoded(pixels, "JPEG")
    scan = jpeg.find(b"\xff\xda")
    text = zlib.compress(b"\0" * 7_900_000, 9)
    yield "JPEG: 500 scans", slow_jpeg(SIDE, 500)
    yield "JPEG: 17 scans", slow_jpeg(SIDE, 16)
    refined = slow_jpeg(SIDE, 15, refined=True)
    yield "JPEG: 16 scans, refined", with_segments(refined, segment(0xFE, bytes(400)))
    yield "JPEG: arithmetic coding", slow_jpeg(SIDE, 9, refined=True, frame=0xCA)
    yield "PNG: 250,000 rows", png(1, 250_000, flat(1, 250_000), extra=chunk(b"tEXt", bytes(2_000)))
    yield "PNG: 250,000 rows of a bit", png(1, 250_000, flat(1, 250_000, 1), depth=1, colour=0)
    yield "PNG: interlaced", png(SIDE, SIDE, interlaced(SIDE, SIDE), interlaced=1)
    yield "JPEG: restarts", jpeg[:-2] + b"\xff\xd0" * 50_000 + jpeg[-2:]
    restarts = segment(0xDD, b"\0\1") + jpeg[scan:-2] + b"\xff\xd0\xff\xd1" * 25_000
    yield "JPEG: a restart a block", jpeg[:scan] + restarts + jpeg[-2:]
    yield "JPEG: empty comments", with_segments(jpeg, segment(0xFE) * 25_000)
    profile = segment(0xE2, b"ICC_PROFILE\0\1\1" + rng.bytes(65_000))
    yield "JPEG: profiles", with_segments(jpeg, profile * 8)
    yield "JPEG: tables", with_segments(jpeg, segment(0xC4, bytes([0, 1] + [0] * 16)) * 5_000)
    yield "PNG: deep pixels", png(SIDE, SIDE, deep(SIDE, SIDE, 60))
    yield (
        "PNG: texts",
        png(SIDE, SIDE, flat(SIDE, SIDE), extra=chunk(b"zTXt", b"a\0\0" + text) * 12),
    )
    international = chunk(b"iTXt", b"a\0\1\0\0\0" + text)
    yield "PNG: international texts", png(SIDE, SIDE, flat(SIDE, SIDE), behind=international * 12)
    yield "PNG: profiles", png(SIDE, SIDE, flat(SIDE, SIDE), extra=_profile(7_900_000) * 16)
    yield "PNG: 100 texts", png(8, 8, flat(8, 8), extra=chunk(b"zTXt", b"a\0\0") * 100)
    yield "PNG: empty chunks", png(8, 8, flat(8, 8), extra=chunk(b"teXt") * 9_000)
    yield "PNG: 65,535 px a side", png(65_535, 65_535, flat(8, 8))
    yield "BMP: 2^31 px a side", b"BM" + struct.pack("<IIIIii", 54, 0, 54, 40, 2**31 - 1, 2**31 - 1)
    yield "BMP: header alone", encoded(pixels, "BMP")[:54]
    yield "TIFF", encoded(pixels, "TIFF")
    yield "TIFF: header alone", b"II*\0" + struct.pack("<I", 8) + b"\xff" * 40
    yield "GIF", encoded(pixels, "GIF")
    yield "WebP", encoded(pixels, "WEBP")
    if large:
        yield "JPEG: 500 scans of 16 MP", slow_jpeg(LARGE, 500)
        yield "JPEG: 4,000 scans of 16 MP", slow_jpeg(LARGE, 4_000)
        sizes = (("16 MP", LARGE, 16), ("16 MP", LARGE, 10), ("3 MP", FREE, 10))
        for components, colours in ((1, "grey"), (3, "colours"), (4, "CMYK")):
            for name, side, scans in (*sizes, ("8 MP", 2880, 16)):
                data = slow_jpeg(side, scans - 1, refined=True, components=components)
                name = f"JPEG: {scans} scans of {name}, {colours}"
                yield name, data
                work = side * side * (8 + scans) // 8 * (2 if components == 4 else 1)
                yield f"{name}, padded", padded(data, work)
        yield "JPEG: 4 MB of comments", with_segments(jpeg, segment(0xFE, bytes(65_000)) * 62)
        yield "PNG: deep pixels, 1 GB", png(SIDE, SIDE, deep(SIDE, SIDE, 1_000))
        yield (
            "PNG: 200 texts of 8 MB",
            png(8, 8, flat(8, 8), extra=chunk(b"zTXt", b"a\0\0" + text) * 200),
        )
        for side, name in ((LARGE, "16"), (2048, "4"), (1256, "1.6")):
            rows = flat(side, side, 8, filter_type=4)
            yield f"PNG: {name} MP of 64 bits", png(side, side, rows, depth=16, colour=6)
            rows = flat(side, side, 3, filter_type=4)
            yield f"PNG: {name} MP, flat", png(side, side, rows)
            rows = interlaced(side, side, filter_type=4)
            yield f"PNG: {name} MP, interlaced", png(side, side, rows, interlaced=1)
        rows = flat(LARGE, LARGE, filter_type=4)
        missing = LARGE * (3 * LARGE + 32) // guard.BUDGETS["PNG"].a_byte - len(rows)
        text = chunk(b"tEXt", b"a\0" + b" " * missing)
        yield "PNG: 16 MP, padded", png(LARGE, LARGE, rows, extra=text)


def padded(jpeg, work):
    """A JPEG with as many comments as the guard wants bytes for this work."""
    budget = guard.BUDGETS["JPEG"]
    missing = work // (budget.free_a_byte if work <= budget.free else budget.a_byte) - len(jpeg)
    comments = segment(0xFE, bytes(2**15))
    return with_segments(jpeg, comments * -(-missing // len(comments)))


def _profile(size):
    """A chunk of a colour profile that libpng reads to its end."""
    profile = bytearray(size)
    profile[:4] = struct.pack(">I", size)
    profile[12:24], profile[36:40] = b"mntrRGB XYZ ", b"acsp"
    profile[68:80] = struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(profile), 9))


def _packed_bits(bits):
    bits += "1" * (-len(bits) % 8)
    found = bytes(int(bits[start : start + 8], 2) for start in range(0, len(bits), 8))
    return found.replace(b"\xff", b"\xff\0")
