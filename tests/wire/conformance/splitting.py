"""Group 10: a message that a library has split by itself, here 65,536 bytes in frames of at most 1,300."""

from __future__ import annotations

from tests.stage.frames import CONT, TEXT, frame
from tests.wire.conformance.case import Turn, answered, whole

SIZE, PART = 65_536, 1_300
MESSAGE = b"*" * SIZE
FRAMES = [frame(CONT if at else TEXT, MESSAGE[at : at + PART], fin=at + PART >= SIZE) for at in range(0, SIZE, PART)]

CASES = (answered("10.1.1", f"text of {SIZE} bytes in {len(FRAMES)} frames", Turn(whole(*FRAMES), ((TEXT, MESSAGE),))),)
