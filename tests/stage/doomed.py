"""An application that is killed as soon as it is imported, as by a machine without memory."""

from __future__ import annotations

import os
import signal

os.kill(os.getpid(), signal.SIGKILL)
