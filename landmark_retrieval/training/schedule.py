"""Learning rate over a stage."""

import math


def cosine_with_warmup(epoch: float, horizon: float, warmup: float = 1.0) -> float:
    """Factor on the learning rate, in [0, 1], after `epoch` epochs (a fraction inside an epoch).

    Rises linearly from 0 over the first `warmup` epochs, then falls to 0 along half a cosine that ends at `horizon`.
    A stage that stops before its horizon leaves the curve early and does not bend it.

    Source: Henkel 2021 (arXiv 2110.03786), section 2.3; Loshchilov & Hutter 2017 (SGDR, arXiv 1608.03983).
    """
    if epoch < warmup:
        return epoch / warmup
    if epoch >= horizon:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (horizon - warmup)))
