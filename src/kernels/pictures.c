/* From stored pictures to network input: see pictures.py for what is computed, and why it is the same to the bit.

   A task is a picture. Each of its lines is moved, and resized along itself into a ring of the few lines that the other
   direction needs at a time, in 32 bits a value; each line of the result is written once. To be compiled without
   contraction: the product is rounded before the offset is subtracted from it. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define V 16
#elif defined(__AVX2__)
#define V 8
#else
#define V 4
#endif
#define SHARE (V / 4) /* pixels that are resized at a time: each takes 128 bits */
#define INLINE static inline __attribute__((always_inline))
#define LINE 64            /* bytes */
#define SLACK 64           /* bytes behind a line that may be read or written */
#define PART 4             /* pictures that a thread takes at a time */
#define SMALL 16384        /* pixels that are not worth waking other threads */
#define CACHED (32L << 20) /* bytes of a result that caches may still hold when the network reads it */

typedef float vf __attribute__((vector_size(4 * V)));
typedef int32_t vi __attribute__((vector_size(4 * V)));
typedef uint32_t vu __attribute__((vector_size(4 * V)));
typedef uint16_t vh __attribute__((vector_size(2 * V)));

typedef struct {
    const uint8_t *images, *fill, *flip;
    const int64_t *rows, *down, *right, *top, *left, *height, *width; /* null: in order; not moved */
    long side, result, pairs;
    const int32_t *start; /* (result): the first source of each pixel or line; null where nothing is resized */
    const int16_t *weights; /* (result, 2 pairs): of the sources from there on */
    const float *scale, *offset; /* (3 result) */
    void *out;
    int bits, half, stream;
    long stride, from, at, spread, constants, ring, line, bytes; /* of scratch: values in a line; where what begins */
} job;

/* ---- vectors ---- */

INLINE vi ldi(const int32_t *p) { vi v; memcpy(&v, p, sizeof v); return v; }
INLINE vf ldf(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }

INLINE vi levels(const uint8_t *p) {
#if V == 16
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif V == 8
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    return (vi){p[0], p[1], p[2], p[3]};
#endif
}

/* Of each 32 bits: the product of the lower halves and that of the upper ones, added. Levels are 0 to 255. */
INLINE vi twice(vi levels, vi weights) {
#if V == 16
    return (vi)_mm512_madd_epi16((__m512i)levels, (__m512i)weights);
#elif V == 8
    return (vi)_mm256_madd_epi16((__m256i)levels, (__m256i)weights);
#elif defined(__SSE2__)
    return (vi)_mm_madd_epi16((__m128i)levels, (__m128i)weights);
#else
    return (levels & 0xffff) * (weights & 0xffff) + (levels >> 16) * (weights >> 16);
#endif
}

/* Lower halves. */
INLINE vh narrow(vu u) {
#if V == 16
    return (vh)_mm512_cvtepi32_epi16((__m512i)u);
#elif V == 8
    return (vh)_mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)u, (__m256i)u), 0xd8));
#else
    return (vh){(uint16_t)u[0], (uint16_t)u[1], (uint16_t)u[2], (uint16_t)u[3]};
#endif
}

/* level * scale - offset, rounded twice, and for bfloat16 once more, to nearest even. Streamed past the caches or not. */
INLINE void finish(vi level, vf scale, vf offset, char *out, int half, int stream) {
    (void)stream; /* where there is no such store */
    vf v = __builtin_convertvector(level, vf) * scale - offset;
    vu u = (vu)v;
    if (half) {
        vh h = narrow((u + 0x7fff + (u >> 16 & 1)) >> 16); /* of no number, too: its payload is zero or the input's */
#if V == 16
        if (stream) return _mm256_stream_si256((__m256i *)out, (__m256i)h);
#elif V == 8
        if (stream) return _mm_stream_si128((__m128i *)out, (__m128i)h);
#endif
        memcpy(out, &h, sizeof h);
    } else {
#if V == 16
        if (stream) return _mm512_stream_si512((__m512i *)out, (__m512i)u);
#elif V == 8
        if (stream) return _mm256_stream_si256((__m256i *)out, (__m256i)u);
#endif
        memcpy(out, &u, sizeof u);
    }
}

/* ---- moved lines ---- */

INLINE long reflect(long at, long side) {
    at = at < 0 ? -at : at;
    return at >= side ? 2 * (side - 1) - at : at;
}

/* Byte of a stored line from which each pixel of a moved one comes. */
static void sources(const job *j, long i, int32_t *from) {
    for (long x = 0; x < j->side; x++)
        from[x] = (int32_t)(3 * reflect((j->flip[i] ? j->side - 1 - x : x) + j->right[i], j->side));
}

/* Line y of picture i, moved or as it is. */
static void bring(const job *j, long i, const uint8_t *stored, long y, const int32_t *from, uint8_t *restrict line) {
    const long width = 3 * j->side;
    if (!j->down) {
        memcpy(line, stored + y * width, (size_t)width);
        return;
    }
    const uint8_t *row = stored + width * reflect(y + j->down[i], j->side);
    const long right = j->right[i];
    long x = 0;
    if (!j->flip[i]) { /* all but a border is there in one piece */
        const long left = right < 0 ? -right : 0, piece = j->side - labs(right);
        for (; x < left; x++) memcpy(line + 3 * x, row + from[x], 3);
        memcpy(line + 3 * x, row + from[x], (size_t)(3 * piece));
        x += piece;
    }
    for (; x < j->side; x++) memcpy(line + 3 * x, row + from[x], 3);
    if (y < j->top[i] || y - j->top[i] >= j->height[i]) return;
    for (x = j->left[i]; x < j->left[i] + j->width[i]; x++) memcpy(line + 3 * x, j->fill, 3);
}

/* ---- resized, in one direction and in the other ---- */

/* Of each of SHARE places in a line two pixels, as halves of 32 bits: r r g g b b 0 0. */
#if defined(__SSSE3__)
INLINE vi pixels_of(const uint8_t *line, const int32_t *at, long behind) {
    const __m128i spread = _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
#define PIXELS(n) _mm_loadu_si128((const __m128i *)(line + at[n] + behind))
#if V == 16
    __m512i all = _mm512_inserti32x4(_mm512_castsi128_si512(PIXELS(0)), PIXELS(1), 1);
    all = _mm512_inserti32x4(_mm512_inserti32x4(all, PIXELS(2), 2), PIXELS(3), 3);
    return (vi)_mm512_shuffle_epi8(all, _mm512_broadcast_i32x4(spread));
#elif V == 8
    __m256i all = _mm256_inserti128_si256(_mm256_castsi128_si256(PIXELS(0)), PIXELS(1), 1);
    return (vi)_mm256_shuffle_epi8(all, _mm256_broadcastsi128_si256(spread));
#else
    return (vi)_mm_shuffle_epi8(PIXELS(0), spread);
#endif
#undef PIXELS
}

/* The three values of each pixel side by side, and what does not count behind them. */
INLINE vi compact(vi v) {
#if V == 16
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 3, 7, 11, 15);
    return (vi)_mm512_permutexvar_epi32(order, (__m512i)v);
#elif V == 8
    return (vi)_mm256_permutevar8x32_epi32((__m256i)v, _mm256_setr_epi32(0, 1, 2, 4, 5, 6, 3, 7));
#else
    return v;
#endif
}
#endif

/* A line along itself; what is read and written behind its end does not count. */
INLINE void along(const job *j, const char *scratch, int32_t *restrict out, long pairs) {
    const uint8_t *line = (const uint8_t *)(scratch + j->line);
    const int32_t *at = (const int32_t *)(scratch + j->at), *weights = (const int32_t *)(scratch + j->spread);
    const long result = j->result;
    const int bits = j->bits;
#if defined(__SSSE3__)
    const vi shift = bits - (vi){0}, half = (1 << (bits - 1)) - (vi){0};
    for (long x = 0; x < result; x += SHARE) {
        vi sum = half;
        for (long k = 0; k < pairs; k++, weights += V) sum += twice(pixels_of(line, at + x, 6 * k), ldi(weights));
        sum = compact(sum >> shift);
        memcpy(out + 3 * x, &sum, sizeof sum);
    }
#else
    (void)weights;
    const int16_t *w = j->weights;
    for (long x = 0; x < result; x++, w += 2 * pairs)
        for (long c = 0; c < 3; c++) {
            int32_t sum = 1 << (bits - 1);
            for (long k = 0; k < 2 * pairs; k++) sum += w[k] * line[at[x] + 3 * k + c];
            out[3 * x + c] = sum >> bits;
        }
#endif
}

/* V levels of the result: of a line as it is where there are no pairs, or from lines of the ring. */
INLINE vi across(const uint8_t *line, const int32_t *const *lines, const int32_t *weights, int bits, long x, long pairs) {
    if (!pairs) return levels(line + x);
    vi sum = (1 << (bits - 1)) - (vi){0};
    for (long k = 0; k < pairs; k++)
        sum += twice(ldi(lines[2 * k] + x) | ldi(lines[2 * k + 1] + x) << 16, weights[k] - (vi){0});
    return sum >> (bits - (vi){0});
}

/* Writes line y of the result, values up to a line of the cache and behind the last whole vector one by one. */
INLINE void put(const job *j, const char *scratch, long y, char *out, long pairs, int half, int stream) {
    const long values = 3 * j->result, size = half ? 2 : 4;
    const uint8_t *line = (const uint8_t *)(scratch + j->line);
    const float *scale = (const float *)(scratch + j->constants), *offset = scale + j->stride;
    const int32_t *lines[2 * pairs + 1];
    int32_t weights[pairs + 1];
    const int bits = j->bits;
    if (pairs) memcpy(weights, j->weights + 2 * pairs * y, 4 * (size_t)pairs);
    for (long k = 0; k < 2 * pairs; k++) {
        long row = j->start[y] + k < j->side ? j->start[y] + k : j->side - 1; /* beyond the last the weight is 0 */
        lines[k] = (const int32_t *)(scratch + j->ring) + row % (2 * pairs) * j->stride;
    }
    long x = 0;
    while (x < values) {
        long n = stream ? (long)(-(uintptr_t)(out + x * size) % LINE) / size : 0;
        if (!n && values - x >= V) {
            for (; x + V <= values; x += V)
                finish(across(line, lines, weights, bits, x, pairs), ldf(scale + x), ldf(offset + x), out + x * size,
                       half, stream);
            continue;
        }
        char some[4 * V];
        n = n && n < V ? n : V;
        n = n < values - x ? n : values - x;
        finish(across(line, lines, weights, bits, x, pairs), ldf(scale + x), ldf(offset + x), some, half, 0);
        memcpy(out + x * size, some, (size_t)(n * size));
        x += n;
    }
}

INLINE void picture(const job *j, long i, char *scratch, long pairs, int half, int stream) {
    const long side = j->side, step = 3 * j->result * (half ? 2 : 4);
    const uint8_t *stored = j->images + (j->rows ? j->rows[i] : i) * side * side * 3;
    int32_t *from = (int32_t *)(scratch + j->from), *ring = (int32_t *)(scratch + j->ring);
    uint8_t *line = (uint8_t *)(scratch + j->line);
    char *out = (char *)j->out + i * j->result * step;
    long done = 0;
    if (j->down) sources(j, i, from);
    for (long y = 0; y < j->result; y++, out += step) {
        const long needed = !pairs ? y + 1 : j->start[y] + 2 * pairs < side ? j->start[y] + 2 * pairs : side;
        for (; done < needed; done++) {
            bring(j, i, stored, done, from, line);
            if (pairs) along(j, scratch, ring + done % (2 * pairs) * j->stride, pairs);
        }
        put(j, scratch, y, out, pairs, half, stream);
    }
}

/* The usual numbers of pairs are compiled apart: one enlarges, two reduce to two thirds. */
INLINE void sized(const job *j, long i, char *scratch, int half, int stream) {
    if (j->pairs == 0) picture(j, i, scratch, 0, half, stream);
    else if (j->pairs == 1) picture(j, i, scratch, 1, half, stream);
    else if (j->pairs == 2) picture(j, i, scratch, 2, half, stream);
    else picture(j, i, scratch, j->pairs, half, stream);
}

static void work(const job *j, long i, char *scratch) {
    if (j->stream) {
        if (j->half) sized(j, i, scratch, 1, 1);
        else sized(j, i, scratch, 0, 1);
    } else if (j->half) sized(j, i, scratch, 1, 0);
    else sized(j, i, scratch, 0, 0);
}

/* ---- the whole batch ---- */

static long whole(long bytes) { return (bytes + LINE - 1) / LINE * LINE; }

static void plan(job *j) {
    j->stride = whole(12 * j->result + SLACK) / 4;
    j->from = 0;
    j->at = whole(4 * j->side);
    j->spread = j->at + whole(4 * (j->result + SHARE));
    j->constants = j->spread + whole(16 * j->pairs * (j->result + SHARE));
    j->ring = j->constants + 8 * j->stride;
    j->line = j->ring + 8 * j->stride * j->pairs;
    j->bytes = whole(j->line + 3 * j->side + 6 * j->pairs + SLACK);
}

static char *scratch_of(const job *j) {
    char *scratch = aligned_alloc(LINE, (size_t)j->bytes);
    if (!scratch) return NULL;
    memset(scratch, 0, (size_t)j->bytes);
    int32_t *at = (int32_t *)(scratch + j->at), *spread = (int32_t *)(scratch + j->spread);
    for (long x = 0; j->pairs && x < j->result; x++) { /* the rest stays 0 */
        at[x] = 3 * j->start[x];
        for (long k = 0; k < j->pairs; k++)
            for (long c = 0; c < 4; c++) /* where `along` reads it: its share of pixels, pair by pair */
                memcpy(spread + 4 * ((x / SHARE * j->pairs + k) * SHARE + x % SHARE) + c,
                       j->weights + 2 * (x * j->pairs + k), 4);
    }
    memcpy(scratch + j->constants, j->scale, 12 * (size_t)j->result);
    memcpy(scratch + j->constants + 4 * j->stride, j->offset, 12 * (size_t)j->result);
    return scratch;
}

/* What was streamed is there before another thread reads it. */
static void settle(void) {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

static int outside(const job *j, long count, long held) {
    long last = j->side - 1;
    for (long i = 0; i < count; i++) {
        if (j->rows && (j->rows[i] < 0 || j->rows[i] >= held)) return 1;
        if (!j->down) continue;
        if (j->down[i] > last || j->down[i] < -last || j->right[i] > last || j->right[i] < -last) return 1;
        if (j->left[i] < 0 || j->left[i] > j->side || j->width[i] < 0 || j->width[i] > j->side - j->left[i]) return 1;
    }
    return 0;
}

/* 1 where there is no memory for all; 2 where a row, a shift or a rectangle lies outside: nothing is written then. */
int pictures_input(const void *images, const void *rows, long held, long count, const void *down, const void *right,
                   const void *flip, const void *top, const void *left, const void *height, const void *width,
                   const void *fill, long side, long result, const void *start, const void *weights, long pairs,
                   int bits, const void *scale, const void *offset, void *out, int half, int threads) {
    job j = {.images = images, .rows = rows, .down = down, .right = right, .flip = flip, .top = top, .left = left,
             .height = height, .width = width, .fill = fill, .side = side, .result = result, .start = start,
             .weights = weights, .pairs = pairs, .bits = bits, .scale = scale, .offset = offset, .out = out,
             .half = half};
    int bad = 0;
    if (outside(&j, count, held)) return 2;
    plan(&j);
    j.stream = count * result * result * 3 * (half ? 2 : 4) > CACHED;
    if (threads <= 1 || count * (side * side + result * result) < SMALL) {
        char *scratch = scratch_of(&j);
        for (long i = 0; scratch && i < count; i++) work(&j, i, scratch);
        settle();
        free(scratch);
        return !scratch;
    }
#pragma omp parallel num_threads(threads) reduction(| : bad)
    {
        char *scratch = scratch_of(&j);
        bad = !scratch;
#pragma omp for schedule(dynamic, PART)
        for (long i = 0; i < count; i++)
            if (scratch) work(&j, i, scratch);
        settle();
        free(scratch);
    }
    return bad;
}
