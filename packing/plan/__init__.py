"""The packing plan: which samples share a pack, which rank reads which pack at which step."""

from packing.plan.settings import PlanSettings
from packing.plan.steps import plan_packs, plan_steps

__all__ = ["PlanSettings", "plan_packs", "plan_steps"]
