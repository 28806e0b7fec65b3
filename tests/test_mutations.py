"""mutate.py takes hours and is run by hand; that it still fits the sources is seen here."""

import pytest
from mutate import MUTATIONS, ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.before)
def test_finds_its_place(mutation: Mutation) -> None:
    assert (ROOT / "csrc" / mutation.path).read_text().count(mutation.before) == 1
