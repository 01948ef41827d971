# mypy: disable-error-code="no-untyped-def"
"""The Triton kernels of the head's CUDA path; `recognition.heads.fused` launches them and says what they serve.

Convention: a tile's centres, coefficients and centre gradient, and the batch, lie in scratch tensors padded to whole
blocks, with zeros, so the products need no masks. Only the shard's own tensors are read and written at their true
shape, with int64 offsets, because C·d passes 2^31. No atomics: every number is written by one program, in an order that
does not depend on timing. Arithmetic is float32 whatever the products' type; float32 products are true float32.
Proven by tests/recognition/heads/test_triton_kernels.py in Triton's interpreter.
"""

import triton
import triton.language as tl


@triton.jit
def _row_offsets(index, number, used, d, HAS_INDEX: tl.constexpr):
    """Where the shard's rows begin that the tile's rows `number` stand for, int64; 0 where not `used`."""
    if HAS_INDEX:
        return tl.load(index + number, mask=used, other=0) * d
    return tl.where(used, number, 0).to(tl.int64) * d


@triton.jit
def _unit(x):
    """Rows of x [n, D] at unit length and 1/‖row‖, by the rules of vectors.unit.

    Both are 0 for a row too short for a direction, and NaN for one whose length is not finite.
    """
    length = tl.sqrt_rn(tl.sum(x * x, axis=1))
    divisor = tl.where(length <= 1e-12, float("inf"), tl.where(length < float("inf"), length, float("nan")))
    return tl.div_rn(x, tl.broadcast_to(divisor[:, None], x.shape)), 1.0 / divisor


@triton.jit
def effective_centers_kernel(
    weight, memory, index, fresh, centers, factors, count, capacity, d, width, share, strength,
    HAS_INDEX: tl.constexpr, HAS_MEMORY: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """W̃ of a tile's rows → centers [capacity, width]; 1/‖W‖, 1/‖mix‖ and Ŵ·W̃ → factors [3, capacity]."""
    number = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_D)
    used = number < count
    at = _row_offsets(index, number, used, d, HAS_INDEX)[:, None] + column[None, :]
    inside = used[:, None] & (column < d)[None, :]
    w = tl.load(weight + at, mask=inside, other=0.0)
    center, inverse = _unit(w)
    if HAS_MEMORY:
        mixes = tl.load(fresh + number, mask=used, other=0) != 0
        m = tl.load(memory + at, mask=inside & mixes[:, None], other=0.0)
        mixed, inverse_mixed = _unit(share * center + strength * m)
        tl.store(factors + capacity + number, inverse_mixed)
        tl.store(factors + 2 * capacity + number, tl.sum(mixed * center, axis=1))
        center = tl.where(mixes[:, None], mixed, center)
    tl.store(factors + number, inverse)
    at_center = centers + number[:, None] * width + column[None, :]
    tl.store(at_center, center.to(centers.dtype.element_ty), mask=(column < width)[None, :])


@triton.jit
def _cosines(
    x, centers, i, j, width, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Cosines of samples i and rows j, [BLOCK_B, BLOCK_C] float32 in [−1, 1]; NaN stays, so that it is noticed."""
    depth = tl.arange(0, BLOCK_K)
    x_at = x + i[:, None] * width + depth[None, :]
    center_at = centers + j[None, :] * width + depth[:, None]
    cosine = tl.zeros((BLOCK_B, BLOCK_C), tl.float32)
    for k in range(0, width, BLOCK_K):
        cosine = tl.dot(tl.load(x_at + k), tl.load(center_at + k), cosine, input_precision="ieee")
    cosine = tl.where(cosine > 1.0, 1.0, cosine)
    return tl.where(cosine < -1.0, -1.0, cosine)


@triton.jit
def sums_kernel(
    x, centers, column, sums, target, low, count, width, batch, s,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """Σ_j≠y exp(s·cosine_ij) over one block of rows → sums [blocks, batch]; cosines of targets in it → target [batch].

    low: the tile's first row; column − low is a sample's target in the tile.
    """
    i = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    j = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    cosine = _cosines(x, centers, i, j, width, BLOCK_B, BLOCK_C, BLOCK_K)
    own = (tl.load(column + i) - low).to(tl.int32)
    is_target = own[:, None] == j[None, :]
    exponential = tl.where(is_target | (j >= count)[None, :], 0.0, tl.exp(s * cosine))
    tl.store(sums + tl.program_id(1) * batch + i, tl.sum(exponential, axis=1))
    first = tl.program_id(1) * BLOCK_C
    found = (own >= first) & (own < first + BLOCK_C)
    tl.store(target + i, tl.sum(tl.where(is_target, cosine, 0.0), axis=1), mask=found)


@triton.jit
def coefficients_kernel(
    x, centers, column, log_z, of_target, coefficients, low, count, capacity, width, s,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """B·∂loss/∂cosine of a tile → coefficients [batch, capacity]: s·exp(s·cosine − log Z), at targets `of_target`."""
    i = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    j = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    cosine = _cosines(x, centers, i, j, width, BLOCK_B, BLOCK_C, BLOCK_K)
    is_target = (tl.load(column + i) - low).to(tl.int32)[:, None] == j[None, :]
    negative = s * tl.exp(s * cosine - tl.load(log_z + i)[:, None])
    coefficient = tl.where(is_target, tl.load(of_target + i)[:, None], negative)
    coefficient = tl.where((j < count)[None, :], coefficient, 0.0)
    tl.store(coefficients + i[:, None] * capacity + j[None, :], coefficient.to(coefficients.dtype.element_ty))


@triton.jit
def product_kernel(
    a, b, out, a_row, a_column, width, length, length_each, rows,
    ADD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """out[share] (+)= a·b over one share of the inner length: a [rows, length] by its strides, b [length, width].

    out: [shares, rows, width] float32. Fixed shares in place of atomics keep the order of the additions.
    """
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    first = tl.program_id(2) * length_each
    a_at = a + m[:, None] * a_row + depth[None, :] * a_column
    b_at = b + depth[:, None] * width + n[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(first, tl.minimum(first + length_each, length), BLOCK_K):
        total = tl.dot(tl.load(a_at + k * a_column), tl.load(b_at + k * width), total, input_precision="ieee")
    at = out + (tl.program_id(2).to(tl.int64) * rows + m[:, None]) * width + n[None, :]
    if ADD:
        total += tl.load(at)
    tl.store(at, total)


@triton.jit
def update_kernel(
    gradient, weight, velocity, memory, index, fresh, factors, finite,
    count, capacity, d, width, share, strength, one_over_batch, lr, momentum, weight_decay,
    HAS_INDEX: tl.constexpr, HAS_MEMORY: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):
    """A tile's centre gradient B·∂L/∂W̃ [capacity, width] through both normalisations, and the rows' step of SGD.

    ∂L/∂W = α·∂L/∂W̃ + β·W + γ·M with three numbers a row: memory.effective_gradient written out, with
    p = ∂L/∂W̃·W̃ and q = share/‖mix‖·(∂L/∂W̃·Ŵ − p·Ŵ·W̃) the parts that the two normalisations take away.
    """
    if tl.load(finite) == 0:
        return
    number = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_D)
    used = number < count
    at = _row_offsets(index, number, used, d, HAS_INDEX)[:, None] + column[None, :]
    inside = used[:, None] & (column < d)[None, :]
    w = tl.load(weight + at, mask=inside, other=0.0)
    v = tl.load(velocity + at, mask=inside, other=0.0)
    g = tl.load(gradient + number[:, None] * width + column[None, :], mask=inside, other=0.0) * one_over_batch
    inverse = tl.load(factors + number)
    along_w = tl.sum(g * w, axis=1) * inverse
    alpha = inverse
    beta = -inverse * inverse * along_w
    if HAS_MEMORY:
        mixes = tl.load(fresh + number, mask=used, other=0) != 0
        m = tl.load(memory + at, mask=inside & mixes[:, None], other=0.0)
        scale = share * tl.load(factors + capacity + number)
        pull = strength * tl.load(factors + capacity + number)
        p = scale * along_w + pull * tl.sum(g * m, axis=1)
        q = scale * (along_w - p * tl.load(factors + 2 * capacity + number))
        alpha = tl.where(mixes, scale * inverse, alpha)
        beta = tl.where(mixes, -inverse * inverse * (scale * scale * p + q), beta)
        gamma = tl.where(mixes, -inverse * scale * pull * p, 0.0)
        v = momentum * v + (alpha[:, None] * g + gamma[:, None] * m + (beta + weight_decay)[:, None] * w)
    else:
        v = momentum * v + (alpha[:, None] * g + (beta + weight_decay)[:, None] * w)
    tl.store(velocity + at, v, mask=inside)
    tl.store(weight + at, w - lr * v, mask=inside)
