/* One training step of an LSTM layer whose last state feeds a loss; compiled.py builds and calls it.

   Everything is row-major float32. gates is (time, rows, 4 width) in torch's order: enter, forget,
   content, leave; cells and states are (time + 1, rows, width) and begin with zeros. */

#include <stddef.h>
#include <string.h>

#if defined(__AVX512F__)
#define LANES 16
#define TILE 10 /* rows whose two accumulators each fit the register file */
#elif defined(__AVX__)
#define LANES 8
#define TILE 5
#else
#define LANES 4
#define TILE 5
#endif

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define INLINE static inline __attribute__((always_inline))

INLINE vec choose(ivec where, vec yes, vec no) {
    return (vec)((where & (ivec)yes) | (~where & (ivec)no));
}

/* Cephes' expf; NaN stays NaN. */
INLINE vec exponential(vec x) {
    const vec zero = {0};
    x = choose(x > zero + 88.0f, zero + 88.0f, x);
    x = choose(x < zero - 87.0f, zero - 87.0f, x);
    vec shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum is rounded to an integer */
    vec n = shifted - 12582912.0f;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = zero + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return choose(x == x, (vec)((ivec)p + ((ivec)shifted << 23)), x);
}

INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }
INLINE vec hyperbolic(vec x) { return 2.0f * sigmoid(2.0f * x) - 1.0f; }

/* out[m][n] += scale * sum_k a[m * row + k * step] * b[k][n] for a few rows and `vectors` lanes. */
INLINE void tile(int rows, int vectors, float *out, size_t out_row, const float *a, size_t row,
                 size_t step, const float *b, size_t b_row, int depth, float scale) {
    vec sum[TILE][2];
#pragma GCC unroll 16
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) sum[m][v] = (vec){0};
    for (int k = 0; k < depth; k++) {
        vec right[2];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) right[v] = *(const vec *)(b + k * b_row + v * LANES);
#pragma GCC unroll 16
        for (int m = 0; m < rows; m++)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++) sum[m][v] += a[m * row + k * step] * right[v];
    }
#pragma GCC unroll 16
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) {
            vec *o = (vec *)(out + m * out_row + v * LANES);
            *o += scale * sum[m][v];
        }
}

INLINE void strip(int rows, float *out, size_t out_row, const float *a, size_t row, size_t step,
                  const float *b, size_t b_row, int columns, int depth, float scale) {
    int n = 0;
    for (; n + 2 * LANES <= columns; n += 2 * LANES)
        tile(rows, 2, out + n, out_row, a, row, step, b + n, b_row, depth, scale);
    for (; n < columns; n += LANES)
        tile(rows, 1, out + n, out_row, a, row, step, b + n, b_row, depth, scale);
}

/* out (rows, columns) += scale * a b; columns is a multiple of LANES. */
static void product(float *out, const float *a, size_t row, size_t step, const float *b, int rows,
                    int columns, int depth, float scale) {
    int m = 0;
    for (; m + TILE <= rows; m += TILE)
        strip(TILE, out + m * (size_t)columns, columns, a + m * row, row, step, b, columns, columns,
              depth, scale);
    out += m * (size_t)columns, a += m * row;
#define REST(count)                                                                              \
    case count:                                                                                  \
        strip(count, out, columns, a, row, step, b, columns, columns, depth, scale);             \
        break;
    switch (rows - m) {
        REST(1) REST(2) REST(3) REST(4)
#if TILE > 5
        REST(5) REST(6) REST(7) REST(8) REST(9)
#endif
    }
}

static void transpose(float *out, const float *in, int rows, int columns) {
    for (int i = 0; i < rows; i += 16)
        for (int j = 0; j < columns; j++)
            for (int k = i; k < i + 16 && k < rows; k++) out[(size_t)j * rows + k] = in[(size_t)k * columns + j];
}

void lstm_forward(int time, int rows, int inputs, int width, const float *x, const float *w_x,
                  const float *w_h, const float *b_x, const float *b_h, float *gates, float *cells,
                  float *states, float *turned_x, float *turned_h) {
    const int wide = 4 * width;
    transpose(turned_x, w_x, wide, inputs);
    transpose(turned_h, w_h, wide, width);
    memset(cells, 0, sizeof(float) * rows * width);
    memset(states, 0, sizeof(float) * rows * width);
    for (int t = 0; t < time; t++) {
        float *z = gates + (size_t)t * rows * wide;
        for (int m = 0; m < rows; m++)
            for (int j = 0; j < wide; j += LANES)
                *(vec *)(z + m * wide + j) = *(const vec *)(b_x + j) + *(const vec *)(b_h + j);
        product(z, x + (size_t)t * rows * inputs, inputs, 1, turned_x, rows, wide, inputs, 1.0f);
        product(z, states, width, 1, turned_h, rows, wide, width, 1.0f);
        float *after = states + rows * width, *cell = cells + rows * width;
        for (int m = 0; m < rows; m++)
            for (int j = 0; j < width; j += LANES) {
                vec *enter = (vec *)(z + m * wide + j), *forget = (vec *)(z + m * wide + width + j);
                vec *content = (vec *)(z + m * wide + 2 * width + j);
                vec *leave = (vec *)(z + m * wide + 3 * width + j);
                *enter = sigmoid(*enter), *forget = sigmoid(*forget);
                *content = hyperbolic(*content), *leave = sigmoid(*leave);
                vec c = *forget * *(vec *)(cells + m * width + j) + *enter * *content;
                *(vec *)(cell + m * width + j) = c;
                *(vec *)(after + m * width + j) = *leave * hyperbolic(c);
            }
        states = after, cells = cell;
    }
}

void lstm_backward(int time, int rows, int inputs, int width, const float *x, float *w_x, float *w_h,
                   float *b_x, float *b_h, float *gates, const float *cells, const float *states,
                   float *turned_x, float *slope, float *carried, float rate) {
    const int wide = 4 * width;
    memset(carried, 0, sizeof(float) * rows * width);
    for (int t = time - 1; t >= 0; t--) {
        float *z = gates + (size_t)t * rows * wide;
        const float *before = cells + (size_t)t * rows * width, *cell = before + rows * width;
        for (int m = 0; m < rows; m++)
            for (int j = 0; j < width; j += LANES) {
                vec *enter = (vec *)(z + m * wide + j), *forget = (vec *)(z + m * wide + width + j);
                vec *content = (vec *)(z + m * wide + 2 * width + j);
                vec *leave = (vec *)(z + m * wide + 3 * width + j);
                vec *dc = (vec *)(carried + m * width + j);
                vec i = *enter, f = *forget, g = *content, o = *leave;
                vec dh = *(vec *)(slope + m * width + j);
                vec squashed = hyperbolic(*(const vec *)(cell + m * width + j));
                vec d = *dc + dh * o * (1.0f - squashed * squashed);
                *enter = d * g * i * (1.0f - i);
                *forget = d * *(const vec *)(before + m * width + j) * f * (1.0f - f);
                *content = d * i * (1.0f - g * g);
                *leave = dh * squashed * o * (1.0f - o);
                *dc = d * f;
            }
        if (t) {
            memset(slope, 0, sizeof(float) * rows * width);
            product(slope, z, wide, 1, w_h, rows, width, wide, 1.0f);
        }
    }
    const int all = time * rows;
    product(w_h, gates, 1, wide, states, wide, width, all, -rate);
    product(turned_x, x, 1, inputs, gates, inputs, wide, all, -rate);
    transpose(w_x, turned_x, inputs, wide);
    for (int j = 0; j < wide; j += LANES) {
        vec sum = {0};
        for (int k = 0; k < all; k++) sum += *(const vec *)(gates + (size_t)k * wide + j);
        *(vec *)(b_x + j) -= rate * sum, *(vec *)(b_h + j) -= rate * sum;
    }
}
