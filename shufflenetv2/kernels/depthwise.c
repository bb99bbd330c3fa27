/* Batch normalisation, the 3 x 3 depthwise convolution and the channel shuffle of a unit, for training on a processor.
 * Called by branch.py, which has the mathematics of a whole branch.
 *
 * Tensors are float32 and channels-last: a pixel's channels lie together, and an image is its rows of pixels. What a
 * step over the batch costs is memory traffic, so that each function reads and writes whole tensors as seldom as it
 * can: it normalises on the fly what it reads, and takes sums of what it writes while that is in the cache.
 *
 * Sums are taken over fixed blocks and added in their order: the result does not depend on the number of threads.
 * Plain C, which the compiler vectorises. Every function returns 0, or 1 when there was no memory.
 */

#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "training.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#endif

typedef ptrdiff_t index_t;
typedef float vector_t __attribute__((vector_size(32)));

enum { LANES = 8, TAPS = 9, PIXELS = 128 /* of one block */ };

/* One batch normalisation's numbers, each an array of a float per channel: branch.py's (5, C) tensor. */
enum { MEAN, VARIANCE, INVERSE /* 1 / sqrt(variance + eps) */, SCALE, SHIFT /* y = SCALE x + SHIFT */, STATISTICS };

int is_supported(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 1;
#endif
}

int header_checksum(void) {
    return HEADER_CHECKSUM;
}

/* ---- Batch normalisation ---- */

static index_t at_most(index_t number, index_t limit) {
    return number < limit ? number : limit;
}

/* The sums of x - k and of its square over some pixels, k being the first: what is subtracted loses no digits. */
static void add_moments(const float *restrict x, index_t pixels, index_t channels, float *restrict sum,
                        float *restrict square) {
    for (index_t c = 0; c < channels; c++) sum[c] = square[c] = 0;
    index_t i = 0;
    for (; i + 4 <= pixels; i += 4) {
        const float *p = x + i * channels, *q = p + channels, *r = q + channels, *s = r + channels;
        for (index_t c = 0; c < channels; c++) {
            float a = p[c] - x[c], b = q[c] - x[c], d = r[c] - x[c], e = s[c] - x[c];
            sum[c] += (a + b) + (d + e);
            square[c] += (a * a + b * b) + (d * d + e * e);
        }
    }
    for (; i < pixels; i++)
        for (index_t c = 0; c < channels; c++) {
            float a = x[i * channels + c] - x[c];
            sum[c] += a;
            square[c] += a * a;
        }
}

/* Blocks' moments to the statistics of all (Chan, Golub and LeVeque 1983), and to what normalises with them. The threads
 * share the channels. */
static void conclude(const float *x, index_t pixels, index_t block, index_t channels, const float *moments, const float *weight,
                     const float *bias, float eps, float *statistics) {
#pragma omp for schedule(static)
    for (index_t c = 0; c < channels; c++) {
        double mean = 0, squares = 0, before = 0;
        for (index_t start = 0; start < pixels; start += block) {
            const float *sums = moments + start / block * 2 * channels;
            double count = at_most(block, pixels - start), all = before + count;
            double shift = sums[c] / count, delta = x[start * channels + c] + shift - mean;
            squares += sums[channels + c] - sums[c] * shift + delta * delta * before * count / all;
            mean += delta * count / all;
            before = all;
        }
        double variance = squares > 0 ? squares / pixels : 0, inverse = 1 / sqrt(variance + eps);
        statistics[MEAN * channels + c] = (float)mean;
        statistics[VARIANCE * channels + c] = (float)variance;
        statistics[INVERSE * channels + c] = (float)inverse;
        statistics[SCALE * channels + c] = (float)(inverse * weight[c]);
        statistics[SHIFT * channels + c] = (float)(bias[c] - mean * inverse * weight[c]);
    }
}

/* The batch's statistics of x; with y, also y = ReLU(batch norm(x)), its pixels y_stride floats apart. */
int norm_forward(const float *x, index_t pixels, index_t channels, const float *weight, const float *bias, float eps,
                 float *statistics, float *y, index_t y_stride, int threads) {
    index_t blocks = (pixels + PIXELS - 1) / PIXELS;
    float *moments = malloc(sizeof(float) * 2 * blocks * channels);
    if (!moments) return 1;
    const float *restrict scale = statistics + SCALE * channels, *restrict shift = statistics + SHIFT * channels;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (index_t i = 0; i < blocks; i++) {
            float *sums = moments + i * 2 * channels;
            const float *start = x + i * PIXELS * channels;
            add_moments(start, at_most(PIXELS, pixels - i * PIXELS), channels, sums, sums + channels);
        }
        conclude(x, pixels, PIXELS, channels, moments, weight, bias, eps, statistics);
        if (y)
#pragma omp for schedule(static)
            for (index_t i = 0; i < pixels; i++) {
                const float *restrict from = x + i * channels;
                float *restrict to = y + i * y_stride;
                for (index_t c = 0; c < channels; c++) {
                    float value = from[c] * scale[c] + shift[c];
                    to[c] = value < 0 ? 0 : value;
                }
            }
    }
    free(moments);
    return 0;
}

/* The sums of g and of g (x - mean) over some pixels, g being 0 where ReLU was. */
static void add_products(const float *restrict g, index_t g_stride, const float *restrict x, index_t pixels, index_t channels,
                         const float *restrict statistics, int relu, float *restrict sum, float *restrict product) {
    const float *restrict mean = statistics + MEAN * channels, *restrict scale = statistics + SCALE * channels,
                          *restrict shift = statistics + SHIFT * channels;
    for (index_t c = 0; c < channels; c++) sum[c] = product[c] = 0;
    index_t i = 0;
    for (; i + 2 <= pixels; i += 2) {
        const float *p = x + i * channels, *q = p + channels, *s = g + i * g_stride, *t = s + g_stride;
        for (index_t c = 0; c < channels; c++) {
            float a = relu && p[c] * scale[c] + shift[c] <= 0 ? 0 : s[c];
            float b = relu && q[c] * scale[c] + shift[c] <= 0 ? 0 : t[c];
            sum[c] += a + b;
            product[c] += a * (p[c] - mean[c]) + b * (q[c] - mean[c]);
        }
    }
    for (; i < pixels; i++)
        for (index_t c = 0; c < channels; c++) {
            float value = x[i * channels + c], a = relu && value * scale[c] + shift[c] <= 0 ? 0 : g[i * g_stride + c];
            sum[c] += a;
            product[c] += a * (value - mean[c]);
        }
}

/* Blocks' sums to the gradients of weight and bias, and to the slopes of x's: a g + b (x - mean) + c. The threads share
 * the channels. */
static void conclude_backward(index_t pixels, index_t blocks, index_t channels, const float *sums, const float *statistics,
                              float *weight_gradient, float *bias_gradient, float *slopes) {
#pragma omp for schedule(static)
    for (index_t c = 0; c < channels; c++) {
        double sum = 0, product = 0, inverse = statistics[INVERSE * channels + c];
        for (index_t i = 0; i < blocks; i++) {
            sum += sums[i * 2 * channels + c];
            product += sums[i * 2 * channels + channels + c];
        }
        weight_gradient[c] = (float)(product * inverse);
        bias_gradient[c] = (float)sum;
        double scale = statistics[SCALE * channels + c], slope = -scale * product * inverse * inverse / pixels;
        slopes[c] = (float)scale;
        slopes[channels + c] = (float)slope;
        slopes[2 * channels + c] = (float)(-scale * sum / pixels);
    }
}

/* x's gradient from the slopes. In place too: to may be g. */
static void descend(const float *g, const float *restrict x, index_t channels, const float *restrict statistics,
                    const float *restrict slopes, int relu, float *to) {
    const float *restrict mean = statistics + MEAN * channels, *restrict scale = statistics + SCALE * channels,
                          *restrict shift = statistics + SHIFT * channels;
#pragma GCC ivdep
    for (index_t c = 0; c < channels; c++) {
        float a = relu && x[c] * scale[c] + shift[c] <= 0 ? 0 : g[c];
        to[c] = a * slopes[c] + ((x[c] - mean[c]) * slopes[channels + c] + slopes[2 * channels + c]);
    }
}

/* From the gradient g of norm_forward's y, its pixels g_stride floats apart: those of x, weight and bias. */
int norm_backward(const float *g, index_t g_stride, const float *x, index_t pixels, index_t channels, const float *statistics,
                  float *x_gradient, float *weight_gradient, float *bias_gradient, int threads) {
    index_t blocks = (pixels + PIXELS - 1) / PIXELS;
    float *sums = malloc(sizeof(float) * (2 * blocks + 3) * channels), *slopes = sums + 2 * blocks * channels;
    if (!sums) return 1;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (index_t i = 0; i < blocks; i++) {
            index_t start = i * PIXELS, count = at_most(PIXELS, pixels - start);
            float *sum = sums + i * 2 * channels;
            const float *from = x + start * channels;
            add_products(g + start * g_stride, g_stride, from, count, channels, statistics, 1, sum, sum + channels);
        }
        conclude_backward(pixels, blocks, channels, sums, statistics, weight_gradient, bias_gradient, slopes);
#pragma omp for schedule(static)
        for (index_t i = 0; i < pixels; i++)
            descend(g + i * g_stride, x + i * channels, channels, statistics, slopes, 1, x_gradient + i * channels);
    }
    free(sums);
    return 0;
}

/* ---- The channel shuffle ---- */

/* to = every second channel of from's, its pixels to_stride floats apart. */
int gather(const float *from, index_t pixels, index_t channels, float *to, index_t to_stride, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (index_t i = 0; i < pixels; i++) {
        const float *restrict x = from + i * 2 * channels;
        float *restrict y = to + i * to_stride;
        for (index_t c = 0; c < channels; c++) y[c] = x[2 * c];
    }
    return 0;
}

/* to = the channels of even and of odd in turn. */
int interleave(const float *even, index_t even_stride, const float *odd, index_t pixels, index_t channels, float *to,
               int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (index_t i = 0; i < pixels; i++) {
        const float *restrict a = even + i * even_stride, *restrict b = odd + i * channels;
        float *restrict y = to + i * 2 * channels;
        for (index_t c = 0; c < channels; c++) {
            y[2 * c] = a[c];
            y[2 * c + 1] = b[c];
        }
    }
    return 0;
}

/* ---- Depthwise convolution, 3 x 3, one pixel of zeros around the image ---- */

/* A thread works on one image, and keeps three rows of it with a zero pixel at both ends, the channels of a pixel
 * padded to whole vectors: row r in place r % 3. */
typedef struct {
    index_t height, width, channels, vectors, stride, out_height, out_width;
} shape_t;

static shape_t shape_of(index_t height, index_t width, index_t channels, index_t stride) {
    index_t vectors = (channels + LANES - 1) / LANES;
    return (shape_t){height, width, channels, vectors, stride, (height - 1) / stride + 1, (width - 1) / stride + 1};
}

static index_t row_vectors(const shape_t *s) {
    return (s->width + 2) * s->vectors;
}

/* Zeros: vectors that the threads share, then those of each. */
static vector_t *allocate(index_t shared, index_t each, int threads) {
    size_t size = sizeof(vector_t) * (shared + threads * each);
    vector_t *memory = aligned_alloc(sizeof(vector_t), size);
    return memory ? memset(memory, 0, size) : NULL;
}

/* A row of x into its place, normalised and ReLU applied where there are statistics. */
static void load_row(const shape_t *s, const float *restrict x, const float *restrict statistics, vector_t *place) {
    index_t channels = s->channels, padded = s->vectors * LANES;
    for (index_t i = 0; i < s->width; i++) {
        const float *restrict from = x + i * channels;
        float *restrict to = (float *)place + (i + 1) * padded;
        if (statistics) {
            const float *restrict scale = statistics + SCALE * channels, *restrict shift = statistics + SHIFT * channels;
            for (index_t c = 0; c < channels; c++) {
                float value = from[c] * scale[c] + shift[c];
                to[c] = value < 0 ? 0 : value;
            }
        } else memcpy(to, from, sizeof(float) * channels);
    }
}

/* (9, C) weights as 9 times as many vectors as a pixel has. */
static void load_taps(const shape_t *s, const float *weight, vector_t *taps) {
    memset(taps, 0, sizeof(vector_t) * TAPS * s->vectors);
    for (index_t t = 0; t < TAPS; t++) memcpy(taps + t * s->vectors, weight + t * s->channels, sizeof(float) * s->channels);
}

/* z = the convolution of x, or of ReLU(batch norm(x)) given x's statistics; z's statistics as norm_forward has them. */
int depthwise_forward(const float *x, index_t images, index_t height, index_t width, index_t channels, index_t stride,
                      const float *statistics, const float *weight, float *z, const float *norm_weight, const float *norm_bias,
                      float eps, float *z_statistics, int threads) {
    const shape_t s = shape_of(height, width, channels, stride);
    const index_t row = row_vectors(&s), pixels = s.out_height * s.out_width, vectors = s.vectors;
    const index_t shared = (TAPS + 2 * images) * vectors, each = 4 * row + vectors * s.out_width;
    vector_t *taps = allocate(shared, each, threads);
    if (!taps) return 1;
    float *moments = (float *)(taps + TAPS * vectors);
    load_taps(&s, weight, taps);
#pragma omp parallel num_threads(threads)
    {
        /* Three rows of x, and one of zeros, which surrounds the image; a row of z. */
        vector_t *memory = taps + shared + omp_get_thread_num() * each, *made = memory + 4 * row;
#pragma omp for schedule(static)
        for (index_t n = 0; n < images; n++) {
            index_t loaded = 0;
            for (index_t oy = 0; oy < s.out_height; oy++) {
                const vector_t *rows[3];
                for (; loaded < at_most(oy * stride + 2, height); loaded++)
                    load_row(&s, x + (n * height + loaded) * width * channels, statistics, memory + loaded % 3 * row);
                for (index_t k = 0; k < 3; k++) {
                    index_t iy = oy * stride + k - 1;
                    rows[k] = memory + (iy < 0 || iy >= height ? 3 : iy % 3) * row;
                }
                for (index_t v = 0; v < vectors; v++) {
                    vector_t w[TAPS];
                    for (int t = 0; t < TAPS; t++) w[t] = taps[t * vectors + v];
                    for (index_t ox = 0; ox < s.out_width; ox++) {
                        index_t at = ox * stride * vectors + v;
                        vector_t sum = {0};
                        for (int k = 0; k < 3; k++)
                            for (int l = 0; l < 3; l++) sum += rows[k][at + l * vectors] * w[3 * k + l];
                        made[ox * vectors + v] = sum;
                    }
                }
                float *to = z + (n * pixels + oy * s.out_width) * channels;
                for (index_t ox = 0; ox < s.out_width; ox++)
                    memcpy(to + ox * channels, made + ox * vectors, sizeof(float) * channels);
            }
            float *sums = moments + n * 2 * channels;
            add_moments(z + n * pixels * channels, pixels, channels, sums, sums + channels);
        }
        conclude(z, images * pixels, pixels, channels, moments, norm_weight, norm_bias, eps, z_statistics);
    }
    free(taps);
    return 0;
}

/* From the gradient of z, which is u - slope (z - z_mean): those of x, the weights (9, C) and, where x had statistics, of
 * their batch norm's weight and bias. */
int depthwise_backward(const float *u, const float *z, const float *z_mean, const float *slope, const float *x, index_t images,
                       index_t height, index_t width, index_t channels, index_t stride, const float *statistics,
                       const float *weight, float *x_gradient, float *weight_gradient, float *norm_weight_gradient,
                       float *norm_bias_gradient, int threads) {
    const shape_t s = shape_of(height, width, channels, stride);
    const index_t row = row_vectors(&s), pixels = s.out_height * s.out_width, vectors = s.vectors, padded = vectors * LANES;
    const index_t shared = (TAPS + TAPS * images + 2 * images + 3) * vectors, each = 8 * row + vectors * s.out_width;
    vector_t *taps = allocate(shared, each, threads), *partial = taps + TAPS * vectors;
    if (!taps) return 1;
    float *sums = (float *)(partial + TAPS * images * vectors), *slopes = sums + 2 * images * channels;
    load_taps(&s, weight, taps);
#pragma omp parallel num_threads(threads)
    {
        /* Three rows of x, normalised, and one of zeros; three of its gradient, and one that nobody reads; a row of z's. */
        vector_t *memory = taps + shared + omp_get_thread_num() * each;
        vector_t *gradients = memory + 4 * row, *incoming = memory + 8 * row;
#pragma omp for schedule(static)
        for (index_t n = 0; n < images; n++) {
            vector_t *weights = partial + n * TAPS * vectors;
            index_t loaded = 0, finished = 0;
            for (index_t oy = 0; oy < s.out_height; oy++) {
                vector_t *rows[3], *to[3];
                for (; loaded < at_most(oy * stride + 2, height); loaded++) {
                    load_row(&s, x + (n * height + loaded) * width * channels, statistics, memory + loaded % 3 * row);
                    memset(gradients + loaded % 3 * row, 0, sizeof(vector_t) * row);
                }
                for (index_t k = 0; k < 3; k++) {
                    index_t iy = oy * stride + k - 1, place = iy < 0 || iy >= height ? 3 : iy % 3;
                    rows[k] = memory + place * row;
                    to[k] = gradients + place * row;
                }
                for (index_t ox = 0; ox < s.out_width; ox++) {
                    index_t from = (n * pixels + oy * s.out_width + ox) * channels;
                    float *restrict g = (float *)incoming + ox * padded;
                    for (index_t c = 0; c < channels; c++) g[c] = u[from + c] - slope[c] * (z[from + c] - z_mean[c]);
                }
                for (index_t v = 0; v < vectors; v++) {
                    vector_t sum[TAPS], w[TAPS];
                    for (int t = 0; t < TAPS; t++) w[t] = taps[t * vectors + v], sum[t] = weights[t * vectors + v];
                    for (index_t ox = 0; ox < s.out_width; ox++) {
                        index_t at = ox * stride * vectors + v;
                        vector_t g = incoming[ox * vectors + v];
                        for (int k = 0; k < 3; k++)
                            for (int l = 0; l < 3; l++) sum[3 * k + l] += g * rows[k][at + l * vectors];
                    }
                    for (int t = 0; t < TAPS; t++) weights[t * vectors + v] = sum[t];
                    for (index_t ox = 0; ox < s.out_width; ox++) {
                        index_t at = ox * stride * vectors + v;
                        vector_t g = incoming[ox * vectors + v];
                        for (int k = 0; k < 3; k++)
                            for (int l = 0; l < 3; l++) to[k][at + l * vectors] += g * w[3 * k + l];
                    }
                }
                index_t untouched = oy + 1 < s.out_height ? (oy + 1) * stride - 1 : height; /* by later outputs */
                for (; finished < untouched; finished++) {
                    const float *found = (const float *)(gradients + finished % 3 * row) + padded;
                    const float *value = (const float *)(memory + finished % 3 * row) + padded;
                    float *out = x_gradient + (n * height + finished) * width * channels;
                    for (index_t i = 0; i < width; i++)
                        if (statistics) {
                            float *restrict at = out + i * channels;
                            for (index_t c = 0; c < channels; c++)
                                at[c] = value[i * padded + c] > 0 ? found[i * padded + c] : 0;
                        } else memcpy(out + i * channels, found + i * padded, sizeof(float) * channels);
                }
            }
            if (statistics) {
                index_t start = n * height * width * channels;
                float *sum = sums + n * 2 * channels, *g = x_gradient + start;
                add_products(g, channels, x + start, height * width, channels, statistics, 0, sum, sum + channels);
            }
        }
#pragma omp for schedule(static)
        for (index_t t = 0; t < TAPS; t++)
            for (index_t c = 0; c < channels; c++) {
                double sum = 0;
                for (index_t n = 0; n < images; n++) sum += ((const float *)partial)[(n * TAPS + t) * padded + c];
                weight_gradient[t * channels + c] = (float)sum;
            }
        if (statistics) {
            index_t all = images * height * width;
            conclude_backward(all, images, channels, sums, statistics, norm_weight_gradient, norm_bias_gradient, slopes);
#pragma omp for schedule(static)
            for (index_t i = 0; i < all; i++) {
                float *g = x_gradient + i * channels;
                descend(g, x + i * channels, channels, statistics, slopes, 0, g);
            }
        }
    }
    free(taps);
    return 0;
}
