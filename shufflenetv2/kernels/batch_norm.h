/* Batch normalization in blocks of pixels, for the functions that normalize while they read or write a tensor.
 *
 * The time of a training step goes into memory traffic, so each function reads and writes whole tensors as rarely as possible:
 * it normalizes values as it reads them, and sums the values that it writes while they are in the cache.
 *
 * Sums are taken over fixed blocks and added in the order of the blocks: results do not depend on the number of threads. The
 * code is plain C, which the compiler vectorizes. On x86-64 it is compiled for AVX2 and FMA with any options of the
 * compiler; `is_supported` reports whether the processor has them.
 */

#ifndef BATCH_NORM_H
#define BATCH_NORM_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "training.h"

#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#endif

typedef ptrdiff_t index_t;

/* Rows of the statistics of one batch normalization. */
enum { MEAN, VARIANCE, INVERSE_STD, SCALE, SHIFT, STATISTICS };

static inline index_t min(index_t a, index_t b) {
    return a < b ? a : b;
}

/* Sum x - x0 and its square over some pixels, x0 being the first pixel: the subtraction avoids cancellation. */
static inline void sum_moments(const float *restrict x, index_t pixels, index_t channels, float *restrict sum,
                               float *restrict square) {
    for (index_t c = 0; c < channels; c++) sum[c] = square[c] = 0;
    index_t i = 0;
    for (; i + 4 <= pixels; i += 4) {
        const float *x1 = x + i * channels, *x2 = x1 + channels, *x3 = x2 + channels, *x4 = x3 + channels;
        for (index_t c = 0; c < channels; c++) {
            float d1 = x1[c] - x[c], d2 = x2[c] - x[c], d3 = x3[c] - x[c], d4 = x4[c] - x[c];
            sum[c] += (d1 + d2) + (d3 + d4);
            square[c] += (d1 * d1 + d2 * d2) + (d3 * d3 + d4 * d4);
        }
    }
    for (; i < pixels; i++)
        for (index_t c = 0; c < channels; c++) {
            float d = x[i * channels + c] - x[c];
            sum[c] += d;
            square[c] += d * d;
        }
}

/* Combine the moments of blocks of `block` pixels to the statistics of all pixels (Chan, Golub and LeVeque 1983). The threads
 * of the enclosing parallel region share the channels. */
static inline void finalize_stats(const float *x, index_t pixels, index_t block, index_t channels, const float *moments,
                                  const float *weight, const float *bias, float eps, float *statistics) {
#pragma omp for schedule(static)
    for (index_t c = 0; c < channels; c++) {
        double mean = 0, squares = 0, count = 0;
        for (index_t start = 0; start < pixels; start += block) {
            const float *sums = moments + start / block * 2 * channels;
            double block_count = min(block, pixels - start), total = count + block_count;
            double offset = sums[c] / block_count, delta = x[start * channels + c] + offset - mean;
            squares += sums[channels + c] - sums[c] * offset + delta * delta * count * block_count / total;
            mean += delta * block_count / total;
            count = total;
        }
        double variance = squares > 0 ? squares / pixels : 0, inverse_std = 1 / sqrt(variance + eps);
        statistics[MEAN * channels + c] = (float)mean;
        statistics[VARIANCE * channels + c] = (float)variance;
        statistics[INVERSE_STD * channels + c] = (float)inverse_std;
        statistics[SCALE * channels + c] = (float)(inverse_std * weight[c]);
        statistics[SHIFT * channels + c] = (float)(bias[c] - mean * inverse_std * weight[c]);
    }
}

/* Sum the gradient y_grad and y_grad (x - mean) over some pixels; with `relu`, y_grad counts as 0 where ReLU returned 0. */
static inline void sum_gradients(const float *restrict y_grad, index_t y_grad_stride, const float *restrict x, index_t pixels,
                                 index_t channels, const float *restrict statistics, int relu, float *restrict sum,
                                 float *restrict product) {
    const float *restrict mean = statistics + MEAN * channels, *restrict scale = statistics + SCALE * channels,
                          *restrict shift = statistics + SHIFT * channels;
    for (index_t c = 0; c < channels; c++) sum[c] = product[c] = 0;
    index_t i = 0;
    for (; i + 2 <= pixels; i += 2) {
        const float *x1 = x + i * channels, *x2 = x1 + channels, *g1 = y_grad + i * y_grad_stride, *g2 = g1 + y_grad_stride;
        for (index_t c = 0; c < channels; c++) {
            float a = relu && x1[c] * scale[c] + shift[c] <= 0 ? 0 : g1[c];
            float b = relu && x2[c] * scale[c] + shift[c] <= 0 ? 0 : g2[c];
            sum[c] += a + b;
            product[c] += a * (x1[c] - mean[c]) + b * (x2[c] - mean[c]);
        }
    }
    for (; i < pixels; i++)
        for (index_t c = 0; c < channels; c++) {
            float value = x[i * channels + c];
            float a = relu && value * scale[c] + shift[c] <= 0 ? 0 : y_grad[i * y_grad_stride + c];
            sum[c] += a;
            product[c] += a * (value - mean[c]);
        }
}

/* Combine the sums of blocks to the gradients of weight and bias, and to the coefficients (a, b, c) of the input's gradient
 * a y_grad + b (x - mean) + c. The threads of the enclosing parallel region share the channels. */
static inline void finalize_gradients(index_t pixels, index_t blocks, index_t channels, const float *sums,
                                      const float *statistics, float *weight_grad, float *bias_grad, float *coefficients) {
#pragma omp for schedule(static)
    for (index_t c = 0; c < channels; c++) {
        double sum = 0, product = 0, inverse_std = statistics[INVERSE_STD * channels + c];
        for (index_t i = 0; i < blocks; i++) {
            sum += sums[i * 2 * channels + c];
            product += sums[i * 2 * channels + channels + c];
        }
        weight_grad[c] = (float)(product * inverse_std);
        bias_grad[c] = (float)sum;
        double scale = statistics[SCALE * channels + c], slope = -scale * product * inverse_std * inverse_std / pixels;
        coefficients[c] = (float)scale;
        coefficients[channels + c] = (float)slope;
        coefficients[2 * channels + c] = (float)(-scale * sum / pixels);
    }
}

/* Compute the gradient of one pixel of x from the coefficients. x_grad may be y_grad. */
static inline void input_grad(const float *y_grad, const float *restrict x, index_t channels, const float *restrict statistics,
                              const float *restrict coefficients, int relu, float *x_grad) {
    const float *restrict mean = statistics + MEAN * channels, *restrict scale = statistics + SCALE * channels,
                          *restrict shift = statistics + SHIFT * channels;
#pragma GCC ivdep
    for (index_t c = 0; c < channels; c++) {
        float g = relu && x[c] * scale[c] + shift[c] <= 0 ? 0 : y_grad[c];
        x_grad[c] = g * coefficients[c] + ((x[c] - mean[c]) * coefficients[channels + c] + coefficients[2 * channels + c]);
    }
}

#endif
