"""Write src/synthorax/recipes/table.json, from which `synthorax recipes` reads: run it after a recipe or a network has changed."""

from __future__ import annotations

import argparse

from synthorax.files import write_json
from synthorax.steps.models.recipe import recipe_names
from synthorax.steps.models.recipe_table import TABLE
from synthorax.steps.parameter_count import facts_of

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    write_json(TABLE, {"recipes": [facts_of(name).to_dict() for name in recipe_names()]})
    print(f"{TABLE}: {len(recipe_names())} recipes")
