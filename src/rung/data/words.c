/* Cut texts into words, and number the distinct ones in the order in which they are first met.
 *
 * Where a text is cut is said in `words.py`; a property test holds the two together. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Distinct words: the bytes of all, one after another, where each ends, and slots to find them by
 * their hash, of which at most half are taken. */
typedef struct {
    int64_t count, room, bytes_room, slots;
    uint8_t *bytes;
    int64_t *ends; /* room + 1, the first of which is 0 */
    uint64_t *hashes; /* of each word */
    int32_t *slot; /* the number of a word, or -1 */
} table;

void free_table(table *t) {
    free(t->bytes), free(t->ends), free(t->hashes), free(t->slot), free(t);
}

table *make_table(void) {
    table *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->room = 1 << 12, t->bytes_room = 1 << 16, t->slots = 1 << 13;
    t->bytes = malloc(t->bytes_room), t->ends = calloc(t->room + 1, sizeof *t->ends);
    t->hashes = malloc(t->room * sizeof *t->hashes), t->slot = malloc(t->slots * sizeof *t->slot);
    if (!t->bytes || !t->ends || !t->hashes || !t->slot) return free_table(t), NULL;
    memset(t->slot, -1, t->slots * sizeof *t->slot);
    return t;
}

/* Make room for a word more, of so many bytes. Returns 0 where there is no memory. */
static int make_room(table *t, int64_t length) {
    const int64_t needed = t->ends[t->count] + length;
    if (needed > t->bytes_room) {
        uint8_t *bytes = realloc(t->bytes, 2 * needed);
        if (!bytes) return 0;
        t->bytes = bytes, t->bytes_room = 2 * needed;
    }
    if (t->count < t->room) return 1;
    int64_t *ends = realloc(t->ends, (2 * t->room + 1) * sizeof *ends);
    if (ends) t->ends = ends;
    uint64_t *hashes = realloc(t->hashes, 2 * t->room * sizeof *hashes);
    if (hashes) t->hashes = hashes;
    int32_t *slot = malloc(2 * t->slots * sizeof *slot);
    if (!ends || !hashes || !slot) return free(slot), 0;
    free(t->slot);
    t->slot = slot, t->room *= 2, t->slots *= 2;
    memset(slot, -1, t->slots * sizeof *slot);
    for (int64_t i = 0; i < t->count; i++) {
        uint64_t at = t->hashes[i] & (t->slots - 1);
        while (slot[at] >= 0) at = (at + 1) & (t->slots - 1);
        slot[at] = i;
    }
    return 1;
}

/* Return the number of a word, or -1 where there is no memory for a new one. */
static int32_t find(table *t, const uint8_t *word, int64_t length, uint64_t hash) {
    hash ^= hash >> 32;
    uint64_t at = hash & (t->slots - 1);
    for (; t->slot[at] >= 0; at = (at + 1) & (t->slots - 1)) {
        const int32_t i = t->slot[at];
        const int64_t begin = t->ends[i];
        if (t->hashes[i] == hash && t->ends[i + 1] - begin == length &&
            !memcmp(t->bytes + begin, word, length))
            return i;
    }
    if (t->count == INT32_MAX || !make_room(t, length)) return -1;
    at = hash & (t->slots - 1); /* there may be more of them now */
    while (t->slot[at] >= 0) at = (at + 1) & (t->slots - 1);
    memcpy(t->bytes + t->ends[t->count], word, length);
    t->ends[t->count + 1] = t->ends[t->count] + length;
    t->hashes[t->count] = hash;
    return t->slot[at] = t->count++;
}

static inline int is_space(uint8_t c) { return c == ' ' || (c >= 9 && c <= 13); }

/* Whether a text is cut at `at`, of which `before` bytes of the text stand before it. */
static inline int is_cut(const uint8_t *at, int64_t before, int wide, const int64_t *wide_spaces) {
    if (!is_space(at[0]) || at[-1] <= 0x20) return 0;
    if (at[-1] < 0x80) return 1;
    const int64_t two = at[-2] << 8 | at[-1], three = before > 2 ? at[-3] << 16 | two : two;
    for (int i = 0; i < wide; i++)
        if (wide_spaces[i] == two || wide_spaces[i] == three) return 0;
    return 1;
}

/* Write the number of each word of the texts, which end at `ends` in `data`, and for each text that
 * of its first word among `numbers`; the last of `first` (texts + 1) is how many there are. Texts
 * that are not `cut` are a word each. Returns 0 where there is no memory. */
int number_words(table *t, const uint8_t *data, int64_t texts, const int64_t *ends, int cut,
                 int wide, const int64_t *wide_spaces, int32_t *numbers, int64_t *first) {
    int64_t words = 0, begin = 0;
    for (int64_t text = 0; text < texts; text++) {
        first[text] = words;
        const int64_t start = begin;
        while (begin < ends[text]) {
            /* FNV-1a */
            uint64_t hash = (0xcbf29ce484222325u ^ data[begin]) * 0x100000001b3u;
            int64_t i = begin + 1;
            for (; i < ends[text]; i++) {
                if (cut && is_cut(data + i, i - start, wide, wide_spaces)) break;
                hash = (hash ^ data[i]) * 0x100000001b3u;
            }
            const int32_t number = find(t, data + begin, i - begin, hash);
            if (number < 0) return 0;
            numbers[words++] = number;
            begin = i;
        }
    }
    first[texts] = words;
    return 1;
}

/* Write the ids of the words of each text in turn, and how many there are of each text. The ids of a
 * word end at `ends` of its number, and begin at the one before. With `row` NULL, count alone. */
void list_ids(int64_t texts, const int64_t *first, const int32_t *numbers, const int64_t *ends,
              const uint32_t *ids, uint32_t *row, int64_t *lengths) {
    for (int64_t text = 0; text < texts; text++) {
        int64_t length = 0;
        for (int64_t i = first[text]; i < first[text + 1]; i++) {
            const int64_t begin = ends[numbers[i]], end = ends[numbers[i] + 1];
            length += end - begin;
            for (int64_t k = begin; row && k < end; k++) *row++ = ids[k];
        }
        lengths[text] = length;
    }
}
