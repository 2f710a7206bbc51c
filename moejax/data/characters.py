"""The characters of bytes, and the bytes of characters."""

import numpy as np


def split_characters(text: bytes) -> tuple[str, np.ndarray]:
    """The characters of ``text``, and for each count of characters the bytes they take up.

    Each byte that is not UTF-8 becomes one U+FFFD that counts as one byte.
    """
    escaped = text.decode("utf-8", "surrogateescape")
    codes = np.frombuffer(escaped.encode("utf-32-le", "surrogatepass"), np.uint32)
    # Valid UTF-8 holds no surrogates: each one here is an escaped byte.
    invalid = (codes >= 0xDC80) & (codes <= 0xDCFF)
    widths = 1 + (codes >= 0x80) + (codes >= 0x800).astype(np.int64) + (codes >= 0x10000)
    widths[invalid] = 1
    if invalid.any():
        escaped = np.where(invalid, 0xFFFD, codes).astype("<u4").tobytes().decode("utf-32-le")
    return escaped, np.concatenate([np.zeros(1, np.int64), np.cumsum(widths)])
