//! What the WGSL twin reads.

use cacheg_core::{Kernel, Rows};

use super::{Bound, Predictor};

pub(super) fn kernel(bound: &Bound) -> Kernel {
    if bound.predictors.iter().all(Option::is_none) {
        let source = "fn $value(p: Place) -> f32 {\n    return $inner(p);\n}";
        return Kernel::new(source, Vec::new()).with_rows(Rows::Same);
    }
    // Where each plane's numbers are; 0 where it is not predicted.
    let mut data = vec![0; bound.predictors.len()];
    for (plane, predictor) in bound.predictors.iter().enumerate() {
        if let Some(predictor) = predictor {
            data[plane] = data.len() as u32;
            put(predictor, &bound.references[plane], &mut data);
        }
    }
    Kernel::new(include_str!("../predict.wgsl"), data).with_rows(Rows::References)
}

fn put(predictor: &Predictor, references: &[usize], data: &mut Vec<u32>) {
    let (rows, cols) = predictor.matrix.dim();
    data.extend([predictor.grid.cast_unsigned(), rows as u32, cols as u32, references.len() as u32]);
    for (reference, width) in references.iter().zip(&predictor.widths) {
        data.extend([*reference as u32, *width as u32]);
    }
    data.extend(predictor.scales.iter().map(|scale| scale.to_bits()));
    data.extend(
        predictor.down.iter().map(|down| (i32::from(down.down) - i32::from(down.up)).cast_unsigned()),
    );
    let byte = |row: usize, col: usize| u32::from(predictor.matrix.number(row, col).cast_unsigned());
    for row in 0..rows {
        data.extend(
            (0..cols).step_by(4).map(|col| (0..4).fold(0, |word, i| word | byte(row, col + i) << (8 * i))),
        );
    }
}
