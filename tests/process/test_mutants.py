"""`make mutants` runs what it mutates: also in children that are started with `python -I`."""

import os

import pytest
from mutate import noticed, workshop

pytestmark = pytest.mark.root

CONFINED = "tests/process/test_sandbox_together.py::test_a_confined_worker_and_a_confined_keyd_do_their_work_together"


def test_a_mutation_of_the_worker_in_a_copy_is_noticed_by_a_test_whose_children_are_isolated(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root")
    place = workshop(tmp_path)
    assert noticed(place, (CONFINED,)) is None
    sandbox = place / "worker/sandbox.py"
    text = sandbox.read_text()
    mutated = text.replace("    return Confinement(", "    raise SystemExit(3)\n    return Confinement(", 1)
    assert mutated != text
    sandbox.write_text(mutated)
    assert noticed(place, (CONFINED,)) == CONFINED
