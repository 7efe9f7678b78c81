// Where weights go: what a placement says, and the move of one tensor into the pack.
#include "round_bf16.h"

// Tiles hold [rows, columns], of bf16 or of quants; a transposed tensor is stored [columns, rows];
// a vector as fp32.
enum tensor_kind { TENSOR_MATRIX, TENSOR_INT8, TENSOR_INT4, TENSOR_TRANSPOSED, TENSOR_VECTOR };

// Which row of the pack's matrix a tensor's row becomes.
enum row_map {
    ROWS_PLAIN,  // first + row
    ROWS_ROTARY, // dimensions i and i + head_dim/2 of a head: rows r and r + 8 of one tile
    ROWS_UPPER,  // rows 0-7 of tile after tile
    ROWS_LOWER,  // rows 8-15
};

enum column_map {
    COLUMNS_PLAIN,
    COLUMNS_STREAMS, // feature-major, stream-minor in the checkpoint; stream after stream in the
                     // pack
};

// One kind of checkpoint tensor: `count` tensors (%d in the name is the layer), `stride` bytes
// apart in the pack, each of `blocks` matrices [rows, columns], block_stride bytes apart.
struct placement {
    const char *name;
    // Moves one tensor of a layer from its source to the pack; row: room for [columns].
    int (*place)(const struct placement *placement, int layer, struct source *source,
                 bool interleaved, char *pack, float *row, struct error *error);
    enum tensor_kind kind;
    int count;
    size_t stride, offset;
    int blocks;
    size_t block_stride;
    int rows, columns;
    int row_tiles_apart;   // tiles from one row of tiles to the next
    int plane_tiles_apart; // tiles from one plane to the next
    enum row_map row_map;
    int first; // ROWS_PLAIN: row; ROWS_ROTARY: pair
    enum column_map column_map;
    int streams;
    float mean, deviation; // of random weights
};
static size_t placed_row(const struct placement *placement, size_t row) {
    const size_t half = HEAD_DIM / 2;
    size_t pair = row, lower = placement->row_map == ROWS_LOWER;
    switch (placement->row_map) {
    case ROWS_PLAIN:
        return (size_t)placement->first + row;
    case ROWS_ROTARY:
        pair = (size_t)placement->first + row / HEAD_DIM * half + row % half;
        lower = row % HEAD_DIM >= half;
        break;
    case ROWS_UPPER:
    case ROWS_LOWER:
        break;
    }
    return pair / 8 * TILE + pair % 8 + lower * 8;
}

static size_t placed_column(const struct placement *placement, size_t column) {
    if (placement->column_map == COLUMNS_PLAIN)
        return column;
    size_t streams = (size_t)placement->streams, features = (size_t)placement->columns / streams;
    return column % streams * features + column / streams;
}

// Row of a llama GGUF's q or k (rotary pairs interleaved: 2i, 2i + 1) to the published order.
static size_t undo_interleaving(size_t row) {
    size_t i = row % HEAD_DIM;
    return row / HEAD_DIM * HEAD_DIM + i / 2 + i % 2 * (HEAD_DIM / 2);
}

// Head_dim is even and `row % half` above folds i and i + half to one pair: row_map needs both.
_Static_assert(HEAD_DIM % 2 == 0, "rotary pairs");

static float stored_vector_value(float value) {
    return VECTORS_ROUNDED ? bf16_to_float(float_to_bf16(value)) : value;
}

// Stores one source row of `row` in block `base`.
static void place_row(const struct placement *placement, char *base, size_t row,
                      const float *values) {
    if (placement->kind == TENSOR_VECTOR) {
        ((float *)base)[placed_row(placement, row)] = stored_vector_value(values[0]);
        return;
    }
    uint16_t *tiles = (uint16_t *)base;
    for (size_t c = 0; c < (size_t)placement->columns; c++) {
        size_t r = placed_row(placement, row), k = placed_column(placement, c);
        if (placement->kind == TENSOR_TRANSPOSED) {
            r = c;
            k = row;
        }
        size_t tile = r / TILE * (size_t)placement->row_tiles_apart + k / TILE;
        float value = values[c];
        for (size_t plane = 0; plane < WEIGHT_PLANES; plane++) {
            uint16_t bits = float_to_bf16(value);
            tiles[(tile + plane * (size_t)placement->plane_tiles_apart) * TILE_ELEMENTS +
                  tile_index(r % TILE, k % TILE)] = bits;
            value -= bf16_to_float(bits);
        }
    }
}

// Places a tensor as fp32 or in bf16 tiles.
static int place_tensor(const struct placement *placement, int layer, struct source *source,
                        bool interleaved, char *pack, float *row_buffer, struct error *error) {
    char *base = pack + placement->offset + (size_t)layer * placement->stride;
    size_t rows = (size_t)placement->rows, columns = (size_t)placement->columns;
    for (size_t block = 0; block < (size_t)placement->blocks; block++) {
        for (size_t row = 0; row < rows; row++) {
            uint64_t first = (block * rows + row) * columns;
            int code = source_read(source, first, columns, row_buffer, error);
            if (code)
                return code;
            place_row(placement, base + block * placement->block_stride,
                      interleaved ? undo_interleaving(row) : row, row_buffer);
        }
    }
    return EXIT_OK;
}

#include "placements.h"

enum { PLACEMENT_COUNT = sizeof PLACEMENTS / sizeof *PLACEMENTS };
