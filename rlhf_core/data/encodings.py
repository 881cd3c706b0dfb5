"""The encoding of a file of text, where it is certain: UTF-8, UTF-16, UTF-32 or GBK."""

from __future__ import annotations

import codecs
import io
from typing import IO, cast

START = 1 << 20  # bytes of a file that are looked at
CODECS = {"UTF-8": "utf-8-sig", "GBK": "gb18030"}  # of Python, where they have another name; GB 18030 contains GBK
MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
CHINESE = (("\u4e00", "\u9fff"), ("\u3000", "\u303f"), ("\uff00", "\uffef"))  # characters, punctuation, full width
# The most frequent characters: a third and more of any Chinese text, next to none of another that is read as GBK.
FREQUENT = set(
    "的一是不了在人有我他这中大来上个国们到说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经么去法学如都同"
    "现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实病者医药症疗治诊热痛"
)


def encoding_of(start: bytes) -> str:
    """The encoding of a file that begins with `start`; UTF-8, too, where none is certain."""
    mark = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
    if mark is not None:
        return mark
    if start[:1].isascii() and len(start) > 1 and 0 in start[:2]:
        even, odd = start[::2], start[1::2]
        zeros, others = (odd, even) if start[1] == 0 else (even, odd)
        if zeros.count(0) > len(zeros) // 4 and 0 not in others:
            return "UTF-16LE" if start[1] == 0 else "UTF-16BE"
    whole = start if len(start) < START else start[: start.rfind(b"\n") + 1]
    return "GBK" if not _decodes(whole, "utf-8") and _is_gbk(whole) else "UTF-8"


def seems_gbk(content: bytes) -> bool:
    """Whether bytes make sense in GBK: more than half of what is not ASCII is Chinese.

    Characters of two bytes of which one is ASCII do not count: in Latin-1 they are a letter with an accent and another.
    """
    others = [char for char in content.decode("gb2312", "replace") if char > "\x7f"]
    return sum(any(first <= char <= last for first, last in CHINESE) for char in others) > 0.5 * len(others)


def recoded(stream: IO[bytes], encoding: str) -> IO[bytes]:
    """`stream`, in `encoding`, as UTF-8."""
    return io.BufferedReader(_Recoded(stream, encoding))


def _is_gbk(start: bytes) -> bool:
    """Whether all lines are GBK, few of them UTF-8, and frequent characters as frequent as in Chinese."""
    others = [line for line in start.splitlines() if not line.isascii()]
    valid = sum(_decodes(line, "utf-8") for line in others)  # by chance, as 联通 in GBK
    content = b"\n".join(others)
    if not others or valid > 0.05 * len(others) or not _decodes(content, "gb18030") or not seems_gbk(content):
        return False
    found = [char for char in content.decode("gb18030") if "\u4e00" <= char <= "\u9fff"]
    return sum(char in FREQUENT for char in found) > 0.1 * len(found) > 0


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


class _Recoded(io.RawIOBase):
    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(CODECS.get(encoding, encoding))()
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        room = cast(memoryview, buffer)
        while not self._left:
            part = self._stream.read(1 << 16)
            self._left = self._decoder.decode(part, not part).encode("utf-8")
            if not part:
                break
        taken = self._left[: len(room)]
        room[: len(taken)] = taken
        self._left = self._left[len(taken) :]
        return len(taken)
