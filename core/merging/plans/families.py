"""Methods that a plan may name, and the parameters of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...errors import InvalidInputError

REQUIRED = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a method takes.

    Attributes
    ----------
    name : str
    about : str
    shared : mapping of str to (type, default)
        Parameters of the merge; a tensor may have its own.
    own : mapping of str to (type, default)
        Parameters of each source; given for all of them, they hold for each.
    base : {"no", "may", "must"}
        A base model.
    least, most : int
        Sources beside the base.
    precisions : bool
        Every source must bring one.
    select : {None, "magnitude", "outliers", "random", "ranked"}
        How differences from the base are made sparse.
    elect : bool
        Whether a sign is elected.
    """

    name: str
    about: str
    shared: Mapping[str, tuple[type, Any]] = field(default_factory=dict)
    own: Mapping[str, tuple[type, Any]] = field(default_factory=dict)
    base: str = "no"
    least: int = 1
    most: int = 1000
    precisions: bool = False
    select: str | None = None
    elect: bool = False


_WEIGHT = {"weight": (float, REQUIRED)}


def _task(
    name: str, about: str, select: str | None, *, elect: bool, normalize: bool, rescale: bool,
    own: Mapping[str, tuple[type, Any]] | None = None,
) -> Family:  # fmt: skip
    return Family(
        name=name, about=about, select=select, elect=elect, base="must",
        shared={
            "normalize": (bool, normalize), "rescale": (bool, rescale), "lambda": (float, 1.0),
        },
        own={**_WEIGHT, "density": (float, 1.0), **(own or {})},
    )  # fmt: skip


FAMILIES: dict[str, Family] = {
    f.name: f
    for f in (
        Family(
            name="linear", about="weighted mean, or weighted sum without normalize",
            shared={"normalize": (bool, True)}, own=_WEIGHT, base="may",
        ),
        Family(
            name="fisher", about="mean weighted by precisions (arXiv:2111.09832, and other "
            "structures than the diagonal)",
            shared={
                "floor": (float, 0.0), "floor_on": (str, "all"), "normalize": (bool, False),
                "anchor": (float, 0.0), "damping": (float, 0.0), "damping_mode": (str, "absolute"),
            },
            own={"weight": (float, 1.0)}, base="may", precisions=True,
        ),
        Family(
            name="slerp", about="spherical interpolation from the base (t = 0) to the source",
            shared={"t": (float, REQUIRED)}, base="must", most=1,
        ),
        Family(
            name="model_stock", about="towards the base by the angle between the models "
            "(arXiv:2403.19522)",
            shared={"filter_wise": (bool, False)}, base="must", least=2,
        ),
        Family(
            name="wise_ft", about="between base and fine-tuned model (arXiv:2109.01903)",
            shared={"alpha": (float, 0.5)}, base="must", most=1,
        ),
        _task("task_arithmetic", "sum of differences from the base (arXiv:2212.04089)", None,
              elect=False, normalize=False, rescale=False),
        _task("ties", "trim, elect a sign, disjoint mean (arXiv:2306.01708)", "magnitude",
              elect=True, normalize=True, rescale=False),
        _task("dare_linear", "random drops (arXiv:2311.03099)", "random",
              elect=False, normalize=False, rescale=True),
        _task("dare_ties", "random drops and an elected sign", "random",
              elect=True, normalize=False, rescale=True),
        _task("breadcrumbs", "both tails cut (arXiv:2312.06795)", "outliers",
              elect=False, normalize=False, rescale=False, own={"gamma": (float, 0.01)}),
        _task("breadcrumbs_ties", "both tails cut and an elected sign", "outliers",
              elect=True, normalize=False, rescale=False, own={"gamma": (float, 0.01)}),
        _task("della", "drops by rank and an elected sign (arXiv:2406.11617)", "ranked",
              elect=True, normalize=True, rescale=True, own={"epsilon": (float, 0.15)}),
        _task("della_linear", "drops by rank", "ranked",
              elect=False, normalize=False, rescale=True, own={"epsilon": (float, 0.15)}),
    )
}  # fmt: skip


def family(name: str) -> Family:
    """A method by its name.

    Raises
    ------
    InvalidInputError
        Naming those that there are.
    """
    found = FAMILIES.get(name) if isinstance(name, str) else None
    if found is None:
        raise InvalidInputError(
            f"The method {str(name)[:60]!r} was given; checkpoints are merged by "
            f"{', '.join(FAMILIES)}."
        )
    return found
