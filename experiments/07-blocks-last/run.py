"""Blocks last: coupling blocks on a model that RLVR has trained, and other orders of training.

    python experiments/07-blocks-last/run.py                     # everything, in the config's order
    python experiments/07-blocks-last/run.py --only arm=spliced-120,seed=0
    python experiments/07-blocks-last/run.py --queue ending      # rows that end at their find
    python experiments/07-blocks-last/run.py --list              # the units and which are done
    python experiments/07-blocks-last/run.py --report            # tables from results/ as they are
    python experiments/07-blocks-last/run.py --smoke             # all code paths, in minutes

Units and queue are those of 01-countdown: killed at any point, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from orders import HERE, MAIN, QUEUES, fetch_bases, load_config, plan
from run import carry_out_queue, carry_out_unit, only
from units import Places, with_needs


def main() -> int:
    given = arguments()
    if given.unit is not None:
        return carry_out_unit(given.unit)
    config = load_config(given.smoke, given.queue)
    out = HERE / "work" / "smoke" if given.smoke else HERE
    places = Places((out if given.queue == MAIN else out / given.queue).resolve())
    if given.report:
        from orders_report import write_report

        write_report(config, places, given.queue)
        return 0
    fetch_bases(config)
    units = plan(config)
    chosen = with_needs(only(given.only, units), units)
    return 0 if carry_out_queue(given, config, places, chosen, Path(__file__).resolve()) else 1


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workers", type=int, default=1, help="processes, of one thread each")
    add("--only", action="append", default=[], help="arm=NAME and seed=N, separated by commas")
    add("--queue", choices=QUEUES, default=MAIN, help="which arms; default: %(default)s")
    add("--smoke", action="store_true", help="4 optimizer steps, one seed, a few problems")
    add("--redo", action="store_true", help="delete units that had other settings, and redo them")
    add("--list", action="store_true", help="show the units and which are done")
    add("--report", action="store_true", help="no training: tables from the results there are")
    add("--unit", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
