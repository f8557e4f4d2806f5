"""Operations that move or pool elements: relevance goes back along the way the values came."""

from __future__ import annotations

import torch
from torch import Tensor

from fxplain.attribution.lrp.table import Call, Shares, relevance_rule
from fxplain.labels.call import aten
from fxplain.rules.lrp_products import share, weighted

MOVING = aten("""
view reshape _unsafe_view _reshape_alias view_as expand expand_as permute transpose t squeeze unsqueeze
flatten unflatten movedim moveaxis swapaxes swapdims select slice narrow narrow_copy index index_select
gather take take_along_dim cat stack hstack vstack dstack column_stack split split_with_sizes
tensor_split chunk unsafe_split unsafe_chunk unbind roll flip fliplr flipud rot90 repeat
repeat_interleave tile unfold pixel_shuffle pixel_unshuffle channel_shuffle diagonal broadcast_to
atleast_1d atleast_2d atleast_3d unfold_copy numpy_T mT alias alias_copy lift_fresh_copy detach
unsafe_split_with_sizes split_copy split_with_sizes_copy unbind_copy permute_copy expand_copy view_copy
slice_copy select_copy""")
"""Every element of the result is one of an operand's."""

LAYOUT = MOVING + aten("""
pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
replication_pad2d replication_pad3d diag diag_embed tril triu where masked_fill masked_select
masked_scatter scatter index_fill index_copy select_scatter slice_scatter diagonal_scatter copy meshgrid
view_as_real view_as_complex real imag as_strided maximum minimum fmax fmin max min amax amin topk sort
msort max_pool1d max_pool2d max_pool3d max_pool2d_with_indices adaptive_max_pool1d adaptive_max_pool2d
median kthvalue complex im2col mH adjoint adaptive_max_pool3d cummax cummin""")
"""Every element of the result is one of an operand's, or a constant."""

LINEAR = aten("""
sum mean cumsum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d
upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d
upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa
_upsample_bicubic2d_aa trace fold col2im index_add scatter_add index_reduce scatter_reduce nansum
sum_to_size _sum_to_size fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2
fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_fftshift fft_ifftshift _fft_r2c _fft_c2r _fft_c2c
grid_sampler grid_sampler_2d grid_sampler_3d embedding_bag stft istft segment_reduce diff trapezoid
nanmean""")
"""Sums of an operand's elements, by weights that are fixed or come from elsewhere (held constant)."""

HOMOGENEOUS = aten("norm linalg_vector_norm linalg_matrix_norm cdist dist pairwise_distance std var prod")
"""Functions with ``f(c x) = cᵏ f(x)``, so that x · ∂f/∂x = k f(x)."""


@relevance_rule(*LAYOUT)
def layout(call: Call) -> Shares:
    """Elements that are moved take their relevance with them; elements that are repeated add up theirs."""
    shares = call.transposed()
    floating = [node for node, value in call.operands if value.is_floating_point() or value.is_complex()]
    if call.op in MOVING and all(node in call.sides.carriers for node in floating):
        return shares
    came = [
        call.samples.sums(part, call.node, place)
        for place, part in enumerate(call.relevances)
        if part is not None
    ]
    went = [call.samples.sums(part, node) for node, part in shares]
    # what is put beside the carriers is a constant's
    return [*shares, (None, torch.stack(came).sum(0) - sum(went, torch.zeros_like(came[0])))]


@relevance_rule(*LINEAR)
def linear_map(call: Call) -> Shares:
    """Elements share the relevance of a sum in proportion to what they add to it."""
    seeds = [
        None if given is None or not isinstance(result, Tensor) else share(given, result, call.rules.epsilon)
        for given, result in zip(call.relevances, call.results, strict=True)
    ]
    values, where = dict(call.carriers), call.source("grid")  # places to sample are held constant
    return [
        (node, weighted(values[node], part)) for node, part in call.transposed(seeds) if node is not where
    ]


@relevance_rule(
    *aten("linalg_solve_triangular linalg_solve _linalg_solve_ex triangular_solve cholesky_solve")
)
def solved_system(call: Call) -> Shares:
    """A sum of what stands on the right-hand side; the system is held constant, as a denominator is.

    Where the system alone carries relevance, its inverse is homogeneous.
    """
    right = call.source("B" if "linalg" in call.op else "self")
    shares = linear_map(call) if right in call.sides.carriers else homogeneous(call)
    return [(node, part) for node, part in shares if right not in call.sides.carriers or node is right]


@relevance_rule(*aten("index_put"))
def placed(call: Call) -> Shares:
    """As layout; where values are added up at one place, as a sum."""
    return linear_map(call) if call.argument("accumulate", False) else layout(call)


@relevance_rule(*HOMOGENEOUS)
def homogeneous(call: Call) -> Shares:
    """Euler's theorem: the parts ``x ∂f/∂x`` add up to a multiple of f, and share its relevance."""
    seed = share(call.relevance, call.result)
    values = dict(call.carriers)
    parts = [(node, weighted(values[node], part)) for node, part in call.transposed([seed])]
    whole = call.samples.sums(call.relevance, call.node)
    totals = sum((call.samples.sums(part, node) for node, part in parts), torch.zeros_like(whole))
    scale = share(whole, totals)
    return [(node, part * call.samples.spread(scale, part, node)) for node, part in parts]
