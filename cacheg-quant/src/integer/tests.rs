use super::*;
use cacheg_core::testkit::Random;

#[test]
fn products_are_sums_of_products() {
    let mut random = Random::new(1);
    for (rows, cols) in [(1, 1), (2, 16), (3, 17), (64, 64), (65, 100), (577, 33)] {
        for wide in [false, true] {
            for count in [1, 2, 4, 5, 9] {
                let numbers: Vec<i8> = (0..rows * cols).map(|_| random.below(256) as u8 as i8).collect();
                let matrix = IntMatrix::new(rows, cols, &numbers);
                let width = matrix.width();
                let mut x = vec![0i32; count * width];
                for row in x.chunks_exact_mut(width) {
                    for x in &mut row[..rows] {
                        let any = random.below(1 << 16) as i32 - (1 << 15);
                        *x = if wide { any.wrapping_mul(77_777) } else { any };
                    }
                }
                let mut short = vec![0; x.len()];
                narrow_to(&x, &mut short);
                let mut out = vec![7; count * cols];
                matrix.product(&x, (!wide).then_some(&short[..]), &mut out);
                for (row, out) in out.chunks_exact(cols).enumerate() {
                    for (col, out) in out.iter().enumerate() {
                        let exact: i64 = (0..rows)
                            .map(|k| i64::from(x[row * width + k]) * i64::from(numbers[k * cols + col]))
                            .sum();
                        assert_eq!(*out, exact as i32, "{rows} × {cols}, row {row}, column {col}");
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn all_kernels_are_the_scalar_one() {
    let mut random = Random::new(2);
    let pairs: Vec<Pairs> =
        (0..37).map(|_| std::array::from_fn(|_| i16::from(random.below(256) as u8 as i8))).collect();
    let x: Vec<i16> = (0..ROWS * 74).map(|_| random.below(1 << 16) as u16 as i16).collect();
    let wide: Vec<i32> = x.iter().map(|x| i32::from(*x)).collect();
    let mut expected = [[0; STRIP]; ROWS];
    product(&wide, &pairs, ROWS, &mut expected);
    let mut kernels = Vec::new();
    if is_x86_feature_detected!("avx2") {
        kernels.push(x86::Kernel::Avx2);
    }
    kernels.extend(x86::Kernel::new());
    for kernel in kernels {
        let mut sums = [[0; STRIP]; ROWS];
        kernel.product(&x, &pairs, ROWS, &mut sums);
        assert_eq!(sums, expected, "{kernel:?}");
    }
}

#[test]
fn grids() {
    let x = [0.5, 1.5, -2.5, 1e20, f32::NEG_INFINITY, f32::NAN, 32_767.0, -32_768.0];
    let mut out = [0; 8];
    assert!(!to_grid(&x, &[1.0; 8], MOST, &mut out));
    assert_eq!(out, [0, 2, -2, MOST, -MOST, 0, 32_767, -32_768]);
    assert!(to_grid(&x[6..], &[1.0; 2], MOST, &mut out[6..]));
    assert!(!to_grid(&[32_768.0], &[1.0], MOST, &mut out) && !to_grid(&[-32_769.0], &[1.0], MOST, &mut out));
    assert_eq!(value(3, 0.25), 0.75);
    assert_eq!(value((1 << 24) + 1, 1.0), (1 << 24) as f32);
    assert_eq!(value(-(1 << 24) - 1, 1.0), -(((1 << 24) + 256) as f32));
    assert_eq!(value(i32::MIN, power(-3)), -((1u32 << 28) as f32));
}

#[test]
fn bytes_are_as_large_as_they_can_be() {
    for scale in [1e-9, 0.013, 1.0, 300.0] {
        let mut bytes = Vec::new();
        let x = [0.7 * scale, -scale, 0.01 * scale];
        let shift = to_bytes(x.into_iter(), &mut bytes);
        assert!((64..=127).contains(&bytes[1].unsigned_abs()), "{bytes:?}");
        for (x, byte) in x.into_iter().zip(&bytes) {
            let error = x - f64::from(*byte) * power_f64(-shift);
            assert!(error.abs() <= 0.5001 * power_f64(-shift));
        }
    }
    let mut bytes = Vec::new();
    assert_eq!(to_bytes([0.0, 0.0].into_iter(), &mut bytes), 0);
    assert_eq!(bytes, [0, 0]);
}

#[test]
fn numbers_are_given_back() {
    for (rows, cols) in [(1, 1), (2, 16), (3, 17), (5, 40)] {
        let numbers: Vec<i8> = (0..rows * cols).map(|i| (i * 37 % 251) as u8 as i8).collect();
        let matrix = IntMatrix::new(rows, cols, &numbers);
        assert_eq!(matrix.dim(), (rows, cols));
        for (index, number) in numbers.iter().enumerate() {
            assert_eq!(matrix.number(index / cols, index % cols), *number);
        }
        // What fills up words of four numbers.
        assert!((cols..cols.next_multiple_of(4)).all(|col| matrix.number(rows - 1, col) == 0));
    }
}
