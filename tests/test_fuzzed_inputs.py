"""Any command line, YAML file or weight file ends a command well, or with one line and status 1 or 2; never a traceback.

The examples are the same in every run. `make fuzz-inputs EXAMPLES=10000` draws that many new ones for each kind of input.
"""

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shufflenetv2.errors import printable
from shufflenetv2.report import protect, unprotect
from tests.hostile import INPUTS, TEXTS

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
# Examples of a kind of input in the test suite: a weight file takes longer than a line.
SUITE, SUITE_FILES = 60, 20
settings.register_profile(
    "suite", derandomize=not EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("suite")


@pytest.mark.parametrize("kind", INPUTS)
def test_every_input_ends_well_or_with_one_line(kind: str) -> None:
    strategy, end = INPUTS[kind]

    @settings(max_examples=EXAMPLES or (SUITE_FILES if "weight files" in kind else SUITE))
    @given(example=strategy)
    def check(example: Any) -> None:
        assert end(example) in (0, 1, 2)

    check()


@given(text=TEXTS | st.text())
def test_printable_text_is_printable_and_stays_as_it_is(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
    assert printable(text).isascii() or not text.isascii()


@given(text=TEXTS | st.text("'=+-@\t\r1a", max_size=6))
def test_a_protected_field_is_no_formula_and_can_be_read_back(text: str) -> None:
    assert not protect(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert unprotect(protect(text)) == text
