"""The reward of RL-Pruner, equation 17."""


class WeightedReward:
    """r = accuracy + α · (1 − MACs / dense MACs) + β · (1 − parameters / dense parameters); accuracy on the search split.

    Args:
        alpha: weight of the FLOPs ratio.
        beta: weight of the parameter ratio.
    """

    def __init__(self, *, alpha: float, beta: float) -> None:
        for name, value in (("alpha", alpha), ("beta", beta)):
            if value < 0:
                raise ValueError(f"{name}={value}: must be ≥ 0")
        self.alpha, self.beta = alpha, beta

    def __call__(self, *, accuracy: float, flops_ratio: float, params_ratio: float) -> float:
        """All three are fractions; the ratios say how much is gone."""
        return accuracy + self.alpha * flops_ratio + self.beta * params_ratio
