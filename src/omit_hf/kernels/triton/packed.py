"""Device code for packed items: scores of all pairs, and their gradient by S. `packing.py` says what a tile is.

The product of a tile goes to a workspace of the program, which stays in the L2 cache; from there pairs of items come
onto the chip, several at once. Names of dimensions, of a tensor of P pairs of W words and K regions, dustbins included:
[K / k, W / w, P, w, k], so that a thread holds entries of one pair alone, and sums need few other threads.
Logarithms are binary, since exp2 is what the hardware has: x = S · log2(e) / λ.
"""

import triton
import triton.language as tl

from omit_hf.kernels.triton.fused import LOG2_E, LOG_ZERO, _dot, _log, _potential
from omit_hf.kernels.triton.packing import TILE, find_tile

# a and b up to which E = exp(S/λ), not scaled, serves: what E has rounded to zero, below 2^−126, is then of no account.
LARGEST = tl.constexpr(2.0**48)
INF = tl.constexpr(float("inf"))
# Image tiles that share a sweep over the captions, so that both sides' rows come from the L2 cache.
IMAGE_TILES_PER_SWEEP = tl.constexpr(16)


@triton.jit
def _over_words(each):
    """Σ over the words of a pair."""
    return tl.sum(tl.sum(each, 1, keep_dims=True), 3, keep_dims=True)


@triton.jit
def _over_regions(each):
    return tl.sum(tl.sum(each, 0, keep_dims=True), 4, keep_dims=True)


@triton.jit
def _largest(regions, words):
    """The largest number of two vectors of all pairs."""
    each = tl.maximum(tl.max(regions, 0, keep_dims=True), tl.max(words, 1, keep_dims=True))
    return tl.max(tl.max(tl.max(tl.max(tl.max(each, 4), 3), 2), 1), 0)


@triton.jit
def _product(
    similarity_ptr, text_ptr, text_stride, text_rows, image_ptr, image_stride, image_rows, width,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr, STRIDE: tl.constexpr, left,
):  # fmt: skip
    """S of 128 rows of text and 128 of images into columns of the workspace, in float32; 0 where there is no row."""
    depth = tl.arange(0, CHUNK)
    text_at = text_ptr + text_rows.to(tl.int64)[:, None] * text_stride + depth[None, :]
    image_at = image_ptr + image_rows.to(tl.int64)[None, :] * image_stride + depth[:, None]
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, width, CHUNK):
        inside = start + depth < width
        words = tl.load(text_at + start, mask=(text_rows >= 0)[:, None] & inside[None, :], other=0.0)
        regions = tl.load(image_at + start, mask=(image_rows >= 0)[None, :] & inside[:, None], other=0.0)
        total = _dot(words, regions, total, PRECISION)
    at = tl.arange(0, TILE)[:, None] * STRIDE + left + tl.arange(0, TILE)[None, :]
    tl.store(similarity_ptr + at, total)


@triton.jit
def _rows(places_ptr, order_ptr, first, items, count, slot, start, rows_per_item):
    """Numbers of 128 rows of a tile in the flat tensor, from the given one; −1 where there is none."""
    row = start + tl.arange(0, TILE)
    item, place = row // slot, row % slot
    there = (item < items) & (place < count)
    item = tl.load(order_ptr + first + item, mask=there, other=0).to(tl.int32)
    return tl.where(there, item * rows_per_item + tl.load(places_ptr + item * rows_per_item + place, mask=there), -1)


@triton.jit(
    do_not_specialize=(
        *("score_stride", "rows_per_image", "rows_per_caption", "first_text_tile", "last_text_tile"),
        *("mu_image_stride", "mu_caption_stride", "nu_caption_stride", "nu_image_stride"),
        *("num_iterations", "tile_columns"),
    )
)
def packed_kernel(
    score_ptr, score_stride,
    image_ptr, image_stride, image_places_ptr, image_order_ptr, image_firsts_ptr, image_ends_ptr, rows_per_image,
    mu_ptr, mu_image_stride, mu_caption_stride, image_dustbins_ptr,
    text_ptr, text_stride, text_places_ptr, text_order_ptr, text_firsts_ptr, text_ends_ptr, rows_per_caption,
    nu_ptr, nu_caption_stride, nu_image_stride, text_dustbins_ptr,
    width, inverse_regularization, num_iterations,
    similarity_ptr, f_ptr, g_ptr, grad_ptr, grad_stride, tile_columns, first_text_tile, last_text_tile,
    mu_grad_ptr, nu_grad_ptr,
    BACKWARD: tl.constexpr, IN_TWO: tl.constexpr, MU_GRAD: tl.constexpr, NU_GRAD: tl.constexpr,
    IMAGE_LENGTHS: tl.constexpr, TEXT_LENGTHS: tl.constexpr, LEAST_K: tl.constexpr, LEAST_W: tl.constexpr,
    P: tl.constexpr, W: tl.constexpr, W_INNER: tl.constexpr, K: tl.constexpr, K_INNER: tl.constexpr,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Scores of all pairs of images of more than LEAST_K and up to K regions and captions of W words, likewise; or,
    `score` being their gradient, S̄ of them, where a tile of captions has 128 rows, and one of images as many columns.

    a and b scale E = exp(S/λ) as it is: a = μ / (E b), b = ν / (Eᵀ a), n times; score = Σ_kl a_k E_kl b_l S_kl. Where
    that would not do in float32, the passes are made in the log domain.

    Backward, for g = ∂/∂score:  S̄ = g P + X̄/λ on the block of fragments,
    X̄ = g P∘S − Σ_j (Q_j diag(ḡ_j) + diag(f̄_j) R_j), where Q_j = a_j E b_j / ν, R_j = a_j E b_{j−1} / μ, and f̄_j, ḡ_j,
    the gradients of log a_j and log b_j, follow backwards through the n passes.
    """
    program = tl.program_id(0)
    COLUMNS: tl.constexpr = TILE if K <= TILE else K
    # What is read beyond a tile, for pairs at its edge, is zero: finite, and of no mass.
    STRIDE: tl.constexpr = COLUMNS + K
    similarity_ptr += program.to(tl.int64) * (TILE * STRIDE)
    if BACKWARD:
        f_ptr += program.to(tl.int64) * num_iterations * (P * K)
        g_ptr += program.to(tl.int64) * num_iterations * (P * W)
    # by indices and not by `reshape`, which would hide from the compiler that neighbours lie side by side
    region = tl.arange(0, K // K_INNER)[:, None, None, None, None] * K_INNER
    region += tl.arange(0, K_INNER)[None, None, None, None, :]
    word = tl.arange(0, W // W_INNER)[None, :, None, None, None] * W_INNER
    word += tl.arange(0, W_INNER)[None, None, None, :, None]
    pair_in_step = tl.arange(0, P)[None, None, :, None, None]
    log2_scale = inverse_regularization * LOG2_E

    image_start, image_stop = tl.load(image_ends_ptr + LEAST_K), tl.load(image_ends_ptr + tl.minimum(rows_per_image, K))
    text_start, text_stop = tl.load(text_ends_ptr + LEAST_W), tl.load(text_ends_ptr + tl.minimum(rows_per_caption, W))
    if BACKWARD:
        text_start, text_stop = tl.maximum(text_start, first_text_tile), tl.minimum(text_stop, last_text_tile)
    num_image_tiles, num_text_tiles = image_stop - image_start, tl.maximum(text_stop - text_start, 0)
    sweep = IMAGE_TILES_PER_SWEEP * num_text_tiles

    for number in range(program, num_image_tiles * num_text_tiles, tl.num_programs(0)):
        first = number // sweep * IMAGE_TILES_PER_SWEEP
        height = tl.minimum(num_image_tiles - first, IMAGE_TILES_PER_SWEEP)
        image_tile = image_start + first + number % sweep % height
        text_tile = text_start + number % sweep // height
        regions, image_slot, first_image, images = find_tile(
            image_tile, image_ends_ptr, image_firsts_ptr, rows_per_image, 4, IMAGE_LENGTHS
        )
        words, _, first_caption, captions = find_tile(
            text_tile, text_ends_ptr, text_firsts_ptr, rows_per_caption, 1, TEXT_LENGTHS
        )
        image_slot = tl.multiple_of(image_slot, 4)
        text_rows = _rows(text_places_ptr, text_order_ptr, first_caption, captions, words, words, 0, rows_per_caption)
        for left in tl.static_range(0, COLUMNS, TILE):
            image_rows = _rows(
                image_places_ptr, image_order_ptr, first_image, images, regions, image_slot, left, rows_per_image
            )
            _product(
                similarity_ptr, text_ptr, text_stride, text_rows, image_ptr, image_stride, image_rows, width,
                CHUNK, PRECISION, STRIDE, left,
            )  # fmt: skip
        tl.debug_barrier()

        for start in range(0, images * captions, P):
            pair = tl.minimum(start + pair_in_step, images * captions - 1)  # the last one again, to fill the step
            image_in_tile, caption_in_tile = pair % images, pair // images
            image_number, caption_number = first_image + image_in_tile, first_caption + caption_in_tile
            image, caption = tl.load(image_order_ptr + image_number), tl.load(text_order_ptr + caption_number)
            mu_at = image_number.to(tl.int64) * mu_image_stride + caption * mu_caption_stride + region
            mu = tl.load(mu_ptr + mu_at, mask=region < regions, other=0.0)
            nu_at = caption_number.to(tl.int64) * nu_caption_stride + image * nu_image_stride + word
            nu = tl.load(nu_ptr + nu_at, mask=word < words, other=0.0)
            counted_region = region >= tl.load(image_dustbins_ptr + image_number)
            counted_word = word >= tl.load(text_dustbins_ptr + caption_number)
            row = tl.minimum(caption_in_tile * words + word, TILE - 1)
            column = image_in_tile * image_slot + region
            similarity = tl.load(similarity_ptr + row * STRIDE + column)

            # Neighbours in the tile, of other pairs, take no part: a and b are zero where there is no mass.
            exponential = tl.exp2(similarity * log2_scale)
            b = tl.where(nu > 0, 1.0, 0.0)
            a = tl.zeros_like(mu)
            largest_a, largest_b = a, b
            for j in range(num_iterations):
                a = mu / _over_words(exponential * b)
                b = nu / _over_regions(exponential * a)
                largest_a, largest_b = tl.maximum(largest_a, a), tl.maximum(largest_b, b)
                if BACKWARD:
                    tl.store(f_ptr + (j * P + pair_in_step) * K + region, a)
                    tl.store(g_ptr + (j * P + pair_in_step) * W + word, b)
            # what is no number stays so to the last pass
            in_range = _largest(tl.where(a <= INF, largest_a, INF), tl.where(b <= INF, largest_b, INF)) <= LARGEST
            counted_a, counted_b = tl.where(counted_region, a, 0.0), tl.where(counted_word, b, 0.0)

            if not BACKWARD:
                if in_range:
                    score = _over_words(_over_regions(exponential * similarity * counted_a) * counted_b)
                else:
                    x = similarity * log2_scale
                    g = tl.where(nu > 0, 0.0, LOG_ZERO)
                    f = tl.where(mu > 0, 0.0, LOG_ZERO)
                    for _ in range(num_iterations):
                        f = _log_rows(x + g, mu)
                        g = _log_columns(x + f, nu)
                    f, g = tl.where(counted_region, f, LOG_ZERO), tl.where(counted_word, g, LOG_ZERO)
                    score = _over_words(_over_regions(tl.exp2(x + f + g) * similarity))
                tl.store(score_ptr + image * score_stride + caption, score)
            else:
                gradient = tl.load(score_ptr + image * score_stride + caption)
                tl.debug_barrier()
                if in_range:
                    matched = exponential * similarity * counted_b * counted_a
                    g_grad, f_grad = gradient * _over_regions(matched), gradient * _over_words(matched)
                    total = tl.zeros_like(exponential)
                    mu_grad, nu_grad = tl.zeros_like(f_grad), g_grad
                    for back in range(num_iterations):
                        j = num_iterations - 1 - back
                        a = tl.load(f_ptr + (j * P + pair_in_step) * K + region)
                        b = tl.load(g_ptr + (j * P + pair_in_step) * W + word)
                        before = tl.load(g_ptr + ((j - 1) * P + pair_in_step) * W + word, mask=(word >= 0) & (j > 0))
                        before = tl.where(j > 0, before, tl.where(nu > 0, 1.0, 0.0))
                        of_columns = tl.where(nu > 0, b * g_grad / nu, 0.0)  # column pass: Q_j diag(ḡ_j)
                        f_grad = tl.where(back == 0, f_grad, 0.0) - a * _over_words(exponential * of_columns)
                        of_rows = tl.where(mu > 0, a * f_grad / mu, 0.0)  # row pass: diag(f̄_j) R_j
                        mu_grad += f_grad
                        g_grad = -before * _over_regions(exponential * of_rows)
                        nu_grad += tl.where(j > 0, g_grad, 0.0)
                        total += a * of_columns + of_rows * before
                    direct = gradient * counted_a * counted_b * (1 + similarity * inverse_regularization)
                    grad = exponential * (direct - total * inverse_regularization)
                else:
                    grad, mu_grad, nu_grad = _log_gradient(
                        similarity, mu, nu, gradient, counted_region, counted_word,
                        region, word, pair_in_step, inverse_regularization, num_iterations, f_ptr, g_ptr, P, W, K,
                    )  # fmt: skip
                tl.debug_barrier()  # the next step takes over f and g
                there = (region < regions) & (word < words)
                first_row = (text_tile - first_text_tile) * TILE + caption_in_tile * words
                first_column = image_tile * tile_columns + image_in_tile * image_slot
                to = (first_row + word).to(tl.int64) * grad_stride + first_column + region
                if IN_TWO:
                    # bf16 has float32's range: in two parts, one below the other, S̄ keeps 16 bits
                    rough = grad.to(tl.bfloat16)
                    rest = to + (last_text_tile - first_text_tile).to(tl.int64) * TILE * grad_stride
                    tl.store(grad_ptr + to, rough, mask=there)
                    tl.store(grad_ptr + rest, (grad - rough.to(tl.float32)).to(tl.bfloat16), mask=there)
                else:
                    tl.store(grad_ptr + to, grad, mask=there)
                # f = log μ − …, so that μ̄ = Σ_j f̄_j / μ; likewise ν̄
                if MU_GRAD != "":
                    to = mu_at if MU_GRAD == "pair" else first_row.to(tl.int64) * grad_stride + first_column + region
                    tl.store(mu_grad_ptr + to, tl.where(mu > 0, mu_grad / mu, 0.0), mask=region < regions)
                if NU_GRAD != "":
                    to = nu_at if NU_GRAD == "pair" else (first_row + word).to(tl.int64) * grad_stride + first_column
                    tl.store(nu_grad_ptr + to, tl.where(nu > 0, nu_grad / nu, 0.0), mask=word < words)
        tl.debug_barrier()  # the next tile takes over the workspace


@triton.jit
def _log_rows(y, mu):
    """log a = log μ − log Σ over words of 2^y."""
    top = tl.max(tl.max(y, 1, keep_dims=True), 3, keep_dims=True)
    return _potential(mu, top, _over_words(tl.exp2(y - top)))


@triton.jit
def _log_columns(y, nu):
    top = tl.max(tl.max(y, 0, keep_dims=True), 4, keep_dims=True)
    return _potential(nu, top, _over_regions(tl.exp2(y - top)))


@triton.jit
def _log_gradient(
    similarity, mu, nu, gradient, counted_region, counted_word, region, word, pair, inverse_regularization,
    num_iterations, f_ptr, g_ptr, P: tl.constexpr, W: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """S̄ by passes in the log domain."""
    x = similarity * (inverse_regularization * LOG2_E)
    f = tl.where(mu > 0, 0.0, LOG_ZERO)
    g = tl.where(nu > 0, 0.0, LOG_ZERO)
    for j in range(num_iterations):
        f = _log_rows(x + g, mu)
        g = _log_columns(x + f, nu)
        tl.store(f_ptr + (j * P + pair) * K + region, f)
        tl.store(g_ptr + (j * P + pair) * W + word, g)
    tl.debug_barrier()
    plan = tl.exp2(x + tl.where(counted_region, f, LOG_ZERO) + tl.where(counted_word, g, LOG_ZERO))
    g_grad, f_grad = gradient * _over_regions(plan * similarity), gradient * _over_words(plan * similarity)
    grad = gradient * plan * (1 + similarity * inverse_regularization)
    mu_grad, nu_grad = tl.zeros_like(f_grad), g_grad
    for back in range(num_iterations):
        j = num_iterations - 1 - back
        f = tl.load(f_ptr + (j * P + pair) * K + region)
        g = tl.load(g_ptr + (j * P + pair) * W + word)
        before = tl.load(g_ptr + ((j - 1) * P + pair) * W + word, mask=(word >= 0) & (j > 0), other=0.0)
        before = tl.where(nu > 0, before, LOG_ZERO)
        of_columns = tl.exp2(x + f + (g - _log(nu))) * g_grad
        f_grad = tl.where(back == 0, f_grad, 0.0) - _over_words(of_columns)
        of_rows = tl.exp2(x + (f - _log(mu)) + before) * f_grad
        mu_grad += f_grad
        g_grad = -_over_regions(of_rows)
        nu_grad += tl.where(j > 0, g_grad, 0.0)
        grad -= (of_columns + of_rows) * inverse_regularization
    return grad, mu_grad, nu_grad
