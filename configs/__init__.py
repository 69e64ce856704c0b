"""Hydra configuration groups; this file makes them a package that Hydra finds as ``pkg://``."""
