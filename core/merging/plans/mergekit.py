"""Reading the configuration files of mergekit, for the methods that both tools have.

Form and meaning after mergekit 0.1.5's documentation and behaviour. What has no counterpart here is
refused by name; nothing is left out silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import InvalidInputError
from .families import FAMILIES, Family
from .plan import MergePlan, PlanSource

_REFUSED = {
    "modules": "Models of several modules cannot be described here; merge each as its own plan.",
    "tokenizer": "Vocabularies are not rebuilt here; bring the models to one tokenizer first.",
    "chat_template": "Set the template in the tokenizer's own files; they are carried over.",
}
_METHODS = {
    "nuslerp": "slerp", "multislerp": "slerp", "karcher": "linear", "sce": "ties",
    "arcee_fusion": "ties", "nearswap": "slerp", "ram": "ties", "ramplus_tl": "ties",
    "passthrough": "linear",
}  # fmt: skip
# Accepted and of no effect here, with the reason.
_WITHOUT_EFFECT = {"int8_mask": "masks take no memory of their own here"}


def from_mergekit(found: Mapping[str, Any]) -> MergePlan:
    """The plan that a configuration describes.

    Raises
    ------
    InvalidInputError
        Methods, keys and forms that have no counterpart, with what to do.
    """
    keys = dict(found)
    method = keys.pop("merge_method")
    kind = FAMILIES.get(method) if isinstance(method, str) else None
    if kind is None or kind.precisions or method == "wise_ft":
        near = _METHODS.get(str(method))
        hint = f" The nearest here is {near!r}." if near else ""
        known = [n for n, f in FAMILIES.items() if not f.precisions and n != "wise_ft"]
        raise InvalidInputError(
            f"merge_method: {str(method)[:40]!r} was given; read are {', '.join(known)}.{hint}"
        )
    for key, advice in _REFUSED.items():
        if keys.get(key) is not None:
            raise InvalidInputError(f"The key {key!r} is not read. {advice}")
        keys.pop(key, None)
    notes: list[str] = []
    models, shared = _models(keys)
    base = _reference(keys.pop("base_model", None))
    shared = {**_parameters("parameters", keys.pop("parameters", None)), **shared}
    dtype, out_dtype = keys.pop("dtype", None), keys.pop("out_dtype", None)
    tokenizer, like = _tokenizer(keys.pop("tokenizer_source", None), base)
    if keys:
        raise InvalidInputError(
            f"The key {', '.join(repr(str(k)[:40]) for k in keys)} is not read; merge_method, "
            "models, slices, base_model, parameters, dtype, out_dtype and tokenizer_source are. "
            "Remove it, or merge this file with mergekit."
        )
    sources = []
    for (model, adapter), own in models:
        # The base counts among the models that a sum of differences lists, and adds nothing.
        if base is not None and (model, adapter) == base and kind.name != "linear":
            continue
        path, stem = (model, None) if adapter is None else (adapter, model)
        sources.append(
            PlanSource(model=path, base=stem, parameters=_kept(own, kind, notes, own=True))
        )
    if base is not None and base[1] is not None:
        raise InvalidInputError(
            "base_model: an adapter on a model was given; merge it into its base first."
        )
    if kind.name == "linear" and base is not None and not any(m == base for m, _ in models):
        raise InvalidInputError(
            "base_model was given with merge_method linear and is not among its models; add it "
            "to them with a weight, or remove it."
        )
    return MergePlan(
        method=kind.name, sources=sources, base_model=None if base is None else base[0],
        parameters=_kept(shared, kind, notes, own=False),
        out_dtype=out_dtype or dtype, tokenizer=tokenizer,
        like=like if base is not None else "first", comment="; ".join(notes),
    )  # fmt: skip


Reference = tuple[str, str | None]


def _models(
    keys: dict[str, Any],
) -> tuple[list[tuple[Reference, dict[str, Any]]], dict[str, Any]]:
    """Models with their parameters, and parameters of the one slice if there is one."""
    models, slices = keys.pop("models", None), keys.pop("slices", None)
    if (models is None) == (slices is None):
        raise InvalidInputError("Exactly one of 'models' and 'slices' is accepted.")
    shared: dict[str, Any] = {}
    if slices is not None:
        models, shared = _one_slice(slices)
    if not isinstance(models, list) or not models:
        raise InvalidInputError("'models' must be a list of models.")
    found = []
    for entry in models:
        if not isinstance(entry, Mapping) or "model" not in entry:
            raise InvalidInputError(f"The model {str(entry)[:60]!r} has no key 'model'.")
        odd = sorted(set(map(str, entry)) - {"model", "parameters"})
        if odd:
            raise InvalidInputError(
                f"A model with the key {odd[0]!r} was given; model and parameters are read."
            )
        found.append(
            (_model(entry["model"]), _parameters("parameters of a model", entry.get("parameters")))
        )
    return found, shared


def _one_slice(slices: Any) -> tuple[list[Any], dict[str, Any]]:
    """The models of a slice that covers all layers."""
    if not isinstance(slices, list) or len(slices) != 1 or not isinstance(slices[0], Mapping):
        raise InvalidInputError(
            "'slices' that cut or stack layers were given; one slice over all layers of every "
            "model is read. Stack layers with mergekit (passthrough), and merge the result here."
        )
    entry = dict(slices[0])
    sources = entry.pop("sources", None)
    shared = _parameters("parameters of a slice", entry.pop("parameters", None))
    if entry or not isinstance(sources, list) or not sources:
        what = ", ".join(map(repr, map(str, entry))) or "no list of sources"
        raise InvalidInputError(f"A slice with {what} was given; sources and parameters are read.")
    models, ranges = [], []
    for source in sources:
        if not isinstance(source, Mapping):
            raise InvalidInputError("A source of a slice must be a mapping.")
        layers = source.get("layer_range")
        ranges.append(layers)
        models.append({k: v for k, v in source.items() if k != "layer_range"})
    first = ranges[0]
    sound = isinstance(first, list) and len(first) == 2 and first[0] == 0
    if not sound or any(r != first for r in ranges):
        raise InvalidInputError(
            f"layer_range {str(ranges)[:80]} was given; the same range from 0 to the number of "
            "layers, for every model, is read. Stack layers with mergekit first."
        )
    return models, shared


def _reference(found: Any) -> Reference | None:
    """Path of a model and of an adapter on it ("model+adapter")."""
    if found is None:
        return None
    if isinstance(found, Mapping):
        inner = found.get("model")
        lora = found.get("lora")
        odd = sorted(set(map(str, found)) - {"model", "lora"})
        path = inner.get("path") if isinstance(inner, Mapping) else inner
        lora = lora.get("path") if isinstance(lora, Mapping) else lora
        text_ok = isinstance(path, str) and (lora is None or isinstance(lora, str))
        if odd or not text_ok:
            raise InvalidInputError(
                f"The model {str(found)[:80]!r} was given; a path, or a mapping with 'model' and "
                "'lora', is read."
            )
        return str(path), lora
    if not isinstance(found, str) or not found:
        raise InvalidInputError(f"The model {str(found)[:60]!r} was given; a path is read.")
    model, plus, adapter = found.partition("+")
    return model, adapter if plus else None


def _model(found: Any) -> Reference:
    reference = _reference(found)
    if reference is None:
        raise InvalidInputError("A model without a path was given; a path is read.")
    return reference


def _parameters(where: str, found: Any) -> dict[str, Any]:
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise InvalidInputError(f"{where}: a mapping is accepted.")
    return {str(k): v for k, v in found.items()}


def _kept(given: Mapping[str, Any], kind: Family, notes: list[str], *, own: bool) -> dict[str, Any]:
    """Without what has no effect here; unknown names are left for the plan to refuse."""
    out = {}
    for key, value in given.items():
        if key in _WITHOUT_EFFECT:
            notes.append(f"{key} left aside: {_WITHOUT_EFFECT[key]}")
            continue
        if own and key in kind.shared and key not in kind.own:
            raise InvalidInputError(
                f"The parameter {key!r} was given for one model; it belongs to the whole merge."
            )
        out[key] = value
    return out


def _tokenizer(found: Any, base: Reference | None) -> tuple[str | None, str]:
    """A folder whose tokenizer is taken, and whose configuration the result has."""
    if found is None:
        return None, "base"
    if found == "union":
        raise InvalidInputError(
            "tokenizer_source: union builds a new vocabulary, which is not done here. Give base or "
            "the path of one model, after bringing the models to one vocabulary."
        )
    if found == "base":
        if base is None:
            raise InvalidInputError("tokenizer_source: base was given without a base_model.")
        return base[0], "base"
    return _model(found)[0], "base"
