/* Read memory from one end to the other with all threads, as fast as it comes: the mark that
 * reading weights is held to. */
#include <stdint.h>

typedef uint64_t vec __attribute__((vector_size(32)));

/* As many sums at a time as hide the wait of each for its last one. */
#define SUMS 8

/* Return the parity of `count` times SUMS vectors, so that no read may be left out. */
uint64_t read_all(const vec *from, int64_t count, int64_t threads) {
    uint64_t parity = 0;
    (void)threads; /* A compiler without OpenMP has one. */
#pragma omp parallel num_threads(threads) reduction(^ : parity)
    {
        vec sums[SUMS] = {{0}};
#pragma omp for schedule(static)
        for (int64_t i = 0; i < count; i++)
#pragma GCC unroll 8
            for (int k = 0; k < SUMS; k++) sums[k] ^= from[i * SUMS + k];
        for (int k = 0; k < SUMS; k++) parity ^= sums[k][0] ^ sums[k][1] ^ sums[k][2] ^ sums[k][3];
    }
    return parity;
}
