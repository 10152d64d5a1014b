"""What a question to the pool of verifiers costs: seconds, and one JSON line.

Usage: python benchmarks/verifier.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

from interlace.verifier_pool import VerifierPool

ECHO, MATH = "interlace.verifier_child:echo", "interlace.answers.equal:formulas_equal"


def seconds(act: Callable[[], object]) -> float:
    """How long an act takes."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def main() -> None:
    """Ask one child, cold and warm."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="5 questions in place of 100")
    questions = 5 if parser.parse_args().quick else 100
    pool = VerifierPool(1)
    found = {
        "start": seconds(lambda: pool.ask(ECHO, value=0)),
        "ask": seconds(lambda: pool.map(ECHO, [{"value": n} for n in range(questions)])),
        "import": seconds(lambda: pool.ask(MATH, left="x", right="y")),
        "compare": seconds(
            lambda: pool.map(
                MATH,
                [{"left": rf"\sqrt{{{n}}}+x", "right": f"x+2+{n}"} for n in range(questions)],
            )
        ),
    }
    found["ask"] /= questions
    found["compare"] /= questions
    pool.close()
    print(json.dumps({name: round(value, 5) for name, value in found.items()}))


if __name__ == "__main__":
    main()
