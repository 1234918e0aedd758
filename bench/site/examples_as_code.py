"""An extension of griffe: the `>>>` examples of docstrings become blocks of code."""

from __future__ import annotations

import re
from typing import Any

import griffe


class ExamplesAsCode(griffe.Extension):
    """Markdown would take `>>>` for three levels of quotation."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Fence the examples in the docstring of each object."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """Text in which each paragraph that begins with `>>>` is a block of Python."""
    return re.sub(r"(?ms)^(>>> .*?)(?=\n\s*\n|\Z)",
                  lambda match: f"```python\n{re.sub(r'  # doctest: [+]SKIP', '', match[1]).rstrip()}\n```", text)
