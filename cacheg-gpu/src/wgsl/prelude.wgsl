// What every program begins with: memory, and what the stages' texts may use (cacheg-core's `kernel` module).

struct Window {
    // Records in `table`, word numbers.
    runs: u32,
    segments: u32,
    tiles: u32,
    pieces: u32,
    escapes: u32,
    // How many there are.
    run_count: u32,
    piece_count: u32,
    escape_count: u32,
    // The number of the dispatch that takes the runs further.
    round: u32,
    // The first piece of the dispatch.
    first_piece: u32,
    // 0: [heads, tokens, head_dim], 1: [tokens, heads, head_dim].
    order: u32,
    // Where in `scratch` a word for each escape says whether its symbol was found.
    marks: u32,
    // Records: of each plane its channels, and those of the planes before it; how graded symbols are arranged.
    planes: u32,
    orders: u32,
    // Where in `scratch` values are that others are predicted from.
    kept: u32,
    unused: u32,
    // Where the parameters of each stage begin in `data`, four to a vector.
    stages: array<vec4<u32>, 4>,
}

@group(0) @binding(0) var<uniform> window: Window;
// Coded tiles, each at a multiple of four bytes.
@group(0) @binding(1) var<storage, read> payload: array<u32>;
// Records of runs, segments, tiles …
@group(0) @binding(2) var<storage, read> table: array<u32>;
// The stages' parameters.
@group(0) @binding(3) var<storage, read> data: array<u32>;
// Symbols, as the coder likes them.
@group(0) @binding(4) var<storage, read_write> scratch: array<u32>;
@group(0) @binding(5) var<storage, read_write> states: array<u32>;
// Elements are `output`, binding 6.
// One word for each tile: what is wrong with it.
@group(0) @binding(7) var<storage, read_write> faults: array<atomic<u32>>;

// Workgroups side by side: dispatches have rows of so many.
const PER_ROW: u32 = 32768u;

const FAULT_SHORT: u32 = 1u;
const FAULT_END: u32 = 2u;
const FAULT_ALPHABET: u32 = 4u;
const FAULT_ESCAPE: u32 = 8u;
const FAULT_VALUE: u32 = 16u;
const FAULT_SCALE: u32 = 32u;
const FAULT_STAGE: u32 = 64u;

fn fault(tile: u32, code: u32) {
    atomicOr(&faults[tile], code);
}

// A plane of a tile.
struct Piece {
    // First segments of its parts.
    parts: vec4<u32>,
    tile: u32,
    plane: u32,
    // Where its plane is in `output`, in words.
    output: u32,
    heads: u32,
    dim: u32,
    dtype: u32,
    rows: u32,
    // Which row of the output's plane its first one is, and how many rows the plane has.
    first: u32,
    capacity: u32,
    // The position of its first row in the context: low half, high half.
    position: vec2<u32>,
    // Where among `orders` it is said how its symbols are arranged.
    order: u32,
    // Where among the values that are kept those of its rows begin, plane after plane.
    kept: u32,
}

const PIECE_WORDS: u32 = 17u;

// The one that the invocation works on.
var<private> piece: Piece;

fn enter_piece(number: u32) {
    let at = window.pieces + PIECE_WORDS * number;
    piece = Piece(
        vec4<u32>(table[at], table[at + 1u], table[at + 2u], table[at + 3u]),
        table[at + 4u], table[at + 5u], table[at + 6u], table[at + 7u], table[at + 8u], table[at + 9u],
        table[at + 10u], table[at + 11u], table[at + 12u], vec2<u32>(table[at + 13u], table[at + 14u]),
        table[at + 15u], table[at + 16u],
    );
    enter_stages(piece.plane);
}

// A value that a stage is asked for: row and column of a part of a plane in a tile.
struct Place {
    plane: u32,
    part: u32,
    row: u32,
    col: u32,
    tile: u32,
}

fn in_part(p: Place, part: u32, row: u32) -> Place {
    return Place(p.plane, part, row, p.col, p.tile);
}

fn in_col(p: Place, col: u32) -> Place {
    return Place(p.plane, p.part, p.row, col, p.tile);
}

// Of the whole plane, as the first transform is asked for it.
fn piece_place(row: u32, col: u32) -> Place {
    return Place(piece.plane, 0u, row, col, piece.tile);
}

// Position of a row of the tile in the context: low half, high half.
fn position(p: Place) -> vec2<u32> {
    let low = piece.position.x + p.row;
    return vec2<u32>(low, piece.position.y + select(0u, 1u, low < p.row));
}

// Where the elements from a channel of a head and row of the piece are in `output`; `each` of them make a word.
fn output_word(head: u32, row: u32, channel: u32, each: u32) -> u32 {
    let there = piece.first + row;
    let line = select(head * piece.capacity + there, there * piece.heads + head, window.order == 1u);
    return piece.output + (line * piece.dim + channel) / each;
}

const SEGMENT_WORDS: u32 = 11u;

fn segment_word(segment: u32, word: u32) -> u32 {
    return table[window.segments + SEGMENT_WORDS * segment + word];
}

fn segment_rows(segment: u32) -> u32 {
    return segment_word(segment, 0u);
}

fn segment_cols(segment: u32) -> u32 {
    return segment_word(segment, 1u);
}

// Address of its side information.
fn segment_side(segment: u32) -> u32 {
    return segment_word(segment, 2u);
}

fn segment_scratch(segment: u32) -> u32 {
    return segment_word(segment, 3u);
}

// The coder's own word.
fn segment_own(segment: u32) -> u32 {
    return segment_word(segment, 4u);
}

// The number of its first symbol in the tile.
fn segment_first(segment: u32) -> u32 {
    return segment_word(segment, 5u);
}

fn segment_alphabet(segment: u32) -> u32 {
    return segment_word(segment, 6u);
}

fn segment_tile(segment: u32) -> u32 {
    return segment_word(segment, 7u);
}

// The number of its piece.
fn segment_piece(segment: u32) -> u32 {
    return segment_word(segment, 8u);
}

// Its part; and, in the next bits, whether its values are complete with it, and whether later segments ask for it.
fn segment_flags(segment: u32) -> u32 {
    return segment_word(segment, 9u);
}

// Address of the tile's stream.
fn segment_stream(segment: u32) -> u32 {
    return segment_word(segment, 10u);
}

const SEGMENT_COMPLETE: u32 = 16u;
const SEGMENT_KEPT: u32 = 32u;

// The tile's escapes: the first, and the one behind the last.
const TILE_WORDS: u32 = 2u;

// The first segment of a place's part.
fn segment_of(p: Place) -> u32 {
    return piece.parts[p.part];
}

// Where a place's symbol is: in which segment, and where in it.
struct Coded {
    segment: u32,
    row: u32,
    col: u32,
}

// A byte of the payload.
fn payload_byte(address: u32) -> u32 {
    return (payload[address >> 2u] >> (8u * (address & 3u))) & 0xffu;
}

// Two bytes.
fn payload_u16(address: u32) -> u32 {
    let shift = 8u * (address & 3u);
    var both = payload[address >> 2u] >> shift;
    if shift == 24u {
        both |= payload[(address >> 2u) + 1u] << 8u;
    }
    return both & 0xffffu;
}

fn side_byte(p: Place, index: u32) -> u32 {
    return payload_byte(segment_side(segment_of(p)) + index);
}

fn side_u16(p: Place, index: u32) -> u32 {
    return payload_u16(segment_side(segment_of(p)) + 2u * index);
}

fn scratch_get(segment: u32, index: u32) -> u32 {
    return scratch[segment_scratch(segment) + index];
}

fn scratch_set(segment: u32, index: u32, word: u32) {
    scratch[segment_scratch(segment) + index] = word;
}

// What an escape at this place stands for.
fn escape(p: Place) -> f32 {
    let at = coded(p);
    let segment = at.segment;
    let wanted = segment_first(segment) + at.row * segment_cols(segment) + at.col;
    let tile = window.tiles + TILE_WORDS * p.tile;
    var low = table[tile];
    var high = table[tile + 1u];
    while low < high {
        let middle = low + (high - low) / 2u;
        let index = table[window.escapes + ESCAPE_WORDS * middle];
        if index == wanted {
            escape_found(segment, p, middle);
            return bitcast<f32>(table[window.escapes + ESCAPE_WORDS * middle + 1u]);
        }
        if index < wanted {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    fault(p.tile, FAULT_ESCAPE);
    return 0.0;
}

const ESCAPE_WORDS: u32 = 4u;

struct Run {
    index: u32,
    tile: u32,
    // Its bytes in the payload.
    begin: u32,
    bytes: u32,
    segment: u32,
    segments: u32,
    own: u32,
    units: u32,
    first: u32,
    end: u32,
}

const RUN_WORDS: u32 = 8u;

fn run_at(index: u32) -> Run {
    let at = window.runs + RUN_WORDS * index;
    let units = table[at + 5u];
    let step = table[at + 6u];
    let first = min(window.round * step, units);
    return Run(
        index, table[at + 7u], table[at], table[at + 1u], table[at + 2u], table[at + 3u], table[at + 4u],
        units, first, min(first + step, units),
    );
}

fn state(run: Run, index: u32) -> u32 {
    return states[run.index * STATE_WORDS + index];
}

fn set_state(run: Run, index: u32, word: u32) {
    states[run.index * STATE_WORDS + index] = word;
}

const F16: u32 = 0u;
const BF16: u32 = 1u;
const F32: u32 = 2u;
const E4M3: u32 = 3u;
const E5M2: u32 = 4u;

fn size_of(dtype: u32) -> u32 {
    switch dtype {
        case F16, BF16: { return 2u; }
        case F32: { return 4u; }
        default: { return 1u; }
    }
}

// A number with `exponent_bits` and `mantissa_bits` below its sign, exactly, in integers: subnormals must not be flushed.
fn widen_ieee(bits: u32, exponent_bits: u32, mantissa_bits: u32) -> u32 {
    let sign = (bits >> (exponent_bits + mantissa_bits)) << 31u;
    let mantissa = bits & ((1u << mantissa_bits) - 1u);
    let top = (1u << exponent_bits) - 1u;
    let exponent = (bits >> mantissa_bits) & top;
    let bias = top >> 1u;
    if exponent == top {
        return sign | 0x7f800000u | (mantissa << (23u - mantissa_bits));
    }
    if exponent == 0u {
        if mantissa == 0u {
            return sign;
        }
        let shift = countLeadingZeros(mantissa) - 8u;
        let scale = 127u - bias + 1u + 23u - mantissa_bits - shift;
        return sign | (scale << 23u) | ((mantissa << shift) & 0x7fffffu);
    }
    return sign | ((exponent + 127u - bias) << 23u) | (mantissa << (23u - mantissa_bits));
}

fn widen(dtype: u32, bits: u32) -> f32 {
    switch dtype {
        case F16: { return bitcast<f32>(widen_ieee(bits, 5u, 10u)); }
        case BF16: { return bitcast<f32>(bits << 16u); }
        case F32: { return bitcast<f32>(bits); }
        case E5M2: { return bitcast<f32>(widen_ieee(bits << 8u, 5u, 10u)); }
        default: {
            // No infinities; the top mantissa of the top exponent is a NaN.
            if (bits & 0x7fu) == 0x7fu {
                return bitcast<f32>(((bits & 0x80u) << 24u) | 0x7fc00000u);
            }
            if (bits & 0x78u) == 0x78u {
                return bitcast<f32>(((bits & 0x80u) << 24u) | (135u << 23u) | ((bits & 7u) << 20u));
            }
            return bitcast<f32>(widen_ieee(bits, 4u, 3u));
        }
    }
}

// To nearest, ties to even; what is beyond the range saturates.
fn narrow_ieee(x: u32, exponent_bits: u32, mantissa_bits: u32, largest: u32) -> u32 {
    let sign = (x >> 31u) << (exponent_bits + mantissa_bits);
    let a = x & 0x7fffffffu;
    let bias = (1u << (exponent_bits - 1u)) - 1u;
    let least = 127u - bias + 1u;
    let exponent = a >> 23u;
    var drop = 23u - mantissa_bits;
    var mantissa = a;
    var base = (127u - bias) << mantissa_bits;
    if exponent < least {
        // A subnormal: the leading one becomes explicit and further bits are dropped.
        let more = least - exponent;
        if more > mantissa_bits + 1u || exponent == 0u {
            return sign;
        }
        mantissa = (a & 0x7fffffu) | 0x800000u;
        drop += more;
        base = 0u;
    }
    let rounded = (mantissa + (1u << (drop - 1u)) - 1u + ((mantissa >> drop) & 1u)) >> drop;
    return sign | min(rounded - base, largest);
}

fn narrow(dtype: u32, value: f32) -> u32 {
    let x = bitcast<u32>(value);
    let a = x & 0x7fffffffu;
    switch dtype {
        case F16: { return narrow_ieee(x, 5u, 10u, 0x7bffu); }
        case BF16: {
            let rounded = (a + 0x7fffu + ((a >> 16u) & 1u)) >> 16u;
            return ((x >> 16u) & 0x8000u) | min(rounded, 0x7f7fu);
        }
        case F32: { return x; }
        case E5M2: { return narrow_ieee(x, 5u, 2u, 0x7bu); }
        default: { return narrow_ieee(x, 4u, 3u, 0x7eu); }
    }
}
