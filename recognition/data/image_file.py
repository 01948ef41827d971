"""An encoded image from anybody: its size read from its header, and decoding that no header can turn into gigabytes.

The header is looked at before a decoder sees the bytes: a picture of 30000 × 30000 pixels compresses to a few kilobytes
and would decode to gigabytes. What comes out is always 8-bit RGB, whatever the file holds (greyscale, CMYK, alpha,
16 bits). Proven by tests/recognition/data/test_image_file.py.
"""

import errno
import struct

import cv2
import numpy as np

# The largest picture decoded, 36 million pixels (108 MB): above what cameras crop a face from, and a bound on memory.
MAX_PIXELS = 36_000_000
# Errors of reading that a picture, or its path, can be blamed for. A disk or server that fails, or too little memory,
# would leave out pictures that are good. None is of errors that a reader raises by itself.
OF_THE_PICTURE = (None, errno.ENOENT, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG,
                  errno.ELOOP)

_JPEG, _PNG, _BMP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"
_NO_FRAME_MARKERS = (0xC4, 0xC8, 0xCC)  # tables and reserved; the rest of C0–CF are frames
_BARE_MARKERS = (0x01, *range(0xD0, 0xD9))  # markers without a length


class ImageError(ValueError):
    """Bytes that are no picture, or none that may be decoded; the message is the reason."""


def is_jpeg(encoded: bytes | memoryview | np.ndarray) -> bool:
    """Whether the bytes begin as a JPEG does."""
    return bytes(encoded[:3]) == _JPEG


def image_size(encoded: bytes | memoryview | np.ndarray) -> tuple[int, int]:
    """Height and width in pixels that the header of a JPEG, PNG, BMP or WebP states; nothing is decoded.

    Raises ImageError for other bytes, a cut header, and sizes that are 0 or above MAX_PIXELS.
    """
    data = encoded.data if isinstance(encoded, np.ndarray) else memoryview(encoded)
    head = bytes(data[:32])
    try:
        if head[:3] == _JPEG:
            height, width = _jpeg_size(data)
        elif head[:8] == _PNG:
            width, height = struct.unpack_from(">II", head, 16)
        elif head[:2] == _BMP:
            width, height = (abs(side) for side in struct.unpack_from("<ii", head, 18))  # negative: top row first
        elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            height, width = _webp_size(head)
        else:
            raise ImageError(f"not a JPEG, PNG, BMP or WebP image (begins {head[:8].hex() or 'with nothing'})")
    except (struct.error, IndexError) as error:
        raise ImageError("the image is cut inside its header") from error
    if not 0 < height * width <= MAX_PIXELS:
        raise ImageError(f"{width}×{height} pixels; expected 1 to {MAX_PIXELS} pixels in all")
    return height, width


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ImageError("a JPEG without a frame header: its segments do not follow each other")
        while data[at] == 0xFF:  # fill bytes
            at += 1
        marker, at = data[at], at + 1
        if marker in _BARE_MARKERS:
            continue
        if marker in (0xD9, 0xDA):
            raise ImageError("a JPEG without a frame header")
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME_MARKERS:
            return struct.unpack_from(">HH", data, at + 3)
        at += struct.unpack_from(">H", data, at)[0]


def _webp_size(head: bytes) -> tuple[int, int]:
    if len(head) < 30:
        raise ImageError("the image is cut inside its header")
    kind = head[12:16]
    if kind == b"VP8X":  # 24-bit canvas sides less one
        return int.from_bytes(head[27:30], "little") + 1, int.from_bytes(head[24:27], "little") + 1
    if kind == b"VP8L":  # 14-bit sides less one
        bits = struct.unpack_from("<I", head, 21)[0]
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", head, 26)
    return height & 0x3FFF, width & 0x3FFF


def decode_rgb(encoded: bytes | memoryview | np.ndarray) -> np.ndarray:
    """Decode to RGB uint8 [height, width, 3]; ImageError for what is no image, is cut, or is too large."""
    height, width = image_size(encoded)
    data = encoded if isinstance(encoded, np.ndarray) else np.frombuffer(encoded, np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise ImageError(f"OpenCV refuses the image: {error.err}") from error
    if image is None:
        raise ImageError(f"the image ({width}×{height} pixels by its header) is cut or damaged and does not decode")
    return image


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """The whole picture uint8 [H, W, 3] as [side, side, 3]: area averages where both sides shrink, else bicubic."""
    shrinks = min(image.shape[:2]) >= side
    small: np.ndarray = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return small


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """RGB uint8 [height, width, 3] as JPEG of a quality from 1 to 100."""
    ok, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ImageError(f"OpenCV could not encode an image of shape {image.shape}")
    return encoded.tobytes()
