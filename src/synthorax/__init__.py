"""Synthorax: synthesise rare findings on chest radiographs, and measure on real patients whether it helped.

The verbs of the command line are the functions of the same name. Importing this package is cheap; torch is loaded when a verb
needs it.
"""

from __future__ import annotations

import importlib
from typing import Any

from synthorax.threads import let_idle_threads_sleep

let_idle_threads_sleep()
_VERBS = {
    "data": ("ingest", "prepare", "prepare_nodules"),
    "training": ("train", "pack"),
    "synthesis": ("plan", "generate", "insert", "screen", "refine_loop", "export", "export_model"),
    "evidence": ("evaluate", "benefit", "audit", "check_poisoning", "drift", "lesion_noise"),
}
_PUBLIC = {
    **{name: f"synthorax.verbs.{theme}:{name}" for theme, names in _VERBS.items() for name in names},
    "count_parameters": "synthorax.steps.parameter_count:count_parameters",
    "recipes": "synthorax.steps.models.recipe_table:recipes",
    "models": "synthorax.steps.models.catalogue:models",
    "open_model": "synthorax.steps.models.trained_model:open_model",
    "load_model": "synthorax.steps.models.trained_model:load_model",
    "sample_nodules": "synthorax.steps.nodules:sample_nodules",
    "augment": "synthorax.verbs.augmentation:augment",
    "demo": "synthorax.verbs.demonstration:demo",
    "compare": "synthorax.verbs.comparison:compare",
    "SynthoraxError": "synthorax.errors:SynthoraxError",
    "InputError": "synthorax.errors:InputError",
    "LabelPolicy": "synthorax.types:LabelPolicy",
    "Report": "synthorax.evaluation.report.record:Report",
    "Request": "synthorax.options:Request",
    "SampleSettings": "synthorax.options:SampleSettings",
    "InsertConfig": "synthorax.steps.insertion.config:InsertConfig",
    "ScreenConfig": "synthorax.steps.screening.config:ScreenConfig",
    "BenefitConfig": "synthorax.evaluation.benefit.protocol:BenefitConfig",
    "AuditConfig": "synthorax.privacy.config:AuditConfig",
}
_FORMER = {"loop": "refine_loop", "vet": "check_poisoning"}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # here, because importing importlib.metadata takes longer than all else
        from importlib.metadata import version

        return version("synthorax")
    if name in _FORMER:
        import warnings

        warnings.warn(f"synthorax.{name} is now synthorax.{_FORMER[name]}", DeprecationWarning, stacklevel=2)
        name = _FORMER[name]
    if name not in _PUBLIC:
        raise AttributeError(f"module 'synthorax' has no attribute '{name}'")
    module, _, attribute = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
