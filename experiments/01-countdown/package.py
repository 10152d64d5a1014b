"""Make seed 0's trained arms the packaged models `tiny-bridge`, `tiny-rlvr` and `tiny-pmatch`.

    python experiments/01-countdown/package.py [--from FOLDER]

Takes the final models that `run.py` left in work/, and refuses one whose run is not the one that
config.yaml describes, or whose weights are not those that were evaluated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from outcomes import FINAL
from units import HERE, Places, load_config, plan
from work import MODEL

import interlace
from interlace.evaluation.provenance import describe_model
from interlace.models import source

PACKAGED = Path(source.__file__).parent / "packaged"
SEED, BASE = 0, "tiny"
ARMS = {"bridge-mixed": "tiny-bridge", "rlvr": "tiny-rlvr", "pmatch": "tiny-pmatch"}


def main() -> None:
    """Copy the three arms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="out", type=Path, default=HERE, help="run.py's --out")
    places = Places(parser.parse_args().out.resolve())
    for unit in plan(load_config()):
        if unit.kind != "train" or unit.seed != SEED or unit.arm not in ARMS:
            continue
        if places.outcome(unit) is None or places.is_stale(unit):
            sys.exit(f"{unit.name} is not there as config.yaml describes it; run run.py first.")
        assert unit.settings["base"] == BASE
        refuse_other_weights(places, unit.arm, places.work(unit.name) / MODEL)
        folder = PACKAGED / ARMS[unit.arm]
        shutil.rmtree(folder, ignore_errors=True)
        # The card names the folder that it was written to.
        leave_out = shutil.ignore_patterns("README.md")
        shutil.copytree(places.work(unit.name) / MODEL, folder, ignore=leave_out)
        print(f"{unit.name} -> {folder}")


def refuse_other_weights(places: Places, arm: str, folder: Path) -> None:
    """A model with the run's settings may have been trained anew: its numbers are not these."""
    evaluation = places.results(f"seed-{SEED}/{arm}/{FINAL}") / "config.json"
    evaluated = json.loads(evaluation.read_text(encoding="utf-8"))["settings"]["model"]["weights"]
    model, _ = interlace.load(folder)
    if describe_model(model)["weights"] != evaluated:
        sys.exit(f"The weights in {folder} are not those of {evaluation}; evaluate them first.")


if __name__ == "__main__":
    main()
