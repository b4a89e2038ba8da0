"""Device code for pairs one image at a time: items of any size, few pairs, and what all kernels share.

Names of dimensions: a program works on a *tile*, G captions of W words by an image of K regions, dustbins included. A
table `rows` names the rows of each item by their numbers in the flat [items · rows, D] tensor; −1 stands for no row.
Logarithms are binary, since exp2 is what the hardware has: x = S · log2(e) / λ.
"""

import triton
import triton.language as tl

# Stands for log 0, as in `sinkhorn`; what is below half of it is log 0 plus something.
LOG_ZERO = tl.constexpr(-1e30)
HALF_LOG_ZERO = tl.constexpr(-5e29)
LOG2_E = tl.constexpr(1.4426950408889634)
# A kernel is compiled anew where an argument is 1 or ceases to be a multiple of 16. For these that gains nothing, and
# batches differ in them.
SIZES = (
    *("score_stride", "num_text_tiles", "num_tiles", "rows_per_image", "rows_per_caption"),
    *(f"{mass}_{of}_stride" for mass in ("mu", "nu") for of in ("image", "caption", "row")),
    *("num_iterations", "dustbins"),
)


@triton.jit
def _dot(a, b, total, PRECISION: tl.constexpr):
    """total + a b; half precision goes to the tensor cores as it is, float32 by the given `input_precision`."""
    if PRECISION == "half":
        total = tl.dot(a, b, total)
    else:
        total = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision=PRECISION)
    return total


@triton.jit
def _cosines(
    text_ptr, text_stride, text_rows, image_ptr, image_stride, image_rows, width,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """S, [rows of text, rows of images], in float32; 0 where there is no row."""
    depth = tl.arange(0, CHUNK)
    text_at = text_ptr + text_rows.to(tl.int64)[:, None] * text_stride + depth[None, :]
    image_at = image_ptr + image_rows.to(tl.int64)[None, :] * image_stride + depth[:, None]
    total = tl.zeros((text_rows.shape[0], image_rows.shape[0]), tl.float32)
    for start in range(0, width, CHUNK):
        inside = start + depth < width
        words = tl.load(text_at + start, mask=(text_rows >= 0)[:, None] & inside[None, :], other=0.0)
        regions = tl.load(image_at + start, mask=(image_rows >= 0)[None, :] & inside[:, None], other=0.0)
        total = _dot(words, regions, total, PRECISION)
    return total


@triton.jit
def _log(mass):
    """log2, and 0 where there is no mass."""
    return tl.log2(tl.where(mass > 0, mass, 1.0))


@triton.jit
def _potential(mass, top, total):
    """log2(mass / Σ) where Σ = 2^top · total; log 0 where there is no mass on either side."""
    return tl.where((mass > 0) & (top > HALF_LOG_ZERO), _log(mass) - top - tl.log2(total), LOG_ZERO)


@triton.jit(do_not_specialize=SIZES)
def transport_kernel(
    score_ptr, score_stride, num_tiles, num_text_tiles,
    image_ptr, image_stride, image_rows_ptr, images_ptr, rows_per_image,
    text_ptr, text_stride, text_rows_ptr, captions_ptr, rows_per_caption,
    mu_ptr, mu_image_stride, mu_caption_stride, mu_row_stride,
    nu_ptr, nu_image_stride, nu_caption_stride, nu_row_stride,
    width, inverse_regularization, num_iterations, dustbins,
    tiles_ptr, similarity_ptr, similarity_grad_ptr, f_ptr, g_ptr, mu_grad_ptr, nu_grad_ptr,
    mu_pair_grad_ptr, nu_pair_grad_ptr,
    BACKWARD: tl.constexpr, MU_PER_PAIR: tl.constexpr, NU_PER_PAIR: tl.constexpr,
    G: tl.constexpr, W: tl.constexpr, K: tl.constexpr, BLOCKS: tl.constexpr,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Tiles of G captions by one image of any size, which passes through the chip in BLOCKS blocks of K regions.

    Forward: score[i, t] = Σ_kl P_kl S_kl. Backward, for g = ∂/∂score:

        S̄ = g P + X̄/λ on the block of fragments,   X̄ = g P∘S − Σ_j (Q_j diag(ḡ_j) + diag(f̄_j) R_j)

    where f_j, g_j are the logarithms of a_j, b_j; the columns of Q_j = exp(S/λ + f_j + g_j)/ν and the rows of
    R_j = exp(S/λ + f_j + g_{j−1})/μ sum to 1, and f̄_j, ḡ_j follow from them backwards through the n passes. No plan is
    ever in memory; S, S̄ and the 2n vectors of the tile in hand are, in the workspace of the program (whence the
    barriers).
    """
    program = tl.program_id(0)
    SIZE: tl.constexpr = BLOCKS * K
    caption_in_tile, word_in_caption, region_in_block = tl.arange(0, G), tl.arange(0, W), tl.arange(0, K)
    column = caption_in_tile[:, None] * W + word_in_caption[None, :]  # [G, W]
    row = caption_in_tile[:, None] * SIZE + region_in_block[None, :]  # [G, K]
    cell = column[:, :, None] * SIZE + region_in_block[None, None, :]  # [G, W, K]
    log2_scale = inverse_regularization * LOG2_E
    history = num_iterations if BACKWARD else 1
    similarity_ptr += program.to(tl.int64) * (G * W * SIZE)
    similarity_grad_ptr += program.to(tl.int64) * (G * W * SIZE)
    f_ptr += program.to(tl.int64) * history * (G * SIZE)
    g_ptr += program.to(tl.int64) * history * (G * W)
    mu_grad_ptr += program.to(tl.int64) * (G * SIZE)
    nu_grad_ptr += program.to(tl.int64) * (G * W)

    for number in range(program, num_tiles, tl.num_programs(0)):
        tile = tl.load(tiles_ptr + number) if BACKWARD else number
        image_tile, text_tile = tile // num_text_tiles, tile % num_text_tiles
        image = tl.load(images_ptr + image_tile).to(tl.int64)
        captions = tl.load(captions_ptr + text_tile * G + caption_in_tile)
        real = (captions >= 0) & (image >= 0)
        caption_at = captions.to(tl.int64)
        text_rows = tl.load(text_rows_ptr + text_tile * G * W + tl.arange(0, G * W))
        words = tl.load(text_rows_ptr + text_tile * G * W + column)
        word = words - captions[:, None] * rows_per_caption
        nu_at = image * nu_image_stride + caption_at[:, None] * nu_caption_stride + word * nu_row_stride
        has_word = (words >= 0) & real[:, None]
        nu = tl.load(nu_ptr + nu_at, mask=has_word, other=0.0)
        counted_word = word >= dustbins
        image_rows_at = image_rows_ptr + image_tile * SIZE + region_in_block
        mu_at = image * mu_image_stride + caption_at[:, None] * mu_caption_stride

        for block in range(BLOCKS):
            regions = tl.load(image_rows_at + block * K)
            similarity = _cosines(
                text_ptr, text_stride, text_rows, image_ptr, image_stride, regions, width, CHUNK, PRECISION
            )
            at = tl.arange(0, G * W)[:, None] * SIZE + block * K + region_in_block[None, :]
            tl.store(similarity_ptr + at, similarity)
        tl.debug_barrier()

        g = tl.where(nu > 0, 0.0, LOG_ZERO)
        for j in range(num_iterations):
            top = tl.zeros((G, W), tl.float32) + 4 * LOG_ZERO
            total = tl.zeros((G, W), tl.float32)
            for block in range(BLOCKS):
                regions = tl.load(image_rows_at + block * K)
                mu = tl.load(
                    mu_ptr + mu_at + (regions - image * rows_per_image)[None, :] * mu_row_stride,
                    mask=(regions >= 0)[None, :] & real[:, None], other=0.0,
                )  # fmt: skip
                x = tl.load(similarity_ptr + block * K + cell) * log2_scale
                # row pass: f_j = log μ − log Σ_l exp(S/λ + g_{j−1})
                y = x + g[:, :, None]
                top_of_row = tl.max(y, 1)
                f = _potential(mu, top_of_row, tl.sum(tl.exp2(y - top_of_row[:, None, :]), 1))
                tl.store(f_ptr + (j if BACKWARD else 0) * (G * SIZE) + block * K + row, f)
                # column pass, block by block: g_j = log ν − log Σ_k exp(S/λ + f_j)
                y = x + f[:, None, :]
                new_top = tl.maximum(top, tl.max(y, 2))
                total = total * tl.exp2(top - new_top) + tl.sum(tl.exp2(y - new_top[:, :, None]), 2)
                top = new_top
            g = _potential(nu, top, total)
            if BACKWARD:
                tl.store(g_ptr + j * (G * W) + column, g)
        tl.debug_barrier()

        last = (num_iterations - 1 if BACKWARD else 0) * (G * SIZE)
        if BACKWARD:
            gradient = tl.load(score_ptr + image * score_stride + caption_at, mask=real, other=0.0)
        matched = tl.zeros((G, W), tl.float32)  # Σ_k P S; times the gradient it is ḡ_n
        for block in range(BLOCKS):
            regions = tl.load(image_rows_at + block * K)
            counted = counted_word[:, :, None] & (regions - image * rows_per_image >= dustbins)[None, None, :]
            similarity = tl.load(similarity_ptr + block * K + cell)
            f = tl.load(f_ptr + last + block * K + row)
            plan = tl.where(counted, tl.exp2(similarity * log2_scale + f[:, None, :] + g[:, :, None]), 0.0)
            product = plan * similarity
            matched += tl.sum(product, 2)
            if BACKWARD:
                direct = gradient[:, None, None] * (plan + product * inverse_regularization)
                tl.store(similarity_grad_ptr + block * K + cell, direct)
                tl.store(mu_grad_ptr + block * K + row, gradient[:, None] * tl.sum(product, 1))

        if BACKWARD:
            g_grad = gradient[:, None] * matched
            sum_of_g_grad = tl.zeros((G, W), tl.float32)
            for back in range(num_iterations):
                j = num_iterations - 1 - back
                tl.debug_barrier()
                sum_of_g_grad += g_grad
                g = tl.load(g_ptr + j * (G * W) + column)
                g_before = tl.load(g_ptr + (j - 1) * (G * W) + column, mask=(column >= 0) & (j > 0), other=0.0)
                g_before = tl.where(nu > 0, g_before, LOG_ZERO)
                next_g_grad = tl.zeros((G, W), tl.float32)
                for block in range(BLOCKS):
                    regions = tl.load(image_rows_at + block * K)
                    mu = tl.load(
                        mu_ptr + mu_at + (regions - image * rows_per_image)[None, :] * mu_row_stride,
                        mask=(regions >= 0)[None, :] & real[:, None], other=0.0,
                    )  # fmt: skip
                    x = tl.load(similarity_ptr + block * K + cell) * log2_scale
                    f = tl.load(f_ptr + j * (G * SIZE) + block * K + row)
                    before = tl.load(similarity_grad_ptr + block * K + cell)
                    sum_of_f_grad = tl.load(mu_grad_ptr + block * K + row)
                    tl.debug_barrier()  # several threads may read what one of them writes below
                    # column pass: Q_j diag(ḡ_j)
                    of_columns = tl.exp2(x + f[:, None, :] + (g - _log(nu))[:, :, None]) * g_grad[:, :, None]
                    f_grad = -tl.sum(of_columns, 1)
                    sum_of_f_grad += f_grad
                    tl.store(mu_grad_ptr + block * K + row, sum_of_f_grad)
                    f_grad = tl.where(back == 0, sum_of_f_grad, f_grad)  # f_n has a part in the score itself
                    # row pass: diag(f̄_j) R_j
                    of_rows = tl.exp2(x + (f - _log(mu))[:, None, :] + g_before[:, :, None]) * f_grad[:, None, :]
                    next_g_grad -= tl.sum(of_rows, 2)
                    after = before - (of_columns + of_rows) * inverse_regularization
                    tl.store(similarity_grad_ptr + block * K + cell, after)
                g_grad = next_g_grad
            tl.debug_barrier()

            # f = log μ − …, so that μ̄ = Σ_j f̄_j / μ; likewise ν̄
            for block in range(BLOCKS):
                regions = tl.load(image_rows_at + block * K)
                at = mu_at + (regions - image * rows_per_image)[None, :] * mu_row_stride
                has_region = (regions >= 0)[None, :] & real[:, None]
                mu = tl.load(mu_ptr + at, mask=has_region, other=0.0)
                mu_grad = tl.load(mu_grad_ptr + block * K + row)
                tl.debug_barrier()
                mu_grad = tl.where(mu > 0, mu_grad / tl.where(mu > 0, mu, 1.0), 0.0)
                if MU_PER_PAIR:
                    tl.store(mu_pair_grad_ptr + at, mu_grad, mask=has_region)
                else:
                    tl.store(mu_grad_ptr + block * K + row, mu_grad)
            nu_grad = tl.where(nu > 0, sum_of_g_grad / tl.where(nu > 0, nu, 1.0), 0.0)
            if NU_PER_PAIR:
                tl.store(nu_pair_grad_ptr + nu_at, nu_grad, mask=has_word)
            else:
                tl.store(nu_grad_ptr + column, nu_grad)
        else:
            score = tl.sum(matched, 1)
            tl.store(score_ptr + image * score_stride + caption_at, score, mask=real)
            tl.debug_barrier()  # the next tile takes over the workspace


@triton.jit
def gradient_kernel(
    rows_grad_ptr, mass_grad_ptr,
    own_rows_ptr, own_size,
    other_ptr, other_stride, other_rows_ptr, other_size,
    order_ptr, bounds_ptr, others_ptr,
    similarity_grad_ptr, tile_stride, own_stride, inner_stride,
    tile_mass_grad_ptr, width, num_chunks, num_blocks,
    PARTS: tl.constexpr, OWN: tl.constexpr, INNER: tl.constexpr, CHUNK: tl.constexpr,
    IN_TWO: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, MASS: tl.constexpr,
):  # fmt: skip
    """V̄ += Σ_t S̄ T for the rows of one side, and the gradient of their mass; with the sides exchanged T̄ += Σ_i S̄ᵀ V.

    One program adds up all tiles of the workspace that its rows take part in, in their order: the result is the same
    in every run, and nobody else writes to it.
    """
    # The components of a row lie side by side in the grid, so that they find S̄ in the cache.
    chunk, block = tl.program_id(0) % num_chunks, tl.program_id(0) // num_chunks % num_blocks
    unit = tl.program_id(0) // (num_chunks * num_blocks)
    start, stop = tl.load(bounds_ptr + unit), tl.load(bounds_ptr + unit + 1)
    if start == stop:
        return
    own = block * OWN + tl.arange(0, OWN)
    inner = tl.arange(0, INNER)
    depth = chunk * CHUNK + tl.arange(0, CHUNK)
    rows = tl.load(own_rows_ptr + unit * own_size + own)
    at = rows.to(tl.int64)[:, None] * width + depth[None, :]
    inside = (rows >= 0)[:, None] & (depth < width)[None, :]
    if ROWS:
        total = tl.zeros((OWN, CHUNK), tl.float32)
        for number in range(start, stop):
            tile = tl.load(order_ptr + number)
            other_rows_at = other_rows_ptr + tl.load(others_ptr + tile) * other_size
            grads_at = similarity_grad_ptr + tile * tile_stride + own[:, None] * own_stride
            for first in range(0, other_size, INNER):
                other_rows = tl.load(other_rows_at + first + inner)
                grads = tl.load(grads_at + (first + inner)[None, :] * inner_stride)
                fragments = tl.load(
                    other_ptr + other_rows.to(tl.int64)[:, None] * other_stride + depth[None, :],
                    mask=(other_rows >= 0)[:, None] & (depth < width)[None, :], other=0.0,
                )  # fmt: skip
                if IN_TWO:
                    # bf16 has float32's range: in two parts S̄ keeps 16 bits
                    rough = grads.to(fragments.dtype)
                    total = _dot(rough, fragments, total, PRECISION)
                    total = _dot((grads - rough.to(tl.float32)).to(fragments.dtype), fragments, total, PRECISION)
                else:
                    total = _dot(grads, fragments, total, PRECISION)
        total += tl.load(rows_grad_ptr + at, mask=inside, other=0.0)
        tl.debug_barrier()  # several threads may read what one of them writes
        tl.store(rows_grad_ptr + at, total, mask=inside)
    if MASS and chunk == 0:
        mass_grad = tl.zeros((OWN,), tl.float32)
        part = tl.arange(0, PARTS)[:, None] * own_size + own[None, :]
        for number in range(start, stop):
            tile = tl.load(order_ptr + number)
            mass_grad += tl.sum(tl.load(tile_mass_grad_ptr + tile * (PARTS * own_size) + part), 0)
        mass_grad += tl.load(mass_grad_ptr + rows, mask=rows >= 0, other=0.0)
        tl.debug_barrier()
        tl.store(mass_grad_ptr + rows, mass_grad, mask=rows >= 0)
