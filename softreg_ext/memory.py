"""The memory that large results leave behind."""

from ._extension import _C


def release_memory() -> int:
    """Gives back the memory that is kept for the next large results on the CPU.

    Gradients of 256 KB and more, as large results of rows, and a linear layer's logits lie in
    memory of their own. The last four that were freed, and the last four of 4 MB and more, are kept
    for the next ones, since to fault fresh memory in takes longer than to fill it: 144 MB at most,
    and beyond that what lay in results of 32 MB and more, which the system may take at any time
    (`MADV_FREE`), and does before memory runs short. Until then the process looks that much larger.

    Returns:
        The bytes given back; 0 where nothing was kept, and on systems other than Linux.
    """
    return int(_C.release_memory())
