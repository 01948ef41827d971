"""Headers of all forms of the formats that we read, and pictures that must not be decoded."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from recognition.data.image_file import ImageError, decode_rgb, encode_jpeg, image_size, is_jpeg

IMAGE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def encode(suffix, image=IMAGE, *parameters):
    ok, encoded = cv2.imencode(suffix, image, list(parameters))
    assert ok
    return encoded.tobytes()


FORMS = {
    "jpeg": encode(".jpg"),
    "progressive jpeg": encode(".jpg", IMAGE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "jpeg with restart markers": encode(".jpg", IMAGE, cv2.IMWRITE_JPEG_RST_INTERVAL, 1),
    "grey jpeg": encode(".jpg", IMAGE[..., 0]),
    "jpeg with fill bytes": encode(".jpg").replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
    "png": encode(".png"),
    "grey 16-bit png": encode(".png", IMAGE[..., 0].astype(np.uint16) * 257),
    "png with alpha": encode(".png", np.dstack([IMAGE, IMAGE[..., :1]])),
    "bmp": encode(".bmp"),
    "webp": encode(".webp", IMAGE, cv2.IMWRITE_WEBP_QUALITY, 80),
    "lossless webp": encode(".webp", IMAGE, cv2.IMWRITE_WEBP_QUALITY, 101),
}


@pytest.mark.parametrize("form", FORMS)
def test_sizes_and_decoding(form):
    encoded = FORMS[form]
    assert image_size(encoded) == image_size(memoryview(encoded)) == (5, 7)
    assert image_size(np.frombuffer(encoded, np.uint8)) == (5, 7)
    assert decode_rgb(encoded).shape == (5, 7, 3)
    assert is_jpeg(encoded) == ("jpeg" in form)


def test_the_order_of_channels_is_rgb():
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    assert decode_rgb(encode_jpeg(red, 95))[4, 4].tolist() == [254, 0, 0]
    assert decode_rgb(encode(".png", red[..., ::-1]))[4, 4].tolist() == [255, 0, 0]


def cmyk_jpeg():
    """A four-component JPEG, as OpenCV writes none: with Pillow where matplotlib brought it."""
    image = pytest.importorskip("PIL.Image")
    import io

    buffer = io.BytesIO()
    image.fromarray(IMAGE).convert("CMYK").save(buffer, "JPEG")
    return buffer.getvalue()


def test_cmyk():
    assert image_size(cmyk_jpeg()) == (5, 7)
    assert decode_rgb(cmyk_jpeg()).shape == (5, 7, 3)


def png_bomb(side):
    """A PNG of side × side black pixels of one bit: kilobytes that decode to gigabytes."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side // 8 + 1)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_before_decoding():
    bomb = png_bomb(30000)
    assert len(bomb) < 200_000
    with pytest.raises(ImageError, match="30000×30000 pixels; expected 1 to 36000000"):
        decode_rgb(bomb)
    jpeg = bytearray(FORMS["jpeg"])
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 30000, 30000)
    with pytest.raises(ImageError, match="30000×30000"):
        decode_rgb(bytes(jpeg))
    jpeg[at : at + 4] = struct.pack(">HH", 0, 7)
    with pytest.raises(ImageError, match="7×0 pixels"):
        decode_rgb(bytes(jpeg))


@pytest.mark.parametrize("form", ["jpeg", "progressive jpeg", "png"])
def test_every_cut_is_found(form):
    encoded = FORMS[form]
    for size in range(len(encoded) - 12 * (form == "png")):  # a PNG without its last chunk has all its pixels
        with pytest.raises(ImageError):
            decode_rgb(encoded[:size])


@pytest.mark.parametrize("data", [
    b"", b"x", b"GIF89a" + bytes(40), b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xe0\0\x04ab\x12", b"\x89PNG\r\n\x1a\n", b"BM",
    b"RIFF\0\0\0\0WEBPVP8X", b"\xff\xd8\xff\xe0\0\0" * 9,
])
def test_what_is_no_image(data):
    with pytest.raises(ImageError):
        image_size(data)
    with pytest.raises(ImageError):
        decode_rgb(data)
