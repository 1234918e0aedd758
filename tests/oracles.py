"""Other people's implementations of the metrics, imported so that only their arithmetic is needed."""

import importlib
import importlib.util
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest


def oracle(name):
    """Import module `name`, or skip the test where its package is not installed.

    torch-fidelity and torchmetrics load images and networks with torchvision, which is not called here. Where it is
    absent, or was built for another build of torch, empty modules stand in for it while the oracle is imported.
    """
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name.partition('.')[0]} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("torchvision")
        except (ImportError, RuntimeError):
            return _with_stand_in(name)
        return importlib.import_module(name)


def _with_stand_in(name):
    _forget_torchvision()  # what a failed import left behind
    sys.meta_path.insert(0, _EmptyTorchvision)
    try:
        return importlib.import_module(name)
    finally:
        sys.meta_path.remove(_EmptyTorchvision)
        _forget_torchvision()


def _forget_torchvision():
    for part in [part for part in sys.modules if part.partition(".")[0] == "torchvision"]:
        del sys.modules[part]


class _EmptyTorchvision:
    """Finds every torchvision module, and makes it one whose public names are all empty classes."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return ModuleSpec(name, cls, is_package=True) if name.partition(".")[0] == "torchvision" else None

    @staticmethod
    def create_module(spec):
        return _EmptyModule(spec.name)

    @staticmethod
    def exec_module(module):
        pass


class _EmptyModule(ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
