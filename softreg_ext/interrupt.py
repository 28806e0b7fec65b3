"""Ctrl-C, noticed where it does no harm."""

import signal
import threading
from types import FrameType, TracebackType


class Interrupt:
    """While entered, a first Ctrl-C waits for the next `check`; a second one interrupts at once.

    Raised wherever it happens to hit, a KeyboardInterrupt could tear a file apart that is being
    written, or be lost in a destructor, where Python drops exceptions.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "Interrupt":
        # Only the main thread gets signals, and only it may say what they do.
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def check(self) -> None:
        """Raises the KeyboardInterrupt that was asked for."""
        if self.requested:
            raise KeyboardInterrupt
