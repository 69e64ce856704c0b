import pytest
from torch import nn


@pytest.fixture
def make_net():
    return lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
