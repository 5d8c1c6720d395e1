"""Merges written down: typed plans and their YAML, of our own form or mergekit's."""

from .families import FAMILIES as FAMILIES
from .files import (
    load_plan as load_plan,
    parse_plan as parse_plan,
    plan_text as plan_text,
    save_plan as save_plan,
)
from .plan import MergePlan as MergePlan, PlanSource as PlanSource
