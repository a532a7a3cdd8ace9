"""What every test gets: one thread, as threads on tiny tensors only fight each other, and fixed examples."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

# The same examples on every run: a red test must be red again when it is looked into. No deadline, because
# machines that run tests are busy ones.
settings.register_profile(
    "house", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
settings.load_profile("house")
