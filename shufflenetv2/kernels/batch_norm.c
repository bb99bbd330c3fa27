/* Batch normalization with ReLU, and the copies of the channel shuffle. training.py has the mathematics of a whole branch. */

#include "batch_norm.h"

enum { BLOCK = 128 }; /* pixels */

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

int norm_forward(const float *x, index_t pixels, index_t channels, const float *weight, const float *bias, float eps,
                 float *statistics, float *y, index_t y_stride, int threads) {
    index_t blocks = (pixels + BLOCK - 1) / BLOCK;
    float *moments = malloc(sizeof(float) * 2 * blocks * channels);
    if (!moments) return 1;
    const float *restrict scale = statistics + SCALE * channels, *restrict shift = statistics + SHIFT * channels;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (index_t i = 0; i < blocks; i++) {
            float *sums = moments + i * 2 * channels;
            const float *block = x + i * BLOCK * channels;
            sum_moments(block, min(BLOCK, pixels - i * BLOCK), channels, sums, sums + channels);
        }
        finalize_stats(x, pixels, BLOCK, channels, moments, weight, bias, eps, statistics);
        if (y)
#pragma omp for schedule(static)
            for (index_t i = 0; i < pixels; i++) {
                const float *restrict source = x + i * channels;
                float *restrict target = y + i * y_stride;
                for (index_t c = 0; c < channels; c++) {
                    float value = source[c] * scale[c] + shift[c];
                    target[c] = value < 0 ? 0 : value;
                }
            }
    }
    free(moments);
    return 0;
}

int norm_backward(const float *y_grad, index_t y_grad_stride, const float *x, index_t pixels, index_t channels,
                  const float *statistics, float *x_grad, float *weight_grad, float *bias_grad, int threads) {
    index_t blocks = (pixels + BLOCK - 1) / BLOCK;
    float *sums = malloc(sizeof(float) * (2 * blocks + 3) * channels);
    if (!sums) return 1;
    float *coefficients = sums + 2 * blocks * channels;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (index_t i = 0; i < blocks; i++) {
            index_t start = i * BLOCK, count = min(BLOCK, pixels - start);
            float *sum = sums + i * 2 * channels;
            sum_gradients(y_grad + start * y_grad_stride, y_grad_stride, x + start * channels, count, channels, statistics, 1,
                          sum, sum + channels);
        }
        finalize_gradients(pixels, blocks, channels, sums, statistics, weight_grad, bias_grad, coefficients);
#pragma omp for schedule(static)
        for (index_t i = 0; i < pixels; i++)
            input_grad(y_grad + i * y_grad_stride, x + i * channels, channels, statistics, coefficients, 1,
                       x_grad + i * channels);
    }
    free(sums);
    return 0;
}

int gather(const float *source, index_t pixels, index_t channels, float *target, index_t target_stride, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (index_t i = 0; i < pixels; i++) {
        const float *restrict x = source + i * 2 * channels;
        float *restrict y = target + i * target_stride;
        for (index_t c = 0; c < channels; c++) y[c] = x[2 * c];
    }
    return 0;
}

int interleave(const float *even, index_t even_stride, const float *odd, index_t pixels, index_t channels, float *target,
               int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (index_t i = 0; i < pixels; i++) {
        const float *restrict a = even + i * even_stride, *restrict b = odd + i * channels;
        float *restrict y = target + i * 2 * channels;
        for (index_t c = 0; c < channels; c++) {
            y[2 * c] = a[c];
            y[2 * c + 1] = b[c];
        }
    }
    return 0;
}
