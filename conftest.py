"""Modules that need Triton are looked at only where it is installed."""

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("triton") else ["lightning_morpho/kernels/triton*.py"]
