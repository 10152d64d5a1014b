"""Make seed 0's RLVR-only model and its blocks the packaged models `tiny-rlvr` and `tiny-bridge`.

    python experiments/07-blocks-last/package.py [--from FOLDER]

Takes the models that `run.py` left in work/, and refuses one whose run is not the one that
config.yaml describes, or whose weights are not those that were evaluated. `tiny-pmatch` is that of
01-countdown, as it was packaged at version 0.1.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from orders import HERE, Places, load_config, plan

import interlace
from interlace.evaluation.provenance import describe_model
from interlace.models import source

PACKAGED = Path(source.__file__).parent / "packaged"
SEED = 0
ARMS = {"rlvr-120": "tiny-rlvr", "spliced-120": "tiny-bridge"}


def main() -> None:
    """Write the two folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="out", type=Path, default=HERE, help="folder of run.py")
    places = Places(parser.parse_args().out.resolve())
    units = {unit.name: unit for unit in plan(load_config())}
    for arm, name in ARMS.items():
        unit = units[f"seed-{SEED}/{arm}/train"]
        if places.outcome(unit) is None or places.is_stale(unit):
            sys.exit(f"{unit.name} is not there as config.yaml describes it; run run.py first.")
        trained = places.work(unit.name) / "model"
        # The blocks' base is the packaged one, not where this run kept it.
        base = None if arm == "rlvr-120" else ARMS["rlvr-120"]
        model, tokenizer = interlace.load(trained, base=base)
        refuse_other_weights(places, arm, describe_model(model)["weights"])
        shutil.rmtree(PACKAGED / name, ignore_errors=True)
        if base:
            interlace.save(model, PACKAGED / name, full=True, tokenizer=tokenizer)
            (PACKAGED / name / "README.md").unlink()  # the card names the folder
        else:
            model.save_pretrained(PACKAGED / name)
            tokenizer.save_pretrained(PACKAGED / name)
        print(f"{unit.name} -> {name}")


def refuse_other_weights(places: Places, arm: str, weights: str) -> None:
    """A model with the run's settings may have been trained anew: its numbers are not these."""
    evaluation = places.results(f"seed-{SEED}/{arm}/final") / "config.json"
    evaluated = json.loads(evaluation.read_text(encoding="utf-8"))["settings"]["model"]["weights"]
    if weights != evaluated:
        sys.exit(f"The weights of {arm} are not those of {evaluation}; evaluate them first.")


if __name__ == "__main__":
    main()
