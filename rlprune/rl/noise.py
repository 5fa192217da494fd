"""How actions are made to explore."""

import numpy as np
from scipy import stats


def gaussian(action: float, std: float, most: float, generator: np.random.Generator) -> float:
    """The action + N(0, σ²), cut off at 0 and at the largest action (FPRL, equation 10)."""
    return float(np.clip(action + std * generator.standard_normal(), 0.0, most))


def truncated_normal(action: float, std: float, most: float, generator: np.random.Generator) -> float:
    """A draw from the normal distribution around an action, given that it lies between 0 and the largest (AMC, section 3.2)."""
    if std <= 0:
        return float(np.clip(action, 0.0, most))
    low, high = stats.norm.cdf([(0 - action) / std, (most - action) / std])
    draw = action + std * stats.norm.ppf(generator.uniform(low, high))
    return float(np.clip(draw, 0.0, most))
