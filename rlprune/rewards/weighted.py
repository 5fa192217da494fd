"""The reward of RL-Pruner, equation 17, with latency beside MACs and parameters."""


class WeightedReward:
    """r = accuracy + α · (1 − MACs / dense) + β · (1 − parameters / dense) + γ · (1 − latency / dense); accuracy on the search split.

    Args:
        alpha: weight of the FLOPs ratio.
        beta: weight of the parameter ratio.
        gamma: weight of the latency ratio; latency is predicted, and measured for it only where γ > 0.
    """

    def __init__(self, *, alpha: float, beta: float, gamma: float) -> None:
        for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            if value < 0:
                raise ValueError(f"{name}={value}: must be ≥ 0")
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    @property
    def reads_latency(self) -> bool:
        """Whether it must be told the latency ratio."""
        return self.gamma > 0

    def __call__(self, *, accuracy: float, flops_ratio: float, params_ratio: float, latency_ratio: float = 0.0) -> float:
        """All are fractions; the ratios say how much is gone."""
        return accuracy + self.alpha * flops_ratio + self.beta * params_ratio + self.gamma * latency_ratio
