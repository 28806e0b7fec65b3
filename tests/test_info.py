"""`softreg info` says what a bug report needs."""

import torch

from softreg_ext import info


def test_report_names_what_matters() -> None:
    facts = dict(info.facts())
    assert torch.__version__ in facts["torch"]
    assert facts["threads"] == str(torch.get_num_threads())
    active, compiled = facts["CPU kernels"].split(" of ")
    assert active in compiled.split(", ")
    assert facts["OpenMP"].isdigit()
    assert "-fopenmp" in facts["flags"]
    assert ("none" in facts["CUDA archs"]) == facts["CUDA code"].startswith("none")


def test_report_is_one_line_a_fact() -> None:
    assert len(info.report().splitlines()) == len(list(info.facts()))
