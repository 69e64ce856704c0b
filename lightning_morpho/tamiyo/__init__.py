"""Tamiyo, the controller: observations in, decisions out."""

from lightning_morpho.tamiyo.observation import (
    Cull,
    Decision,
    Germinate,
    Keep,
    LayerView,
    Measure,
    Measurement,
    Observation,
    SeedView,
)
from lightning_morpho.tamiyo.policies import Never, OneRound, Periodic, Scripted, Tamiyo, judge

__all__ = [
    "Cull",
    "Decision",
    "Germinate",
    "Keep",
    "LayerView",
    "Measure",
    "Measurement",
    "Never",
    "Observation",
    "OneRound",
    "Periodic",
    "Scripted",
    "SeedView",
    "Tamiyo",
    "judge",
]
