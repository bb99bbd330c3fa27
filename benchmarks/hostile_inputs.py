"""Give the program many generated inputs of each kind, and count how it ends: well, with one line, or with a traceback.

The inputs are those of tests/hostile.py: random and mutated command lines, YAML files, policies, weight files and metadata.
Everything runs in this process, without a training.

    python benchmarks/hostile_inputs.py [--examples 2000] [--weight-files 2000] [--seed 0] [--output FILE]
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from measuring import RESULTS, installed_versions, write_report

from tests.hostile import INPUTS

ENDS = {0: "accepted", 1: "refused", 2: "refused"}
MAX_SHOWN = 5  # tracebacks of a kind of input


def count_ends(kind: str, examples: int, number: int) -> dict[str, Any]:
    """Run the examples of a kind of input, and return how they ended.

    Args:
        number: seed of the examples.
    """
    strategy, end = INPUTS[kind]
    ends: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(example=strategy)
    def run(example: Any) -> None:
        try:
            ends[ENDS[end(example)]] += 1
        except Exception as error:  # what a user would see as a traceback
            ends["traceback"] += 1
            if ends["traceback"] <= MAX_SHOWN:
                print(f"{kind}: {type(error).__name__}: {error}: {example!r:.500}", file=sys.stderr)

    started = time.perf_counter()
    run()
    return {
        "examples": ends.total(),
        **{name: ends[name] for name in ("accepted", "refused", "traceback")},
        "seconds": round(time.perf_counter() - started),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2000, help="of every kind of input but weight files")
    parser.add_argument("--weight-files", type=int, default=2000, help="examples of every kind of weight file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "hostile_inputs.json")
    options = parser.parse_args()
    results = {}
    for kind in INPUTS:
        results[kind] = count_ends(kind, options.weight_files if "weight files" in kind else options.examples, options.seed)
        print(kind, json.dumps(results[kind]), flush=True)
    command = ["python benchmarks/hostile_inputs.py --examples", options.examples, "--weight-files", options.weight_files]
    versions = installed_versions("torch", "pydantic", "hypothesis", "safetensors", "PyYAML")
    write_report(options.output, [*command, "--seed", options.seed], {"results": results, "versions": versions})


if __name__ == "__main__":
    main()
