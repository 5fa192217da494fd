"""What each operation does to channel labels. An operation that is not named here freezes the channels that reach it.

Every rule takes the recorder and one call, and sets the channels of the call's outputs. A rule that cannot be exact for a call ends in
`recorder.barrier(call, reason)`, which keeps all channels that reach the call.
"""

from rlprune.graph.rules import joins, layers, moves, pointwise, products, reductions
from rlprune.graph.rules.base import Rule as Rule

# Reads that do not depend on values: their results carry no channels.
NEUTRAL = frozenset(
    """
    size shape dim ndim numel nelement stride is_contiguous device dtype layout is_cuda is_floating_point is_complex is_cpu is_meta
    requires_grad element_size get_device is_sparse is_quantized is_nested names grad is_leaf grad_fn __len__ hash
    __hash__ itemsize is_mkldnn is_mps is_xla is_xpu is_signed storage_offset _version is_inference is_conj is_neg
    is_same_size has_names retains_grad output_nr is_shared result_type is_tensor get_default_dtype is_grad_enabled format repr str
    """.split()
)
OPAQUE = frozenset("einsum lstm gru rnn_tanh rnn_relu multi_head_attention_forward chain_matmul".split())
"""Operations whose multiply-accumulates torch's own counter tells."""
WITHOUT_RESULT = frozenset({"setitem"})
LAYERS = frozenset([*(f"conv{dims}d" for dims in (1, 2, 3)), *(f"conv_transpose{dims}d" for dims in (1, 2, 3)), "linear"])
SIZED = moves.SIZED | joins.SIZED | layers.SIZED | pointwise.SIZED
"""Operations whose rules look at sizes that the code computes; elsewhere such a size keeps its channels."""
SPOILING = pointwise.ZERO_MOVES | WITHOUT_RESULT
"""Operations that, in place, may leave something else where zero was."""
MAY_ZERO = LAYERS | layers.MAY_ZERO | pointwise.MAY_ZERO | moves.MAY_ZERO | joins.MAY_ZERO | products.MAY_ZERO | reductions.MAY_ZERO
"""Operations behind which a zeroed channel may have to be zeroed again."""


def table() -> dict[str, Rule]:
    """Rule by operation name."""
    rules = layers.TABLE | pointwise.TABLE | moves.TABLE | joins.TABLE | products.TABLE | reductions.TABLE
    return dict(rules)
