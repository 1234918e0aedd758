"""Synthorax: synthesise rare findings on chest radiographs, and prove on real patients whether it helped.

The verbs of the command line are the functions of the same name. Importing this package is cheap; torch is loaded when a verb
needs it.
"""

from __future__ import annotations

import importlib
from typing import Any

from synthorax.threads import let_idle_threads_sleep

let_idle_threads_sleep()
_VERBS = ("ingest", "prepare", "train", "pack", "plan", "generate", "screen", "loop", "vet", "evaluate", "benefit", "audit", "drift",
          "lesion_noise", "export", "export_model")
_PUBLIC = {
    **{name: f"synthorax.workflow:{name}" for name in _VERBS},
    "count_parameters": "synthorax.steps.count:count_parameters",
    "recipes": "synthorax.steps.recipe_table:recipes",
    "models": "synthorax.steps.catalogue:models",
    "load_model": "synthorax.steps.models:load_model",
    "augment": "synthorax.main_job:augment",
    "demo": "synthorax.demo_job:demo",
    "compare": "synthorax.compare_job:compare",
    "SynthoraxError": "synthorax.errors:SynthoraxError",
    "InputError": "synthorax.errors:InputError",
    "LabelPolicy": "synthorax.types:LabelPolicy",
    "Report": "synthorax.evaluation.report:Report",
    "SampleSettings": "synthorax.protocols:SampleSettings",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # here, because importing importlib.metadata takes longer than all else
        from importlib.metadata import version

        return version("synthorax")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'synthorax' has no attribute '{name}'")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
