"""The memory that large results leave behind."""

from ._extension import _C


def release_memory() -> int:
    """Gives back the memory that is kept for the next large results on the CPU.

    Gradients of 256 KB or more, per-row results as large, and a linear layer's logits have memory
    of their own. When they are freed, the last four below 4 MB and the last four of 4 MB or more
    are kept for the next ones, because faulting in fresh memory takes longer than filling it. That
    is at most 144 MB. Results of 32 MB or more are kept beyond that, but the system may take them
    at any time (`MADV_FREE`), and does before memory runs short. Until then the process looks that
    much larger.

    Returns:
        The bytes given back; 0 where nothing was kept, and on systems other than Linux.
    """
    return int(_C.release_memory())
