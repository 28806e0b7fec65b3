"""Ctrl-C, at the moment of our choosing."""

import signal
import threading

import pytest

from softreg_ext.interrupt import Interrupt


def test_first_waits_and_second_does_not() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        interrupt.check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupt.check()
        signal.raise_signal(signal.SIGINT)


def test_the_former_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupt():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_another_thread_goes_without() -> None:
    done = []

    def enter() -> None:
        with Interrupt() as interrupt:
            interrupt.check()
            done.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert done == [True]
