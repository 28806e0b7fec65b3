"""The processes of tests: one that is gone is not waited for."""

import os
import time
from pathlib import Path

import pytest
import torch
from processes import TIMEOUT_S, processes


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)
def test_gone(tmp_path: Path) -> None:
    with processes(1, tmp_path) as one:
        one.run(os.getpid)
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(pytest.fail.Exception, match=r"exit statuses .*: \[3\]"):
                one.run(os._exit, 3)
        assert time.monotonic() - began < TIMEOUT_S
