"""When torchrun ends this process because another one died, it ends: also while it waits in an exchange for the dead one."""

from __future__ import annotations

import os
import signal
import threading
import time

GRACE = 5.0  # seconds for the usual way out: temporary files removed, a line said


def end_with_others(grace: float = GRACE) -> None:
    """From now on SIGTERM ends the process after `grace` seconds, even where Python code cannot run.

    A handler of Python waits until the call under way returns, and one that waits for a GPU's exchange may not. The signal's
    number is written to a pipe at once; a thread reads it there.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        while True:
            for number in os.read(reading, 16):
                if number == signal.SIGTERM:
                    time.sleep(grace)
                    os._exit(128 + number)

    threading.Thread(target=watch, daemon=True, name="attlas end").start()
