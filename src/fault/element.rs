//! Single elements: read, written, and forced through coarser types.

use half::{bf16, f16};

use crate::model::Dtype;
/// The value of an element, little-endian.
pub(super) fn read(dtype: Dtype, bytes: &[u8]) -> f32 {
    match dtype {
        Dtype::Bfloat16 => bf16::from_le_bytes(exact(bytes)).to_f32(),
        Dtype::Float16 => f16::from_le_bytes(exact(bytes)).to_f32(),
        Dtype::Float32 => f32::from_le_bytes(exact(bytes)),
    }
}

/// Writes a value, rounded to the nearest of the type.
pub(super) fn write(dtype: Dtype, value: f32, bytes: &mut [u8]) {
    match dtype {
        Dtype::Bfloat16 => bytes.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        Dtype::Float16 => bytes.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        Dtype::Float32 => bytes.copy_from_slice(&value.to_le_bytes()),
    }
}

/// Bits of the fraction, below the exponent.
pub(super) fn fraction_bits(dtype: Dtype) -> usize {
    match dtype {
        Dtype::Bfloat16 => 7,
        Dtype::Float16 => 10,
        Dtype::Float32 => 23,
    }
}

/// The value that an element of 16 bits has when it is taken for the other 16-bit type.
pub(super) fn reinterpret(dtype: Dtype, bytes: &[u8]) -> f32 {
    match dtype {
        Dtype::Bfloat16 => f16::from_le_bytes(exact(bytes)).to_f32(),
        Dtype::Float16 => bf16::from_le_bytes(exact(bytes)).to_f32(),
        Dtype::Float32 => f32::from_le_bytes(exact(bytes)),
    }
}

/// The nearest number of the type FP8 E4M3 (OCP 8-bit floating point, revision 1.0): 4 bits of exponent with bias 7, 3 bits
/// of fraction, at most 448.
pub(super) fn round_to_e4m3(value: f32) -> f32 {
    let magnitude = value.abs().min(448.0);
    // Steps are an eighth of the power of two below the value, and no finer than 2⁻⁹.
    let exponent = if magnitude > 0.0 { magnitude.log2().floor().max(-6.0) } else { -6.0 };
    let step = (exponent - 3.0).exp2();
    ((magnitude / step).round_ties_even() * step).min(448.0).copysign(value)
}

fn exact<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("an element has its type's bytes")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // OCP 8-bit floating point specification, revision 1.0, table 1 and its neighbours.
    #[test]
    fn e4m3_has_its_published_numbers() {
        let rounded = [448.0, 1e9, 0.0, 0.001_953_125, 0.0009, 1.06, 1.07, -17.0, 0.0176].map(round_to_e4m3);
        let published = [448.0_f32, 448.0, 0.0, 0.001_953_125, 0.0, 1.0, 1.125, -16.0, 0.017_578_125];
        assert_eq!(rounded.map(f32::to_bits), published.map(f32::to_bits));
    }

    proptest! {
        #[test]
        fn rounding_to_e4m3_keeps_its_own_numbers(value in -500.0_f32..500.0) {
            let rounded = round_to_e4m3(value);
            prop_assert_eq!(round_to_e4m3(rounded).to_bits(), rounded.to_bits());
            prop_assert!(value.abs() > 448.0 || (rounded - value).abs() <= (value.abs() / 16.0).max(0.001));
        }

        #[test]
        fn a_written_element_is_read_again(value in -1e4_f32..1e4) {
            for (dtype, relative) in [(Dtype::Bfloat16, 0.004), (Dtype::Float16, 0.001), (Dtype::Float32, 0.0)] {
                let mut bytes = vec![0; if dtype == Dtype::Float32 { 4 } else { 2 }];
                write(dtype, value, &mut bytes);
                prop_assert!((read(dtype, &bytes) - value).abs() <= value.abs() * relative + 1e-4 * relative);
            }
        }
    }
}
