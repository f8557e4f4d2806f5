"""Loading by name: one thin file per ecosystem, none of which knows where a model's attention is.

``load("path/or/name")`` walks the table in :mod:`fxplain.adapters.registry` and returns a
:class:`~fxplain.adapters.loaded.Loaded`: the model, a way to turn files and texts into its inputs, and the
names of tokens and targets. Importing this package imports none of the ecosystems.
"""

from fxplain.adapters.loaded import Loaded, LoadOptions
from fxplain.adapters.registry import SOURCES, Source, load

__all__ = ["SOURCES", "LoadOptions", "Loaded", "Source", "load"]
