"""What a file is that is no text in UTF-8, and what to do about it."""

import re

HEAD = 8192
"""Bytes at the beginning of a file that are looked at."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""What some programs write before a text in UTF-8; it is no part of the text."""


def _packed(by: str, suffix: str, command: str) -> str:
    return (
        f"is compressed by {by}: give it to --data.train, with a name that ends in .{suffix}, or"
        f" decompress it first ({command})"
    )


_FORMATS = (
    (rb"\x1f\x8b", _packed("gzip", "gz", "gunzip -k FILE")),
    (rb"\x28\xb5\x2f\xfd", _packed("zstd", "zst", "zstd -d FILE")),
    (rb"BZh[1-9]1AY&SY", _packed("bzip2", "bz2", "bunzip2 -k FILE")),
    (rb"\xfd7zXZ\x00", _packed("xz", "xz", "unxz -k FILE")),
    (rb"PK\x03\x04", "is a zip archive: take the texts out of it (unzip FILE)"),
    (rb"%PDF-", "is a PDF: take the text out of it (pdftotext FILE)"),
    (rb"PAR1", "is a Parquet table: give it to --data.train, with --data.field"),
    (
        rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff",
        "is UTF-32: convert it (iconv -f UTF-32 -t UTF-8 FILE)",
    ),
    (rb"\xff\xfe|\xfe\xff", "is UTF-16: convert it (iconv -f UTF-16 -t UTF-8 FILE)"),
    (rb"[^\x00]*\x00", "has NUL bytes, so it is binary, or UTF-16 without its mark: convert it"),
)
"""How a file begins, and what that means; the first that fits."""


def name_other_format(head: bytes) -> str | None:
    """What a file that begins with ``head`` is, and what to do, in words that follow its name; None
    for a text. Bytes that are not UTF-8 do not matter.
    """
    head = head[:HEAD]
    return next((words for begin, words in _FORMATS if re.match(begin, head)), None)
