/* A compressor of some size: text is made, compressed by LZ77 and Huffman codes, expanded and compared; `n` bytes of it.
 *
 * Blocks of at most 16 KiB are compressed one by one. Repeats are found by chains of hashes of three bytes, with one
 * step of lazy matching. A block's symbols (literals, lengths, the end) and its distances have canonical Huffman codes of
 * at most 15 bits, and the lengths of the codes stand before them.
 */
#include "workload.h"

enum {
    BLOCK = 16384,
    SHORTEST = 3,
    LONGEST = 66,
    END = 256,
    SYMBOLS = 257 + LONGEST - SHORTEST + 1,
    DISTANCES = 28, /* two for each power of two of distances up to a block's size */
    MOST_BITS = 15,
    HASHES = 4096,
    CHAIN = 32,
};

static uint8_t text[BLOCK], expanded[BLOCK], packed[BLOCK * 2 + 1024];

/* Text: words of a vocabulary, of which few are common, in sentences. */

static uint64_t random_state;

static uint64_t below(uint64_t limit)
{
    return (next_random(&random_state) >> 32) * limit >> 32;
}

static void make_text(uint64_t size)
{
    static const char syllables[16][4] = {"ka", "lo", "mem", "sl", "ot", "vi", "cp", "u", "gu", "est",
                                          "re", "ne", "tra", "qi", "do", "hin"};
    uint64_t at = 0, word_in_sentence = 0;
    while (at < size) {
        /* The product of two draws is small more often than large. */
        uint64_t word = below(1 + below(400)) * 2654435761u;
        int length = 1 + (int)(word >> 7 & 3);
        for (int i = 0; i < length; i++, word >>= 4)
            for (const char *letter = syllables[word & 15]; *letter != '\0' && at < size; letter++)
                text[at++] = (uint8_t)*letter;
        if (at < size)
            text[at++] = ++word_in_sentence % 11 == 0 ? '.' : ' ';
    }
}

/* Bits, the lowest of a byte first. */

struct bits {
    uint8_t *at;
    uint64_t kept;
    int count;
};

static void put_bits(struct bits *out, uint32_t value, int count)
{
    out->kept |= (uint64_t)value << out->count;
    out->count += count;
    while (out->count >= 8) {
        *out->at++ = (uint8_t)out->kept;
        out->kept >>= 8;
        out->count -= 8;
    }
}

static void flush_bits(struct bits *out)
{
    if (out->count > 0)
        *out->at++ = (uint8_t)out->kept;
    out->kept = 0;
    out->count = 0;
}

static uint32_t get_bits(struct bits *in, int count)
{
    while (in->count < count) {
        in->kept |= (uint64_t)*in->at++ << in->count;
        in->count += 8;
    }
    uint32_t value = (uint32_t)(in->kept & ((1u << count) - 1));
    in->kept >>= count;
    in->count -= count;
    return value;
}

/* Huffman codes. */

struct code {
    int size;
    uint32_t frequency[SYMBOLS];
    uint8_t length[SYMBOLS];
    uint16_t word[SYMBOLS]; /* its bits in the order in which they are put */
    /* For expanding: how many words have each length, and the symbols in the order of their words. */
    uint16_t of_length[MOST_BITS + 1];
    uint16_t symbol[SYMBOLS];
};

static struct code literals, distances;

struct heap {
    int size;
    uint16_t node[SYMBOLS];
    uint32_t weight[2 * SYMBOLS];
};

static int lighter(const struct heap *heap, int one, int other)
{
    uint32_t a = heap->weight[heap->node[one]], b = heap->weight[heap->node[other]];
    return a < b || (a == b && heap->node[one] < heap->node[other]);
}

static void exchange(struct heap *heap, int one, int other)
{
    uint16_t kept = heap->node[one];
    heap->node[one] = heap->node[other];
    heap->node[other] = kept;
}

static void heap_push(struct heap *heap, int node)
{
    int at = heap->size++;
    heap->node[at] = (uint16_t)node;
    for (; at > 0 && lighter(heap, at, (at - 1) / 2); at = (at - 1) / 2)
        exchange(heap, at, (at - 1) / 2);
}

static int heap_pop(struct heap *heap)
{
    int top = heap->node[0], at = 0;
    heap->node[0] = heap->node[--heap->size];
    for (;;) {
        int least = at, left = 2 * at + 1;
        if (left < heap->size && lighter(heap, left, least))
            least = left;
        if (left + 1 < heap->size && lighter(heap, left + 1, least))
            least = left + 1;
        if (least == at)
            return top;
        exchange(heap, at, least);
        at = least;
    }
}

/* Give each symbol that occurs the length of its word; tell whether none is too long. */
static int find_lengths(struct code *code)
{
    static struct heap heap;
    static uint16_t parent[2 * SYMBOLS];
    int nodes = code->size;
    heap.size = 0;
    for (int symbol = 0; symbol < code->size; symbol++) {
        code->length[symbol] = 0;
        if (code->frequency[symbol] > 0) {
            heap.weight[symbol] = code->frequency[symbol];
            heap_push(&heap, symbol);
        }
    }
    if (heap.size == 1)
        code->length[heap.node[0]] = 1;
    if (heap.size <= 1)
        return 1;
    while (heap.size > 1) {
        int one = heap_pop(&heap), other = heap_pop(&heap);
        parent[one] = parent[other] = (uint16_t)nodes;
        heap.weight[nodes] = heap.weight[one] + heap.weight[other];
        heap_push(&heap, nodes++);
    }
    int root = nodes - 1;
    for (int symbol = 0; symbol < code->size; symbol++) {
        if (code->frequency[symbol] == 0)
            continue;
        int length = 0;
        for (int node = symbol; node != root; node = parent[node])
            length++;
        if (length > MOST_BITS)
            return 0;
        code->length[symbol] = (uint8_t)length;
    }
    return 1;
}

/* Make the canonical words of lengths: words of one length follow one another in the order of their symbols. */
static void assign_words(struct code *code)
{
    uint16_t next[MOST_BITS + 2] = {0}, place[MOST_BITS + 2] = {0};
    for (int length = 0; length <= MOST_BITS; length++)
        code->of_length[length] = 0;
    for (int symbol = 0; symbol < code->size; symbol++)
        code->of_length[code->length[symbol]]++;
    code->of_length[0] = 0;
    for (int length = 1; length <= MOST_BITS; length++) {
        next[length + 1] = (uint16_t)((next[length] + code->of_length[length]) << 1);
        place[length + 1] = (uint16_t)(place[length] + code->of_length[length]);
    }
    for (int symbol = 0; symbol < code->size; symbol++) {
        int length = code->length[symbol];
        if (length == 0)
            continue;
        code->symbol[place[length]++] = (uint16_t)symbol;
        uint32_t word = next[length]++, reversed = 0;
        for (int bit = 0; bit < length; bit++)
            reversed |= (word >> bit & 1) << (length - 1 - bit);
        code->word[symbol] = (uint16_t)reversed;
    }
}

static void make_code(struct code *code)
{
    while (!find_lengths(code))
        for (int symbol = 0; symbol < code->size; symbol++)
            code->frequency[symbol] = (code->frequency[symbol] + 1) / 2;
    assign_words(code);
}

static void put_code(struct bits *out, const struct code *code)
{
    for (int symbol = 0; symbol < code->size; symbol++)
        put_bits(out, code->length[symbol], 4);
}

static void get_code(struct bits *in, struct code *code)
{
    for (int symbol = 0; symbol < code->size; symbol++)
        code->length[symbol] = (uint8_t)get_bits(in, 4);
    assign_words(code);
}

static void put_symbol(struct bits *out, const struct code *code, int symbol)
{
    put_bits(out, code->word[symbol], code->length[symbol]);
}

static int get_symbol(struct bits *in, const struct code *code)
{
    int word = 0, first = 0, place = 0;
    for (int length = 1; length <= MOST_BITS; length++) {
        word |= (int)get_bits(in, 1);
        int count = code->of_length[length];
        if (word - first < count)
            return code->symbol[place + word - first];
        place += count;
        first = (first + count) << 1;
        word <<= 1;
    }
    return END;
}

/* Distances: a symbol is a power of two and the bit below it, and the rest follows as it is. */

static int distance_symbol(uint32_t distance, int *rest_bits)
{
    int power = 0;
    while (distance >> (power + 1) > 0)
        power++;
    *rest_bits = power > 0 ? power - 1 : 0;
    return power > 0 ? 2 * power + (int)(distance >> (power - 1) & 1) - 1 : 0;
}

/* Repeats. */

struct step {
    uint16_t length; /* 1: a literal */
    uint16_t distance;
};

static struct step steps[BLOCK];
static int16_t newest[HASHES], older[BLOCK];

static uint32_t hash_at(uint64_t at)
{
    uint32_t bytes = (uint32_t)text[at] | (uint32_t)text[at + 1] << 8 | (uint32_t)text[at + 2] << 16;
    return bytes * 2654435761u >> 20;
}

static void remember(uint64_t at, uint64_t size)
{
    if (at + SHORTEST > size)
        return;
    uint32_t hash = hash_at(at);
    older[at] = newest[hash];
    newest[hash] = (int16_t)at;
}

static struct step longest_repeat(uint64_t at, uint64_t size)
{
    struct step best = {1, 0};
    if (at + SHORTEST > size)
        return best;
    uint64_t most = size - at < LONGEST ? size - at : LONGEST;
    int left = CHAIN;
    for (int from = newest[hash_at(at)]; from >= 0 && left > 0; from = older[from], left--) {
        uint64_t length = 0;
        while (length < most && text[(uint64_t)from + length] == text[at + length])
            length++;
        if (length >= SHORTEST && length > best.length) {
            best.length = (uint16_t)length;
            best.distance = (uint16_t)(at - (uint64_t)from);
        }
    }
    return best;
}

static int find_steps(uint64_t size)
{
    int count = 0;
    for (int hash = 0; hash < HASHES; hash++)
        newest[hash] = -1;
    uint64_t at = 0;
    while (at < size) {
        struct step step = longest_repeat(at, size);
        remember(at, size);
        if (step.length > 1 && at + 1 < size && longest_repeat(at + 1, size).length > step.length)
            step.length = 1;
        for (uint64_t passed = at + 1; passed < at + step.length; passed++)
            remember(passed, size);
        steps[count++] = step;
        at += step.length;
    }
    return count;
}

/* Blocks. */

static int literal_symbol(struct step step, uint8_t byte)
{
    return step.length == 1 ? byte : END + 1 + step.length - SHORTEST;
}

static uint64_t compress(uint64_t size)
{
    int count = find_steps(size), rest_bits;
    for (int symbol = 0; symbol < SYMBOLS; symbol++)
        literals.frequency[symbol] = distances.frequency[symbol] = 0;
    uint64_t at = 0;
    for (int i = 0; i < count; at += steps[i++].length) {
        literals.frequency[literal_symbol(steps[i], text[at])]++;
        if (steps[i].length > 1)
            distances.frequency[distance_symbol(steps[i].distance, &rest_bits)]++;
    }
    literals.frequency[END]++;
    literals.size = SYMBOLS;
    distances.size = DISTANCES;
    make_code(&literals);
    make_code(&distances);
    struct bits out = {packed, 0, 0};
    put_code(&out, &literals);
    put_code(&out, &distances);
    at = 0;
    for (int i = 0; i < count; at += steps[i++].length) {
        put_symbol(&out, &literals, literal_symbol(steps[i], text[at]));
        if (steps[i].length > 1) {
            put_symbol(&out, &distances, distance_symbol(steps[i].distance, &rest_bits));
            put_bits(&out, steps[i].distance & ((1u << rest_bits) - 1), rest_bits);
        }
    }
    put_symbol(&out, &literals, END);
    flush_bits(&out);
    return (uint64_t)(out.at - packed);
}

static uint64_t expand(void)
{
    struct bits in = {packed, 0, 0};
    uint64_t at = 0;
    get_code(&in, &literals);
    get_code(&in, &distances);
    for (;;) {
        int symbol = get_symbol(&in, &literals);
        if (symbol == END)
            return at;
        if (symbol < END) {
            expanded[at++] = (uint8_t)symbol;
            continue;
        }
        int length = symbol - END - 1 + SHORTEST, code = get_symbol(&in, &distances);
        uint32_t distance = 1;
        if (code > 0) {
            int power = (code + 1) / 2;
            distance = (2u | (uint32_t)((code + 1) & 1)) << (power - 1) | get_bits(&in, power - 1);
        }
        for (; length > 0; length--, at++)
            expanded[at] = expanded[at - distance];
    }
}

uint64_t run(uint64_t n, uint64_t *first, uint64_t *second)
{
    (void)first;
    (void)second;
    uint64_t sum = 1;
    random_state = 88172645463325252u;
    while (n > 0) {
        uint64_t size = n < BLOCK ? n : BLOCK;
        make_text(size);
        uint64_t packed_size = compress(size);
        sum = mix(sum, packed_size);
        for (uint64_t i = 0; i < packed_size; i++)
            sum = mix(sum, packed[i]);
        uint64_t wrong = expand() != size;
        for (uint64_t i = 0; i < size; i++)
            wrong += expanded[i] != text[i];
        if (wrong > 0)
            return wrong;
        n -= size;
    }
    return sum;
}
