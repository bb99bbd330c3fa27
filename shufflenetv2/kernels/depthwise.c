/* The 3 x 3 depthwise convolution with padding 1, fused with the batch normalizations before and after it.
 *
 * A thread works on one image at a time. It keeps three rows of the image in a buffer: row r in slot r % 3, with a zero pixel
 * at both ends and the channels of a pixel padded to whole vectors. A fourth slot represents the rows above and below the
 * image.
 */

#include <omp.h>

#include "batch_norm.h"

typedef float vector_t __attribute__((vector_size(32)));

enum { LANES = 8, TAPS = 9, OUTSIDE = 3 /* slot of the rows outside the image */ };

typedef struct {
    index_t height, width, channels, stride, out_height, out_width;
    index_t vectors; /* per pixel */
    index_t row;     /* vectors per slot */
} shape_t;

static shape_t make_shape(index_t height, index_t width, index_t channels, index_t stride) {
    index_t vectors = (channels + LANES - 1) / LANES, out_height = (height - 1) / stride + 1,
            out_width = (width - 1) / stride + 1;
    return (shape_t){height, width, channels, stride, out_height, out_width, vectors, (width + 2) * vectors};
}

/* Allocate zeroed vectors: `shared` for all threads, followed by `each` for every thread. */
static vector_t *allocate(index_t shared, index_t each, int threads) {
    size_t size = sizeof(vector_t) * (shared + threads * each);
    vector_t *memory = aligned_alloc(sizeof(vector_t), size);
    return memory ? memset(memory, 0, size) : NULL;
}

/* Copy a row of x to a slot; apply batch norm and ReLU unless statistics is NULL. */
static void load_row(const shape_t *s, const float *restrict x, const float *restrict statistics, vector_t *slot) {
    index_t channels = s->channels, padded = s->vectors * LANES;
    for (index_t i = 0; i < s->width; i++) {
        const float *restrict source = x + i * channels;
        float *restrict target = (float *)slot + (i + 1) * padded;
        if (statistics) {
            const float *restrict scale = statistics + SCALE * channels, *restrict shift = statistics + SHIFT * channels;
            for (index_t c = 0; c < channels; c++) {
                float value = source[c] * scale[c] + shift[c];
                target[c] = value < 0 ? 0 : value;
            }
        } else memcpy(target, source, sizeof(float) * channels);
    }
}

/* Copy weights (9, channels) to vectors (9, s->vectors). */
static void load_taps(const shape_t *s, const float *weight, vector_t *taps) {
    memset(taps, 0, sizeof(vector_t) * TAPS * s->vectors);
    for (index_t t = 0; t < TAPS; t++) memcpy(taps + t * s->vectors, weight + t * s->channels, sizeof(float) * s->channels);
}

/* Return the slot of the k-th of three input rows of an output row. */
static inline index_t slot_of(const shape_t *s, index_t output_row, index_t k) {
    index_t row = output_row * s->stride + k - 1;
    return row < 0 || row >= s->height ? OUTSIDE : row % 3;
}

int depthwise_forward(const float *x, index_t images, index_t height, index_t width, index_t channels, index_t stride,
                      const float *x_statistics, const float *weight, float *z, const float *norm_weight,
                      const float *norm_bias, float eps, float *z_statistics, int threads) {
    const shape_t s = make_shape(height, width, channels, stride);
    const index_t pixels = s.out_height * s.out_width, vectors = s.vectors;
    const index_t shared = (TAPS + 2 * images) * vectors, each = 4 * s.row + vectors * s.out_width;
    vector_t *taps = allocate(shared, each, threads);
    if (!taps) return 1;
    float *moments = (float *)(taps + TAPS * vectors);
    load_taps(&s, weight, taps);
#pragma omp parallel num_threads(threads)
    {
        vector_t *slots = taps + shared + omp_get_thread_num() * each; /* four rows of x */
        vector_t *output = slots + 4 * s.row;                          /* a row of z */
#pragma omp for schedule(static)
        for (index_t n = 0; n < images; n++) {
            index_t loaded = 0;
            for (index_t oy = 0; oy < s.out_height; oy++) {
                const vector_t *rows[3];
                for (; loaded < min(oy * stride + 2, height); loaded++)
                    load_row(&s, x + (n * height + loaded) * width * channels, x_statistics, slots + loaded % 3 * s.row);
                for (index_t k = 0; k < 3; k++) rows[k] = slots + slot_of(&s, oy, k) * s.row;
                for (index_t v = 0; v < vectors; v++) {
                    vector_t w[TAPS];
                    for (int t = 0; t < TAPS; t++) w[t] = taps[t * vectors + v];
                    for (index_t ox = 0; ox < s.out_width; ox++) {
                        index_t at = ox * stride * vectors + v;
                        vector_t sum = {0};
                        for (int k = 0; k < 3; k++)
                            for (int l = 0; l < 3; l++) sum += rows[k][at + l * vectors] * w[3 * k + l];
                        output[ox * vectors + v] = sum;
                    }
                }
                float *target = z + (n * pixels + oy * s.out_width) * channels;
                for (index_t ox = 0; ox < s.out_width; ox++)
                    memcpy(target + ox * channels, output + ox * vectors, sizeof(float) * channels);
            }
            float *sums = moments + n * 2 * channels;
            sum_moments(z + n * pixels * channels, pixels, channels, sums, sums + channels);
        }
        finalize_stats(z, images * pixels, pixels, channels, moments, norm_weight, norm_bias, eps, z_statistics);
    }
    free(taps);
    return 0;
}

/* Add the products of a row of z's gradient with three rows of x to the gradients of the weights, and with the weights to three
 * rows of x's gradient. */
static inline void add_row_gradients(const shape_t *s, const vector_t *z_grad, vector_t *const rows[3],
                                     vector_t *const grad_rows[3], const vector_t *taps, vector_t *tap_grads) {
    const index_t vectors = s->vectors, stride = s->stride, out_width = s->out_width;
    for (index_t v = 0; v < vectors; v++) {
        vector_t sum[TAPS], w[TAPS];
        for (int t = 0; t < TAPS; t++) w[t] = taps[t * vectors + v], sum[t] = tap_grads[t * vectors + v];
        for (index_t ox = 0; ox < out_width; ox++) {
            index_t at = ox * stride * vectors + v;
            vector_t g = z_grad[ox * vectors + v];
            for (int k = 0; k < 3; k++)
                for (int l = 0; l < 3; l++) sum[3 * k + l] += g * rows[k][at + l * vectors];
        }
        for (int t = 0; t < TAPS; t++) tap_grads[t * vectors + v] = sum[t];
        for (index_t ox = 0; ox < out_width; ox++) {
            index_t at = ox * stride * vectors + v;
            vector_t g = z_grad[ox * vectors + v];
            for (int k = 0; k < 3; k++)
                for (int l = 0; l < 3; l++) grad_rows[k][at + l * vectors] += g * w[3 * k + l];
        }
    }
}

/* Copy a finished row of x's gradient from its slot; with `relu`, zero it where the normalized row is not positive. */
static inline void store_grad_row(const shape_t *s, const vector_t *grad_slot, const vector_t *slot, int relu, float *x_grad) {
    const index_t channels = s->channels, padded = s->vectors * LANES;
    const float *gradient = (const float *)grad_slot + padded, *value = (const float *)slot + padded;
    for (index_t i = 0; i < s->width; i++)
        if (relu) {
            float *restrict target = x_grad + i * channels;
            for (index_t c = 0; c < channels; c++) target[c] = value[i * padded + c] > 0 ? gradient[i * padded + c] : 0;
        } else memcpy(x_grad + i * channels, gradient + i * padded, sizeof(float) * channels);
}

int depthwise_backward(const float *z_grad, const float *z, const float *z_mean, const float *slope, const float *x,
                       index_t images, index_t height, index_t width, index_t channels, index_t stride,
                       const float *x_statistics, const float *weight, float *x_grad, float *weight_grad,
                       float *norm_weight_grad, float *norm_bias_grad, int threads) {
    const shape_t s = make_shape(height, width, channels, stride);
    const index_t pixels = s.out_height * s.out_width, vectors = s.vectors, padded = vectors * LANES;
    const index_t shared = (TAPS + TAPS * images + 2 * images + 3) * vectors, each = 8 * s.row + vectors * s.out_width;
    vector_t *taps = allocate(shared, each, threads);
    if (!taps) return 1;
    vector_t *tap_grads = taps + TAPS * vectors; /* of each image */
    float *sums = (float *)(tap_grads + TAPS * images * vectors), *coefficients = sums + 2 * images * channels;
    load_taps(&s, weight, taps);
#pragma omp parallel num_threads(threads)
    {
        vector_t *slots = taps + shared + omp_get_thread_num() * each; /* four rows of x, normalized */
        vector_t *grad_slots = slots + 4 * s.row;                      /* four rows of its gradient, the last one unused */
        vector_t *incoming = slots + 8 * s.row;                        /* a row of z's gradient */
#pragma omp for schedule(static)
        for (index_t n = 0; n < images; n++) {
            index_t loaded = 0, stored = 0;
            for (index_t oy = 0; oy < s.out_height; oy++) {
                vector_t *rows[3], *grad_rows[3];
                for (; loaded < min(oy * stride + 2, height); loaded++) {
                    load_row(&s, x + (n * height + loaded) * width * channels, x_statistics, slots + loaded % 3 * s.row);
                    memset(grad_slots + loaded % 3 * s.row, 0, sizeof(vector_t) * s.row);
                }
                for (index_t k = 0; k < 3; k++) {
                    rows[k] = slots + slot_of(&s, oy, k) * s.row;
                    grad_rows[k] = grad_slots + slot_of(&s, oy, k) * s.row;
                }
                for (index_t ox = 0; ox < s.out_width; ox++) {
                    index_t at = (n * pixels + oy * s.out_width + ox) * channels;
                    float *restrict g = (float *)incoming + ox * padded;
                    for (index_t c = 0; c < channels; c++) g[c] = z_grad[at + c] - slope[c] * (z[at + c] - z_mean[c]);
                }
                add_row_gradients(&s, incoming, rows, grad_rows, taps, tap_grads + n * TAPS * vectors);
                /* Later output rows do not use the rows before this one. */
                index_t finished = oy + 1 < s.out_height ? (oy + 1) * stride - 1 : height;
                for (; stored < finished; stored++)
                    store_grad_row(&s, grad_slots + stored % 3 * s.row, slots + stored % 3 * s.row, x_statistics != NULL,
                                   x_grad + (n * height + stored) * width * channels);
            }
            if (x_statistics) {
                index_t start = n * height * width * channels;
                float *sum = sums + n * 2 * channels;
                sum_gradients(x_grad + start, channels, x + start, height * width, channels, x_statistics, 0, sum,
                              sum + channels);
            }
        }
#pragma omp for schedule(static)
        for (index_t t = 0; t < TAPS; t++)
            for (index_t c = 0; c < channels; c++) {
                double sum = 0;
                for (index_t n = 0; n < images; n++) sum += ((const float *)tap_grads)[(n * TAPS + t) * padded + c];
                weight_grad[t * channels + c] = (float)sum;
            }
        if (x_statistics) {
            index_t all = images * height * width;
            finalize_gradients(all, images, channels, sums, x_statistics, norm_weight_grad, norm_bias_grad, coefficients);
#pragma omp for schedule(static)
            for (index_t i = 0; i < all; i++) {
                float *g = x_grad + i * channels;
                input_grad(g, x + i * channels, channels, x_statistics, coefficients, 0, g);
            }
        }
    }
    free(taps);
    return 0;
}
