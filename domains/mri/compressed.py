"""Gzip that is read to its last bit or refused, and written so that equal voxels give equal bytes.

The readers in use stop as soon as they have the voxels, so that the checksum behind them is never looked at:
one flipped bit gives other voxels, silently. Here the whole stream is read, its CRC-32 and length are
compared, and every bit that RFC 1952 leaves unused must be as writers leave it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from ...shared.errors import InputError

HEAD = 544
"""Bytes at the front of a NIfTI file that hold either version's header and the flag for extensions."""
MOST = 1032
"""What one compressed byte can become at most: 258 bytes for 2 bits."""
_CHUNK, _PIECE = 1 << 16, 1 << 20
_EARLIEST = 1_104_537_600  # 2005: the format was new, and compressed files came later still
_LATEST = 2**31
_SYSTEMS = {*range(14), 19, 255}  # RFC 1952, and what macOS writes
_TEXT_OR_RESERVED = 0xE1
_CHECKSUM, _EXTRA, _NAME, _COMMENT = 2, 4, 8, 16


def damaged(what: str, where: str) -> InputError:
    return InputError("gzip-damaged", what, where, "copy the file again from where it came from")


def inflate(data: bytes, declared: Callable[[bytes], int], where: str) -> bytearray:
    """Decompress a whole gzip file, and verify it.

    Args:
        data: the file's bytes; several members after one another are one file.
        declared: is given the first `HEAD` bytes that come out (fewer if there are no more), and says how
            long the whole is; it may raise. Nothing is decompressed beyond that length.
        where: what errors name.

    Raises:
        InputError: `gzip-damaged` when anything is not as it was written, `gzip-tail` when there is more than
            was declared.
    """
    out = bytearray()
    position, length = 0, None
    while position < len(data) or not position:
        position = _after_header(data, position, where)
        engine, crc, begin = zlib.decompressobj(-zlib.MAX_WBITS), 0, len(out)
        before, chunk = engine.copy(), b""
        while not engine.eof:
            chunk = data[position : position + _CHUNK]
            if not chunk:
                raise damaged("the file ends in the middle (truncated)", where)
            before = engine.copy()
            for piece in _pieces(engine, chunk, where):
                crc = zlib.crc32(piece, crc)
                out += piece
                if length is None and len(out) >= HEAD:
                    length = declared(bytes(out[:HEAD]))
                if length is not None and len(out) > length:
                    raise InputError(
                        "gzip-tail",
                        f"more follows after the {length:,} bytes that the header declares",
                        where,
                        "write the file again with the program it came from",
                    )
            chunk = chunk[: len(chunk) - len(engine.unused_data)]
            position += len(chunk)
        if _padding(before, chunk):
            raise damaged("unused bits at the end of the compressed stream are set", where)
        if len(data) < position + 8:
            raise damaged("the checksum at the end is missing (truncated)", where)
        if struct.unpack_from("<II", data, position) != (crc, (len(out) - begin) % 2**32):
            raise damaged("checksum failed", where)
        position += 8
    if length is None:
        length = declared(bytes(out))
    if len(out) < length:
        raise damaged(f"{len(out):,} bytes are held and the header declares {length:,}", where)
    return out


def inflate_head(data: bytes, where: str) -> bytes:
    """The first `HEAD` bytes that come out, unverified: for a quick look at the first bytes of a file."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        return engine.decompress(data[_after_header(data, 0, where) :], HEAD)
    except zlib.error as error:
        raise damaged(f"the compressed stream is damaged ({error})", where) from error


def deflate(data: bytes) -> bytes:
    """A gzip file without time and name: the same bytes give the same file."""
    engine = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = engine.compress(data) + engine.flush()
    head = b"\x1f\x8b\x08\x00" + b"\0" * 4 + b"\x00\xff"
    return head + body + struct.pack("<II", zlib.crc32(data), len(data) % 2**32)


def _pieces(engine: Any, chunk: bytes, where: str) -> Iterator[bytes]:
    """What a chunk decompresses to, a megabyte at a time: a bomb is met before it has gone off."""
    while True:
        try:
            piece = engine.decompress(chunk, _PIECE)
        except zlib.error as error:
            raise damaged(f"the compressed stream is damaged ({error})", where) from error
        chunk = engine.unconsumed_tail
        if piece:
            yield piece
        if engine.eof or (not chunk and len(piece) < _PIECE):
            return


def _padding(engine: Any, chunk: bytes) -> int:
    """The bits of the stream's last byte that no code uses; every writer leaves them 0.

    Args:
        engine: as it stood before the stream's last chunk.
        chunk: that chunk, which ends with the stream.
    """
    for _ in _pieces(engine, chunk[:-1], ""):
        pass
    last = chunk[-1]
    end = engine.copy().decompress(bytes([last]))
    unused = 0
    for bit in reversed(range(8)):
        trial = engine.copy()
        try:
            same = trial.decompress(bytes([last ^ 1 << bit])) == end and trial.eof
        except zlib.error:
            same = False
        if not same:
            break
        unused |= 1 << bit
    return last & unused


def _after_header(data: bytes, at: int, where: str) -> int:
    """Where the compressed stream of the member that begins at `at` begins. RFC 1952, section 2.3."""
    if data[at : at + 3] != b"\x1f\x8b\x08":
        raise damaged(
            "bytes that belong to nothing follow the compressed stream" if at else "not gzip", where
        )
    if len(data) < at + 18:
        raise damaged("the file ends in the middle (truncated)", where)
    flags, time, speed, system = struct.unpack_from("<BIBB", data, at + 3)
    odd = flags & _TEXT_OR_RESERVED or speed not in (0, 2, 4) or system not in _SYSTEMS
    if odd or (time and not _EARLIEST <= time < _LATEST):
        raise damaged("the gzip header says what no program writes", where)
    end = at + 10
    if flags & _EXTRA:
        end += 2 + int.from_bytes(data[end : end + 2], "little")
    for flag in (_NAME, _COMMENT):
        if flags & flag:
            stop = data.find(b"\0", end)
            if stop < 0 or any(byte < 32 or byte == 127 for byte in data[end:stop]):
                raise damaged("the file's name in the gzip header is damaged", where)
            end = stop + 1
    if flags & _CHECKSUM:
        if int.from_bytes(data[end : end + 2], "little") != zlib.crc32(data[at:end]) & 0xFFFF:
            raise damaged("checksum of the gzip header failed", where)
        end += 2
    return end
