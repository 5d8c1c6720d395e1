"""Which studies there are: a paper's folder names its modules, and each module has one ``STUDY``.

The folder ``experiments/<paper>/`` (a key of :data:`~.claims.PAPERS`) has in its ``__init__`` a
mapping ``STUDIES`` from ids to module names. Study modules import what is heavy inside functions,
so that listing them costs nothing.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec

from ...core.errors import InvalidInputError
from .claims import PAPERS
from .study import Study


@cache
def _modules() -> dict[str, str]:
    base = __name__.rsplit(".", 2)[0]
    found: dict[str, str] = {}
    for paper in PAPERS:
        package = f"{base}.{paper}"
        if find_spec(package) is not None:
            studies = getattr(import_module(package), "STUDIES", {})
            found |= {name: f"{package}.{module}" for name, module in studies.items()}
    return found


def study_ids() -> list[str]:
    """The ids, in the order of the papers; nothing heavy is imported."""
    return list(_modules())


def find_study(name: str) -> Study:
    """The study of that id.

    Raises
    ------
    InvalidInputError
        For an unknown id, naming the known ones.
    """
    module = _modules().get(name)
    if module is None:
        raise InvalidInputError(
            f"The study {name!r} was asked for; there are {', '.join(_modules())}."
        )
    study = import_module(module).STUDY
    if not isinstance(study, Study) or study.id != name:
        raise InvalidInputError(f"{module}.STUDY is not the study {name!r}.")
    return study
