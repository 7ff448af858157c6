"""Group 6: text is UTF-8, however it is cut, or the connection fails with 1007 (RFC 6455 section 8.1).

From 6.5 on the cases are sequences from Markus Kuhn's UTF-8 decoder stress test, judged by RFC 3629: nothing beyond
U+10FFFF, no surrogates, no overlong forms; noncharacters are good.
"""

from __future__ import annotations

from collections.abc import Iterable

from tests.stage.frames import CONT, TEXT, frame
from tests.wire.conformance.case import Case, Chunks, Turn, answered, failed, whole

GREEK = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5"
"""A word of five letters, the second of three bytes, the others of two."""
MIXED = "Grüße-µ@ßöäüàá-UTF-8!!"
SURROGATE = GREEK + b"\xed\xa0\x80" + b"end"
BEYOND = GREEK + b"\xf4\x90\x80\x80" + b"end"
"""Cannot become text any more at the byte 0x90, the 13th: that would be U+110000."""
AFTER_LEAD = len(GREEK) + 1


def _fragments(*parts: bytes) -> Chunks:
    """One message, a frame for each part."""
    last = len(parts) - 1
    return tuple(frame(CONT if at else TEXT, part, fin=at == last) for at, part in enumerate(parts))


def _octets(payload: bytes) -> Chunks:
    return _fragments(*(bytes((octet,)) for octet in payload))


def _good(number: str, meaning: str, payload: bytes, frames: Iterable[bytes] | None = None) -> Case:
    chunks = whole(frame(TEXT, payload)) if frames is None else whole(*frames)
    return answered(number, meaning, Turn(chunks, ((TEXT, payload),)))


def _bad(number: str, meaning: str, payload: bytes) -> Case:
    return failed(number, meaning, whole(frame(TEXT, payload)), 1007)


def _within_one_frame(*parts: bytes) -> Chunks:
    """One message in one frame, of which each part arrives by itself."""
    data = frame(TEXT, b"".join(parts))
    ends = [len(data) - sum(map(len, parts[count:])) for count in range(1, len(parts) + 1)]
    return tuple(data[begin:end] for begin, end in zip([0, *ends], ends, strict=False))


IN_THREE = GREEK, BEYOND[len(GREEK) : len(GREEK) + 4], BEYOND[len(GREEK) + 4 :]
AT_THE_BYTE = BEYOND[:AFTER_LEAD], BEYOND[AFTER_LEAD : AFTER_LEAD + 1], BEYOND[AFTER_LEAD + 1 :]

# A strict server fails 6.4.x with the second part; one that judges whole messages, with the last, is non-strict.
MESSAGES = (
    _good("6.1.1", "empty text", b""),
    _good("6.1.2", "empty text in three fragments", b"", _fragments(b"", b"", b"")),
    _good("6.1.3", "text between two empty fragments", b"middle", _fragments(b"", b"middle", b"")),
    _good("6.2.1", "text beyond ascii", MIXED.encode()),
    _good("6.2.2", "text cut between characters", MIXED.encode(), _fragments(MIXED[:11].encode(), MIXED[11:].encode())),
    _good("6.2.3", "text cut at every byte", MIXED.encode(), _octets(MIXED.encode())),
    _good("6.2.4", "greek cut at every byte", GREEK, _octets(GREEK)),
    _bad("6.3.1", "surrogate within text", SURROGATE),
    failed("6.3.2", "surrogate within text cut at every byte", whole(*_octets(SURROGATE)), 1007),
    failed("6.4.1", "beyond unicode in the second of three fragments", _fragments(*IN_THREE), 1007, prompt=2),
    failed("6.4.2", "bad at the only byte of the second fragment", _fragments(*AT_THE_BYTE), 1007, prompt=2),
    failed("6.4.3", "beyond unicode in the second chunk of a frame", _within_one_frame(*IN_THREE), 1007, prompt=2),
    failed("6.4.4", "bad at the only byte of the second chunk", _within_one_frame(*AT_THE_BYTE), 1007, prompt=2),
)

MISSING_LAST = [
    *(b"\xc0", b"\xe0\x80", b"\xf0\x80\x80", b"\xf8\x80\x80\x80", b"\xfc\x80\x80\x80\x80"),
    *(b"\xdf", b"\xef\xbf", b"\xf7\xbf\xbf", b"\xfb\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf"),
]
LEADS = ((0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD))


def _encode(point: int) -> bytes:
    """A code point as UTF-8 would have it, surrogates too."""
    return chr(point).encode(errors="surrogatepass")


GOOD, BAD = True, False
SEQUENCES: tuple[tuple[str, list[tuple[bool, bytes]]], ...] = (
    ("valid", [*((GOOD, f"hello{sign}world".encode()) for sign in "$¢€𤭢"), (GOOD, GREEK)]),
    ("prefix", [(end in {2, 5, 7, 9, 11}, GREEK[:end]) for end in range(1, len(GREEK) + 1)]),
    ("first of its length", [(GOOD, _encode(point)) for point in (0, 0x80, 0x800, 0x10000)]),
    ("first of length 5 and 6", [(BAD, b"\xf8\x88\x80\x80\x80"), (BAD, b"\xfc\x84\x80\x80\x80\x80")]),
    ("last of its length", [(GOOD, _encode(point)) for point in (0x7F, 0x7FF, 0xFFFF, 0x10FFFF)]),
    (
        "last of length 4 to 6",
        [(BAD, b"\xf7" + b"\xbf" * 3), (BAD, b"\xfb" + b"\xbf" * 4), (BAD, b"\xfd" + b"\xbf" * 5)],
    ),
    (
        "boundary",
        [*((GOOD, _encode(point)) for point in (0xD7FF, 0xE000, 0xFFFD, 0x10FFFF)), (BAD, b"\xf4\x90\x80\x80")],
    ),
    (
        "continuation of nothing",
        [
            (BAD, b"\x80"),
            (BAD, b"\xbf"),
            *((BAD, (b"\x80\xbf" * 3)[:size]) for size in range(2, 7)),
            (BAD, bytes(range(0x80, 0xC0))),
        ],
    ),
    ("lonely lead", [(BAD, b" ".join(bytes((at,)) for at in range(low, high + 1)) + b" ") for low, high in LEADS]),
    ("last byte missing", [(BAD, sequence) for sequence in MISSING_LAST]),
    ("last bytes missing", [(BAD, b"".join(MISSING_LAST))]),
    ("impossible byte", [(BAD, b"\xfe"), (BAD, b"\xff"), (BAD, b"\xfe\xfe\xff\xff")]),
    (
        "overlong ascii",
        [
            (BAD, b"\xc0\xaf"),
            (BAD, b"\xe0\x80\xaf"),
            (BAD, b"\xf0\x80\x80\xaf"),
            (BAD, b"\xf8\x80\x80\x80\xaf"),
            (BAD, b"\xfc\x80\x80\x80\x80\xaf"),
        ],
    ),
    (
        "longest overlong",
        [
            (BAD, b"\xc1\xbf"),
            (BAD, b"\xe0\x9f\xbf"),
            (BAD, b"\xf0\x8f\xbf\xbf"),
            (BAD, b"\xf8\x87\xbf\xbf\xbf"),
            (BAD, b"\xfc\x83\xbf\xbf\xbf\xbf"),
        ],
    ),
    (
        "overlong nul",
        [(BAD, lead + b"\x80" * size) for size, lead in enumerate((b"\xc0", b"\xe0", b"\xf0", b"\xf8", b"\xfc"), 1)],
    ),
    ("surrogate", [(BAD, _encode(point)) for point in (0xD800, 0xDB7F, 0xDB80, 0xDBFF, 0xDC00, 0xDF80, 0xDFFF)]),
    (
        "surrogate pair",
        [(BAD, _encode(high) + _encode(low)) for high in (0xD800, 0xDB7F, 0xDB80, 0xDBFF) for low in (0xDC00, 0xDFFF)],
    ),
    (
        "noncharacter",
        [(GOOD, _encode(plane << 16 | low)) for plane in range(17) for low in (0xFFFE, 0xFFFF)],
    ),
    ("special", [(GOOD, _encode(point)) for point in range(0xFFF9, 0x10000)]),
)

CASES = (
    *MESSAGES,
    *(
        (_good if good else _bad)(f"6.{series}.{place}", f"{name} {sequence.hex()[:24]}", sequence)
        for series, (name, sequences) in enumerate(SEQUENCES, 5)
        for place, (good, sequence) in enumerate(sequences, 1)
    ),
)
