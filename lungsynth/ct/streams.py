"""Compressed streams that are read to their end and no further, so that length and checksum are those they state."""

import zlib

from lungsynth.errors import InputError

__all__ = ["first_bytes", "inflate"]

_ZLIB_OR_GZIP = 47  # of zlib's window bits: the header tells which
_STEP = 1 << 22


def first_bytes(packed: bytes, count: int) -> bytes:
    """At most the first bytes of what a stream holds; fewer when it is damaged or short."""
    try:
        return zlib.decompressobj(_ZLIB_OR_GZIP).decompress(packed, count)
    except zlib.error:
        return b""


def inflate(packed: bytes, expected: int | None = None, *, name: str, most: int = 1 << 32) -> bytearray:
    """Inflates a zlib or gzip stream to its end, where its checksum is compared.

    Args:
        packed: the stream, perhaps of several members; zeros after it are padding.
        expected: bytes that it must hold; any number when None.
        name: the file, for messages.
        most: more bytes than this are refused.

    Raises:
        InputError: when the stream is damaged, truncated, longer or shorter than expected, or something follows it.
    """
    content, limit = bytearray(), most if expected is None else expected
    rest = packed
    while rest.strip(b"\0") if content else rest:
        rest = _inflate_member(rest, content, limit, name=name)
    if expected is not None and len(content) != expected:
        raise InputError(
            f"{name}: truncated, expected {expected} bytes of pixels, got {len(content)}. Copy it again from its "
            "source."
        )
    return content


def _inflate_member(packed: bytes, content: bytearray, limit: int, *, name: str) -> bytes:
    """Adds what one member holds to `content`, and gives the bytes after it."""
    stream, position = zlib.decompressobj(_ZLIB_OR_GZIP), 0
    while not stream.eof:
        waiting = stream.unconsumed_tail
        if not waiting:
            waiting = packed[position : position + _STEP]
            position += len(waiting)
        try:
            part = stream.decompress(waiting, min(_STEP, limit + 1 - len(content)))
        except zlib.error as error:
            raise InputError(f"{name}: damaged ({error}); copy it again from its source.") from error
        content += part
        if len(content) > limit:
            raise InputError(
                f"{name}: holds more than the {limit} bytes that its header says or that are read; copy it again from "
                "its source."
            )
        if not (stream.eof or waiting or part):
            raise InputError(f"{name}: truncated, the compressed data end early; copy it again from its source.")
    return stream.unused_data + packed[position:]
