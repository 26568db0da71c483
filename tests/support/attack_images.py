"""Images to attack with: damaged, lying about their size, larger than they look, no images at all."""

import functools
import io
import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from attack_cases import Case
from PIL import Image

from hf_clip_variants import CLIPClassifierImageProcessor
from hf_clip_variants.data.images.image_set import decode_roughly


SIZE = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
MODES = {
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "TIFF": ("RGB", "RGBA", "L", "CMYK", "F", "I;16"),
    "BMP": ("RGB", "L", "1"),
    "PPM": ("RGB", "L"),
    "TGA": ("RGB", "RGBA"),
    "ICO": ("RGBA",),
    "JPEG2000": ("RGB", "L"),
}


@functools.cache
def _processors() -> tuple[CLIPClassifierImageProcessor, ...]:
    return CLIPClassifierImageProcessor(**SIZE), CLIPClassifierImageProcessor(resample_backend="pil", **SIZE)


def _image(draw: random.Random) -> tuple[bytes, str, str]:
    """A sound file, its format and its mode."""
    format = draw.choice(sorted(MODES))
    mode = draw.choice(MODES[format])
    shape = draw.randint(1, 60), draw.randint(1, 60)
    values = np.random.default_rng(draw.getrandbits(32)).integers(0, 256, (*shape, 4), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(values[..., 0].astype(np.float32))
    else:
        image = Image.fromarray(values, "RGBA").convert("RGBA" if mode == "LA" else "RGB" if mode == "P" else mode)
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = draw.randint(1, 8)
    options = {"exif": exif} if format in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    if format == "JPEG":
        options |= {"progressive": draw.random() < 0.5}
    if format == "TIFF":
        options |= {"compression": draw.choice(["raw", "tiff_lzw", "tiff_deflate"])}
    return _saved(image, format, **options), format, mode


def _saved(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


# ---- kinds: draw, content, format -> content


def _bits(draw, content, format):
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8, 40])):
        changed[draw.randrange(min(len(changed), draw.choice([64, 512, len(changed)])))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(draw, content, format):
    return content[: draw.randrange(len(content))]


def _spliced(draw, content, format):
    other, *_ = _image(draw)
    return content[: draw.randrange(len(content))] + other[draw.randrange(len(other)) :]


def _numbers(draw, content, format):
    """Lengths, sizes, offsets: extreme numbers where some stand."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(min(len(changed), 200))
        number = draw.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1])
        order = draw.choice(["<", ">"])
        changed[place : place + 4] = struct.pack(order + "I", number)
    return bytes(changed)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, depth: int, colour: int, pixels: bytes, *before: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _claims(draw, content, format):
    """A header that claims more than the file holds."""
    width, height = (draw.choice([0, 1, 5000, 20000, 65535, 2**31 - 1]) for _ in range(2))
    if draw.random() < 0.5:
        depth, colour = draw.choice([(1, 0), (8, 0), (8, 2), (8, 3), (8, 6), (16, 6), (3, 9)])
        return _png(width, height, depth, colour, zlib.compress(bytes(draw.randrange(5000)), 9))
    if draw.random() < 0.5:
        screen = struct.pack("<HHBBB", width & 0xFFFF, height & 0xFFFF, 0x80, 0, 0) + bytes(6)
        frame = struct.pack("<BHHHHB", 0x2C, draw.choice([0, 65535]), 0, width & 0xFFFF, height & 0xFFFF, 0)
        return b"GIF89a" + screen + frame + b"\x02\x02\x4c\x01\x00;"
    return b"P6 %d %d 255\n" % (width, height) + bytes(draw.randrange(5000))


@functools.cache
def _zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 9)


def _texts(draw, content, format):
    """Chunks beside the pixels, which unfold to megabytes or hold nonsense."""
    bomb = _zeros(draw.choice([10, 10**6, 10**7, 7 * 10**7]))
    chunks = {
        b"zTXt": b"a\0\0" + bomb,
        b"iTXt": b"a\0\1\0\0\0" + bomb,
        b"iCCP": b"a\0\0" + bomb,
        b"eXIf": draw.choice([b"MM\0*" + b"\xff" * 40, bytes(20), b"II*\0\x08\0\0\0\xff\xff" + bytes(60)]),
        b"tRNS": bytes(draw.randrange(300)),
        b"PLTE": bytes(draw.randrange(800)),
        b"acTL": struct.pack(">II", draw.choice([0, 1, 2**31 - 1]), 0),
    }
    chosen = draw.sample(sorted(chunks), draw.randint(1, 3))
    colour = draw.choice([0, 2, 3])
    rows = zlib.compress(bytes((1 + 8 * (3 if colour == 2 else 1)) * 8))
    return _png(8, 8, 8, colour, rows, *(_chunk(name, chunks[name]) for name in chosen))


def _frames(draw, content, format):
    frames = [Image.new("RGB", (8, 8), (k % 256, 0, 0)) for k in range(draw.choice([2, 20, 60]))]
    kind = draw.choice(["GIF", "PNG", "WEBP", "TIFF"])
    content = _saved(frames[0], kind, save_all=True, append_images=frames[1:])
    return content if draw.random() < 0.5 else content[: draw.randrange(len(content))]


def _bomb(draw, content, format):
    """Some million pixels in a few kilobytes; the largest ones are for the long campaign, by the seed's luck."""
    width = draw.choice([2900, 3500, 5000])
    height = draw.choice([1, 300, 3000])
    bits = draw.choice([1, 8])
    return _png(width, height, bits, 0, _zeros((width * bits // 8 + 2) * height))


def _program(draw, content, format):
    return draw.choice(
        [
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n%%EndComments\n(canary) (w) file\n",
            b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
            b"<!doctype html><script>1</script>",
            b"\x7fELF" + bytes(200),
            b"PK\x03\x04" + bytes(200),
            b"GIF8" + os.urandom(0),
            b"II*\0" + struct.pack("<I", draw.choice([0, 4, 8, 2**32 - 1])) + b"\xff" * 60,
            b"II*\0\x08\0\0\0" + struct.pack("<H", 60000) + bytes(draw.randrange(2000)),
            struct.pack(">I", 24) + b"ftyp" + draw.choice([b"heic", b"avif", b"mif1"]) + bytes(200),
        ]
    )


_CHANGES: dict[str, Callable] = {
    "flipped bits": _bits,
    "cut": _cut,
    "spliced": _spliced,
    "extreme numbers": _numbers,
    "claims in headers": _claims,
    "text chunks": _texts,
    "frames": _frames,
    "picture bombs": _bomb,
    "no images": _program,
}


# ---- what is done with them


def _decode(content: bytes) -> object:
    """Both kernels, and the quick check of data sets: an answer that is an image, or an error that says why not."""
    plain, pil = _processors()
    try:
        found = plain([content], return_tensors="pt").pixel_values
    except ValueError as error:
        if not str(error).startswith("images[0]: ") or len(str(error)) < 20:
            return f"wrong: the error does not say which image and why: {error}"
        raise
    if found.shape != (1, 3, 16, 16) or not found.isfinite().all():
        return f"wrong: pixels of shape {tuple(found.shape)}"
    beside = pil([content], return_tensors="pt").pixel_values
    if beside.shape != found.shape:
        return "wrong: the two kernels differ in shape"
    return found.shape


def _sound(content: bytes, orientation_is_kept: bool) -> object:
    """A sound file as bytes, as a path's content and as Pillow's image: the same pixels."""
    plain, _ = _processors()
    found = plain([content, io.BytesIO(content)], return_tensors="pt").pixel_values
    decode_roughly(content)
    image = plain([Image.open(io.BytesIO(content))], return_tensors="pt").pixel_values[0]
    same = torch.equal(found[0], found[1]) and torch.equal(found[0], image)
    return found.shape if same else "wrong: bytes, file and image differ"


def _no_file(make: Callable[[Path], object], path: Path) -> object:
    if path.exists() or path.is_symlink():
        path.unlink()
    make(path)
    plain, _ = _processors()
    plain([str(path)], return_tensors="pt")
    return "wrong: an answer for what is no regular file"


def _url(url: str) -> object:
    plain, _ = _processors()
    plain([url], return_tensors="pt")
    return "wrong: an answer from an address that is not public"


def _local_url(draw: random.Random) -> str:
    host = draw.choice(["127.0.0.1", f"127.{draw.randrange(256)}.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433"])
    host = draw.choice(
        [host, f"10.{draw.randrange(256)}.1.1", f"192.168.{draw.randrange(256)}.1", "[::ffff:10.0.0.1]"]
    )
    return f"{draw.choice(['http', 'https'])}://{host}:{draw.randrange(1, 65536)}/a.png"


def cases(seed: int, folder: Path) -> Iterator[Case]:
    """About 200 cases; another seed gives others."""
    draw = random.Random(f"images {seed}")
    for number in range(30):
        content, format, mode = _image(draw)
        yield Case("sound images", f"{format} {mode} {number}", functools.partial(_sound, content, True))
    for kind, change in _CHANGES.items():
        for number in range(18 if kind not in ("picture bombs", "frames") else 4):
            content, format, mode = _image(draw)
            changed = change(draw, content, format)
            yield Case(f"image: {kind}", f"{format} {mode} {number}", functools.partial(_decode, changed))
    makers = (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path.name))
    for number in range(6):
        path = folder / f"{seed}-{number}{draw.choice(['.png', '.jpg', '', ' .png'])}"
        yield Case("image: no regular files", path.name, functools.partial(_no_file, makers[number % 3], path))
    for number in range(10):
        url = _local_url(draw)
        yield Case("image: URLs that are not public", f"{number} {url}", functools.partial(_url, url))


__all__ = ["cases"]
