// The products of prefill: what a block multiplies, whatever the format of the weights is.

enum {
    BLOCK_TILES = 8, // rows of tiles of weights, and of activations, that a block multiplies
    STEP_TILES = 2,  // of K at a time
    STAGES = 4,      // steps under way
    INPUT_STAGE_BYTES = BLOCK_TILES * STEP_TILES * TILE_BYTES, // of activations
    WARP_ROWS = 4,    // rows of tiles of weights that a warp multiplies
    WARP_COLUMNS = 4, // and of activations
    COLUMN_WARPS = BLOCK_TILES / WARP_COLUMNS,
    PRODUCT_WARPS = BLOCK_TILES / WARP_ROWS * COLUMN_WARPS,
    PRODUCT_THREADS = PRODUCT_WARPS * WARP,
};

// Matrix and activations of a product. K is passed once for each pair of their parts: planes of the
// weights, high and low parts of the activations.
struct product {
    const char *weights, *input; //
    int row_tiles, column_tiles; // of the weights; column_tiles: K / 16, filled up
    int input_parts;             // 1: bf16, 2: high and low parts, one behind the other in a row
    int columns;                 //
};
