"""Tamiyo, the controller: observations in, decisions out."""

from lightning_morpho.tamiyo.auto import AutoSize
from lightning_morpho.tamiyo.bandit import Bandit
from lightning_morpho.tamiyo.base import Tamiyo
from lightning_morpho.tamiyo.fixed import AllAtStart, Never, Scripted
from lightning_morpho.tamiyo.judgement import judge
from lightning_morpho.tamiyo.observation import (
    Assess,
    Assessment,
    Cull,
    Decision,
    Defer,
    Germinate,
    Keep,
    LayerView,
    Measure,
    Measurement,
    Observation,
    Outcome,
    Penalize,
    Resize,
    Resizing,
    SeedDecision,
    SeedView,
    Tried,
    Try,
)
from lightning_morpho.tamiyo.periodic import Periodic
from lightning_morpho.tamiyo.placed import Placed
from lightning_morpho.tamiyo.plateau import Plateau
from lightning_morpho.tamiyo.probation import Probation
from lightning_morpho.tamiyo.random_place import RandomPlace
from lightning_morpho.tamiyo.trial import Trial
from lightning_morpho.tamiyo.uniform import Uniform

__all__ = [
    "Bandit",
    "Placed",
    "Plateau",
    "AllAtStart",
    "Assess",
    "Assessment",
    "AutoSize",
    "Cull",
    "Decision",
    "Defer",
    "Germinate",
    "Keep",
    "LayerView",
    "Measure",
    "Measurement",
    "Never",
    "Observation",
    "Outcome",
    "Penalize",
    "Periodic",
    "RandomPlace",
    "Probation",
    "Resize",
    "Resizing",
    "Scripted",
    "SeedDecision",
    "SeedView",
    "Tamiyo",
    "Trial",
    "Tried",
    "Try",
    "Uniform",
    "judge",
]
