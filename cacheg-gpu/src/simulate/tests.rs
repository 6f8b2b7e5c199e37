//! The machine on small programs.

use super::counts::Counts;
use super::machine::Machine;

/// A machine that has run `main` once, on a buffer 0 of these words.
fn run(body: &str, words: Vec<u32>, groups: u32) -> Result<Machine, String> {
    let mut machine =
        Machine::new(&format!("@group(0) @binding(0) var<storage, read_write> b: array<u32>;\n{body}"))
            .map_err(|error| error.to_string())?;
    machine.set(0, 0, words);
    machine.dispatch("main", [groups, 1, 1]).map_err(|error| error.to_string())?;
    Ok(machine)
}

/// A program of 32 invocations; `i` is each one's number.
fn lanes(text: &str) -> String {
    format!("@compute @workgroup_size(32) fn main(@builtin(local_invocation_index) i: u32) {{ {text} }}")
}

fn done(text: &str, words: usize) -> Machine {
    let machine = run(&lanes(text), vec![0; words], 1).unwrap();
    assert_eq!((machine.out_of_bounds, machine.races, machine.unordered), (0, 0, 0), "{text}");
    machine
}

/// What each of 32 lanes computes.
fn each(value: &str) -> Vec<u32> {
    done(&format!("b[i] = {value};"), 32).words(0, 0).to_vec()
}

fn first(value: &str) -> u32 {
    each(value)[0]
}

fn counts(machine: &Machine) -> &Counts {
    &machine.passes["main"]
}

#[test]
fn barriers_separate() {
    let text = "var<workgroup> w: array<atomic<u32>, 3>; var<private> turn: u32;
        fn f(i: u32) -> u32 { atomicOr(&w[turn], 1u << i); let t = turn; turn = select(t + 1u, 0u, t == 2u);
            if i == 0u { atomicStore(&w[turn], 0u); } workgroupBarrier(); return atomicLoad(&w[t]); }
        @compute @workgroup_size(32) fn main(@builtin(local_invocation_index) i: u32) {
            for (var k = 0u; k < 7u; k++) { b[i] = f(i); } }";
    let machine = run(text, vec![0; 32], 1).unwrap();
    assert_eq!((machine.races, machine.unordered), (0, 0));
}

#[test]
fn integers() {
    assert_eq!(each("i * i - 3u")[31], 958);
    assert_eq!((first("7u / i"), first("7u % i"), first("i - 1u")), (7, 0, u32::MAX));
    let i32s = |text: &str| first(&format!("bitcast<u32>({text})")).cast_signed();
    assert_eq!(i32s("(i32(i) - 7) / 2"), -3);
    assert_eq!(i32s("(i32(i) - 7) % 4"), -3);
    assert_eq!(i32s("(i32(i) - 2147483647 - 1) / (i32(i) - 1)"), i32::MIN);
    assert_eq!(i32s("(i32(i) - 8) >> (i + 1u)"), -4);
    assert_eq!(i32s("sign(i32(i) - 5) + abs(i32(i) - 5)"), 4);
    assert_eq!(each("1u << (i + 1u)")[30..], [1 << 31, 1]);
    assert_eq!(each("u32(i > 3u && i <= 5u)").iter().sum::<u32>(), 2);
    assert_eq!(each("select(i, 100u, i == 2u)")[1..4], [1, 100, 3]);
    assert_eq!(each("min(max(i, 4u), 6u) * 10u + clamp(i, 1u, 2u)")[4..7], [42, 52, 62]);
}

#[test]
fn bits() {
    assert_eq!(each("countLeadingZeros(i)")[..5], [32, 31, 30, 30, 29]);
    assert_eq!(each("countTrailingZeros(i)")[..5], [32, 0, 1, 0, 2]);
    assert_eq!(each("firstLeadingBit(i)")[..5], [u32::MAX, 0, 1, 1, 2]);
    assert_eq!(first("bitcast<u32>(firstLeadingBit(i32(i) - 5))"), 2);
    assert_eq!(each("firstTrailingBit(i)")[..3], [u32::MAX, 0, 1]);
    assert_eq!(each("countOneBits(i) + (reverseBits(i) >> 31u)")[..4], [0, 2, 1, 3]);
    assert_eq!(first("extractBits(i + 0xabcdu, 4u, 8u)"), 0xbc);
    assert_eq!(first("bitcast<u32>(extractBits(i32(i) + 0xab, 4u, 4u))"), 0xffff_fffa);
    assert_eq!(first("extractBits(i + 7u, 40u, 8u) + extractBits(i + 7u, 0u, 40u)"), 7);
    assert_eq!(first("insertBits(i + 0xffffu, 0u, 4u, 8u)"), 0xf00f);
    assert_eq!(first("dot4U8Packed(i + 0x01020304u, 0x01010101u)"), 10);
}

#[test]
fn floats() {
    let f32s = |text: &str| f32::from_bits(first(&format!("bitcast<u32>({text})")));
    // The product is rounded before it is added.
    let a = 1.0 + f32::EPSILON;
    assert_eq!(f32s("(f32(i) + 1.00000011920928955078125) * 1.00000011920928955078125 - 1.0"), a * a - 1.0);
    assert_eq!(f32s("bitcast<f32>(i + 1u) + bitcast<f32>(i + 2u)").to_bits(), 3);
    assert_eq!(f32s("round(f32(i) + 2.5) + floor(f32(i) - 0.5) + trunc(f32(i) - 1.5)"), 0.0);
    assert_eq!(f32s("exp2(f32(i) + 3.0) + log2(f32(i) + 8.0) + sqrt(f32(i) + 16.0)"), 15.0);
    assert_eq!(f32s("dot(vec3(f32(i) + 1.0, 2.0, 3.0), vec3(4.0, 5.0, 6.0))"), 32.0);
    assert_eq!(f32s("fma(f32(i) + 2.0, 3.0, 4.0) + clamp(f32(i), 1.0, 2.0)"), 11.0);
    assert_eq!((first("u32(f32(i) - 5.0)"), first("u32(f32(i) + 5e9)")), (0, u32::MAX));
    assert_eq!(first("bitcast<u32>(i32(f32(i) - 2.7))").cast_signed(), -2);
    assert_eq!(first("u32(f32(i) / f32(i) == f32(i) / f32(i))"), 0);
}

#[test]
fn vectors_structures_and_arrays() {
    assert_eq!(first("dot(vec4<u32>(i, 1u, 2u, 3u).wzyx, vec4(1u, 2u, 3u, 4u))"), 10);
    let machine = done(
        "var v = vec4<u32>(i, 1u, 2u, 3u); v[i & 3u] = 9u; v.y += 1u; var a = array<vec2<u32>, 3>();
         a[i % 3u].y = v[(i + 1u) & 3u]; let c = a; b[i] = c[i % 3u].y * 100u + v[i & 3u];",
        32,
    );
    assert_eq!(machine.words(0, 0)[..4], [209, 210, 309, 309]);
    let text = "struct S { x: u32, y: vec4<u32> } struct U { n: u32, s: array<S, 2> }
        @group(1) @binding(3) var<storage> u: U; const T = array<u32, 3>(5u, 6u, 7u); override o = 3u;
        fn put(p: ptr<function, u32>, to: u32) { *p = to; }
        @compute @workgroup_size(8, 4) fn main(@builtin(local_invocation_id) l: vec3<u32>,
            @builtin(workgroup_id) w: vec3<u32>, @builtin(global_invocation_id) g: vec3<u32>) {
            var x = 0u; put(&x, u.s[l.y & 1u].y[1]); let s = u.s[1];
            b[8u * l.y + l.x] = x + s.x * 100u + T[l.x % 3u] * 1000u + o * 10000u; b[32] = arrayLength(&b); }";
    let mut machine =
        Machine::new(&format!("@group(0) @binding(0) var<storage, read_write> b: array<u32>;\n{text}"))
            .unwrap();
    machine.set(0, 0, vec![0; 40]);
    machine.set(1, 3, vec![0, 0, 0, 0, 1, 0, 0, 0, 2, 3, 0, 0, 4, 0, 0, 0, 5, 6, 0, 0]);
    machine.dispatch("main", [1, 1, 1]).unwrap();
    let words = machine.words(0, 0);
    assert_eq!((words[0], words[9], words[32]), (35_403, 36_406, 40));
}

#[test]
fn lanes_go_their_own_ways() {
    let text = "var sum = 0u;
        for (var k = 0u; k < i; k++) { if k == 3u { continue; } if k > 5u { break; } sum += k; }
        loop { sum += 100u; continuing { sum += 1000u; break if sum > 2000u + i; } }
        switch i { case 0u: { sum = 1u; } case 1u, 2u: { if i == 2u { break; } sum = 2u; } default: { sum += 1u; } }
        while i == 7u && sum < 9999u { sum = 9999u; }
        b[i] = sum;";
    let expected: Vec<u32> = (0..32u32)
        .map(|i| match i {
            0 => 1,
            1 => 2,
            7 => 9999,
            _ => (0..i).filter(|k| *k != 3 && *k <= 5).sum::<u32>() + 2200 + u32::from(i != 2),
        })
        .collect();
    assert_eq!(done(text, 32).words(0, 0), expected);
    let text = "fn f(i: u32) -> u32 { if i < 4u { return i; } for (var k = 0u; ; k++) { if k * k >= i { return k; } } return 99u; }
        @compute @workgroup_size(32) fn main(@builtin(local_invocation_index) i: u32) { if i == 31u { return; } b[i] = f(i); }";
    let machine = run(text, vec![77; 32], 1).unwrap();
    assert_eq!((machine.words(0, 0)[3], machine.words(0, 0)[17], machine.words(0, 0)[31]), (3, 5, 77));
}

#[test]
fn lanes_tell_each_other() {
    assert_eq!(first("subgroupBallot(i % 3u == 0u).x"), 0x4924_9249);
    assert_eq!(each("subgroupShuffle(i * 2u, 31u - i)")[..2], [62, 60]);
    assert_eq!(each("subgroupShuffleXor(i, 5u)")[..2], [5, 4]);
    assert_eq!(each("select(subgroupShuffleUp(i, 2u), 0u, i < 2u)")[..4], [0, 0, 0, 1]);
    assert_eq!(first("subgroupShuffleDown(vec2(i, 7u), 2u).x + subgroupBroadcast(i, 9u)"), 11);
    assert_eq!(first("subgroupAdd(i) + subgroupMax(i) + subgroupBroadcastFirst(i)"), 527);
    assert_eq!(each("subgroupExclusiveAdd(i) * 1000u + subgroupInclusiveAdd(i)")[4], 6_010);
    assert_eq!(first("u32(subgroupAll(i < 32u)) + u32(subgroupAny(i == 40u))"), 1);
    // 64 invocations are two subgroups.
    let text = "@compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32,
        @builtin(subgroup_invocation_id) l: u32, @builtin(subgroup_size) s: u32) { b[i] = subgroupAdd(i) + l + s; }";
    let machine = run(text, vec![0; 64], 1).unwrap();
    assert_eq!((machine.words(0, 0)[1], machine.words(0, 0)[33]), (496 + 33, 1520 + 33));
    let counted = counts(&machine);
    assert_eq!((counted.subgroup_ops, counted.divergent_subgroup_ops), (2, 0));
    let machine = done("if i < 7u { b[i] = subgroupBallot(true).x; }", 32);
    assert_eq!((machine.words(0, 0)[0], counts(&machine).divergent_subgroup_ops), (0x7f, 1));
    // Who has returned is not missed.
    let machine = done("if i > 7u { return; } b[i] = subgroupAdd(i);", 32);
    assert_eq!((machine.words(0, 0)[0], counts(&machine).divergent_subgroup_ops), (28, 0));
}

const ATOMICS: &str =
    "@group(0) @binding(1) var<storage, read_write> a: array<atomic<u32>>; var<workgroup> w: atomic<i32>;
    @compute @workgroup_size(32) fn main(@builtin(local_invocation_index) i: u32) {
        let old = atomicAdd(&a[0], i); atomicOr(&a[1], 1u << i); atomicMax(&a[2], i); atomicXor(&a[3], i);
        let c = atomicCompareExchangeWeak(&a[4], i, i + 1u); if c.exchanged { atomicAdd(&a[5], 1u); }
        atomicMin(&w, -i32(i)); workgroupBarrier(); b[i] = old + u32(-atomicLoad(&w)) * 1000u; }";

#[test]
fn atomics() {
    let mut machine =
        Machine::new(&format!("@group(0) @binding(0) var<storage, read_write> b: array<u32>;\n{ATOMICS}"))
            .unwrap();
    machine.set(0, 0, vec![0; 32]);
    machine.set(0, 1, vec![0; 6]);
    machine.dispatch("main", [1, 1, 1]).unwrap();
    assert_eq!(machine.words(0, 1), [496, u32::MAX, 31, 0, 32, 32]);
    assert_eq!(machine.words(0, 0)[31], 465 + 31_000);
    assert_eq!((machine.races, machine.unordered), (0, 0));
    let racy = "var<workgroup> w: atomic<u32>; @compute @workgroup_size(32)
        fn main(@builtin(local_invocation_index) i: u32) { atomicStore(&w, i); b[i] = atomicLoad(&w); }";
    assert!(run(racy, vec![0; 32], 1).unwrap().unordered > 0);
}

#[test]
fn what_must_not_be_is_an_error() {
    let fails = |text: &str, wanted: &str| {
        let error = run(text, vec![0; 32], 1).err().unwrap();
        assert!(error.contains(wanted), "{error}");
    };
    fails(&lanes("\nif i < 3u { workgroupBarrier(); }"), "line 3: 3 of 32 invocations are at a barrier");
    fails(&lanes("for (var k = 0u; k < i; k++) { storageBarrier(); }"), "31 of 32");
    fails(&lanes("loop { b[i] += 1u; if b[0] == 0u { break; } }"), "does not end");
    fails(&lanes("b[i] = i +;"), "expected");
    fails(&lanes("let x = i; x = 2u;"), "");
    fails("@compute @workgroup_size(1) fn other() {}", "no entry point `main`");
    fails("@compute @workgroup_size(257) fn main() {}", "more than 256");
    fails(&lanes("b[i] = u32(tan(f32(i)));"), "Tan is not supported");
    fails(
        "@compute @workgroup_size(1) fn main() { var m = mat2x2<f32>(); b[0] = u32(m[0].x); }",
        "not supported",
    );
    // Who has returned need not come.
    done("if i > 3u { return; } workgroupBarrier(); b[i] = i;", 32);
}

#[test]
fn races_are_found() {
    let races = |declarations: &str, text: &str, groups| {
        run(&format!("{declarations} {}", lanes(text)), vec![0; 64], groups).unwrap().races
    };
    let shared = "var<workgroup> w: array<u32, 32>;";
    assert_eq!(races(shared, "w[i] = i; workgroupBarrier(); b[i] = w[31u - i];", 1), 0);
    assert_eq!(races(shared, "w[i] = i; b[i] = w[i];", 1), 0);
    assert_eq!(races(shared, "w[i] = i; b[i] = w[31u - i];", 1), 32);
    assert_eq!(races(shared, "w[i] = i; b[i] = w[i ^ subgroupBroadcastFirst(1u)];", 1), 32);
    assert_eq!(races(shared, "b[i] = w[31u - i]; w[i] = i;", 1), 32);
    assert_eq!(races(shared, "w[0] = 1u;", 1), 31);
    assert_eq!(races(shared, "w[i] = i; storageBarrier(); b[i] = w[31u - i];", 1), 32);
    // Buffers.
    assert_eq!(races("", "b[i] = 1u;", 1), 0);
    assert_eq!(races("", "b[i] = 1u;", 2), 32);
    assert_eq!(races("", "b[i] = 1u; storageBarrier(); b[32u + i] = b[31u - i];", 1), 0);
    assert_eq!(races("", "b[i] = 1u; workgroupBarrier(); b[32u + i] = b[31u - i];", 1), 32);
}

#[test]
fn accesses_outside_are_counted() {
    let outside = |text: &str, words| {
        let machine = run(&lanes(text), vec![5; words], 1).unwrap();
        (machine.out_of_bounds, machine.words(0, 0).to_vec())
    };
    assert_eq!(outside("if i == 0u { b[40] = 1u; b[i + 4u] = b[9]; }", 4), (3, vec![5, 5, 5, 0]));
    assert_eq!(outside("var a = array<u32, 4>(1u, 2u, 3u, 4u); b[i] = a[i];", 32).0, 28);
    assert_eq!(outside("b[i] = vec4(1u, 2u, 3u, 4u)[i];", 32).0, 28);
    assert_eq!(outside("if i == 0u { b[i] = 1u; }", 0), (1, vec![]));
}

#[test]
fn counts_are_exact() {
    // An index and a load, `+`, an index and a store; for half of the lanes, a comparison, an `if`, an index, a store.
    let machine = done("b[i] = b[i] + 1u; if i < 16u { b[i] = 2u; }", 32);
    let counted = counts(&machine);
    assert_eq!((counted.issued, counted.executed), (9, 7 * 32 + 2 * 16));
    let traffic = &counted.bindings[&(0, 0)];
    assert_eq!((traffic.loads, traffic.stores, traffic.bytes_stored), (32, 48, 192));
    assert_eq!((traffic.distinct_read, traffic.distinct_written), (128, 128));
    // Six iterations, of which the last one breaks: one each, `<` and `if`; `+` and `++` for five.
    let machine = done("var x = 0u;\nfor (var k = 0u; k < 5u; k++) { x += i; }\nb[i] = x;", 32);
    let counted = counts(&machine);
    let share = &counted.loops[&3];
    assert_eq!((share.iterations, share.issued, share.executed), (6, 28, 28 * 32));
    assert_eq!((counted.issued, counted.workgroups, counted.dispatches), (30, 1, 1));
    // Nested: what is inside is not counted outside.
    let text = "var x = 0u;\nfor (var k = 0u; k < 2u; k++) {\nfor (var l = 0u; l < 3u; l++) { x += i; }\n}\nb[i] = x;";
    let machine = done(text, 32);
    let loops = &counts(&machine).loops;
    assert_eq!((loops[&3].iterations, loops[&3].issued), (3, 3 * 3 + 2));
    assert_eq!((loops[&4].iterations, loops[&4].issued), (8, 8 * 3 + 6 * 2));
    let text =
        "var v = vec3(i, i, i) + vec3(1u, 2u, 3u); let w = v * 2u; b[i] = dot(v, w); workgroupBarrier();";
    let counted = done(text, 32);
    // 3, 3, 3 + 2, an index and a store, a barrier.
    assert_eq!((counts(&counted).issued, counts(&counted).barriers), (14, 1));
}
