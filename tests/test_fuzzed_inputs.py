"""Any command line and any damaged file end a command well, or with one line and status 1 or 2; never a traceback.

The examples are the same in every run. `make fuzz-inputs EXAMPLES=10000` draws that many new ones for each kind of input.
"""

import io
import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shufflenetv2.errors import printable
from shufflenetv2.report import protect, unprotect
from tests.hostile import INPUTS, TEXTS, strategy_of
from tests.hostile_runs import checkpoint_content, end_checkpoint

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
# Examples of a kind of input in the test suite: files take longer than lines.
SUITE, SUITE_FILES = 60, 20
settings.register_profile(
    "suite", derandomize=not EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("suite")


@pytest.mark.parametrize("kind", INPUTS)
def test_every_input_ends_well_or_with_one_line(kind: str) -> None:
    source, end = INPUTS[kind]
    is_text = "weight files" not in kind and isinstance(source, st.SearchStrategy)

    @settings(max_examples=EXAMPLES or (SUITE if is_text else SUITE_FILES))
    @given(example=strategy_of(source))
    def check(example: Any) -> None:
        assert end(example) in (0, 1, 2)

    check()


@pytest.mark.parametrize("part", ["state_dict", "optimizer", "progress"])
def test_a_checkpoint_that_lacks_a_part_of_its_state_is_refused_in_one_line(part: str) -> None:
    content = torch.load(io.BytesIO(checkpoint_content()), weights_only=True)
    content[part] = dict(list(content[part].items())[1:])
    buffer = io.BytesIO()
    torch.save(content, buffer)
    assert end_checkpoint(checkpoint_content()) == 0
    assert end_checkpoint(buffer.getvalue()) == 1


@given(text=TEXTS | st.text())
def test_printable_text_is_printable_and_stays_as_it_is(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)
    assert printable(text).isascii() or not text.isascii()


@given(text=TEXTS | st.text("'=+-@\t\r1a", max_size=6))
def test_a_protected_field_is_no_formula_and_can_be_read_back(text: str) -> None:
    assert not protect(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert unprotect(protect(text)) == text
