"""Put a finished run into the zoo that ships with the package: half precision, checked image by image, with its card.

  python bench/release/ship.py runs/large --name cxr-256 --report report/report.json --earlier runs/base

`--report` is the report.json of images that this very model made. The last line is the table's entry as JSON. Run the tests afterwards,
and commit the folder `src/synthorax/zoo`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from synthorax.errors import SynthoraxError
from synthorax.run import Run
from synthorax.steps.models.ship import PRECISIONS, ship
from synthorax.zoo import FOLDER


def main() -> int:
    """Write the weights, the card and the line in the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--report", type=Path, help="report.json of its evaluation")
    parser.add_argument("--study", default="", help="page of the documents that measures a model which no report is about")
    parser.add_argument("--earlier", type=Path, nargs="*", default=[], help="runs that it started from, the first one first")
    parser.add_argument("--limit", action="append", default=[], help="a further sentence for the card's limits; repeat for more")
    parser.add_argument("--precision", choices=sorted(PRECISIONS), default="float16")
    parser.add_argument("--into", type=Path, default=FOLDER, help="folder of the zoo; by default that of this checkout")
    options = parser.parse_args()
    try:
        model = ship(Run(path=options.run), name=options.name, folder=options.into, precision=options.precision, report=options.report,
                     earlier=[Run(path=path) for path in options.earlier], limits=options.limit, study=options.study)
    except SynthoraxError as error:
        print(f"ship.py: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(dataclasses.asdict(model), default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
